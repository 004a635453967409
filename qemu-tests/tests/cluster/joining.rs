//! Machines that must not join say why, and do not.

use anyhow::{Context, ensure};
use kimg::local::state::State;
use kimg::seed::token::BootstrapToken;
use qemu_tests::cluster::condition;
use qemu_tests::cluster::{Output, run_in};
use qemu_tests::guest::Guest;
use qemu_tests::tools::{self, Kubectl};
use qemu_tests::{Cluster, Result, wait};
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) const TESTS: &[super::Test] = &[
    ("a_used_token_is_gone", used_token),
    ("a_node_that_missed_its_certificate_gets_it_with_its_token", missed_certificate),
    ("a_seed_is_small_and_its_token_bound", seed),
    ("a_live_nodes_name_is_not_taken_over", live_name),
    ("a_machine_with_bad_user_data_says_why_and_does_not_join", bad_user_data),
    ("a_machine_with_a_bad_token_says_why_and_does_not_join", bad_tokens),
];

/// The name of the machine beside the cluster.
pub(crate) const GUEST: &str = "worker-3";
pub(crate) const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 99);
const SPARE: u8 = 2;

/// Booted by the first test that needs it: its disk and its metadata are its own, so one test goes on where another ended.
static MACHINE: Mutex<Option<Guest>> = Mutex::new(None);

/// The machine beside the cluster.
pub(crate) struct Machine(MutexGuard<'static, Option<Guest>>);

impl std::ops::Deref for Machine {
    type Target = Guest;
    fn deref(&self) -> &Guest {
        self.0.as_ref().expect("boot() has put it there")
    }
}

/// The running machine, else one that boots with this user-data.
pub(crate) fn machine(cluster: &Cluster, user_data: &str) -> Result<Machine> {
    let mut place = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    match place.as_ref() {
        Some(guest) => guest.tell(user_data.as_bytes())?,
        None => *place = Some(Guest::boot(cluster, SPARE, GUEST_ADDRESS, user_data)?),
    }
    Ok(Machine(place))
}

/// The machine beside the cluster as a Ready node of it, which it was already or becomes now.
pub(crate) fn joined(cluster: &Cluster) -> Result<Machine> {
    let ready = || -> Result<bool> {
        let node = cluster.kubectl(&["get", "node", GUEST, "--ignore-not-found", "-o", "json"])?.success()?;
        Ok(serde_json::from_str::<serde_json::Value>(&node).is_ok_and(|node| condition(&node, "Ready") == Some("True")))
    };
    let place = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    if place.is_some() && ready()? {
        return Ok(Machine(place));
    }
    drop(place);
    let guest = machine(cluster, &good_user_data(GUEST, &token(cluster, GUEST, 600)?))?;
    wait::until(&format!("{GUEST} to be Ready"), wait::scale(60), || Ok(ready()?.then_some(())))?;
    Ok(guest)
}

/// Ends the machine beside the cluster.
pub(crate) fn end() {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner).take();
}

/// User-data with these lines in its kimg: section.
pub(crate) fn user_data(name: &str, lines: &[&str]) -> String {
    let section: String = lines.iter().map(|line| format!("  {line}\n")).collect();
    format!("#cloud-config\nhostname: {name}\nkimg:\n{section}")
}

/// User-data of a node that should join, with this token.
pub(crate) fn good_user_data(name: &str, token: &str) -> String {
    let address = format!("node-ip: {GUEST_ADDRESS}");
    user_data(name, &["role: worker", &address, "api: 10.77.0.10", &format!("token: {token}")])
}

/// A fresh bootstrap token for a node, which ends so many seconds from now.
pub(crate) fn token(cluster: &Cluster, node: &str, life_secs: i64) -> Result<String> {
    let token = BootstrapToken::random();
    let end =
        jiff::Timestamp::from_second(jiff::Timestamp::now().as_second() + life_secs).context("the token's end")?;
    let (id, secret) = (&token.id, &token.secret);
    cluster.apply(&format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: bootstrap-token-{id}, namespace: kube-system}}\n\
         type: bootstrap.kubernetes.io/token\nstringData:\n  token-id: {id}\n  token-secret: {secret}\n  \
         kimg-node-name: {node}\n  usage-bootstrap-authentication: \"true\"\n  expiration: {end}\n"
    ))?;
    Ok(token.to_string())
}

/// Nothing has joined: no Node of that name, and no certificate on the machine.
fn has_not_joined(cluster: &Cluster, guest: &Guest, name: &str) -> Result {
    let nodes = cluster.nodes()?;
    ensure!(!nodes.iter().any(|node| node == GUEST), "{GUEST} has joined: {nodes:?}");
    let certificates = guest.node(cluster, name, &["certificates"])?.success()?;
    ensure!(!certificates.contains("system:node"), "the machine has a certificate:\n{certificates}");
    let answer = guest.node(cluster, name, &["reboot"])?;
    ensure!(
        !answer.ok && answer.err.contains("has not joined the cluster"),
        "the node API of a machine that has not joined takes commands: {}",
        answer.all()
    );
    Ok(())
}

fn used_token(cluster: &Cluster) -> Result {
    let tokens = cluster.k(&[
        "-n",
        "kube-system",
        "get",
        "secrets",
        "--field-selector",
        "type=bootstrap.kubernetes.io/token",
        "-o",
        "name",
    ])?;
    ensure!(tokens.trim().is_empty(), "tokens of joined nodes are left: {tokens}");
    Ok(())
}

/// The certificate is signed and its answer lost: the token still fetches it, and does nothing else any more.
fn missed_certificate(cluster: &Cluster) -> Result {
    let node = "worker-7";
    let token = token(cluster, node, 600)?;
    let secret = format!("bootstrap-token-{}", token.split('.').next().unwrap_or_default());
    let dir = cluster.dir.join("csr");
    std::fs::create_dir_all(&dir).context("making a folder")?;
    let server = cluster.k(&["config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"])?;
    let ca = cluster.dir.join("secrets/cluster-ca.crt").display().to_string();
    // No kubeconfig: the administrator's certificate would go before the token.
    let with = |credential: &[&str], args: &[&str], input: Option<&str>| -> Result<Output> {
        let all = [&["--kubeconfig=/dev/null", "--server", &server, "--certificate-authority", &ca], credential, args];
        run_in(&dir, tools::kubectl(Kubectl::V1_32)?, &all.concat(), input)
    };
    let request = |name: &str, subject: &str, signer: &str| -> Result<String> {
        let make = format!(
            "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -subj {subject} 2>/dev/null | base64 -w0"
        );
        let pem = run_in(&dir, "sh".into(), &["-c", &make], None)?.success()?;
        Ok(format!(
            "apiVersion: certificates.k8s.io/v1\nkind: CertificateSigningRequest\nmetadata: {{name: {name}}}\nspec:\n  \
             signerName: kubernetes.io/{signer}\n  usages: [digital signature, client auth]\n  request: {pem}\n"
        ))
    };
    let subject = format!("/O=system:nodes/CN=system:node:{node}");
    let bearer: &[&str] = &["--token", &token];
    let create: &[&str] = &["create", "-f", "-"];
    let fetch: &[&str] = &["get", "csr", "missed-1", "-o", "jsonpath={.status.certificate}"];

    with(bearer, create, Some(&request("missed-1", &subject, "kube-apiserver-client-kubelet")?))?.success()?;
    wait::until("the certificate", wait::scale(15), || Ok((!cluster.k(fetch)?.is_empty()).then_some(())))?;
    let certificate = with(bearer, fetch, None)?.success()?;
    run_in(&dir, "sh".into(), &["-c", "base64 -d >missed-1.crt"], Some(&certificate))?.success()?;

    with(bearer, create, Some(&request("missed-2", &subject, "kube-apiserver-client-kubelet")?))?.success()?;
    wait::until("the second request's refusal", wait::scale(15), || {
        let said = cluster.k(&["get", "csr", "missed-2", "-o", "jsonpath={.status.conditions[*].reason}"])?;
        ensure!(said.is_empty() || said == "TokenUsed", "the token is good for two joins: {said}");
        Ok((!said.is_empty()).then_some(()))
    })?;

    let own: &[&str] = &["--client-certificate", "missed-1.crt", "--client-key", "missed-1.key"];
    with(own, create, Some(&request("missed-3", "/CN=kimg:overlay", "kube-apiserver-client")?))?.success()?;
    wait::until("the end of the token", wait::scale(15), || {
        Ok(cluster.kubectl(&["-n", "kube-system", "get", "secret", &secret])?.err.contains("NotFound").then_some(()))
    })?;
    let after = with(bearer, fetch, None)?;
    ensure!(!after.ok && after.err.contains("Unauthorized"), "a used token is accepted: {}", after.all());
    cluster.k(&["delete", "csr", "missed-1", "missed-2", "missed-3"]).map(|_| ())
}

fn seed(cluster: &Cluster) -> Result {
    let text = cluster.kimg(&["seed", "worker-2"])?.success()?;
    ensure!(text.starts_with("#cloud-config") && text.len() <= 1024, "{} bytes: {text}", text.len());
    let id = text
        .lines()
        .find_map(|l| l.trim().strip_prefix("token:"))
        .context("no token")?
        .trim()
        .trim_matches('"')
        .to_owned();
    let id = id.split('.').next().unwrap_or_default().to_owned();
    let secret = cluster.json(&["-n", "kube-system", "get", "secret", &format!("bootstrap-token-{id}")])?;
    ensure!(
        secret["data"]["kimg-node-name"].is_string() && secret["data"]["expiration"].is_string(),
        "the token is not bound: {secret}"
    );
    cluster.k(&["-n", "kube-system", "delete", "secret", &format!("bootstrap-token-{id}")]).map(|_| ())
}

/// One boot for all: the node looks at its user-data again and again.
fn bad_user_data(cluster: &Cluster) -> Result {
    let with = |lines: &[&str]| user_data(GUEST, lines).into_bytes();
    let cases = [
        (with(&["role: master"]), "this is a worker image, and its user-data says that this machine is a master"),
        (
            with(&["role: worker", "node-ip: 10.77.0"]),
            "is no IP address and no range of them; correct it in the user-data",
        ),
        (with(&["role: worker", "node-ip: 10.77.0.11"]), "is on none of this machine's interfaces"),
        (b"\x1f\x8bnothing that was ever compressed".to_vec(), "user-data is unreadable"),
        (b"hello, world\n".to_vec(), "does not begin with the line #cloud-config"),
        (with(&["role: worker", "tokn: abc"]), "unknown field `tokn`"),
        (with(&["role: worker", "token: abc"]), "the token in user-data is not of the form"),
    ];
    end();
    let guest = machine(cluster, &user_data(GUEST, &["role: master"]))?;
    wait::until("the machine's node API", wait::scale(60), || {
        guest.node(cluster, GUEST, &["status"])?.success().map(Some)
    })?;
    for (number, (document, sentence)) in cases.iter().enumerate() {
        // The first it was born with.
        if number > 0 {
            guest.tell(document)?;
        }
        guest.says(cluster, GUEST, sentence)?;
    }
    has_not_joined(cluster, &guest, GUEST)
}

/// Goes on with the same machine: from the first good user-data on it is a node that wants to join.
fn bad_tokens(cluster: &Cluster) -> Result {
    let guest = machine(cluster, &good_user_data(GUEST, &BootstrapToken::random().to_string()))?;
    guest.says(cluster, GUEST, &format!("does not accept the join token of node {GUEST}: it is wrong, has expired"))?;
    let others = token(cluster, "worker-9", 600)?;
    guest.tell(good_user_data(GUEST, &others).as_bytes())?;
    guest.says(cluster, GUEST, &format!("is for node worker-9, not for {GUEST}"))?;
    let expired = token(cluster, GUEST, -60)?;
    guest.tell(good_user_data(GUEST, &expired).as_bytes())?;
    guest.says(cluster, GUEST, &format!("does not accept the join token of node {GUEST}: it is wrong, has expired"))?;
    has_not_joined(cluster, &guest, GUEST)?;
    let id = others.split('.').next().unwrap_or_default();
    cluster.k(&["-n", "kube-system", "delete", "secret", &format!("bootstrap-token-{id}")]).map(|_| ())
}

/// A machine that says it is worker-2, first with the token that worker-2 joined with, then with a fresh one.
fn live_name(cluster: &Cluster) -> Result {
    let name = "worker-2";
    let boot_id = || cluster.k(&["get", "node", name, "-o", "jsonpath={.status.nodeInfo.bootID}"]);
    let before = boot_id()?;
    let state = State::load(&cluster.dir.join("run"))?;
    let used = state.vms.get(name).and_then(|vm| vm.token.clone()).context("kimg up keeps no token of worker-2")?;
    end();
    let guest = machine(cluster, &good_user_data(name, &used))?;
    wait::until("the machine's node API", wait::scale(60), || {
        guest.node(cluster, name, &["status"])?.success().map(Some)
    })?;
    guest.says(
        cluster,
        name,
        &format!("does not accept the join token of node {name}: it is wrong, has expired or was used before"),
    )?;
    let fresh = token(cluster, name, 600)?;
    guest.tell(good_user_data(name, &fresh).as_bytes())?;
    guest.says(cluster, name, &format!("a live node named {name} renewed its Lease a moment ago"))?;
    has_not_joined(cluster, &guest, name)?;
    ensure!(boot_id()? == before, "another machine is {name} now");
    cluster.all_ready()?;
    drop(guest);
    end();
    let id = fresh.split('.').next().unwrap_or_default();
    cluster.k(&["-n", "kube-system", "delete", "secret", &format!("bootstrap-token-{id}")]).map(|_| ())
}
