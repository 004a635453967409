use super::*;
use crate::kinds::find_kind;

fn run(group: &str, version: &str, kind: &str, mut o: Value) -> Value {
    apply(find_kind(group, version, kind).unwrap(), &mut o);
    o
}

#[test]
fn pod() {
    let p = run(
        "",
        "v1",
        "Pod",
        json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "nginx", "ports": [{"containerPort": 80}],
        "resources": {"limits": {"cpu": "1"}}, "readinessProbe": {"httpGet": {"port": 80}}}], "volumes": [{"name": "v"}, {"name": "s", "secret": {"secretName": "x"}}]}}),
    );
    assert_eq!(
        p["spec"],
        json!({
            "containers": [{"name": "c", "image": "nginx", "imagePullPolicy": "Always", "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}}, "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                "readinessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}}],
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "x", "defaultMode": 420}}],
            "dnsPolicy": "ClusterFirst", "enableServiceLinks": true, "restartPolicy": "Always", "schedulerName": "default-scheduler",
            "securityContext": {}, "terminationGracePeriodSeconds": 30
        })
    );
    assert_eq!(p["status"]["phase"], "Pending");
}

#[test]
fn workloads() {
    let d = run(
        "apps",
        "v1",
        "Deployment",
        json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "a:1"}]}}}}),
    );
    assert_eq!(d["spec"]["replicas"], 1);
    assert_eq!(
        d["spec"]["strategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
    );
    assert_eq!(d["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"], "IfNotPresent");
    assert!(d["spec"]["template"]["spec"].get("enableServiceLinks").is_none());
    let s = run(
        "apps",
        "v1",
        "StatefulSet",
        json!({"spec": {"volumeClaimTemplates": [{"metadata": {"name": "d"}, "spec": {}}]}}),
    );
    assert_eq!(s["spec"]["volumeClaimTemplates"][0]["spec"]["volumeMode"], "Filesystem");
    assert_eq!(s["spec"]["updateStrategy"], json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}));
    let j = run("batch", "v1", "Job", json!({"spec": {"template": {"metadata": {"labels": {"a": "b"}}}}}));
    assert_eq!(
        (&j["spec"]["completions"], &j["spec"]["backoffLimit"], &j["metadata"]["labels"]["a"]),
        (&json!(1), &json!(6), &json!("b"))
    );
}

#[test]
fn others() {
    let s = run("", "v1", "Service", json!({"spec": {"ports": [{"port": 80}], "type": "NodePort"}}));
    assert_eq!(
        s["spec"],
        json!({"ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}], "type": "NodePort", "sessionAffinity": "None",
        "externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Cluster"})
    );
    let n = run("networking.k8s.io", "v1", "NetworkPolicy", json!({"spec": {"egress": [{}]}}));
    assert_eq!(n["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
    let r = run(
        "rbac.authorization.k8s.io",
        "v1",
        "ClusterRoleBinding",
        json!({"subjects": [{"kind": "User", "name": "a"}, {"kind": "ServiceAccount", "name": "b"}], "roleRef": {"kind": "ClusterRole", "name": "x"}}),
    );
    assert_eq!(
        (&r["subjects"][0]["apiGroup"], r["subjects"][1].get("apiGroup")),
        (&json!("rbac.authorization.k8s.io"), None)
    );
    let ns = run("", "v1", "Namespace", json!({"metadata": {"name": "x"}}));
    assert_eq!(ns["metadata"]["labels"]["kubernetes.io/metadata.name"], "x");
    // Nothing breaks on an object of the wrong shape.
    for k in crate::kinds::builtin() {
        for o in [
            json!({}),
            json!({"spec": [], "status": 3}),
            json!({"spec": {"template": [], "ports": {}, "containers": 1}}),
        ] {
            let mut o = o;
            apply(k, &mut o);
        }
    }
}
