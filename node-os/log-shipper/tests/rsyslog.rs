//! The program against a real rsyslog: what arrives, while it is away, cut off in the middle, and somebody else.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// Tells this program to be the component.
const COMPONENT: &str = "LOG_SHIPPER_TEST";
/// Far longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// No test of its own: the component, in a process that can be ended.
#[test]
fn component() {
    let Ok(arguments) = std::env::var(COMPONENT) else { return };
    let arguments: Vec<OsString> = arguments.lines().map(OsString::from).collect();
    assert_eq!(log_shipper::main(arguments), std::process::ExitCode::SUCCESS);
}

/// The tree of rsyslog; fetched when it is not there yet, by the same code that fetches an image's packages.
fn rsyslog() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let tree = workspace.join("target/tools/rsyslog");
    fs::create_dir_all(workspace.join("target/tools")).expect("target/tools");
    let lock = File::create(workspace.join("target/tools/LOCK-rsyslog")).expect("a lock");
    lock.lock().expect("the only one who fetches");
    if !tree.exists() {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let build = ["build", "--quiet", "--workspace", "--bin", "fetch-tools"];
        let built = Command::new(cargo).current_dir(&workspace).args(build).status();
        // Tests lie in a folder beside the programs.
        let tests = std::env::current_exe().expect("this test's program");
        let fetch = tests.ancestors().nth(2).expect("the folder of programs").join("fetch-tools");
        let fetched = Command::new(&fetch).arg("rsyslog").status();
        assert!(tree.exists(), "rsyslog is not in target/tools: build {built:?}, {} {fetched:?}", fetch.display());
    }
    tree
}

fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Ends when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A folder with a server's certificate, a node's logs, and what arrived of them.
struct Stage {
    dir: tempfile::TempDir,
    said: UnixDatagram,
}

impl Stage {
    fn new() -> Stage {
        let dir = tempfile::tempdir().expect("dir");
        // Started by root, the component is another user after a moment.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("folder");
        fs::create_dir(dir.path().join("logs")).expect("folder");
        // As /run/kimg is on a node.
        fs::create_dir(dir.path().join("run")).expect("folder");
        fs::set_permissions(dir.path().join("run"), fs::Permissions::from_mode(0o700)).expect("folder");
        for name in ["ca", "other"] {
            let key = KeyPair::generate().expect("key");
            let mut params = CertificateParams::new(Vec::new()).expect("params");
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            fs::write(dir.path().join(format!("run/{name}.pem")), params.self_signed(&key).expect("ca").pem())
                .expect("written");
            if name == "ca" {
                let server = KeyPair::generate().expect("key");
                let certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("params");
                let certificate = certificate.signed_by(&server, &Issuer::new(params, key)).expect("signed");
                fs::write(dir.path().join("server.pem"), certificate.pem()).expect("written");
                fs::write(dir.path().join("server.key"), server.serialize_pem()).expect("written");
            }
        }
        let said = UnixDatagram::bind(dir.path().join("run/notify")).expect("socket");
        said.set_nonblocking(true).expect("socket");
        Stage { dir, said }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts rsyslog, at a port of its choice or at this one; gives the port.
    fn rsyslog(&self, port: u16) -> (Running, u16) {
        let (tree, file) = (rsyslog(), |name: &str| self.path(name).display().to_string());
        drop(fs::remove_file(self.path("port")));
        let config = format!(
            r#"
global(workDirectory="{dir}" defaultNetstreamDriver="ossl" defaultNetstreamDriverCAFile="{ca}"
  defaultNetstreamDriverCertFile="{certificate}" defaultNetstreamDriverKeyFile="{key}" maxMessageSize="8k")
module(load="imtcp" streamDriver.name="ossl" streamDriver.mode="1" streamDriver.authMode="anon")
input(type="imtcp" address="127.0.0.1" port="{port}" listenPortFileName="{listens}")
template(name="all" type="string"
  string="%pri%|%timereported:::date-rfc3339%|%hostname%|%app-name%|%structured-data%|%msg%\n")
action(type="omfile" file="{out}" template="all" asyncWriting="off" flushOnTXEnd="on")
"#,
            dir = self.dir.path().display(),
            ca = file("run/ca.pem"),
            certificate = file("server.pem"),
            key = file("server.key"),
            listens = file("port"),
            out = file("out"),
        );
        fs::write(self.path("rsyslog.conf"), config).expect("written");
        let libraries = tree.join("usr/lib/x86_64-linux-gnu");
        let child = Command::new(tree.join("usr/sbin/rsyslogd"))
            .args(["-n", "-iNONE", "-f"])
            .arg(self.path("rsyslog.conf"))
            .arg("-M")
            .arg(libraries.join("rsyslog"))
            .env("LD_LIBRARY_PATH", &libraries)
            .stdin(Stdio::null())
            .stderr(File::create(self.path("rsyslog.err")).expect("file"))
            .spawn()
            .expect("rsyslog");
        let mut running = Running(child);
        let port = wait("rsyslog listens", || {
            let ended = running.0.try_wait().expect("status");
            assert!(ended.is_none(), "rsyslog: {}", fs::read_to_string(self.path("rsyslog.err")).unwrap_or_default());
            // Only one of its own choice is told.
            let told = || fs::read_to_string(self.path("port")).ok()?.trim().parse().ok();
            let port = if port == 0 { told()? } else { port };
            TcpStream::connect(("127.0.0.1", port)).ok().map(|_| port)
        });
        (running, port)
    }

    fn shipper(&self, port: u16, ca: &str) -> Running {
        let flag = |name: &str, value: &Path| format!("--{name}={}", value.display());
        let arguments = [
            "log-shipper".to_owned(),
            "--host=127.0.0.1".to_owned(),
            format!("--port={port}"),
            flag("ca-file", &self.path(ca)),
            "--node-name=worker-1".to_owned(),
            "--cluster=demo".to_owned(),
            flag("logs", &self.path("logs")),
            flag("dir", &self.path("shipper")),
        ];
        let child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "component", "--nocapture"])
            .env(COMPONENT, arguments.join("\n"))
            .env("NOTIFY_SOCKET", self.path("run/notify"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(self.path("shipper.err")).expect("file"))
            .spawn()
            .expect("the component");
        Running(child)
    }

    /// Waits until it says something.
    fn says(&self, wanted: &str) -> String {
        let mut bytes = [0u8; 4096];
        wait(wanted, || {
            let length = self.said.recv(&mut bytes).ok()?;
            let said = String::from_utf8_lossy(&bytes[..length]);
            println!("{said}");
            said.contains(wanted).then(|| said.into_owned())
        })
    }

    fn log(&self, name: &str, text: &str) {
        let path = self.path("logs").join(name);
        let mut file = OpenOptions::new().create(true).append(true).open(path).expect("log");
        file.write_all(text.as_bytes()).expect("written");
    }

    fn put_aside(&self, name: &str) {
        let path = self.path("logs").join(name);
        fs::rename(&path, path.with_extension("log.1")).expect("put aside");
    }

    /// How often each text has arrived.
    fn arrived(&self) -> BTreeMap<String, usize> {
        let mut all = BTreeMap::new();
        for line in fs::read_to_string(self.path("out")).unwrap_or_default().lines() {
            *all.entry(line.to_owned()).or_default() += 1;
        }
        all
    }

    fn arrives(&self, text: &str) -> String {
        let found = || self.arrived().into_keys().find(|line| line.contains(text));
        wait(&format!("{text} arrives"), found)
    }
}

#[test]
fn logs_arrive_whole_and_once_also_what_was_written_while_nobody_took_them() {
    let stage = Stage::new();
    stage.log("kubelet.log", "2025-11-27T00:00:00.5Z  WARN early\n  and more of it\nhalf a");
    stage.log("audit.log", "{\"stageTimestamp\":\"2025-11-27T00:00:03Z\"}\n");
    stage.log("kernel.log", "2025-11-27T00:00:01.000000Z ERROR oops\n");
    let (server, port) = stage.rsyslog(0);
    let shipper = stage.shipper(port, "run/ca.pem");
    stage.arrives("early");
    let data = "[kimg@32473 cluster=\"demo\"]";
    for expected in [
        format!("28|2025-11-27T00:00:00.500000+00:00|worker-1|kubelet|{data}| 2025-11-27T00:00:00.5Z  WARN early"),
        format!("30|2025-11-27T00:00:00.500000+00:00|worker-1|kubelet|{data}|   and more of it"),
        format!(
            "110|2025-11-27T00:00:03.000000+00:00|worker-1|audit|{data}| {{\"stageTimestamp\":\"2025-11-27T00:00:03Z\"}}"
        ),
        format!("3|2025-11-27T00:00:01.000000+00:00|worker-1|kernel|{data}| 2025-11-27T00:00:01.000000Z ERROR oops"),
    ] {
        let (pri, rest) = expected.split_once('|').expect("columns");
        // Spaces before the text are the receiver's own matter.
        let same = |line: &String| {
            let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ").replace("| ", "|");
            let (own, said) = line.split_once('|').unwrap_or_default();
            own == pri && squeezed(said) == squeezed(&rest.replace("+00:00", "Z"))
                || squeezed(line) == squeezed(&expected)
        };
        wait(&expected, || stage.arrived().into_keys().find(|line| same(line)));
    }
    stage.log("kubelet.log", " line\n");
    stage.arrives("half a line");
    // Taken, and known to be.
    stage.says("5 lines sent");

    // Away: what is written waits, over a file put aside; what that pushes out is counted and told.
    drop(server);
    stage.log("kubelet.log", "pushed out 1\n");
    stage.says("does not take logs");
    stage.put_aside("kubelet.log");
    stage.log("kubelet.log", "kept 1\n");
    stage.says(&format!("{} bytes wait", "pushed out 1\nkept 1\n".len()));
    stage.put_aside("kubelet.log");
    stage.log("kubelet.log", "kept 2\n");
    stage.says(&format!("{} bytes dropped", "pushed out 1\n".len()));
    // It goes on with what it knows after a restart, too.
    drop(shipper);
    let shipper = stage.shipper(port, "run/ca.pem");
    let (server, _) = stage.rsyslog(port);
    stage.arrives("kept 1");
    stage.arrives("kept 2");
    stage.arrives("13 bytes of this log are missing here");
    assert!(!stage.arrived().keys().any(|line| line.contains("pushed out")));

    // Nothing is sent again by one that starts anew after all was taken.
    stage.says(": 3 lines sent");
    drop(shipper);
    let _shipper = stage.shipper(port, "run/ca.pem");
    stage.log("kubelet.log", "last\n");
    stage.arrives("last");
    let twice: Vec<String> =
        stage.arrived().into_iter().filter(|(_, count)| *count > 1).map(|(line, _)| line).collect();
    assert!(twice.is_empty(), "{twice:?}");
    drop(server);
}

#[test]
fn somebody_else_gets_nothing() {
    let stage = Stage::new();
    stage.log("kubelet.log", "secret\n");
    let (server, port) = stage.rsyslog(0);
    let other = stage.shipper(port, "run/other.pem");
    let said = stage.says("does not take logs");
    assert!(said.contains("certificate"), "{said}");
    drop(other);
    let _shipper = stage.shipper(port, "run/ca.pem");
    stage.arrives("secret");
    assert_eq!(stage.arrived().values().sum::<usize>(), 1, "it was sent once, to the right one");
    drop(server);
}

/// Passes a connection on; the first one only so far, and then it cuts it.
fn cutter(port: u16, first: usize) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listener");
    let own = listener.local_addr().expect("address").port();
    let count = Arc::new(AtomicU16::new(0));
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let server = TcpStream::connect(("127.0.0.1", port)).expect("rsyslog");
            let most = if count.fetch_add(1, Ordering::Relaxed) == 0 { first } else { usize::MAX };
            let (mut back, mut to) = (server.try_clone().expect("socket"), client.try_clone().expect("socket"));
            std::thread::spawn(move || drop(std::io::copy(&mut back, &mut to)));
            std::thread::spawn(move || {
                let (mut client, mut server, mut left) = (client, server, most);
                let mut bytes = [0u8; 4096];
                while left > 0 {
                    let room = left.min(bytes.len());
                    let Ok(length @ 1..) = client.read(&mut bytes[..room]) else { break };
                    if server.write_all(&bytes[..length]).is_err() {
                        break;
                    }
                    left -= length;
                }
                for stream in [client, server] {
                    drop(stream.shutdown(std::net::Shutdown::Both));
                }
            });
        }
    });
    own
}

#[test]
fn what_was_cut_off_in_the_middle_of_a_message_is_sent_again() {
    let stage = Stage::new();
    // More than what fits between the two, so that the end of it cannot have been taken when it is cut.
    let padding = "x".repeat(500);
    let names: Vec<String> = (0..40).map(|log| format!("service-{log}")).collect();
    let line = |name: &str, number: usize| format!("{name} line {number} {padding}");
    for name in &names {
        let text: String = (0..250).map(|number| line(name, number) + "\n").collect();
        stage.log(&format!("{name}.log"), &text);
    }
    let (_server, port) = stage.rsyslog(0);
    let _shipper = stage.shipper(cutter(port, 50_000), "run/ca.pem");
    stage.says("does not take logs");
    let missing = || {
        let all: Vec<String> = stage.arrived().into_keys().collect();
        let heard: std::collections::BTreeSet<&str> =
            all.iter().filter_map(|entry| entry.rsplit('|').next()).map(str::trim).collect();
        names
            .iter()
            .flat_map(|name| (0..250).map(|number| line(name, number)))
            .filter(|line| !heard.contains(line.as_str()))
            .count()
    };
    wait("every line arrives", || (missing() == 0).then_some(()));
}
