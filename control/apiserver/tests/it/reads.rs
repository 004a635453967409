//! Lists and reads: what versions mean, pages, the forms of answers.

use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use crate::client::{Answer, Cluster};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

fn map(name: &str) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name, "labels": {"n": name}}, "data": {"a": "1"}})
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|o| o["metadata"]["name"].as_str().unwrap()).collect()
}

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

async fn accepted(cluster: &Cluster, path: &str, accept: &str) -> Answer {
    cluster.send_with("GET", path, &[("accept", accept)], "").await
}

/// Version, match, limit: the names, or the code of the failure.
type Case = (&'static str, &'static str, &'static str, Result<&'static [&'static str], u16>);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_versions_mean() {
    let cluster = Cluster::start().await;
    let first = version(&cluster.post(MAPS, map("a")).await.expect(201));
    cluster.post(MAPS, map("b")).await.expect(201);
    let table: [Case; 13] = [
        ("", "", "", Ok(&["a", "b"])),
        ("0", "", "", Ok(&["a", "b"])),
        ("N", "", "", Ok(&["a", "b"])),
        ("N", "NotOlderThan", "", Ok(&["a", "b"])),
        ("0", "NotOlderThan", "1", Ok(&["a"])),
        ("N", "Exact", "", Ok(&["a"])),
        ("N", "Exact", "1", Ok(&["a"])),
        ("N", "", "5", Ok(&["a"])),
        ("", "Exact", "", Err(422)),
        ("", "NotOlderThan", "", Err(422)),
        ("0", "Exact", "", Err(422)),
        ("N", "Newest", "", Err(422)),
        ("nonsense", "", "", Err(400)),
    ];
    for (at, matching, limit, wanted) in table {
        let at = if at == "N" { first.to_string() } else { at.to_string() };
        let path = format!(
            "{MAPS}?resourceVersion={at}&resourceVersionMatch={matching}&limit={limit}&fieldSelector=metadata.name!%3Dkube-root-ca.crt"
        );
        let answer = cluster.get(&path).await;
        match wanted {
            Ok(wanted) => assert_eq!(names(&answer.expect(200)), wanted, "{path}"),
            Err(code) => assert_eq!(answer.code, code, "{path}"),
        }
    }
    let both = cluster.get(&format!("{MAPS}?sendInitialEvents=true&resourceVersionMatch=Exact")).await;
    let causes: Vec<Value> =
        both.expect(422)["details"]["causes"].as_array().unwrap().iter().map(|c| c["field"].clone()).collect();
    assert_eq!(causes, ["resourceVersionMatch", "sendInitialEvents"]);
    for path in [MAPS.to_string(), format!("{MAPS}/a")] {
        let future = cluster.get(&format!("{path}?resourceVersion={}", first + 100_000)).await;
        assert_eq!(future.headers["retry-after"], "1");
        let status = future.expect(504);
        assert_eq!((&status["reason"], &status["details"]["retryAfterSeconds"]), (&json!("Timeout"), &json!(1)));
        assert_eq!(status["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
        assert!(status["message"].as_str().unwrap().contains("Too large resource version"));
    }
    assert_eq!(cluster.get(&format!("{MAPS}/a?resourceVersion={first}")).await.code, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_end_with_410_and_a_way_on() {
    let mut cluster = Cluster::start().await;
    for name in ["a", "b", "c", "d"] {
        cluster.post(MAPS, map(name)).await.expect(201);
    }
    let only = "labelSelector=n";
    let first = cluster.get(&format!("{MAPS}?limit=2&{only}")).await.expect(200);
    let token = first["metadata"]["continue"].as_str().unwrap().to_string();
    let with_version = cluster.get(&format!("{MAPS}?limit=2&continue={token}&resourceVersion=5")).await;
    assert_eq!(with_version.code, 400);
    assert_eq!(cluster.get(&format!("{MAPS}?limit=2&continue={token}&resourceVersionMatch=Exact")).await.code, 422);
    cluster.delete(&format!("{MAPS}/c")).await.expect(200);
    let rest = cluster.get(&format!("{MAPS}?continue={token}&{only}")).await.expect(200);
    assert_eq!((names(&rest), version(&rest)), (vec!["c", "d"], version(&first)), "of one picture");
    // A new server has no pictures of the past.
    cluster.end().await;
    cluster.begin().await;
    let expired = cluster.get(&format!("{MAPS}?limit=1&continue={token}&{only}")).await.expect(410);
    assert_eq!(expired["reason"], "Expired");
    let fresh = expired["metadata"]["continue"].as_str().unwrap();
    let on = cluster.get(&format!("{MAPS}?limit=1&continue={fresh}&{only}")).await.expect(200);
    assert_eq!(names(&on), ["d"], "goes on after the last key, in the newest state");
    let exact = cluster.get(&format!("{MAPS}?resourceVersion={}&resourceVersionMatch=Exact", version(&first))).await;
    assert_eq!(exact.failure(), (410, "Expired".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_selectors_of_kinds() {
    let cluster = Cluster::start().await;
    let table = [
        (
            "/api/v1/pods",
            "spec.nodeName=x,spec.restartPolicy=Always,spec.schedulerName=d,spec.serviceAccountName=d,spec.hostNetwork=false,status.phase=Running,status.podIP=1.2.3.4,status.podIPs=1.2.3.4,status.nominatedNodeName=n",
        ),
        (
            "/api/v1/events",
            "involvedObject.kind=a,involvedObject.namespace=a,involvedObject.name=a,involvedObject.uid=a,involvedObject.apiVersion=a,involvedObject.resourceVersion=a,involvedObject.fieldPath=a,reason=a,reportingComponent=a,source=a,type=a",
        ),
        ("/apis/events.k8s.io/v1/events", "regarding.name=a,reportingController=a,reason=a,type=a"),
        ("/api/v1/nodes", "spec.unschedulable=false"),
        ("/api/v1/secrets", "type=Opaque"),
        ("/api/v1/namespaces", "status.phase=Active"),
        ("/api/v1/services", "spec.clusterIP=None,spec.type=ClusterIP"),
        ("/apis/batch/v1/jobs", "status.successful=1"),
        ("/apis/apps/v1/replicasets", "status.replicas=0"),
        ("/api/v1/replicationcontrollers", "status.replicas=0"),
        ("/apis/certificates.k8s.io/v1/certificatesigningrequests", "spec.signerName=a"),
        ("/apis/apps/v1/deployments", "metadata.name=a,metadata.namespace=b"),
    ];
    for (path, fields) in table {
        let all = fields.replace('=', "%3D").replace(',', "%2C");
        assert_eq!(cluster.get(&format!("{path}?fieldSelector={all}")).await.code, 200, "{path}");
        let unknown = cluster.get(&format!("{path}?fieldSelector=spec.nothing%3D1")).await.expect(400);
        assert_eq!(unknown["message"], "field label not supported: spec.nothing", "{path}");
    }
    let named = cluster.get("/api/v1/namespaces?fieldSelector=metadata.name%3Ddefault").await.expect(200);
    assert_eq!(names(&named), ["default"]);
    let others = cluster
        .get("/api/v1/namespaces?fieldSelector=metadata.name!%3Ddefault,status.phase%3DActive")
        .await
        .expect(200);
    assert!(!names(&others).is_empty() && !names(&others).contains(&"default"));
    for bad in ["labelSelector=a+in+b", "labelSelector=-bad", "fieldSelector=nothing"] {
        assert_eq!(cluster.get(&format!("{MAPS}?{bad}")).await.code, 400, "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_in_every_form() {
    let cluster = Cluster::start().await;
    // More than goes out in one piece.
    let big = "x".repeat(40 << 10);
    for name in ["a", "b", "c", "d"] {
        let mut object = map(name);
        object["data"]["big"] = big.clone().into();
        cluster.post(MAPS, object).await.expect(201);
    }
    let plain = cluster.get(&format!("{MAPS}?labelSelector=n")).await.expect(200);
    assert_eq!((names(&plain), &plain["kind"]), (vec!["a", "b", "c", "d"], &json!("ConfigMapList")));
    for path in
        [format!("{MAPS}?labelSelector=n"), format!("{MAPS}?labelSelector=n%3Da"), format!("{MAPS}?labelSelector=none")]
    {
        let plain = cluster.get(&path).await.expect(200);
        let pretty = cluster.get(&format!("{path}&pretty=true")).await;
        assert!(pretty.body.starts_with(b"{\n  \"") && pretty.body.ends_with(b"}\n"));
        assert_eq!(pretty.json(), plain, "{path}");
        let yaml = accepted(&cluster, &path, "application/yaml").await;
        assert_eq!(yaml.headers["content-type"], "application/yaml");
        assert_eq!(api::codec::parse_yaml(&yaml.body).unwrap().value, plain, "{path}");
        let proto = accepted(&cluster, &path, PROTOBUF).await;
        assert_eq!(proto.headers["content-type"], PROTOBUF);
        let mut typed = api::protobuf::decode_object(&proto.body, None).unwrap();
        // Items of a list have their type from it.
        let mut wanted = plain.clone();
        for item in wanted["items"].as_array_mut().unwrap() {
            item.as_object_mut().unwrap().retain(|k, _| k != "kind" && k != "apiVersion");
        }
        if wanted["items"] == json!([]) {
            typed["items"] = json!([]);
        }
        assert_eq!(typed, wanted, "{path}");
        let metadata = format!("{PROTOBUF};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json");
        let partial = accepted(&cluster, &path, &metadata).await;
        let mut partial = api::protobuf::decode_object(&partial.body, None).unwrap();
        let mut items = wanted.clone();
        for item in items["items"].as_array_mut().unwrap() {
            item.as_object_mut().unwrap().retain(|k, _| k == "metadata");
        }
        if items["items"] == json!([]) {
            partial["items"] = json!([]);
        }
        assert_eq!((&partial["kind"], &partial["items"]), (&json!("PartialObjectMetadataList"), &items["items"]));
        let json_form =
            accepted(&cluster, &path, "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1").await;
        assert_eq!(json_form.headers["content-type"], "application/json");
        let json_form = json_form.expect(200);
        assert_eq!(
            (&json_form["kind"], &json_form["metadata"]),
            (&json!("PartialObjectMetadataList"), &plain["metadata"])
        );
        for item in json_form["items"].as_array().unwrap() {
            assert_eq!((&item["kind"], item.get("data")), (&json!("PartialObjectMetadata"), None));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables() {
    let cluster = Cluster::start().await;
    cluster.post(MAPS, map("a")).await.expect(201);
    cluster.post(MAPS, map("b")).await.expect(201);
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let path = format!("{MAPS}?labelSelector=n&limit=1");
    let page = accepted(&cluster, &path, table).await;
    assert_eq!(page.headers["content-type"], "application/json");
    let page = page.expect(200);
    assert_eq!((&page["kind"], &page["apiVersion"]), (&json!("Table"), &json!("meta.k8s.io/v1")));
    assert!(page["metadata"]["continue"].is_string() && page["metadata"]["resourceVersion"].is_string());
    let columns: Vec<&str> =
        page["columnDefinitions"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(columns, ["Name", "Data", "Age"]);
    assert_eq!(page["rows"][0]["cells"].as_array().unwrap()[..2], [json!("a"), json!(1)]);
    let row = &page["rows"][0]["object"];
    assert_eq!(
        (&row["kind"], &row["metadata"]["name"], row.get("data")),
        (&json!("PartialObjectMetadata"), &json!("a"), None)
    );
    for (include, wanted) in
        [("None", Value::Null), ("Metadata", "PartialObjectMetadata".into()), ("Object", "ConfigMap".into())]
    {
        let page = accepted(&cluster, &format!("{path}&includeObject={include}"), table).await.expect(200);
        assert_eq!(page["rows"][0]["object"]["kind"], wanted, "{include}");
    }
    assert_eq!(accepted(&cluster, &format!("{path}&includeObject=All"), table).await.code, 400);
    let one = accepted(&cluster, &format!("{MAPS}/b"), &table.replace("v=v1", "v=v1beta1")).await.expect(200);
    assert_eq!((&one["apiVersion"], &one["rows"][0]["cells"][0]), (&json!("meta.k8s.io/v1beta1"), &json!("b")));
    let yaml = accepted(&cluster, &path, &table.replace("json", "yaml")).await;
    assert_eq!(api::codec::parse_yaml(&yaml.body).unwrap().value["rows"][0]["cells"][0], "a");
    let crds = accepted(&cluster, "/apis/rbac.authorization.k8s.io/v1/clusterroles?limit=1", table).await.expect(200);
    assert_eq!(crds["columnDefinitions"][1]["name"], "Created At", "kinds without a printer of their own");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_acceptable() {
    let cluster = Cluster::start().await;
    cluster.post(MAPS, map("a")).await.expect(201);
    let one = format!("{MAPS}/a");
    let table: [(&str, &str, u16); 14] = [
        (&one, "application/cbor", 406),
        (&one, "text/html", 406),
        (&one, "application/json;q=0", 406),
        (&one, "application/json;as=Nothing;g=meta.k8s.io;v=v1", 406),
        (&one, "application/vnd.kubernetes.protobuf;as=Table;g=meta.k8s.io;v=v1", 406),
        (&one, "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", 406),
        (MAPS, "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1", 406),
        (MAPS, "application/cbor, application/json;q=0.1", 200),
        (MAPS, "application/cbor-seq, */*", 200),
        (MAPS, "", 200),
        (&one, "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1", 200),
        ("/apis", "text/html", 406),
        ("/openapi/v3", "text/html", 406),
        ("/openapi/v2", "text/html", 406),
    ];
    for (path, accept, code) in table {
        let answer = accepted(&cluster, path, accept).await;
        assert_eq!(answer.code, code, "{path} {accept}");
        if code == 406 {
            assert_eq!(answer.failure().1, "NotAcceptable", "{path} {accept}");
        }
    }
    let watch = accepted(&cluster, &format!("{MAPS}?watch=1&timeoutSeconds=1"), "application/yaml").await;
    assert_eq!(watch.code, 406, "a watch has no YAML");
    let review = json!({"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1",
        "spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let headers = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io"), ("content-type", "application/json")];
    assert_eq!(cluster.send_with("POST", path, &headers, review.to_string()).await.code, 406, "a review is no table");
    for (kind, code) in [
        ("application/cbor", 415),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("", 201),
        ("application/json; charset=utf-8", 201),
        ("application/yaml", 201),
    ] {
        let answer = cluster.send("POST", &format!("{MAPS}?dryRun=All"), kind, map("x").to_string()).await;
        assert_eq!(answer.code, code, "{kind}");
    }
    let failure = accepted(&cluster, &format!("{MAPS}/none"), PROTOBUF).await;
    assert_eq!((failure.code, &failure.headers["content-type"]), (404, &PROTOBUF.parse().unwrap()));
    let status = api::protobuf::decode_object(&failure.body, None).unwrap();
    assert_eq!(
        (&status["kind"], &status["reason"], &status["code"]),
        (&json!("Status"), &json!("NotFound"), &json!(404))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn protobuf_in_both_directions() {
    let cluster = Cluster::start().await;
    let schema = api::kinds::find("", "v1", "configmaps").unwrap().schema();
    let body = api::protobuf::encode_object(&map("a"), Some(schema));
    let headers = [("content-type", PROTOBUF), ("accept", PROTOBUF)];
    let made = cluster.send_with("POST", MAPS, &headers, body).await;
    assert_eq!((made.code, &made.headers["content-type"]), (201, &PROTOBUF.parse().unwrap()));
    let mut made = api::protobuf::decode_object(&made.body, None).unwrap();
    assert_eq!((&made["metadata"]["namespace"], &made["data"]["a"]), (&json!("default"), &json!("1")));
    made["data"]["a"] = "2".into();
    let changed =
        cluster.send_with("PUT", &format!("{MAPS}/a"), &headers, api::protobuf::encode_object(&made, None)).await;
    assert_eq!(changed.code, 200);
    assert_eq!(cluster.get(&format!("{MAPS}/a")).await.expect(200)["data"]["a"], "2");
    let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": "other"}});
    let refused =
        cluster.send_with("DELETE", &format!("{MAPS}/a"), &headers, api::protobuf::encode_object(&options, None)).await;
    assert_eq!(refused.code, 409, "the options were read");
    let options =
        json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": made["metadata"]["uid"]}});
    let gone =
        cluster.send_with("DELETE", &format!("{MAPS}/a"), &headers, api::protobuf::encode_object(&options, None)).await;
    let status = api::protobuf::decode_object(&gone.body, None).unwrap();
    assert_eq!((gone.code, &status["kind"], &status["status"]), (200, &json!("Status"), &json!("Success")));
    let broken = cluster.send_with("POST", MAPS, &headers, "k8s\0nonsense").await;
    assert_eq!(broken.code, 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_answers_are_compressed_on_demand() {
    let cluster = Cluster::start().await;
    let mut object = map("big");
    object["data"]["a"] = "y".repeat(300 << 10).into();
    cluster.post(MAPS, object).await.expect(201);
    cluster.post(MAPS, map("small")).await.expect(201);
    for (path, packed) in [
        (MAPS.to_string(), true),
        (format!("{MAPS}/big"), true),
        (format!("{MAPS}/small"), false),
        ("/openapi/v2".into(), true),
    ] {
        let plain = cluster.get(&path).await;
        assert!(!plain.headers.contains_key("content-encoding"));
        let answer = cluster.send_with("GET", &path, &[("accept-encoding", "gzip")], "").await;
        assert_eq!(answer.headers.contains_key("content-encoding"), packed, "{path}");
        if packed {
            let mut whole = Vec::new();
            std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&answer.body[..]), &mut whole).unwrap();
            assert!(answer.body.len() < whole.len() / 4);
            assert_eq!(whole, plain.body, "{path}");
        }
    }
    let watch =
        cluster.raw("GET", &format!("{MAPS}?watch=1&timeoutSeconds=1"), &[("accept-encoding", "gzip")], "").await;
    assert!(!watch.headers().contains_key("content-encoding"));
    watch.into_body().collect().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_limits_and_marks_of_answers() {
    let cluster = Cluster::start().await;
    let begun = std::time::Instant::now();
    let late = cluster.get(&format!("{MAPS}?resourceVersion=99999999&timeout=200ms")).await;
    assert_eq!(late.failure(), (504, "Timeout".into()));
    assert!(begun.elapsed() < std::time::Duration::from_secs(2));
    assert_eq!(cluster.get(&format!("{MAPS}?timeout=soon")).await.code, 400);
    assert_eq!(cluster.get(&format!("{MAPS}?timeout=0s")).await.code, 200);
    assert!(cluster.get(MAPS).await.headers.contains_key("audit-id"));
    let endpoints = cluster.get("/api/v1/namespaces/default/endpoints").await;
    let warning = endpoints.headers["warning"].to_str().unwrap();
    assert!(warning.starts_with("299 - \"v1 Endpoints is deprecated"), "{warning}");
    let curl = cluster.send_with("GET", MAPS, &[("user-agent", "curl/8.0")], "").await;
    assert!(curl.body.starts_with(b"{\n"), "people read it");
}
