//! What people type, with the kubectl of 1.32 and the one of 1.20.

use anyhow::{Context, ensure};
use qemu_tests::{Cluster, Kubectl, Result, cluster::run_in, tools, wait};
use std::process::{Command, Stdio};

pub(crate) const TESTS: &[super::Test] = &[
    ("kubectl_1_32_does_its_daily_work", |c| daily(c, Kubectl::V1_32, "k32")),
    ("kubectl_1_20_does_its_daily_work", |c| daily(c, Kubectl::V1_20, "k20")),
    ("exec_attach_and_cp_work_with_both", streams),
    ("port_forward_works_with_both", port_forward),
    ("logs_follow_with_both", logs),
    ("top_shows_what_nodes_and_pods_use_with_both", top),
    ("rollouts_go_forward_and_back", rollouts),
    ("what_is_owned_goes_with_its_owner_and_its_namespace", deletions),
    ("debug_adds_a_container_and_makes_a_node_pod", debug),
    ("drain_moves_pods_with_both", drain),
    ("certificates_are_approved_and_tokens_made", certificates),
];

const IMAGE: &str = "localhost/kimg/toolbox:latest";
const SLEEP: &str = "trap exit TERM; while true; do sleep 1; done";

fn daily(cluster: &Cluster, version: Kubectl, ns: &str) -> Result {
    cluster.namespace(ns)?;
    let k = |args: &[&str]| -> Result<String> {
        let all: Vec<&str> = ["-n", ns].into_iter().chain(args.iter().copied()).collect();
        cluster.kubectl_of(version, &all, None)?.success().with_context(|| format!("kubectl {}", args.join(" ")))
    };
    let apply = |verb: &str, yaml: &str| {
        cluster
            .kubectl_of(version, &["-n", ns, verb, "-f", "-"], Some(yaml))?
            .success()
            .with_context(|| verb.to_owned())
    };
    let config =
        |colour: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c}}\ndata: {{colour: {colour}}}\n");
    apply("create", &config("red"))?;
    ensure!(
        cluster
            .kubectl_of(version, &["-n", ns, "create", "-f", "-"], Some(&config("red")))?
            .err
            .contains("already exists"),
        "a second create was taken"
    );
    apply("apply", &config("green"))?;
    let diff = cluster.kubectl_of(version, &["-n", ns, "diff", "-f", "-"], Some(&config("blue")))?;
    ensure!(diff.code == 1 && diff.out.contains("+  colour: blue"), "diff says {}", diff.all());
    apply("replace", &config("blue"))?;
    ensure!(k(&["get", "cm", "c", "-o", "jsonpath={.data.colour}"])? == "blue", "replace did not arrive");
    k(&["patch", "cm", "c", "-p", r#"{"data":{"size":"xl"}}"#])?;
    k(&["patch", "cm", "c", "--type=json", "-p", r#"[{"op":"remove","path":"/data/size"}]"#])?;
    k(&["patch", "cm", "c", "--type=merge", "-p", r#"{"data":{"colour":null}}"#])?;
    ensure!(k(&["get", "cm", "c", "-o", "jsonpath={.data}"])?.trim_matches(['{', '}']).is_empty(), "data is left");
    k(&["label", "cm", "c", "a=b"])?;
    k(&["annotate", "cm", "c", "note=before"])?;
    ensure!(k(&["get", "cm", "-l", "a=b", "-o", "name"])?.contains("configmap/c"), "the label selects nothing");
    let editor = format!(
        "env EDITOR='sed -i s/before/after/' {} --kubeconfig={} -n {ns} edit cm c",
        tools::kubectl(version)?.display(),
        cluster.kubeconfig().display()
    );
    run_in(&cluster.dir, "sh".into(), &["-c", &editor], None)?.success().context("edit")?;
    ensure!(k(&["get", "cm", "c", "-o", "jsonpath={.metadata.annotations.note}"])? == "after", "edit did not arrive");

    k(&["run", "one", "--image", IMAGE, "--image-pull-policy=IfNotPresent", "--", "sh", "-c", SLEEP])?;
    cluster.pod_ready(ns, "one")?;
    k(&["expose", "pod", "one", "--port=80", "--name=one"])?;
    let described = k(&["describe", "pod", "one"])?;
    for word in ["Successfully assigned", "Started", "Running"] {
        ensure!(described.contains(word), "describe lacks '{word}':\n{described}");
    }
    k(&["create", "deployment", "d", "--image", IMAGE])?;
    k(&["scale", "deployment", "d", "--replicas=0"])?;
    k(&["autoscale", "deployment", "d", "--min=1", "--max=2"])?;
    k(&["set", "image", "deployment/d", &format!("toolbox={IMAGE}")])?;
    ensure!(k(&["get", "all"])?.contains("deployment.apps/d"), "get all shows no deployment");
    for args in [
        &["api-resources"][..],
        &["api-versions"],
        &["cluster-info"],
        &["version"],
        &["explain", "pod.spec.containers.image"],
        &["auth", "can-i", "create", "pods"],
        &["get", "--raw", "/healthz"],
        &["get", "events"],
        &["get", "componentstatuses"],
        &["wait", "--for=condition=Ready", "pod/one", "--timeout=10s"],
        &["config", "view"],
        &["delete", "deployment", "d"],
        &["delete", "pod", "one", "--grace-period=1"],
    ] {
        k(args)?;
    }
    let refused = cluster.kubectl_of(version, &["-n", ns, "get", "pod", "one"], None)?;
    ensure!(refused.err.contains(r#"pods "one" not found"#), "a deleted pod: {}", refused.all());
    Ok(())
}

fn both() -> [(Kubectl, &'static str); 2] {
    [(Kubectl::V1_32, "k32"), (Kubectl::V1_20, "k20")]
}

/// A pod for streaming tests that counts on its output.
fn streamer(cluster: &Cluster) -> Result {
    if cluster.kubectl(&["-n", "k32", "get", "pod", "streamer"])?.ok {
        return Ok(());
    }
    let yaml = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: streamer, namespace: k32}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  - name: main\n    image: {IMAGE}\n    imagePullPolicy: IfNotPresent\n    stdin: true\n    command: [sh, -c, 'echo served > /tmp/index.html; httpd -p 8080 -h /tmp; i=0; while true; do echo tick $i; i=$((i+1)); sleep 1; done']\n"
    );
    cluster.apply(&yaml)?;
    cluster.pod_ready("k32", "streamer")
}

fn streams(cluster: &Cluster) -> Result {
    streamer(cluster)?;
    for (version, name) in both() {
        let k = |args: &[&str], input: Option<&str>| cluster.kubectl_of(version, args, input);
        let echoed =
            k(&["-n", "k32", "exec", "-i", "streamer", "--", "sh", "-c", "read x; echo got $x"], Some("hello\n"))?
                .success()?;
        ensure!(echoed.contains("got hello"), "{name}: exec said {echoed}");
        let failed = k(&["-n", "k32", "exec", "streamer", "--", "sh", "-c", "exit 7"], None)?;
        ensure!(failed.code == 7, "{name}: exit code {} ({})", failed.code, failed.err);
        let tty = format!(
            "script -qec \"{} --kubeconfig={} -n k32 exec -it streamer -- tty\" /dev/null",
            tools::kubectl(version)?.display(),
            cluster.kubeconfig().display()
        );
        let said = run_in(&cluster.dir, "sh".into(), &["-c", &tty], None)?;
        ensure!(said.out.contains("/dev/pts/"), "{name}: no terminal: {}", said.all());
        let file = cluster.dir.join(format!("sent-{name}"));
        std::fs::write(&file, "to and fro\n").context("writing a file")?;
        k(&["-n", "k32", "cp", &file.display().to_string(), &format!("streamer:/tmp/{name}")], None)?
            .success()
            .context("cp to the pod")?;
        let back = cluster.dir.join(format!("back-{name}"));
        k(&["-n", "k32", "cp", &format!("streamer:/tmp/{name}"), &back.display().to_string()], None)?
            .success()
            .context("cp from the pod")?;
        ensure!(
            std::fs::read_to_string(&back).context("reading it back")? == "to and fro\n",
            "{name}: the file came back changed"
        );
        let mut attach = Command::new(tools::kubectl(version)?);
        attach
            .arg(format!("--kubeconfig={}", cluster.kubeconfig().display()))
            .args(["-n", "k32", "attach", "streamer"]);
        let mut child =
            attach.stdout(Stdio::piped()).stderr(Stdio::null()).stdin(Stdio::null()).spawn().context("attach")?;
        let mut heard = String::new();
        if let Some(out) = child.stdout.take() {
            use std::io::BufRead;
            let lines = std::io::BufReader::new(out).lines().take(2);
            heard = lines.map_while(std::result::Result::ok).collect();
        }
        child.kill().context("ending attach")?;
        child.wait().context("ending attach")?;
        ensure!(heard.contains("tick"), "{name}: attach heard '{heard}'");
    }
    Ok(())
}

fn port_forward(cluster: &Cluster) -> Result {
    streamer(cluster)?;
    for (i, (version, name)) in both().into_iter().enumerate() {
        let port = 28_080 + i;
        let mut command = Command::new(tools::kubectl(version)?);
        command.arg(format!("--kubeconfig={}", cluster.kubeconfig().display()));
        command.args(["-n", "k32", "port-forward", "pod/streamer", &format!("{port}:8080")]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("port-forward")?;
        let got = wait::until("the forwarded port", wait::scale(10), || {
            let out = run_in(
                &cluster.dir,
                "curl".into(),
                &["-s", "-m", "5", &format!("http://127.0.0.1:{port}/index.html")],
                None,
            )?;
            Ok(out.ok.then_some(out.out))
        });
        child.kill().context("ending port-forward")?;
        child.wait().context("ending port-forward")?;
        ensure!(got?.contains("served"), "{name}: another answer");
    }
    Ok(())
}

fn logs(cluster: &Cluster) -> Result {
    streamer(cluster)?;
    for (version, name) in both() {
        let text = cluster.kubectl_of(version, &["-n", "k32", "logs", "streamer", "--tail=1"], None)?.success()?;
        ensure!(text.lines().count() == 1 && text.contains("tick"), "{name}: --tail=1 gave '{text}'");
        let follow = format!(
            "timeout 6 {} --kubeconfig={} -n k32 logs -f --tail=1 streamer",
            tools::kubectl(version)?.display(),
            cluster.kubeconfig().display()
        );
        let heard = run_in(&cluster.dir, "sh".into(), &["-c", &follow], None)?.out;
        ensure!(heard.lines().count() >= 2, "{name}: logs -f heard '{heard}'");
    }
    Ok(())
}

/// A deployment without pods owns a replica set, which is all that is needed.
fn deletions(cluster: &Cluster) -> Result {
    cluster.namespace("owned")?;
    let k = |args: &[&str]| cluster.k(&["-n", "owned"].into_iter().chain(args.iter().copied()).collect::<Vec<_>>());
    let sets = || k(&["get", "replicasets", "-o", "jsonpath={.items[*].metadata.name}"]);
    let made = || -> Result<String> {
        k(&["create", "deployment", "d", "--image=none", "--replicas=0"])?;
        wait::until("its replica set", wait::scale(20), || Ok(Some(sets()?).filter(|name| !name.is_empty())))
    };
    let set = made()?;
    k(&["delete", "deployment", "d", "--cascade=orphan"])?;
    let owners = k(&["get", "replicaset", &set, "-o", "jsonpath={.metadata.ownerReferences}"])?;
    ensure!(owners.is_empty(), "the orphan still has owners: {owners}");
    k(&["delete", "replicaset", &set])?;
    made()?;
    k(&["delete", "deployment", "d", "--cascade=foreground"])?;
    ensure!(sets()?.is_empty(), "the owner went before what it owns");
    made()?;
    k(&["delete", "deployment", "d"])?;
    wait::until("the replica set to go", wait::scale(20), || Ok(sets()?.is_empty().then_some(())))?;
    k(&["create", "configmap", "c", "--from-literal=a=b"])?;
    k(&["delete", "namespace", "owned"])?;
    // One of the same name begins empty.
    cluster.namespace("owned")?;
    let left = k(&["get", "configmaps", "-o", "name"])?;
    ensure!(!left.contains("/c"), "the namespace left {left}");
    k(&["delete", "namespace", "owned", "--wait=false"]).map(|_| ())
}

/// A pod that would take a whole cpu, and gets a fifth of one.
const BUSY: &str = "apiVersion: v1
kind: Pod
metadata: {name: busy, namespace: top, labels: {app: busy}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: localhost/kimg/toolbox:latest
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'while true; do :; done']
    resources: {limits: {cpu: 200m, memory: 32Mi}}
  - {name: idle, image: localhost/kimg/toolbox:latest, imagePullPolicy: IfNotPresent, command: [sleep, '1000000']}
";

fn top(cluster: &Cluster) -> Result {
    cluster.namespace("top")?;
    cluster.apply(BUSY)?;
    cluster.pod_ready("top", "busy")?;
    // What autoscalers ask for; a container that was started just now is known a moment later.
    let query = "/apis/metrics.k8s.io/v1beta1/namespaces/top/pods?labelSelector=app%3Dbusy";
    let list = wait::until("the usage of the busy pod", wait::scale(30), || {
        let list: serde_json::Value = serde_json::from_str(&cluster.k(&["get", "--raw", query])?)?;
        Ok(list["items"].as_array().is_some_and(|items| items.len() == 1).then_some(list))
    })?;
    let containers = list["items"][0]["containers"].as_array().context("no containers")?;
    let nanocores = |name: &str| -> Result<u64> {
        let one = containers.iter().find(|c| c["name"] == name).with_context(|| format!("no {name} in {list}"))?;
        let cpu = one["usage"]["cpu"].as_str().and_then(|cpu| cpu.strip_suffix('n')).context("no cpu")?;
        cpu.parse().context("cpu")
    };
    let (busy, idle) = (nanocores("main")?, nanocores("idle")?);
    ensure!((50_000_000..=400_000_000).contains(&busy) && idle < 50_000_000, "a fifth of a cpu and nothing: {list}");
    for (version, name) in both() {
        let k = |args: &[&str]| cluster.kubectl_of(version, args, None)?.success();
        let nodes = k(&["top", "nodes", "--no-headers"]).context("top nodes")?;
        for node in cluster.nodes()? {
            let line =
                nodes.lines().find(|line| line.starts_with(&node)).with_context(|| format!("{name}: {nodes}"))?;
            ensure!(line.contains("m ") && line.contains("Mi ") && line.contains('%'), "{name}: {line}");
        }
        let pods = k(&["top", "pods", "-n", "top", "--containers", "--no-headers"]).context("top pods")?;
        ensure!(pods.lines().count() == 2 && pods.contains("idle") && pods.contains("Mi"), "{name}: {pods}");
        let of_all = k(&["top", "pods", "-A", "-l", "app=busy", "--no-headers"]).context("top pods -A")?;
        ensure!(of_all.lines().count() == 1 && of_all.starts_with("top"), "{name}: {of_all}");
        let one = k(&["top", "pod", "busy", "-n", "top", "--no-headers"]).context("top pod")?;
        ensure!(one.starts_with("busy"), "{name}: {one}");
    }
    // Whoever may view a namespace may see what it uses.
    cluster.k(&["-n", "top", "create", "rolebinding", "viewers", "--clusterrole=view", "--user=jo"])?;
    cluster.k(&["-n", "top", "--as=jo", "top", "pods"])?;
    let nodes = cluster.kubectl(&["--as=jo", "top", "nodes"])?;
    ensure!(nodes.err.contains("forbidden"), "{}", nodes.all());
    cluster.k(&["delete", "namespace", "top", "--wait=false"]).map(drop)
}

fn rollouts(cluster: &Cluster) -> Result {
    cluster.namespace("roll")?;
    let k = |args: &[&str]| cluster.k(&["-n", "roll"].into_iter().chain(args.iter().copied()).collect::<Vec<_>>());
    let yaml = format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: d, namespace: roll}}\nspec:\n  replicas: 2\n  strategy: {{rollingUpdate: {{maxSurge: 2}}}}\n  selector: {{matchLabels: {{app: d}}}}\n  template:\n    metadata: {{labels: {{app: d}}}}\n    spec:\n      terminationGracePeriodSeconds: 1\n      containers: [{{name: main, image: '{IMAGE}', imagePullPolicy: IfNotPresent, command: [sh, -c, '{SLEEP}'], env: [{{name: V, value: one}}]}}]\n"
    );
    cluster.apply(&yaml)?;
    let timeout = format!("--timeout={}s", wait::scale(40).as_secs());
    k(&["rollout", "status", "deployment/d", &timeout])?;
    k(&["set", "env", "deployment/d", "V=two"])?;
    k(&["rollout", "status", "deployment/d", &timeout])?;
    ensure!(k(&["rollout", "history", "deployment/d"])?.contains('2'), "no second revision");
    k(&["rollout", "undo", "deployment/d"])?;
    k(&["rollout", "status", "deployment/d", &timeout])?;
    ensure!(
        k(&["get", "deployment", "d", "-o", "jsonpath={.spec.template.spec.containers[0].env[0].value}"])? == "one",
        "undo did not go back"
    );
    k(&["rollout", "restart", "deployment/d"])?;
    k(&["rollout", "status", "deployment/d", &timeout])?;
    k(&["delete", "namespace", "roll"]).map(|_| ())
}

fn debug(cluster: &Cluster) -> Result {
    streamer(cluster)?;
    cluster.k(&[
        "-n",
        "k32",
        "debug",
        "streamer",
        "--image",
        IMAGE,
        "--image-pull-policy=IfNotPresent",
        "-c",
        "dbg",
        "--",
        "sh",
        "-c",
        "echo from the debugger; sleep 600",
    ])?;
    wait::until("the debug container", wait::scale(20), || {
        let out = cluster.kubectl(&["-n", "k32", "logs", "streamer", "-c", "dbg"])?;
        Ok(out.out.contains("from the debugger").then_some(()))
    })?;
    let said = cluster.k(&[
        "-n",
        "k32",
        "debug",
        "node/worker-1",
        "--image",
        IMAGE,
        "--image-pull-policy=IfNotPresent",
        "--",
        "cat",
        "/host/etc/os-release",
    ])?;
    let pods = cluster.k(&["-n", "k32", "get", "pods", "-o", "name"])?;
    let pod = pods.lines().find(|l| l.contains("node-debugger")).with_context(|| format!("no debug pod: {said}"))?;
    wait::until("the node's os-release", wait::scale(20), || {
        let out = cluster.kubectl(&["-n", "k32", "logs", pod])?;
        Ok(out.out.contains("kimg").then_some(()))
    })
}

fn drain(cluster: &Cluster) -> Result {
    for (version, name) in both() {
        let k = |args: &[&str]| {
            cluster
                .kubectl_of(version, args, None)?
                .success()
                .with_context(|| format!("{name}: kubectl {}", args.join(" ")))
        };
        k(&["cordon", "worker-2"])?;
        let data = if version == Kubectl::V1_20 { "--delete-emptydir-data" } else { "--delete-emptydir-data=true" };
        k(&["drain", "worker-2", "--ignore-daemonsets", data, "--force", "--timeout=120s"])?;
        let left = cluster.k(&[
            "get",
            "pods",
            "-A",
            "--field-selector",
            "spec.nodeName=worker-2,status.phase=Running",
            "-o",
            "jsonpath={.items[*].metadata.ownerReferences[0].kind}",
        ])?;
        ensure!(left.split_whitespace().all(|k| k == "DaemonSet"), "{name}: left on the node: {left}");
        k(&["uncordon", "worker-2"])?;
        k(&["taint", "node", "worker-2", "a=b:NoSchedule"])?;
        k(&["taint", "node", "worker-2", "a-"])?;
    }
    let timeout = format!("--timeout={}s", wait::scale(40).as_secs());
    cluster.k(&["-n", "example", "rollout", "status", "deployment/web", &timeout]).map(|_| ())
}

fn certificates(cluster: &Cluster) -> Result {
    let token = cluster.k(&["-n", "k32", "create", "token", "default"])?;
    ensure!(token.trim().split('.').count() == 3, "no token: {token}");
    let dir = cluster.dir.join("csr");
    std::fs::create_dir_all(&dir).context("making a folder")?;
    let make = "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout u.key -out u.csr -subj /CN=ursula/O=testers 2>/dev/null && base64 -w0 u.csr";
    let request = run_in(&dir, "sh".into(), &["-c", make], None)?.success()?;
    cluster.apply(&format!("apiVersion: certificates.k8s.io/v1\nkind: CertificateSigningRequest\nmetadata: {{name: ursula}}\nspec:\n  signerName: kubernetes.io/kube-apiserver-client\n  usages: [client auth]\n  request: {request}\n"))?;
    cluster.k(&["certificate", "approve", "ursula"])?;
    wait::until("the certificate", wait::scale(15), || {
        let out = cluster.k(&["get", "csr", "ursula", "-o", "jsonpath={.status.certificate}"])?;
        Ok((!out.is_empty()).then_some(()))
    })?;
    cluster.k(&["delete", "csr", "ursula"]).map(|_| ())
}
