//! The status page in a real browser: a link is opened as `kimg status --link` prints it, on a phone and on a desk.
//!
//! What the browser showed stays in `target/screenshots`, whether the test fails or not.

use anyhow::{Context, bail, ensure};
use kimg::pki::kubeconfig::kubeconfig;
use libtest_mimic::{Completion, Failed, Trial};
use qemu_tests::apiserver::{Apiserver, program};
use qemu_tests::tools::{self, workspace};
use qemu_tests::{Kubectl, Result, wait};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

const NAME: &str = "the_status_page_opens_by_its_link_in_a_browser";
/// Width and height of a phone's and of a desk's window.
const WINDOWS: [(&str, &str); 2] = [("phone", "360,2400"), ("desk", "1280,1600")];
/// What a hostile object says.
const EVIL: &str = "<img src=x><script>document.title=1</script>";

pub(crate) fn trial() -> Trial {
    Trial::ignorable_test(NAME, || match tools::browser() {
        Ok(browser) => {
            opens(&browser).map_err(super::said)?;
            Ok(Completion::Completed)
        }
        Err(error) => {
            let why = format!("Debian's chromium cannot be had here: {error:#}");
            eprintln!("skipped: {why}");
            Ok::<_, Failed>(Completion::ignored_with(why))
        }
    })
    // 100 MB are fetched for it: it is of the long set. What the page answers, `control/status/tests` ask in both.
    .with_ignored_flag(true)
}

/// The page's process, which ends with this value.
struct Page(Child);

impl Drop for Page {
    fn drop(&mut self) {
        let _may_have_ended = self.0.kill();
        let _ended = self.0.wait();
    }
}

fn opens(browser: &tools::Browser) -> Result {
    let server = Apiserver::start(&[])?;
    fill(&server)?;
    let (port, _page) = page(&server)?;
    let shots = workspace().join("target/screenshots");
    std::fs::create_dir_all(&shots).context("making target/screenshots")?;
    let look = |what: &str, size: &str, arguments: &[String]| -> Result<String> {
        let token = kubectl(
            &server,
            &["-n", "kube-system", "create", "token", "kimg-status", "--audience=kimg-status", "--duration=10m"],
            None,
        )?;
        let link = format!("https://127.0.0.1:{port}/#{}", token.trim());
        let profile = tempfile::tempdir().context("making a folder")?;
        let said = run(browser, profile.path(), size, arguments, &link)?;
        let (out, errors) =
            (String::from_utf8_lossy(&said.stdout).into_owned(), String::from_utf8_lossy(&said.stderr).into_owned());
        std::fs::write(shots.join(format!("status-{what}.log")), &errors).context("writing what the browser said")?;
        ensure!(!errors.contains("Content Security Policy"), "the page breaks its own policy:\n{errors}");
        Ok(out)
    };
    for (what, size) in WINDOWS {
        let file = shots.join(format!("status-{what}.png"));
        look(what, size, &[format!("--screenshot={}", file.display())])?;
        ensure!(file.exists(), "there is no screenshot; {} has what the browser said", shots.display());
    }
    let shown = look("page", "1280,1600", &["--dump-dom".to_owned()])?;
    std::fs::write(shots.join("status-page.html"), &shown).context("writing the page")?;
    for word in ["<h2>Nodes</h2>", "master-1", "Roll under way", "default/web", "&lt;script&gt;", "<title>demo</title>"]
    {
        ensure!(shown.contains(word), "the browser shows no {word}; {} has what it showed", shots.display());
    }
    ensure!(!shown.contains("<img") && !shown.contains("<script"), "a text became markup; see {}", shots.display());
    Ok(())
}

fn run(browser: &tools::Browser, profile: &Path, size: &str, arguments: &[String], link: &str) -> Result<Output> {
    // The link logs in by a script and a redirect: the browser is given time of its own for both.
    let said = browser
        .command()
        .args([
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--enable-logging=stderr",
            "--ignore-certificate-errors",
        ])
        .arg("--virtual-time-budget=8000")
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("--window-size={size}"))
        .args(arguments)
        .arg(link)
        .stdin(Stdio::null())
        .output()
        .context("starting the browser")?;
    ensure!(said.status.success(), "the browser ended with {}: {}", said.status, String::from_utf8_lossy(&said.stderr));
    Ok(said)
}

fn page(server: &Apiserver) -> Result<(u16, Page)> {
    let own = server.issue("kimg:status", "kimg:pages")?;
    let config = server.dir().join("status.conf");
    std::fs::write(&config, kubeconfig("test", &server.url(), &server.ca, "status", &own))
        .context("writing status.conf")?;
    let free = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).context("looking for a free port")?;
    let path = |name: &str| -> PathBuf { server.dir().join(name) };
    let child = Command::new(program()?)
        .args(["kimg-status", "--cluster=demo"])
        .arg(format!("--kubeconfig={}", config.display()))
        .arg(format!("--listen={free}"))
        .arg(format!("--tls-cert-file={}", path("server.crt").display()))
        .arg(format!("--tls-private-key-file={}", path("server.key").display()))
        .stdin(Stdio::null())
        .spawn()
        .context("starting the status page")?;
    let page = Page(child);
    wait::until("the status page", Duration::from_secs(30), || Ok(TcpStream::connect(free).ok().map(|_| ())))?;
    Ok((free.port(), page))
}

fn kubectl(server: &Apiserver, arguments: &[&str], input: Option<&str>) -> Result<String> {
    let file = server.dir().join("input.yaml");
    if let Some(text) = input {
        std::fs::write(&file, text).context("writing objects")?;
    }
    let said = Command::new(tools::kubectl(Kubectl::V1_32)?)
        .arg(format!("--kubeconfig={}", server.kubeconfig().display()))
        .args(arguments)
        .args(input.map(|_| format!("--filename={}", file.display())))
        .output()
        .context("starting kubectl")?;
    if !said.status.success() {
        bail!("kubectl {}: {}", arguments.join(" "), String::from_utf8_lossy(&said.stderr));
    }
    Ok(String::from_utf8_lossy(&said.stdout).into_owned())
}

/// A cluster in the middle of a roll.
fn fill(server: &Apiserver) -> Result {
    kubectl(server, &["create"], Some(include_str!("../../../images/manifests/15-status.yaml")))?;
    let node = |name: &str, label: &str| {
        format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{{label}: \"\"}}}}\n---\n")
    };
    let pod = |n: u8| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web-{n}, namespace: default}}\n\
             spec: {{nodeName: worker-1, containers: [{{name: c, image: web}}]}}\n---\n"
        )
    };
    let since = jiff::Timestamp::now();
    let step = |node: &str, step: &str| serde_json::json!({"node": node, "from": "4f1c5cbbf0f0aa", "to": "9d377b10ce778c", "step": step, "since": since});
    let roll = serde_json::json!({"version": 3, "started": since, "back": false, "outcome": "running",
        "nodes": [step("worker-1", "draining"), step("worker-2", "waiting")]});
    let objects = [
        node("master-1", "node-role.kubernetes.io/control-plane"),
        node("worker-1", "disk"),
        node("worker-2", "disk"),
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: default, namespace: default}\n---\n".to_owned(),
        (0..6).map(pod).collect(),
        format!(
            "apiVersion: v1\nkind: Event\nmetadata: {{name: e, namespace: default}}\ntype: Warning\nreason: Failed\n\
             involvedObject: {{kind: Pod, name: web-0, namespace: default}}\nmessage: \"{EVIL}\"\nlastTimestamp: {}\n---\n",
            since.strftime("%Y-%m-%dT%H:%M:%SZ")
        ),
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: kimg-roll, namespace: kube-system}}\ndata: {{journal: '{roll}'}}\n"
        ),
    ];
    kubectl(server, &["create"], Some(&objects.concat()))?;
    for (name, status) in [("master-1", "True"), ("worker-1", "True"), ("worker-2", "Unknown")] {
        let patch = serde_json::json!({"status": {
            "conditions": [{"type": "Ready", "status": status, "reason": "r", "message": "Kubelet stopped posting node status."}],
            "nodeInfo": {"osImage": "kimg 0.1.0", "kubeletVersion": "v1.36.0", "kernelVersion": "6.12.48+deb13-cloud-amd64",
                "bootID": "5f0c2f1e-7a01", "architecture": "amd64", "containerRuntimeVersion": "", "kubeProxyVersion": "",
                "machineID": "", "operatingSystem": "linux", "systemUUID": ""}}});
        kubectl(
            server,
            &["patch", "node", name, "--subresource=status", "--type=merge", &format!("--patch={patch}")],
            None,
        )?;
    }
    Ok(())
}
