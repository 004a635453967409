//! A cluster sends its logs to a real rsyslog on this machine, which the VMs reach by their user network.

use crate::Test;
use anyhow::{Context, ensure};
use qemu_tests::cluster::settings;
use qemu_tests::{Cluster, Result, bundle, tools, wait};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// This machine, as VMs of the user network see it.
const HOST: &str = "10.0.2.2";

pub(crate) fn tests() -> Vec<Test> {
    let name = "logs_of_all_nodes_arrive_and_wait_while_nobody_takes_them";
    vec![Test::new(format!("memory::{name}"), true, move |_| arrive(name))]
}

/// Ends when it is dropped.
struct Rsyslog(Child);

impl Drop for Rsyslog {
    fn drop(&mut self) {
        // It may have ended.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn arrive(name: &str) -> Result {
    let dir = crate::root().join("logs");
    std::fs::create_dir_all(&dir).context("making a folder")?;
    certificates(&dir)?;
    // The image says the port, so it is chosen before there is anybody to listen.
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).context("a port")?.port();
    let sent = format!("[logs]\nto = \"syslog+tls://{HOST}:{port}\"\nca = \"logs-ca.pem\"\n");
    let out = dir.join("received");
    drop(std::fs::remove_file(&out));
    let result = Cluster::up(&dir, &settings("logs", 1, &sent, "")).and_then(|cluster| {
        // Nobody has taken anything until now.
        let waiting = || -> Result<Option<()>> {
            let services = cluster.kimg(&["node", "--node", "worker-1", "services"])?.success()?;
            Ok(services.contains("bytes wait").then_some(()))
        };
        wait::until("the worker says that logs wait", wait::scale(90), waiting)?;
        let server = rsyslog(&dir, port)?;
        for wanted in [
            "|worker-1|init|",
            "|worker-1|kernel|",
            "|worker-1|kubelet|",
            "|master-1|audit|",
            "|master-1|kube-apiserver|",
        ] {
            received(&out, wanted)?;
        }
        // Away again; what is said meanwhile comes afterwards.
        drop(server);
        cluster.k(&["create", "namespace", "said-while-nobody-listened"])?;
        let _server = rsyslog(&dir, port)?;
        received(&out, "said-while-nobody-listened")?;
        let processes = cluster.kimg(&["node", "--node", "master-1", "services", "--json"])?.success()?;
        let services: Vec<node_api::Service> = serde_json::from_str(&processes).context("reading services")?;
        let shipper = services.iter().find(|service| service.name == "log-shipper").context("no log-shipper")?;
        ensure!(shipper.restarts == 0 && shipper.status.contains(" 0 bytes dropped"), "{shipper:?}");
        Ok(())
    });
    // After a start that failed VMs may run too.
    let cluster = Cluster { dir, up_took: Duration::ZERO };
    let result = result.map_err(|error| match bundle::write(&cluster, &crate::root().join("failures"), name) {
        Ok(dir) => error.context(format!("bundle: {}", dir.display())),
        Err(fault) => error.context(format!("no bundle could be written: {fault}")),
    });
    let down = cluster.down();
    result.and(down)
}

fn received(out: &Path, wanted: &str) -> Result {
    wait::until(&format!("{wanted} arrives"), wait::scale(120), || {
        Ok(std::fs::read_to_string(out).unwrap_or_default().contains(wanted).then_some(()))
    })
}

fn certificates(dir: &Path) -> Result {
    let (key, server) = (KeyPair::generate()?, KeyPair::generate()?);
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key)?.pem();
    let certificate = CertificateParams::new(vec![HOST.to_owned()])?.signed_by(&server, &Issuer::new(params, key))?;
    for (name, text) in [("logs-ca.pem", ca), ("server.pem", certificate.pem()), ("server.key", server.serialize_pem())]
    {
        std::fs::write(dir.join(name), text).with_context(|| format!("writing {name}"))?;
    }
    Ok(())
}

fn rsyslog(dir: &Path, port: u16) -> Result<Rsyslog> {
    let tree = tools::rsyslog()?;
    let shown = dir.display();
    let config = format!(
        r#"
global(workDirectory="{shown}" defaultNetstreamDriver="ossl" defaultNetstreamDriverCAFile="{shown}/logs-ca.pem"
  defaultNetstreamDriverCertFile="{shown}/server.pem" defaultNetstreamDriverKeyFile="{shown}/server.key")
module(load="imtcp" streamDriver.name="ossl" streamDriver.mode="1" streamDriver.authMode="anon")
input(type="imtcp" address="127.0.0.1" port="{port}")
template(name="all" type="string" string="%pri%|%hostname%|%app-name%|%msg%\n")
action(type="omfile" file="{shown}/received" template="all")
"#
    );
    let file = dir.join("rsyslog.conf");
    std::fs::write(&file, config).context("writing rsyslog.conf")?;
    let libraries = tree.join("usr/lib/x86_64-linux-gnu");
    let child = Command::new(tree.join("usr/sbin/rsyslogd"))
        .args(["-n", "-iNONE", "-f"])
        .arg(file)
        .arg("-M")
        .arg(libraries.join("rsyslog"))
        .env("LD_LIBRARY_PATH", &libraries)
        .stdin(Stdio::null())
        .stderr(std::fs::File::create(dir.join("rsyslog.err")).context("making a file")?)
        .spawn()
        .context("starting rsyslog")?;
    Ok(Rsyslog(child))
}
