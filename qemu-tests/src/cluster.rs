//! A cluster of local VMs, as `kimg up` makes it.

use crate::tools::{self, Kubectl};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// What a command printed, and how it ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// Whether it ended with 0.
    pub ok: bool,
    /// Exit code, or -1 where a signal ended it.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Output {
    /// Standard output, or an error with all that was said.
    ///
    /// # Errors
    /// The command failed.
    pub fn success(self) -> Result<String> {
        if self.ok {
            return Ok(self.out);
        }
        bail!(
            "exit code {}: {}{}",
            self.code,
            self.err.trim(),
            if self.out.is_empty() { String::new() } else { format!(" / {}", self.out.trim()) }
        )
    }

    /// Both streams together, for looking at messages.
    pub fn all(&self) -> String {
        format!("{}{}", self.out, self.err)
    }
}

/// A `cluster.toml` as the demo has it: a master and so many workers, whose image holds the examples. The master's keys
/// are sealed where `general` does not say otherwise.
/// `general` are lines of the beginning, `local` those of the section `[local]`.
pub fn settings(name: &str, workers: u8, general: &str, local: &str) -> String {
    let node = |role: &str, number: u8, address: u8, more: &str| {
        format!(
            "[[nodes]]\nname = \"{role}-{number}\"\nrole = \"{role}\"\naddresses = [\"10.77.0.{address}\"]\n{more}\n"
        )
    };
    let workers =
        (1..=workers).map(|n| node("worker", n, 10 + n, if n == 1 { "labels = { disk = \"ssd\" }\n" } else { "" }));
    let nodes: String = std::iter::once(node("master", 1, 10, "")).chain(workers).collect();
    format!(
        "name = \"{name}\"\n{general}\n\n{nodes}[image.worker]\n\
         images = [\"../../../images/examples/toolbox\", \"../../../images/examples/web\"]\n\n[local]\n{local}\n"
    )
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    /// The cluster's folder.
    pub dir: PathBuf,
    /// From `kimg up` to all nodes Ready.
    pub up_took: Duration,
}

static ACCELERATED: OnceLock<bool> = OnceLock::new();

/// Whether VMs run with KVM here.
pub fn accelerated() -> bool {
    *ACCELERATED.get_or_init(|| {
        let probe = run_in(Path::new("."), tools::kimg(), &["doctor", "--accel"], None);
        probe.is_ok_and(|o| o.out.trim() == "kvm")
    })
}

/// Runs a program and waits for it.
///
/// # Errors
/// It could not be started.
pub fn run_in(dir: &Path, program: PathBuf, args: &[&str], input: Option<&str>) -> Result<Output> {
    let mut child = Command::new(&program)
        .args(args)
        .current_dir(dir)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
        stdin.write_all(text.as_bytes()).context("writing the program's input")?;
    }
    let output = child.wait_with_output().with_context(|| format!("waiting for {}", program.display()))?;
    Ok(Output {
        ok: output.status.success(),
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

impl Cluster {
    /// Makes the folder with this `cluster.toml`, brings the cluster up and waits until it is Ready.
    ///
    /// # Errors
    /// `kimg up` failed; the error holds what it said.
    pub fn up(dir: &Path, cluster_toml: &str) -> Result<Cluster> {
        Cluster::up_by(tools::kimg(), dir, cluster_toml)
    }

    /// The same by another `kimg`, whose images the nodes then have.
    ///
    /// # Errors
    /// As [`Cluster::up`].
    pub fn up_by(kimg: PathBuf, dir: &Path, cluster_toml: &str) -> Result<Cluster> {
        std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        std::fs::write(dir.join("cluster.toml"), cluster_toml).context("writing cluster.toml")?;
        let secrets = dir.join("secrets");
        if secrets.exists() {
            // What a run that failed left: its VMs, and keys in the middle of a change.
            run_in(dir, tools::kimg(), &["down", "--delete", "--yes"], None)?.success().context("kimg down")?;
            std::fs::remove_dir_all(&secrets).with_context(|| format!("removing {}", secrets.display()))?;
        }
        let start = Instant::now();
        run_in(dir, kimg, &["up"], None)?.success().context("kimg up")?;
        Ok(Cluster { dir: dir.to_owned(), up_took: start.elapsed() })
    }

    /// Ends the VMs and removes their disks.
    ///
    /// # Errors
    /// `kimg down` failed.
    pub fn down(&self) -> Result<()> {
        self.kimg(&["down", "--delete", "--yes"])?.success().context("kimg down").map(|_| ())
    }

    /// Runs `kimg` in the cluster's folder.
    ///
    /// # Errors
    /// It could not be started.
    pub fn kimg(&self, args: &[&str]) -> Result<Output> {
        run_in(&self.dir, tools::kimg(), args, None)
    }

    /// Runs kubectl 1.32 as the administrator.
    ///
    /// # Errors
    /// It could not be started.
    pub fn kubectl(&self, args: &[&str]) -> Result<Output> {
        self.kubectl_of(Kubectl::V1_32, args, None)
    }

    /// Runs kubectl of a version, with input.
    ///
    /// # Errors
    /// It could not be started.
    pub fn kubectl_of(&self, version: Kubectl, args: &[&str], input: Option<&str>) -> Result<Output> {
        let config = self.kubeconfig();
        let config = format!("--kubeconfig={}", config.display());
        let cache = format!("--cache-dir={}", self.dir.join("kubectl-cache").display());
        let all: Vec<&str> = [config.as_str(), cache.as_str()].into_iter().chain(args.iter().copied()).collect();
        run_in(&self.dir, tools::kubectl(version)?, &all, input)
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// kubectl 1.32 that must succeed; its output.
    ///
    /// # Errors
    /// It failed.
    pub fn k(&self, args: &[&str]) -> Result<String> {
        self.kubectl(args)?.success().with_context(|| format!("kubectl {}", args.join(" ")))
    }

    /// Applies manifests.
    ///
    /// # Errors
    /// kubectl refused them.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        self.kubectl_of(Kubectl::V1_32, &["apply", "-f", "-"], Some(yaml))?.success().context("kubectl apply")
    }

    /// Objects as JSON.
    ///
    /// # Errors
    /// kubectl failed or printed no JSON.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let all: Vec<&str> = args.iter().copied().chain(["-o", "json"]).collect();
        serde_json::from_str(&self.k(&all)?).context("reading kubectl's JSON")
    }

    /// A fresh namespace whose default service account is there; one that an earlier run has left is removed.
    ///
    /// # Errors
    /// The API refused it.
    pub fn namespace(&self, name: &str) -> Result<()> {
        let created = self.kubectl(&["create", "namespace", name])?;
        if created.err.contains("AlreadyExists") {
            self.k(&["delete", "namespace", name])?;
            self.k(&["create", "namespace", name])?;
        } else {
            created.success().with_context(|| format!("creating namespace {name}"))?;
        }
        crate::wait::until("the default service account", crate::wait::scale(20), || {
            Ok(self.kubectl(&["-n", name, "get", "serviceaccount", "default"])?.ok.then_some(()))
        })
    }

    /// Waits until a pod is Ready.
    ///
    /// # Errors
    /// It is not, in time; the error describes the pod.
    pub fn pod_ready(&self, namespace: &str, name: &str) -> Result<()> {
        let timeout = format!("--timeout={}s", crate::wait::scale(40).as_secs());
        let waited =
            self.kubectl(&["-n", namespace, "wait", "--for=condition=Ready", &timeout, &format!("pod/{name}")])?;
        if waited.ok {
            return Ok(());
        }
        let description = self.kubectl(&["-n", namespace, "describe", "pod", name])?;
        bail!("pod {namespace}/{name} is not Ready: {}\n{}", waited.err.trim(), description.all())
    }

    /// Runs a command in a pod; its output.
    ///
    /// # Errors
    /// It failed.
    pub fn exec(&self, namespace: &str, pod: &str, command: &[&str]) -> Result<String> {
        let args: Vec<&str> = ["-n", namespace, "exec", pod, "--"].into_iter().chain(command.iter().copied()).collect();
        self.k(&args)
    }

    /// The serial console of a node so far.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn console(&self, node: &str) -> Result<String> {
        let path = self.dir.join("run").join(node).join("console.log");
        let bytes = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Names of the nodes, as the API lists them.
    ///
    /// # Errors
    /// kubectl failed.
    pub fn nodes(&self) -> Result<Vec<String>> {
        let names = self.k(&["get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"])?;
        Ok(names.split_whitespace().map(str::to_owned).collect())
    }

    /// Waits until every node is Ready.
    ///
    /// # Errors
    /// Not in time.
    pub fn all_ready(&self) -> Result<()> {
        crate::wait::until("all nodes Ready", crate::wait::scale(60), || {
            let nodes = self.json(&["get", "nodes"])?;
            let items = nodes["items"].as_array().cloned().unwrap_or_default();
            let ready = items.iter().filter(|n| condition(n, "Ready") == Some("True")).count();
            Ok((ready == items.len() && ready > 0).then_some(()))
        })
    }
}

/// Status of a condition of an object.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    let list = object["status"]["conditions"].as_array()?;
    list.iter().find(|c| c["type"] == kind)?["status"].as_str()
}
