//! etcd's members of several masters: as `kube-apiserver store member` begins and joins them, on a real etcd.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};
use store::{Etcd, EtcdOptions, Expect, Member, Members, Membership, Stamped, Store as _};
use tempfile::TempDir;

use crate::client::Cluster;
use crate::etcd::{COMMAND, begin};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Masters, each with a loopback address of its own.
struct Masters {
    dir: TempDir,
    /// Of clients and of peers.
    ports: Vec<[u16; 2]>,
    processes: Vec<Option<Child>>,
}

impl Masters {
    fn new(count: usize) -> Masters {
        let dir = tempfile::tempdir().unwrap();
        test_etcd::certificates(dir.path());
        let sockets = (0..2 * count).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect::<Vec<_>>();
        let ports: Vec<u16> = sockets.iter().map(|socket| socket.local_addr().unwrap().port()).collect();
        let ports = ports.chunks(2).map(|pair| [pair[0], pair[1]]).collect();
        Masters { dir, ports, processes: (0..count).map(|_| None).collect() }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn client(&self, master: usize) -> String {
        format!("https://127.0.0.{}:{}", master + 1, self.ports[master][0])
    }

    fn peer(&self, master: usize) -> String {
        format!("https://127.0.0.{}:{}", master + 1, self.ports[master][1])
    }

    fn at(&self, masters: &[usize]) -> Members {
        Members {
            endpoints: masters.iter().map(|master| self.client(*master)).collect(),
            ca_file: Some(self.file("ca.crt")),
            cert_file: Some(self.file("client.crt")),
            key_file: Some(self.file("client.key")),
        }
    }

    fn command(&self, command: &str, arguments: Vec<String>) -> Command {
        let file = |flag: &str, name: &str| format!("--etcd-{flag}={}", self.file(name).display());
        let identity = [file("cafile", "ca.crt"), file("certfile", "client.crt"), file("keyfile", "client.key")];
        let line = ["kube-apiserver", "store", command].map(String::from).into_iter().chain(identity).chain(arguments);
        let mut program = Command::new(std::env::current_exe().unwrap());
        program
            .args(["--exact", "etcd::command", "--nocapture", "--test-threads=1"])
            .env(COMMAND, line.collect::<Vec<_>>().join("\n"));
        program
    }

    /// Runs what init runs as the service `etcd`, on a master that is told of these, itself among them.
    fn run(&mut self, master: usize, told: &[usize], join: bool) {
        let peer = self.peer(master);
        self.run_at(master, &peer, told, join);
    }

    fn run_at(&mut self, master: usize, peer: &str, told: &[usize], join: bool) {
        let others: Vec<String> =
            told.iter().filter(|other| **other != master).map(|other| self.peer(*other)).collect();
        let mut flags = Vec::new();
        if !others.is_empty() {
            flags.push(format!("--others={}", others.join(",")));
        }
        flags.extend(join.then(|| "--join".to_owned()));
        self.begin(master, peer, flags);
    }

    /// The same on one that is told by a file, once somebody does.
    fn run_by_file(&mut self, master: usize) {
        let (peer, file) = (self.peer(master), self.file(&format!("told{master}")));
        self.begin(master, &peer, vec![format!("--masters={}", file.display())]);
    }

    /// As the node API does it.
    fn tell(&self, master: usize, told: &[usize], join: bool) {
        let peers: Vec<String> = told.iter().map(|master| self.peer(*master)).collect();
        let new = self.file("told.new");
        std::fs::write(&new, json!({"peers": peers, "join": join}).to_string()).unwrap();
        std::fs::rename(new, self.file(&format!("told{master}"))).unwrap();
    }

    fn begin(&mut self, master: usize, peer: &str, flags: Vec<String>) {
        let path = |name: &str| self.file(name).display().to_string();
        let mut arguments = vec![
            format!("--peer-url={peer}"),
            format!("--data-dir={}", path(&format!("data{master}"))),
            format!("--begun={}", path(&format!("begun{master}"))),
        ];
        arguments.extend(flags);
        arguments.extend(["--".to_owned(), test_etcd::program().display().to_string()]);
        arguments.extend([
            format!("--listen-client-urls={}", self.client(master)),
            format!("--advertise-client-urls={}", self.client(master)),
            format!("--listen-peer-urls={peer}"),
        ]);
        for prefix in ["", "peer-"] {
            arguments.push(format!("--{prefix}trusted-ca-file={}", path("ca.crt")));
            arguments.push(format!("--{prefix}cert-file={}", path("server.crt")));
            arguments.push(format!("--{prefix}key-file={}", path("server.key")));
            arguments.push(format!("--{prefix}client-cert-auth=true"));
        }
        arguments.extend(["--unsafe-no-fsync".to_owned(), "--log-level=warn".to_owned()]);
        let log = std::fs::File::create(self.file(&format!("{master}.log"))).unwrap();
        let process = self.command("member", arguments).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        assert!(self.processes[master].replace(process).is_none(), "it runs already");
    }

    /// Waits as the task behind etcd does.
    async fn promote(&self, master: usize) {
        self.promote_at(master, &self.peer(master)).await;
    }

    async fn promote_at(&self, master: usize, peer: &str) {
        let arguments = vec![format!("--peer-url={peer}"), format!("--etcd-server={}", self.client(master))];
        let mut task = self.command("promote", arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        self.wait(master, async || task.try_wait().unwrap().is_some_and(|status| status.success())).await;
    }

    async fn says(&self, master: usize, what: &str) {
        let log = self.file(&format!("{master}.log"));
        self.wait(master, async || std::fs::read_to_string(&log).unwrap().contains(what)).await;
    }

    async fn wait(&self, master: usize, mut done: impl AsyncFnMut() -> bool) {
        for _ in 0..1200 {
            if done().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("master {master}: {}", std::fs::read_to_string(self.file(&format!("{master}.log"))).unwrap());
    }

    fn kill(&mut self, master: usize) {
        let mut process = self.processes[master].take().unwrap();
        drop(process.kill());
        process.wait().unwrap();
    }

    /// Its machine starts anew.
    fn boot(&mut self, master: usize, told: &[usize], join: bool) {
        std::fs::remove_file(self.file(&format!("begun{master}"))).unwrap();
        self.run(master, told, join);
    }

    async fn list(&self, asked: &[usize]) -> Vec<Member> {
        Membership::new(&self.at(asked)).unwrap().list().await.unwrap()
    }

    /// Those that have a vote and have run, by the masters that they are of; all that are listed are such.
    async fn voters(&self, asked: &[usize]) -> Vec<usize> {
        let members = self.list(asked).await;
        assert!(members.iter().all(|member| member.started() && !member.learner), "{members:?}");
        let mut voters: Vec<usize> = members
            .iter()
            .map(|member| (0..self.ports.len()).find(|master| member.is_at(&self.peer(*master))).unwrap())
            .collect();
        voters.sort();
        voters
    }

    async fn store(&self, at: &[usize]) -> Etcd {
        Etcd::open(EtcdOptions { members: self.at(at), ..EtcdOptions::default() }).await.unwrap()
    }

    fn flags(&self, at: usize) -> Vec<String> {
        let file = |flag: &str, name: &str| format!("--etcd-{flag}={}", self.file(name).display());
        vec![
            format!("--etcd-servers={}", self.client(at)),
            file("cafile", "ca.crt"),
            file("certfile", "client.crt"),
            file("keyfile", "client.key"),
        ]
    }
}

impl Drop for Masters {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().flatten() {
            drop(process.kill());
            drop(process.wait());
        }
    }
}

async fn put(store: &Etcd, keys: std::ops::Range<usize>) {
    for number in keys {
        store.put(&format!("/k{number}"), Stamped::plain("x"), Expect::Absent, None).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_begin_together_and_one_joins_anew_after_its_disk_was_lost() {
    let all = [0, 1, 2];
    let mut masters = Masters::new(3);
    masters.run(0, &all, false);
    masters.run(1, &all, false);
    masters.run(2, &all, false);
    for master in all {
        masters.promote(master).await;
    }
    assert_eq!(masters.voters(&[0]).await, all);
    let before = masters.list(&[0]).await;
    let of = |list: &[Member], peer: &str| list.iter().find(|member| member.is_at(peer)).unwrap().id;
    put(&masters.store(&[2]).await, 0..10).await;

    let one = EtcdOptions { members: masters.at(&[0]), ..EtcdOptions::default() };
    assert_eq!(store::check_etcd(&one).await.unwrap().members.len(), 3, "the others are asked, too");

    // It is not told to join: the others know that it has run.
    masters.kill(2);
    std::fs::remove_dir_all(masters.file("data2")).unwrap();
    put(&masters.store(&[0, 1]).await, 10..20).await;
    masters.boot(2, &all, false);
    masters.promote(2).await;
    assert_eq!(masters.voters(&[0]).await, all);
    let after = masters.list(&[0]).await;
    let (gone, kept) = (masters.peer(2), masters.peer(1));
    assert_ne!(of(&before, &gone), of(&after, &gone), "it is another member than the one that voted before");
    assert_eq!(of(&before, &kept), of(&after, &kept));
    // Interrupted between its removal and its coming back.
    masters.kill(2);
    std::fs::remove_dir_all(masters.file("data2")).unwrap();
    let (membership, lost) = (Membership::new(&masters.at(&[0])).unwrap(), of(&after, &gone));
    masters.wait(2, async || membership.remove(lost).await.is_ok()).await;
    std::fs::remove_file(masters.file("data2.joins")).unwrap();
    masters.run(2, &all, false);
    masters.says(2, "set join-etcd: true").await;
    masters.kill(2);
    std::fs::write(masters.file("data2.joins"), "").unwrap();
    masters.run(2, &all, false);
    masters.promote(2).await;
    assert_eq!(masters.voters(&[0]).await, all);
    let store = masters.store(&[2]).await;
    assert_eq!(store.range("/", "", 0).await.unwrap().0.len(), 20, "all that was acknowledged");
    // A member that is killed may not know any more that the last change of members counts, until one tells it that it knew
    // before; behind another write it does.
    put(&store, 20..30).await;
    assert_eq!(masters.store(&[0]).await.range("/", "", 0).await.unwrap().0.len(), 30);

    // With its data it goes on, whatever it is told, also while nobody else is there.
    for master in all {
        masters.kill(master);
    }
    masters.boot(2, &all, true);
    masters.says(2, "etcd goes on with its data").await;
    assert!(!masters.file("data2.joins").exists(), "it has joined");
    masters.boot(0, &all, true);
    masters.promote(2).await;
    assert_eq!(masters.store(&[0]).await.range("/", "", 0).await.unwrap().0.len(), 30);
}

/// At a provider: no master knows the others' addresses before all are there, and one that is made anew may have another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn masters_that_are_told_later_begin_together_and_one_with_another_address_joins() {
    let all = [0, 1, 2];
    let mut masters = Masters::new(4);
    for master in all {
        masters.run_by_file(master);
        masters.says(master, "was not told yet which the other masters are").await;
    }
    // Whoever tells them is ended between two of them, and goes on later.
    masters.tell(0, &all, false);
    masters.says(0, "etcd begins a store").await;
    masters.tell(1, &all, false);
    masters.promote(0).await;
    put(&masters.store(&[0]).await, 0..10).await;
    masters.tell(2, &all, false);
    for master in all {
        masters.promote(master).await;
    }
    assert_eq!(masters.voters(&[0]).await, all);

    // The machine of one is gone, and the next one has another address.
    masters.kill(2);
    let lost = masters.list(&[0]).await.into_iter().find(|member| member.is_at(&masters.peer(2))).unwrap().id;
    let membership = Membership::new(&masters.at(&[0, 1])).unwrap();
    masters.wait(2, async || membership.remove(lost).await.is_ok()).await;
    let now = [0, 1, 3];
    masters.run_by_file(3);
    for master in now {
        masters.tell(master, &now, true);
    }
    masters.promote(3).await;
    assert_eq!(masters.voters(&[0]).await, now);
    assert_eq!(masters.store(&[3]).await.range("/", "", 0).await.unwrap().0.len(), 10, "all that was acknowledged");

    // One whose disk is new knows nothing, begins nothing, and joins once it is told.
    masters.kill(0);
    for file in ["data0", "begun0", "told0"] {
        let path = masters.file(file);
        let gone = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
        gone.unwrap();
    }
    masters.run_by_file(0);
    masters.says(0, "was not told yet").await;
    assert_eq!(masters.list(&[1]).await.len(), 3, "nobody left");
    masters.tell(0, &now, true);
    masters.promote(0).await;
    assert_eq!(masters.voters(&[1]).await, now);
    // With its data it goes on, also without the file.
    masters.kill(0);
    for file in ["begun0", "told0"] {
        std::fs::remove_file(masters.file(file)).unwrap();
    }
    masters.run_by_file(0);
    masters.says(0, "etcd goes on with its data").await;
    masters.promote(0).await;
    assert_eq!(masters.store(&[0]).await.range("/", "", 0).await.unwrap().0.len(), 10);
}

/// What the server answers on its own socket.
async fn ask(cluster: &Cluster, method: &str, path: &str, body: &str) -> (u16, String) {
    let stream = tokio::net::UnixStream::connect(cluster.dir().join("store.sock")).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let body = Full::<bytes::Bytes>::from(body.to_owned());
    let request = http::Request::builder().method(method).uri(path).header("host", "store").body(body).unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    (status, String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
}

async fn remove(cluster: &Cluster, name: &str) -> (u16, String) {
    ask(cluster, "POST", "/members/remove", &json!({"name": name}).to_string()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_grows_to_three_and_shrinks_to_one_while_writes_are_counted() {
    let mut masters = Masters::new(3);
    masters.run(0, &[0], false);
    masters.promote(0).await;
    let mut cluster = Cluster::start().await;
    cluster.end().await;
    let socket = cluster.dir().join("store.sock");
    cluster.begin_with(|config| config.store_socket = Some(socket)).await;
    let (code, why) = ask(&cluster, "GET", "/members", "").await;
    assert!(code == 409 && why.contains("embedded"), "{code} {why}");
    cluster.end().await;
    std::fs::remove_dir_all(cluster.dir().join("store")).unwrap();
    begin(&mut cluster, &masters.flags(0)).await;
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let client = cluster.at_same_port();
    let writer = tokio::spawn(async move {
        let mut acknowledged = Vec::new();
        for number in 0.. {
            if *stopped.borrow_and_update() {
                break;
            }
            let name = format!("w{number}");
            let map = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name}});
            if client.post(MAPS, map).await.code == 201 {
                acknowledged.push(name);
            }
        }
        acknowledged
    });
    for master in [1, 2] {
        masters.run(master, &[0, 1, 2], true);
        masters.promote(master).await;
    }
    assert_eq!(masters.voters(&[0]).await, [0, 1, 2]);
    let (code, listed) = ask(&cluster, "GET", "/members", "").await;
    let listed: Vec<Value> = serde_json::from_str(&listed).unwrap();
    assert_eq!((code, listed.len()), (200, 3));
    for member in &listed {
        assert_eq!(
            (&member["healthy"], &member["started"], &member["learner"]),
            (&json!(true), &json!(true), &json!(false))
        );
    }
    assert_eq!(listed.iter().filter(|member| member["leader"] == true).count(), 1, "{listed:?}");

    // With one of three away no healthy one may go.
    masters.kill(2);
    let (code, why) = remove(&cluster, "127.0.0.2").await;
    assert!(code == 409 && why.contains("bring 127.0.0.3 back"), "{code} {why}");
    let (code, why) = remove(&cluster, "127.0.0.1").await;
    assert!(code == 409 && why.contains("have another master remove it"), "{code} {why}");
    let (code, why) = remove(&cluster, "127.0.0.9").await;
    assert!(code == 404 && why.contains("it has 127.0.0."), "{code} {why}");
    assert_eq!(ask(&cluster, "POST", "/members/remove", "{}").await.0, 400);
    assert_eq!(masters.voters(&[0]).await, [0, 1, 2]);
    for name in ["127.0.0.3", "127.0.0.2"] {
        // etcd itself takes those only for healthy that were so for some seconds.
        let removed = async || match remove(&cluster, name).await {
            (200, said) => !said.contains(name),
            (code, why) => {
                assert!(code == 409 && why.contains("unhealthy"), "{code} {why}");
                false
            }
        };
        masters.wait(0, removed).await;
    }
    let (code, why) = remove(&cluster, "127.0.0.1").await;
    assert!(code == 409 && why.contains("only member"), "{code} {why}");
    stop.send_replace(true);
    let acknowledged = writer.await.unwrap();
    let maps = cluster.get(MAPS).await.expect(200);
    let there: Vec<&str> =
        maps["items"].as_array().unwrap().iter().filter_map(|o| o["metadata"]["name"].as_str()).collect();
    assert!(acknowledged.len() > 10, "{}", acknowledged.len());
    for name in &acknowledged {
        assert!(there.contains(&name.as_str()), "{name} was acknowledged, and is lost");
    }
    cluster.end().await;

    // Removed while it ran: it ends, and does not come back by itself, not even where it was told to join.
    masters.kill(1);
    masters.run(1, &[0, 1], true);
    masters.says(1, "restart the machine for it to join anew").await;
    masters.kill(1);
    masters.boot(1, &[0, 1], false);
    masters.says(1, "set join-etcd: true in its user-data").await;
    masters.kill(1);
    assert_eq!(masters.voters(&[0]).await, [0]);
    masters.run(1, &[0, 1], true);
    masters.promote(1).await;
    assert_eq!(masters.voters(&[0]).await, [0, 1]);
    assert_eq!(std::fs::read_dir(masters.file("data1")).unwrap().count(), 1, "nothing of the old data is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_join_goes_on_and_another_one_waits_for_it() {
    let mut masters = Masters::new(3);
    masters.run(0, &[0], false);
    masters.promote(0).await;
    // It was added, and ended before it started etcd.
    let membership = Membership::new(&masters.at(&[0])).unwrap();
    membership.add_learner(&masters.peer(1)).await.unwrap();
    let added = masters.list(&[0]).await.into_iter().find(|member| member.learner).unwrap();
    let refused = membership.promote(added.id).await.unwrap_err().to_string();
    assert!(refused.contains("in sync"), "{refused}");
    masters.run(2, &[0, 1, 2], true);
    masters.says(2, "another member is joining, 127.0.0.2").await;
    masters.run(1, &[0, 1], true);
    masters.promote(1).await;
    masters.promote(2).await;
    assert_eq!(masters.voters(&[0]).await, [0, 1, 2]);
    assert!(masters.list(&[0]).await.iter().any(|member| member.id == added.id), "it was added once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_member_takes_the_address_by_which_others_reach_it() {
    let mut masters = Masters::new(2);
    let elsewhere = masters.peer(0).replace("127.0.0.1", "127.0.0.5");
    masters.run_at(0, &elsewhere, &[0], false);
    masters.promote_at(0, &elsewhere).await;
    put(&masters.store(&[0]).await, 0..3).await;
    masters.kill(0);
    masters.boot(0, &[0, 1], false);
    masters.promote(0).await;
    assert_eq!(masters.voters(&[0]).await, [0]);
    masters.run(1, &[0, 1], true);
    masters.promote(1).await;
    assert_eq!(masters.voters(&[1]).await, [0, 1]);
    assert_eq!(masters.store(&[1]).await.range("/", "", 0).await.unwrap().0.len(), 3);
}
