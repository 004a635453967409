//! Who may do what, and who is heard at all.

use crate::joining::{self, GUEST};
use anyhow::{Context, ensure};
use qemu_tests::pods::{TOOLBOX, toolbox};
use qemu_tests::{Cluster, Kubectl, Result, wait};
use serde_json::json;

pub(crate) const TESTS: &[super::Test] = &[
    ("a_service_account_without_rights_is_refused", without_rights),
    ("a_token_secret_is_filled_and_ends_with_its_account", token_secret),
    ("a_node_may_only_what_concerns_itself", node_restriction),
    ("a_node_listens_on_documented_ports_only", sockets),
    ("a_node_is_made_by_a_metadata_server", metadata_server),
    ("pods_reach_neither_metadata_nor_node_api", closed_addresses),
];

fn without_rights(cluster: &Cluster) -> Result {
    let out = cluster.kubectl(&["-n", "default", "get", "pods", "--as=system:serviceaccount:default:default"])?;
    let expected = r#"pods is forbidden: User "system:serviceaccount:default:default" cannot list resource "pods" in API group "" in the namespace "default""#;
    ensure!(out.err.contains(expected), "refused with: {}", out.err);
    Ok(())
}

/// Asked by TokenReview, as webhooks and dashboards ask.
fn token_secret(cluster: &Cluster) -> Result {
    cluster.namespace("tokens")?;
    cluster.k(&["-n", "tokens", "create", "serviceaccount", "robot"])?;
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
        "metadata": {"name": "robot", "namespace": "tokens", "annotations": {"kubernetes.io/service-account.name": "robot"}},
    });
    cluster.apply(&secret.to_string())?;
    let token = wait::until("the Secret to be filled", wait::scale(20), || {
        let template = "go-template={{with .data}}{{and (index . \"ca.crt\") .namespace (base64decode .token)}}{{end}}";
        let text = cluster.k(&["-n", "tokens", "get", "secret", "robot", "-o", template])?;
        Ok(text.contains('.').then_some(text))
    })?;
    let review = || -> Result<serde_json::Value> {
        let object = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
        let said =
            cluster.kubectl_of(Kubectl::V1_32, &["create", "-o", "json", "-f", "-"], Some(&object.to_string()))?;
        Ok(serde_json::from_str(&said.success()?)?)
    };
    let user = review()?["status"]["user"]["username"].clone();
    ensure!(user == "system:serviceaccount:tokens:robot", "the token is {user}'s");
    cluster.k(&["-n", "tokens", "delete", "serviceaccount", "robot"])?;
    wait::until("the Secret to go with its account", wait::scale(20), || {
        Ok((!cluster.kubectl(&["-n", "tokens", "get", "secret", "robot"])?.ok).then_some(()))
    })?;
    ensure!(review()?["status"]["authenticated"] != true, "the token outlives its account");
    cluster.k(&["delete", "namespace", "tokens", "--wait=false"]).map(|_| ())
}

/// As the kubelet of worker-1 would ask, by impersonation (which keeps the Node authorizer and NodeRestriction in the way).
fn node_restriction(cluster: &Cluster) -> Result {
    let node = |args: &[&str]| {
        let all: Vec<&str> =
            ["--as=system:node:worker-1", "--as-group=system:nodes", "--as-group=system:authenticated"]
                .into_iter()
                .chain(args.iter().copied())
                .collect();
        cluster.kubectl(&all)
    };
    cluster.k(&["-n", "default", "create", "secret", "generic", "foreign", "--from-literal=a=b"])?;
    let out = node(&["-n", "default", "get", "secret", "foreign"])?;
    ensure!(!out.ok && out.err.contains("forbidden"), "a foreign secret was shown: {}", out.all());
    let out = node(&["annotate", "node", "worker-2", "a=b"])?;
    ensure!(!out.ok && out.err.to_lowercase().contains("forbidden"), "another node was changed: {}", out.all());
    let out = node(&["label", "node", "worker-1", "node-restriction.kubernetes.io/x=y"])?;
    ensure!(!out.ok, "a restricted label was taken: {}", out.all());
    cluster.k(&["-n", "default", "delete", "secret", "foreign"]).map(|_| ())
}

/// On a node whose metadata server answers: it came from there. A pod that enters init's control group by force shows
/// that nothing else stands in the way; the kubelet's is not let through, and asks for no pod.
/// It serves the next test, too.
fn metadata_server(cluster: &Cluster) -> Result {
    let asked = joining::joined(cluster)?.requests();
    ensure!(asked.iter().any(|path| path == "/latest/user-data"), "the node asked its metadata server for {asked:?}");
    Ok(())
}

fn closed_addresses(cluster: &Cluster) -> Result {
    let guest = joining::joined(cluster)?;
    cluster.namespace("closed")?;
    let apply =
        |yaml: &str| cluster.kubectl_of(Kubectl::V1_32, &["-n", "closed", "apply", "-f", "-"], Some(yaml))?.success();
    apply(&toolbox("ordinary", Some(GUEST), false))?;
    apply(&toolbox("host", Some(GUEST), true))?;
    apply(&breaker())?;
    apply(&service("to-node-api", "10.77.0.12", 10270, 30270))?;
    apply(&service("to-api", "10.77.0.10", 6443, 30643))?;
    for pod in ["ordinary", "host", "breaker"] {
        cluster.pod_ready("closed", pod)?;
    }
    let ip = |name: &str| cluster.k(&["-n", "closed", "get", "service", name, "-o", "jsonpath={.spec.clusterIP}"]);
    let forbidden = [
        "169.254.169.254 80".to_owned(),
        format!("{} 10270", joining::GUEST_ADDRESS),
        "10.77.0.12 10270".to_owned(),
        "10.77.0.10 10270".to_owned(),
        format!("{} 443", ip("to-node-api")?),
    ];
    // A NodePort on the node that it leads to, and on another one.
    let ways_around = ["10.77.0.12 30270".to_owned(), format!("{} 30270", joining::GUEST_ADDRESS)];

    // The way is there: for pods to services of the same form, for the machine to all the addresses.
    let allowed = [format!("{} 443", ip("to-api")?), "10.77.0.12 30643".to_owned()];
    for pod in ["ordinary", "host"] {
        wait::until("services without selector to lead a pod to the API", wait::scale(20), || {
            Ok((reached(cluster, pod, "", &allowed)? == allowed).then_some(()))
        })?;
    }
    let escape = "echo 0 > /machine/kimg/init/cgroup.procs || exit 1; ";
    let by_machine = reached(cluster, "breaker", escape, &forbidden)?;
    ensure!(by_machine == forbidden, "the machine itself reaches only {by_machine:?}");
    let said = format!("{escape}wget -q -T 5 -O - http://169.254.169.254/latest/user-data");
    let said = cluster.exec("closed", "breaker", &["sh", "-c", &said])?;
    ensure!(said.contains("token:"), "the metadata server says to the machine itself: {said}");

    for pod in ["ordinary", "host", "breaker"] {
        let found = reached(cluster, pod, "", &[&forbidden[..], &ways_around[..]].concat())?;
        ensure!(found.is_empty(), "pod {pod} reaches {found:?}");
    }
    // Those of the service account that `[metadata] allow` names reach the metadata server, and nothing else more.
    cluster.k(&["-n", "closed", "create", "serviceaccount", "trusted"])?;
    for (pod, host_network) in [("trusted", false), ("trusted-host", true)] {
        let yaml = toolbox(pod, Some(GUEST), host_network);
        apply(&yaml.replace("spec:\n", "spec:\n  serviceAccountName: trusted\n"))?;
        cluster.pod_ready("closed", pod)?;
        let found = reached(cluster, pod, "", &forbidden)?;
        ensure!(found == forbidden[..1], "pod {pod}, whose service account is allowed to, reaches {found:?}");
    }
    let sets = || -> Result<Vec<String>> {
        let rules = guest.node(cluster, GUEST, &["nft"])?.success()?;
        Ok(rules.lines().filter(|line| line.trim().starts_with("set metadata_")).map(str::to_owned).collect())
    };
    ensure!(sets()?.len() == 2 && !sets()?.iter().any(|set| set.ends_with("{  }")), "{:?}", sets()?);
    cluster.k(&["-n", "closed", "delete", "pod", "trusted", "trusted-host"])?;
    ensure!(sets()?.iter().all(|set| set.ends_with("{  }")), "pods that are gone may still: {:?}", sets()?);
    let found = reached(cluster, "ordinary", "", &forbidden)?;
    ensure!(found.is_empty(), "after pods that may, an ordinary one reaches {found:?}");
    metadata_is_no_endpoint(cluster)?;
    let by_kubelet = "echo 0 > /machine/kimg/kubelet/cgroup.procs || exit 1; ";
    let found = reached(cluster, "breaker", by_kubelet, &forbidden[..1])?;
    ensure!(found.is_empty(), "the kubelet's control group reaches {found:?}");
    apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: prober}}\nspec:\n  nodeName: {GUEST}\n  containers:\n  - name: c\n    \
         image: {TOOLBOX}\n    imagePullPolicy: IfNotPresent\n    command: [sleep, 1d]\n    readinessProbe: {{periodSeconds: 1, httpGet: \
         {{host: 169.254.169.254, port: 80, path: /by-probe}}}}\n"
    ))?;
    wait::until("the event of the refused probe", wait::scale(30), || {
        let events = cluster.k(&["-n", "closed", "get", "events", "-o", "jsonpath={.items[*].message}"])?;
        Ok(events.contains("169.254.169.254 is a metadata server").then_some(()))
    })?;
    ensure!(!guest.requests().iter().any(|path| path == "/by-probe"), "the kubelet asked the metadata server");
    cluster.kimg(&["node", "--node", "worker-1", "status"])?.success().context("the operator is refused too")?;

    cluster.k(&["delete", "namespace", "closed"])?;
    drop(guest);
    joining::end();
    cluster.k(&["delete", "node", GUEST]).map(|_| ())
}

/// Those of the targets, `address port`, to which a pod can open a connection.
fn reached(cluster: &Cluster, pod: &str, first: &str, targets: &[String]) -> Result<Vec<String>> {
    let knocks: String = targets.iter().map(|t| format!("(nc -w 3 {t} </dev/null && echo OPEN {t}) & ")).collect();
    let text = cluster.exec("closed", pod, &["sh", "-c", &format!("{first}{knocks}wait")])?;
    let open: Vec<&str> = text.lines().filter_map(|line| line.trim().strip_prefix("OPEN ")).collect();
    Ok(targets.iter().filter(|t| open.contains(&t.as_str())).cloned().collect())
}

/// The API takes no service that leads to the metadata address.
fn metadata_is_no_endpoint(cluster: &Cluster) -> Result {
    let text = slice("to-metadata", "169.254.169.254", 80);
    let out = cluster.kubectl_of(Kubectl::V1_32, &["-n", "closed", "apply", "-f", "-"], Some(&text))?;
    ensure!(!out.ok && out.err.contains("may not be in the link-local range"), "the API says: {}", out.all());
    Ok(())
}

/// A service without selector.
fn service(name: &str, address: &str, port: u16, node_port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  type: NodePort\n  \
         ports: [{{port: 443, targetPort: {port}, nodePort: {node_port}}}]\n---\n{}",
        slice(name, address, port)
    )
}

fn slice(service: &str, address: &str, port: u16) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {service}-by-hand\n  \
         labels: {{kubernetes.io/service-name: {service}}}\naddressType: IPv4\nendpoints: [{{addresses: [{address}]}}]\n\
         ports: [{{port: {port}, protocol: TCP}}]\n"
    )
}

/// A pod that may do everything: it can leave the control group by which the firewall knows pods.
fn breaker() -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: breaker}}\nspec:\n  nodeName: {GUEST}\n  hostNetwork: true\n  \
         terminationGracePeriodSeconds: 1\n  containers:\n  - name: main\n    image: {TOOLBOX}\n    \
         imagePullPolicy: IfNotPresent\n    securityContext: {{privileged: true}}\n    \
         command: [sh, -c, 'trap exit TERM; while true; do sleep 1; done']\n    \
         volumeMounts: [{{name: machine, mountPath: /machine}}]\n  \
         volumes: [{{name: machine, hostPath: {{path: /sys/fs/cgroup}}}}]\n"
    )
}

/// What listens on more than the loopback stands in the documentation, though the firewall may hide it.
fn sockets(cluster: &Cluster) -> Result {
    for node in ["master-1", "worker-1"] {
        let sockets = cluster.kimg(&["node", "--node", node, "sockets"])?.success()?;
        let known = ["6443", "10250", "10270", "10271", "10272", ":53", "9153"];
        let listening: Vec<&str> = sockets.lines().filter(|l| l.to_lowercase().contains("listen")).collect();
        ensure!(!listening.is_empty(), "{node} shows no sockets:\n{sockets}");
        for line in listening {
            let loopback = line.contains("127.0.0.1") || line.contains("[::1]");
            ensure!(loopback || known.iter().any(|p| line.contains(p)), "{node} has an undocumented port: {line}");
        }
    }
    Ok(())
}
