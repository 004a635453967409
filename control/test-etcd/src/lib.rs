//! A real etcd for tests: one member or several, on loopback, with mutual TLS.
//!
//! The program is Debian trixie's, fetched once into `target/tools/`.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A cluster; dropping it ends its processes and removes its data.
#[derive(Debug)]
pub struct Etcd {
    dir: TempDir,
    members: Vec<Member>,
    /// Flags of every member, besides its own.
    flags: Vec<String>,
}

#[derive(Debug)]
struct Member {
    client_port: u16,
    peer_port: u16,
    process: Option<Child>,
}

impl Etcd {
    /// Starts a cluster of this many members.  Clients may connect at once, and must try
    /// again until it has a leader.
    ///
    /// # Panics
    /// etcd cannot be had or started; the message says why.
    pub fn start(members: usize) -> Etcd {
        Etcd::start_with(members, &[])
    }

    /// [`Etcd::start`], with more flags.
    ///
    /// # Panics
    /// etcd cannot be had or started; the message says why.
    pub fn start_with(members: usize, flags: &[&str]) -> Etcd {
        let dir = tempfile::tempdir().expect("a temporary folder");
        certificates(dir.path());
        // All at once, so that no port is given twice.
        let sockets: Vec<TcpListener> =
            (0..2 * members).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
        let ports: Vec<u16> = sockets.iter().map(|s| s.local_addr().expect("its address").port()).collect();
        drop(sockets);
        let members =
            ports.chunks(2).map(|p| Member { client_port: p[0], peer_port: p[1], process: None }).collect::<Vec<_>>();
        let mut etcd = Etcd { dir, members, flags: flags.iter().map(ToString::to_string).collect() };
        for place in 0..etcd.members.len() {
            etcd.restart(place);
        }
        etcd
    }

    /// The URL of each member.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|m| format!("https://127.0.0.1:{}", m.client_port)).collect()
    }

    /// A file of the cluster: `ca.crt`, `client.crt`, `client.key`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts a member that does not run, on its data.
    ///
    /// # Panics
    /// etcd cannot be started.
    pub fn restart(&mut self, place: usize) {
        let (dir, member) = (self.dir.path(), &self.members[place]);
        let path = |name: &str| dir.join(name).display().to_string();
        let url = |port: u16| format!("https://127.0.0.1:{port}");
        let all: Vec<String> =
            self.members.iter().enumerate().map(|(i, m)| format!("m{i}={}", url(m.peer_port))).collect();
        let log =
            File::options().create(true).append(true).open(dir.join(format!("m{place}.log"))).expect("a log file");
        let process = Command::new(program())
            .args(["--name", &format!("m{place}"), "--data-dir", &path(&format!("m{place}"))])
            .args(["--listen-client-urls", &url(member.client_port)])
            .args(["--advertise-client-urls", &url(member.client_port)])
            .args(["--listen-peer-urls", &url(member.peer_port)])
            .args(["--initial-advertise-peer-urls", &url(member.peer_port)])
            .args(["--initial-cluster", &all.join(","), "--initial-cluster-state", "new"])
            .args(["--trusted-ca-file", &path("ca.crt"), "--client-cert-auth"])
            .args(["--cert-file", &path("server.crt"), "--key-file", &path("server.key")])
            .args(["--peer-trusted-ca-file", &path("ca.crt"), "--peer-client-cert-auth"])
            .args(["--peer-cert-file", &path("server.crt"), "--peer-key-file", &path("server.key")])
            // Killing a process loses nothing that it gave to the kernel; etcd's own promise
            // about power cuts is not under test here.
            .args(["--unsafe-no-fsync", "--log-level", "warn"])
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("starting etcd: {e}"));
        self.members[place].process = Some(process);
    }

    /// Kills a member.
    pub fn kill(&mut self, place: usize) {
        if let Some(mut process) = self.members[place].process.take() {
            // One that has ended by itself is gone as well.
            drop(process.kill());
            drop(process.wait());
        }
    }

    /// Stops a member in its tracks: its connections stay, and nothing answers.
    pub fn pause(&self, place: usize) {
        self.signal(place, Signal::STOP);
    }

    /// Lets a paused member go on.
    pub fn resume(&self, place: usize) {
        self.signal(place, Signal::CONT);
    }

    fn signal(&self, place: usize, signal: Signal) {
        let process = self.members[place].process.as_ref().expect("the member runs");
        kill_process(Pid::from_child(process), signal).expect("our own process");
    }

    /// Whether these bytes are anywhere in a member's data: its database or its log.
    ///
    /// # Panics
    /// The data cannot be read.
    pub fn data_holds(&self, place: usize, bytes: &[u8]) -> bool {
        holds(&self.dir.path().join(format!("m{place}")), bytes)
    }

    /// Whether these bytes are in a member's database.
    ///
    /// # Panics
    /// The data cannot be read.
    pub fn database_holds(&self, place: usize, bytes: &[u8]) -> bool {
        holds(&self.dir.path().join(format!("m{place}/member/snap")), bytes)
    }
}

fn holds(folder: &Path, bytes: &[u8]) -> bool {
    std::fs::read_dir(folder).expect("etcd's data").flatten().any(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return holds(&path, bytes);
        }
        std::fs::read(path).expect("etcd's data").windows(bytes.len()).any(|w| w == bytes)
    })
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for place in 0..self.members.len() {
            if std::thread::panicking() {
                let log = std::fs::read_to_string(self.dir.path().join(format!("m{place}.log"))).unwrap_or_default();
                let from = log.char_indices().rev().nth(2000).map_or(0, |(i, _)| i);
                eprintln!("etcd member {place}: …{}", &log[from..]);
            }
            self.kill(place);
        }
    }
}

/// Writes `ca.crt`, and `server` and `client` with their keys: for 127.0.0.1 and a few loopback addresses beside it.
///
/// # Panics
/// They cannot be made.
pub fn certificates(dir: &Path) {
    let write = |name: &str, text: String| std::fs::write(dir.join(name), text).expect("a certificate file");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "etcd-ca");
    let key = KeyPair::generate().expect("a key");
    write("ca.crt", params.self_signed(&key).expect("a CA").pem());
    let ca = Issuer::new(params, key);
    let usages = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    // Members are clients of each other.
    for (name, usages) in [("server", &usages[..]), ("client", &usages[1..])] {
        let addresses = (1..=5).map(|number| format!("127.0.0.{number}"));
        let params = CertificateParams::new(addresses.chain(["localhost".into()]).collect::<Vec<_>>());
        let mut params = params.expect("names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = usages.to_vec();
        let key = KeyPair::generate().expect("a key");
        write(&format!("{name}.crt"), params.signed_by(&key, &ca).expect("a certificate").pem());
        write(&format!("{name}.key"), key.serialize_pem());
    }
}

/// The etcd program; fetched when it is not there yet, by the same code that fetches an
/// image's packages.
///
/// # Panics
/// It cannot be had.
pub fn program() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let program = workspace.join("target/tools/etcd");
    if program.exists() {
        return program;
    }
    let folder = workspace.join("target/tools");
    std::fs::create_dir_all(&folder).expect("target/tools");
    let lock = File::create(folder.join("LOCK")).expect("target/tools/LOCK");
    lock.lock().expect("the only one who fetches");
    if !program.exists() {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo)
            .current_dir(&workspace)
            .args(["build", "--quiet", "--workspace", "--bin", "fetch-tools"])
            .status();
        // Tests lie in a folder beside the programs.
        let tests = std::env::current_exe().expect("this test's program");
        let fetch = tests.ancestors().nth(2).expect("the folder of programs").join("fetch-tools");
        let fetched = Command::new(&fetch).arg("etcd").status();
        assert!(
            program.exists(),
            "etcd is not in target/tools, and fetch-tools did not bring it: build {built:?}, {} {fetched:?}",
            fetch.display()
        );
    }
    program
}
