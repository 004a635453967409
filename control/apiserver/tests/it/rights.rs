//! What users may do with the rights that they have, and no more.

use serde_json::{Value, json};

use crate::client::{Answer, Cluster};

const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
const GROUP: &str = "rbac.authorization.k8s.io";

/// Gives `user` a role, in a namespace or everywhere.
async fn grant(cluster: &Cluster, user: &str, namespace: Option<&str>, role: &str) {
    let place = namespace.map_or("clusterrolebindings".into(), |ns| format!("namespaces/{ns}/rolebindings"));
    let binding = json!({"metadata": {"name": format!("{user}-{role}")},
        "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": GROUP, "kind": "User", "name": user}]});
    cluster.post(&format!("/apis/{GROUP}/v1/{place}"), binding).await.expect(201);
}

async fn role(cluster: &Cluster, name: &str, rules: Value) {
    cluster.post(ROLES, json!({"metadata": {"name": name}, "rules": rules})).await.expect(201);
}

async fn ask(cluster: &Cluster, user: &str, method: &str, path: &str, body: Value) -> Answer {
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let headers = [("impersonate-user", user), ("content-type", kind)];
    cluster.send_with(method, path, &headers, body.to_string()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_in_a_namespace_end_there() {
    let cluster = Cluster::start().await;
    for name in ["a", "b"] {
        cluster.post("/api/v1/namespaces", json!({"metadata": {"name": name}})).await.expect(201);
    }
    role(&cluster, "everything", json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}])).await;
    grant(&cluster, "mallory", Some("a"), "everything").await;
    let object = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "b", "labels": {"x": "y"}}});
    for (method, path) in [
        ("GET", "/api/v1/namespaces/a/namespaces/b"),
        ("GET", "/api/v1/namespaces/a/namespaces/a"),
        ("GET", "/api/v1/namespaces/a/%6eamespaces/b"),
        ("GET", "/api/v1/namespaces/a/namespaces/b/status"),
        ("GET", "/api/v1/namespaces/a/namespaces"),
        ("GET", "/api/v1/namespaces/a/namespaces?watch=1&timeoutSeconds=1"),
        ("GET", "/api/v1/watch/namespaces/a/namespaces?timeoutSeconds=1"),
        ("GET", "/api/v1/watch/namespaces/a/namespaces/b?timeoutSeconds=1"),
        ("PATCH", "/api/v1/namespaces/a/namespaces/b"),
        ("PUT", "/api/v1/namespaces/a/namespaces/b"),
        ("PUT", "/api/v1/namespaces/a/namespaces/b/status"),
        ("PUT", "/api/v1/namespaces/a/namespaces/b/finalize"),
        ("DELETE", "/api/v1/namespaces/a/namespaces/b"),
        ("DELETE", "/api/v1/namespaces/a/namespaces"),
        ("POST", "/api/v1/namespaces/a/namespaces"),
        ("GET", "/api/v1/namespaces/a/nodes"),
        ("GET", "/api/v1/namespaces/a/nodes/n/proxy/pods"),
        ("GET", "/api/v1/namespaces/a/persistentvolumes"),
        ("GET", "/apis/rbac.authorization.k8s.io/v1/namespaces/a/clusterroles"),
        ("GET", "/apis/rbac.authorization.k8s.io/v1/watch/namespaces/a/clusterroles?timeoutSeconds=1"),
        ("GET", "/apis/certificates.k8s.io/v1/namespaces/a/certificatesigningrequests"),
        ("GET", "/apis/apiextensions.k8s.io/v1/namespaces/a/customresourcedefinitions"),
    ] {
        let answer = ask(&cluster, "mallory", method, path, object.clone()).await;
        assert_eq!(answer.code, 404, "{method} {path}: {answer:?}");
    }
    for (method, path, code) in [
        ("GET", "/api/v1/namespaces/b", 403),
        ("GET", "/api/v1/nodes/n/proxy/pods", 403),
        ("GET", "/api/v1/namespaces/a", 200),
        ("GET", "/api/v1/namespaces/a/", 200),
        ("PATCH", "/api/v1/namespaces/a", 200),
    ] {
        let answer = ask(&cluster, "mallory", method, path, json!({"metadata": {"labels": {"x": "y"}}})).await;
        assert_eq!(answer.code, code, "{method} {path}: {answer:?}");
    }
    let other = cluster.get("/api/v1/namespaces/b").await.expect(200);
    assert_eq!(other["metadata"]["labels"]["x"], Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_of_roles_give_nothing_that_is_not_held() {
    let cluster = Cluster::start().await;
    let writes =
        json!([{"verbs": ["get", "create", "update", "patch"], "apiGroups": [GROUP], "resources": ["clusterroles"]}]);
    role(&cluster, "writer", writes.clone()).await;
    role(&cluster, "strong", json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}])).await;
    let sum = json!({"metadata": {"name": "sum"}, "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "sum"}}]}});
    cluster.post(ROLES, sum).await.expect(201);
    for name in ["writer", "sum"] {
        grant(&cluster, "mallory", None, name).await;
    }
    let label = json!({"metadata": {"labels": {"to": "sum"}}});
    let refused = ask(&cluster, "mallory", "PATCH", &format!("{ROLES}/strong"), label.clone()).await.expect(403);
    let said = refused["message"].as_str().unwrap();
    assert!(said.contains("is attempting to grant RBAC permissions not currently held"), "{said}");
    // What is or was the sum of others can be changed only by who may do anything.
    for patch in [
        label.clone(),
        json!({"aggregationRule": null}),
        json!({"aggregationRule": null, "rules": []}),
        json!({"aggregationRule": {"clusterRoleSelectors": [{}]}}),
    ] {
        assert_eq!(
            ask(&cluster, "mallory", "PATCH", &format!("{ROLES}/sum"), patch.clone()).await.code,
            403,
            "{patch}"
        );
    }
    assert_eq!(ask(&cluster, "mallory", "GET", "/api/v1/secrets", json!({})).await.code, 403);
    // What mallory has may be given on, and owners are no rights.
    ask(&cluster, "mallory", "PATCH", &format!("{ROLES}/writer"), label.clone()).await.expect(200);
    ask(
        &cluster,
        "mallory",
        "POST",
        ROLES,
        json!({"metadata": {"name": "mine", "labels": {"to": "sum"}}, "rules": writes}),
    )
    .await
    .expect(201);
    let owned = json!({"metadata": {"finalizers": ["example.com/x"]}});
    ask(&cluster, "mallory", "PATCH", &format!("{ROLES}/strong"), owned).await.expect(200);
    cluster.patch(&format!("{ROLES}/strong"), "merge-patch+json", label).await.expect(200);
    assert_eq!(
        ask(&cluster, "mallory", "GET", "/api/v1/secrets", json!({})).await.code,
        200,
        "as the administrator wants"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_for_one_object_allows_its_list() {
    let cluster = Cluster::start().await;
    let secrets = "/api/v1/namespaces/default/secrets";
    for name in ["mine", "other"] {
        cluster.post(secrets, json!({"metadata": {"name": name}})).await.expect(201);
    }
    let rule =
        json!({"verbs": ["list", "watch"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["mine"]});
    role(&cluster, "one", json!([rule])).await;
    grant(&cluster, "joe", Some("default"), "one").await;
    for (selector, code) in [
        ("metadata.name=mine", 200),
        ("metadata.name%3D%3Dmine,type%3DOpaque", 200),
        ("metadata.name=other", 403),
        ("metadata.name!=other", 403),
        ("metadata.name=.", 403),
        // One term with a comma in its value: it would let all through.
        ("type!=x%5C,metadata.name=mine", 403),
        ("", 403),
    ] {
        let path = format!("{secrets}?fieldSelector={selector}");
        let answer = ask(&cluster, "joe", "GET", &path, Value::Null).await;
        assert_eq!(answer.code, code, "{selector}: {answer:?}");
    }
    let path = format!("{secrets}?fieldSelector=metadata.name=mine");
    let list = ask(&cluster, "joe", "GET", &path, Value::Null).await.expect(200);
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1));
}

/// The roles `admin`, `edit` and `view` hold what they gather only once a controller has written it there; the
/// authoriser does not wait for that, so neither does this check.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_binding_gives_no_more_than_its_author_has_by_gathering_roles() {
    let cluster = Cluster::start().await;
    role(
        &cluster,
        "binder",
        json!([{"verbs": ["create"], "apiGroups": [GROUP], "resources": ["rolebindings", "clusterrolebindings"]}]),
    )
    .await;
    grant(&cluster, "bob", None, "binder").await;
    for role in ["admin", "edit", "view", "cluster-admin"] {
        let binding = json!({"metadata": {"name": role}, "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": GROUP, "kind": "User", "name": "bob"}]});
        for place in ["clusterrolebindings", "namespaces/default/rolebindings"] {
            let answer = ask(&cluster, "bob", "POST", &format!("/apis/{GROUP}/v1/{place}"), binding.clone()).await;
            assert_eq!(answer.code, 403, "{role} {place}: {answer:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_of_subresources_speak_of_the_object_of_the_path() {
    let cluster = Cluster::start().await;
    cluster.post("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "sa"}})).await.expect(201);
    let token = "/api/v1/namespaces/default/serviceaccounts/sa/token";
    for (metadata, refused) in
        [(json!({"name": "other"}), true), (json!({"namespace": "b"}), true), (json!({"name": "sa"}), false)]
    {
        // This server has no key to sign tokens with, which comes after the names.
        let answer = cluster.post(token, json!({"metadata": metadata, "spec": {}})).await;
        assert_eq!(answer.code == 400, refused, "{metadata}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn levels_of_namespaces_are_read_and_tell_whom_they_hit() {
    let cluster = Cluster::start().await;
    let enforce = |level: &str| json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": level}}});
    let mut namespace = enforce("bogus");
    namespace["metadata"]["name"] = "levels".into();
    let refused = cluster.post("/api/v1/namespaces", namespace.clone()).await.expect(422);
    assert_eq!(
        refused["message"],
        "Namespace \"levels\" is invalid: metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"bogus\": \
         must be one of privileged, baseline, restricted"
    );
    namespace["metadata"]["labels"] = json!({});
    cluster.post("/api/v1/namespaces", namespace).await.expect(201);
    cluster
        .post("/api/v1/namespaces/levels/serviceaccounts", json!({"metadata": {"name": "default"}}))
        .await
        .expect(201);
    for name in ["b", "a"] {
        let pod = json!({"metadata": {"name": name}, "spec": {"hostNetwork": true, "containers": [{"name": "c", "image": "i"}]}});
        cluster.post("/api/v1/namespaces/levels/pods", pod).await.expect(201);
    }
    let path = "/api/v1/namespaces/levels";
    assert_eq!(cluster.patch(path, "merge-patch+json", enforce("x")).await.code, 422);
    let answer = cluster.patch(path, "merge-patch+json", enforce("baseline")).await;
    let said: Vec<&str> = answer.headers.get_all("warning").iter().filter_map(|w| w.to_str().ok()).collect();
    assert_eq!(
        said,
        [
            "299 - \"existing pods in namespace \\\"levels\\\" violate the new PodSecurity enforce level \\\"baseline:latest\\\"\"",
            "299 - \"a (and 1 other pod): host namespaces\"",
        ]
    );
    let pod =
        json!({"metadata": {"name": "n"}, "spec": {"hostNetwork": true, "containers": [{"name": "c", "image": "i"}]}});
    assert_eq!(cluster.post("/api/v1/namespaces/levels/pods", pod).await.code, 403);
}
