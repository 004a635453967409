//! `up`, `plan` and `destroy` against stateful fakes of the providers and of the cluster. The same question for all: is
//! everything there once, whatever failed before, and is each call one that the provider has published.

mod aws;
mod calls;
mod copies;
mod destroying;
mod gcp;
mod master;
mod master_volumes;
mod masters;
mod openstack;
mod others;
mod plans;
mod proxmox;
mod rebuilding;
mod roll;
mod status_page;
mod surge;
mod volumes;

use super::fakes::{self, FakeCluster, Machine, Shared, World, held};
use super::images::{Image, Images, Uploads};
use super::plan::{Plan, Situation, Step};
use super::token;
use super::up::{Done, Up};
use super::{Cents, Cloud, Inventory, Order, Size, address_of, checked, destroy, fingerprint, open, plan};
use crate::config::{Provider, Settings};
use crate::input::BadInput;
use crate::pki::Secrets;
use crate::pki::secrets::write_private;
use crate::progress::Progress;
use crate::seed::token::LIFE;
use crate::upload::schema::Published;
use crate::upload::{self, Remote};
use crate::web::fake::{self, Call, Fault, Reply, Server, Virtual};
use crate::web::{Interrupted, Refused};
use anyhow::Result;
use calls::{behind_each_call, ends, faults, step};
use node_metadata::Role;
use rebuilding::{cut_off, rebuild};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, MutexGuard, OnceLock};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    Hetzner,
    DigitalOcean,
    Linode,
    Vultr,
    OpenStack,
    Gcp,
    Aws,
    Proxmox,
}

const ALL: [Which; 8] = [
    Which::Hetzner,
    Which::DigitalOcean,
    Which::Linode,
    Which::Vultr,
    Which::OpenStack,
    Which::Gcp,
    Which::Aws,
    Which::Proxmox,
];

/// Those whose machines cost something, and which have networks and firewalls to make.
fn rented() -> impl Iterator<Item = Which> {
    ALL.into_iter().filter(|which| *which != Which::Proxmox)
}

const SUM: &str = "0123456789ab";

impl Which {
    fn answer(self, call: &Call, world: &mut World) -> Reply {
        match self {
            Which::Hetzner => fakes::hetzner::answer(call, world),
            Which::DigitalOcean => fakes::digitalocean::answer(call, world),
            Which::Linode => fakes::linode::answer(call, world),
            Which::Vultr => fakes::vultr::answer(call, world),
            Which::OpenStack => fakes::openstack::answer(call, world),
            Which::Gcp => fakes::gcp::answer(call, world),
            Which::Aws => fakes::aws::answer(call, world),
            Which::Proxmox => fakes::proxmox::answer(call, world),
        }
    }

    fn published(self) -> Published {
        Published::new(match self {
            Which::Hetzner => include_str!("../../tests/data/providers/hetzner.json"),
            Which::DigitalOcean => include_str!("../../tests/data/providers/digitalocean.json"),
            Which::Linode => include_str!("../../tests/data/providers/linode.json"),
            Which::Vultr => include_str!("../../tests/data/providers/vultr.json"),
            Which::OpenStack => include_str!("../../tests/data/providers/openstack.json"),
            Which::Gcp => include_str!("../../tests/data/providers/gcp.json"),
            Which::Aws => include_str!("../../tests/data/providers/aws.json"),
            Which::Proxmox => include_str!("../../tests/data/providers/proxmox.json"),
        })
    }

    fn provider(self) -> &'static str {
        match self {
            Which::Hetzner => "name = \"hetzner\"\nregion = \"nbg1\"\ntype = \"cx23\"\n",
            Which::DigitalOcean => {
                "name = \"digitalocean\"\nregion = \"fra1\"\ntype = \"s-1vcpu-1gb\"\nworker-type = \"s-1vcpu-2gb\"\nbucket = \"b\"\n"
            }
            Which::Linode => "name = \"linode\"\nregion = \"eu-central\"\ntype = \"g6-nanode-1\"\n",
            Which::Vultr => "name = \"vultr\"\nregion = \"fra\"\ntype = \"vc2-1c-1gb\"\nbucket = \"b\"\n",
            Which::OpenStack => {
                "name = \"openstack\"\nregion = \"RegionOne\"\ntype = \"m1.small\"\ncurrency = \"EUR\"\nprices = { \"m1.small\" = 5, data-gb = 0.1 }\n"
            }
            Which::Gcp => {
                "name = \"gcp\"\nregion = \"europe-west3-a\"\ntype = \"e2-small\"\nbucket = \"b\"\ncurrency = \"USD\"\nprices = { \"e2-small\" = 5, data-gb = 0.1 }\n"
            }
            Which::Aws => {
                "name = \"aws\"\nregion = \"eu-west-1a\"\ntype = \"t3.small\"\ncurrency = \"USD\"\nprices = { \"t3.small\" = 5, data-gb = 0.1 }\n"
            }
            Which::Proxmox => {
                "name = \"proxmox\"\nregion = \"pve\"\ntype = \"1c-1g\"\nnetwork = \"192.0.2.0/24\"\nproxmox = { storage = \"lvm\", addresses = \"192.0.2.1-192.0.2.9\", gateway = \"192.0.2.2\" }\n"
            }
        }
    }

    /// A month of a master and a worker.
    fn monthly(self) -> Cents {
        match self {
            Which::Hetzner => Cents(2 * (299 + 50)),
            Which::DigitalOcean => Cents(600 + 1200),
            Which::Linode | Which::Vultr | Which::OpenStack | Which::Gcp | Which::Aws => Cents(2 * 500),
            Which::Proxmox => Cents(0),
        }
    }

    /// What a machine is called that the others call so.
    fn named(self, name: &str) -> String {
        if self == Which::Gcp { name.replace('.', "--") } else { name.into() }
    }

    /// What a role's firewall is called.
    fn firewall(self, role: &str) -> String {
        if self == Which::Linode { format!("kimg-{}-{role}", ca()) } else { format!("kimg-demo-{}-{role}", ca()) }
    }
}

/// The fingerprint of all tests' cluster.
fn ca() -> String {
    fingerprint(&Secrets::open(&folder().join("secrets"))).unwrap().unwrap()
}

/// The folder of all tests' cluster: its keys are made once.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let dir = FOLDER.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        Secrets::ensure(&dir.path().join("secrets"), "demo").unwrap();
        dir
    });
    dir.path()
}

fn settings(which: Which, more: &str) -> Settings {
    let nodes = "[[nodes]]\nname = \"m\"\nrole = \"master\"\n[[nodes]]\nname = \"w\"\nrole = \"worker\"\n";
    let text = format!("name = \"demo\"\n[provider]\n{}{more}{nodes}", which.provider());
    read(&text)
}

fn read(text: &str) -> Settings {
    crate::config::parse(Path::new("cluster.toml"), text, folder()).unwrap()
}

/// Packs and uploads an image as long as the world says.
struct There<'a>(&'a Stage);

impl Images for There<'_> {
    fn ensure(&self, role: Role) -> Result<Image> {
        let takes = {
            let mut world = self.0.world();
            world.packed.push(role);
            world.packing
        };
        self.0.clock.client().clock().sleep(takes)?;
        Ok(Image { id: "77".into(), sum: SUM.into() })
    }

    fn find(&self, sum: &str) -> Result<Option<Image>> {
        Ok((sum == SUM).then(|| Image { id: "77".into(), sum: SUM.into() }))
    }
}

/// A provider and the cluster on it.
struct Stage {
    which: Which,
    settings: Settings,
    world: Shared,
    server: Server,
    clock: Arc<Virtual>,
}

impl Stage {
    fn new(which: Which) -> Stage {
        Stage::of(which, settings(which, ""))
    }

    /// With the cluster on it.
    fn whole(which: Which) -> Stage {
        let stage = Stage::new(which);
        stage.up().unwrap();
        stage
    }

    fn of(which: Which, settings: Settings) -> Stage {
        let world: Shared = Arc::default();
        held(&world).slow = 1;
        let there = world.clone();
        let server = Server::start(move |call| {
            let mut world = held(&there);
            let reply = which.answer(call, &mut world);
            let World { answered, stops, .. } = &mut *world;
            fake::count(answered, stops.as_ref());
            reply
        });
        Stage { which, settings, world, server, clock: Virtual::new() }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        held(&self.world)
    }

    fn cloud(&self) -> Box<dyn Cloud> {
        self.cloud_by("t0ken")
    }

    /// What the provider calls a token: Google's is a key in a file, and AWS' has an id.
    fn secret(&self, token: &str) -> String {
        match self.which {
            Which::Gcp => {}
            Which::Aws => return format!("{}\n{token}", fakes::aws::KEY),
            Which::Proxmox => return format!("{}\n{token}", fakes::proxmox::TOKEN_ID),
            _ => return token.to_string(),
        }
        let email = if token == "t0ken" { fakes::gcp::EMAIL } else { "other@p" };
        upload::fakes::gcp::key_file(&self.server.url(), email)
    }

    fn cloud_by(&self, token: &str) -> Box<dyn Cloud> {
        let env = |name: &str| self.said(name, token);
        open(&self.settings, self.provider(), &self.clock.client(), &env).unwrap()
    }

    fn provider(&self) -> &Provider {
        self.settings.provider.as_ref().unwrap()
    }

    /// A variable of the environment.
    fn said(&self, name: &str, token: &str) -> Option<String> {
        match name {
            "HCLOUD_TOKEN"
            | "DIGITALOCEAN_TOKEN"
            | "LINODE_TOKEN"
            | "VULTR_API_KEY"
            | "OS_PASSWORD"
            | "AWS_SECRET_ACCESS_KEY"
            | "PROXMOX_TOKEN_SECRET" => Some(token.to_string()),
            "AWS_ACCESS_KEY_ID" => Some(fakes::aws::KEY.into()),
            "AWS_ENDPOINT_URL_EC2" => Some(format!("{}/ec2", self.server.url())),
            "GOOGLE_APPLICATION_CREDENTIALS" => {
                let file = folder().join(format!("key-{}-{token}", self.server.authority()));
                if !file.exists() {
                    write_private(&file, self.secret(token).as_bytes()).unwrap();
                }
                Some(file.display().to_string())
            }
            "PROXMOX_TOKEN_ID" => Some(fakes::proxmox::TOKEN_ID.into()),
            "OS_USERNAME" | "OS_PROJECT_NAME" => Some("demo".into()),
            "HCLOUD_ENDPOINT" => Some(format!("{}/v1", self.server.url())),
            "DIGITALOCEAN_API_URL"
            | "LINODE_URL"
            | "VULTR_API_URL"
            | "OS_AUTH_URL"
            | "PROXMOX_URL"
            | "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE" => Some(self.server.url()),
            _ => None,
        }
    }

    fn up(&self) -> Result<Done> {
        self.up_with(None)
    }

    fn up_with(&self, restore: Option<&dyn Fn(IpAddr) -> Result<()>>) -> Result<Done> {
        let (cloud, client, clock) = (self.cloud(), self.clock.client(), self.clock.client());
        let secrets = Secrets::open(&self.settings.secrets_dir());
        let now = Box::new(move || clock.clock().now());
        let cluster = FakeCluster { settings: &self.settings, world: self.world.clone(), now };
        let offer = cloud.offer()?;
        let up = Up {
            settings: &self.settings,
            provider: self.provider(),
            secrets: &secrets,
            offer: &offer,
            cloud: &*cloud,
            images: &There(self),
            cluster: &cluster,
            client: &client,
            progress: &Progress::hidden(),
            restore,
        };
        up.run()
    }

    fn plan(&self) -> Plan {
        let cloud = self.cloud();
        let (offer, inventory) = (cloud.offer().unwrap(), cloud.inventory().unwrap());
        plan::plan(&Situation {
            settings: &self.settings,
            provider: self.provider(),
            offer: &offer,
            inventory: &inventory,
            rules: plan::rules(&*cloud),
            built: BTreeMap::from([(Role::Master, SUM.to_string()), (Role::Worker, SUM.to_string())]),
        })
    }

    fn destroy(&self) -> Result<()> {
        destroy::destroy(&*self.cloud(), &self.clock.client(), destroy::things, |_| ())
    }

    /// Whether each thing is there, and once.
    fn check_whole(&self, at: &str) {
        let world = self.world();
        let names: Vec<&str> = world.machines.values().map(|machine| machine.body["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["m.demo", "w.demo"], "{at}");
        let wanted: &[&str] = match self.which {
            Which::Hetzner => &["firewall", "firewall", "network"],
            Which::DigitalOcean => &["firewall", "firewall", "ssh_key", "vpc"],
            Which::Linode | Which::Vultr => &["firewall", "firewall", "vpc"],
            Which::OpenStack => OF_OPENSTACK,
            Which::Proxmox => &[],
            Which::Gcp => &["address", "firewall", "firewall", "firewall", "firewall", "network", "subnetwork"],
            Which::Aws => &["address", "firewall", "firewall", "gateway", "interface", "subnet", "vpc"],
        };
        assert_eq!(world.kinds(), wanted, "{at}");
        for (name, id) in &world.nodes {
            assert!(world.machines.contains_key(id), "{at}: {name} is no machine any more");
        }
        assert_eq!(world.nodes.len(), 2, "{at}");
    }

    /// Nothing was changed from call `from` on.
    fn check_only_asked(&self, from: usize) {
        for call in self.server.calls().iter().skip(from) {
            assert!(only_asks(call), "{:?}: {} {}", self.which, call.method, call.path);
        }
    }

    fn check_calls(&self, but: Option<usize>) {
        let published = self.which.published();
        for (_, call) in self.server.calls().iter().enumerate().filter(|(n, _)| Some(*n) != but) {
            published.check(call);
        }
    }
}

/// Two machines with a floating IP and a port each; the third port is the router's.
const OF_OPENSTACK: &[&str] =
    &["firewall", "firewall", "floatingip", "floatingip", "network", "port", "port", "port", "router", "subnet"];

/// Whether a call changes nothing.
fn only_asks(call: &Call) -> bool {
    // All calls of EC2 are of one method.
    let describes = || call.path == "/ec2/" && fakes::aws::action(call).starts_with("Describe");
    // A password and a key open a token by another call.
    call.method == "GET" || describes() || ["/v3/auth/tokens", "/token"].contains(&call.path.as_str())
}

impl World {
    /// The kind of each thing.
    fn kinds(&self) -> Vec<&'static str> {
        self.things.keys().map(|(kind, _)| *kind).collect()
    }
}

#[test]
fn a_cluster_comes_up_once_and_goes_by_published_calls() {
    for which in ALL {
        let stage = Stage::new(which);
        (stage.world().away, stage.world().unready) = (3, 4);
        let done = stage.up().unwrap();
        stage.check_whole("up");
        assert_eq!(stage.world().unready, 0, "{which:?}: it was not waited for");
        assert_eq!(done.made, ["m", "w"], "{which:?}");
        let public = done.servers[0].public.unwrap().to_string();
        let kubeconfig = std::fs::read_to_string(&done.kubeconfig).unwrap();
        assert!(kubeconfig.contains("server: https://192.0.2."), "{kubeconfig}");
        assert!(public.starts_with("192.0.2.") && done.servers[1].private.is_some(), "{done:?}");
        let env = |name: &str| stage.said(name, "t0ken");
        let asked = |node: &str| address_of(&stage.settings, stage.provider(), node, &stage.clock.client(), &env);
        assert_eq!(asked("w").ok(), done.servers[1].public, "{which:?}");
        assert!(asked("x").unwrap_err().to_string().contains("has no machine of x"));
        // A second run asks, and does nothing.
        let sent = stage.server.calls().len();
        assert!(stage.up().unwrap().made.is_empty(), "{which:?}");
        stage.check_only_asked(sent);
        assert_eq!(stage.plan().steps, []);
        assert!(stage.plan().drift.is_empty(), "{:?}", stage.plan().drift);
        stage.destroy().unwrap();
        assert!(stage.world().is_empty(), "{which:?}");
        stage.destroy().unwrap();
        stage.check_calls(None);
    }
}

#[test]
fn a_token_is_changed_once_the_new_one_sees_the_cluster_and_the_old_one_is_refused() {
    for which in ALL {
        let stage = Stage::whole(which);
        let asked = stage.server.calls().len();
        let check = |now: &str, old: Option<&str>| {
            let old = old.map(|old| stage.secret(old));
            let env = |name: &str| stage.said(name, now);
            let checked = token::check(&stage.settings, stage.provider(), old.as_deref(), &stage.clock.client(), &env);
            checked.map_err(|error| format!("{error:#}"))
        };
        assert_eq!(check("t0ken", None), Ok(2), "{which:?}");
        assert_eq!(check("t0ken", Some("leaked")), Ok(2), "{which:?}");
        let same = check("t0ken", Some("t0ken")).unwrap_err();
        assert!(same.contains("still has the old token"), "{same}");
        let wrong = check("mistyped", Some("leaked")).unwrap_err();
        assert!(wrong.contains("does not take the token") && !wrong.contains("mistyped"), "{wrong}");
        stage.check_only_asked(asked);
    }
    // A secret without its own id would be refused in any case.
    let stage = Stage::whole(Which::OpenStack);
    let env = |name: &str| match name {
        "OS_APPLICATION_CREDENTIAL_ID" => Some("a1".into()),
        "OS_APPLICATION_CREDENTIAL_SECRET" => Some("t0ken".into()),
        _ => stage.said(name, "unused"),
    };
    let check = |old: &str| {
        let checked = token::check(&stage.settings, stage.provider(), Some(old), &stage.clock.client(), &env);
        checked.map_err(|error| error.to_string())
    };
    assert_eq!(check("a0\nleaked"), Ok(2));
    assert!(check("leaked").unwrap_err().contains("the old token has 2 lines"));
    assert!(check("a1\nt0ken").unwrap_err().contains("still has the old token"));
    // A session's token goes with no other key: that would be refused with it although it counts.
    let stage = Stage::whole(Which::Aws);
    stage.world().also = Some("leaked".into());
    let env = |name: &str| if name == "AWS_SESSION_TOKEN" { Some("s1".into()) } else { stage.said(name, "t0ken") };
    let old = stage.secret("leaked");
    let both = token::check(&stage.settings, stage.provider(), Some(&old), &stage.clock.client(), &env);
    assert!(both.unwrap_err().to_string().contains("still counts"));
    // Both count.
    let stage = Stage::whole(Which::Hetzner);
    stage.world().also = Some("leaked".into());
    let env = |name: &str| stage.said(name, "t0ken");
    let both = token::check(&stage.settings, stage.provider(), Some("leaked"), &stage.clock.client(), &env);
    let error = both.unwrap_err();
    assert!(error.is::<BadInput>() && error.to_string().contains("still counts"), "{error:#}");
}

#[test]
fn whichever_call_of_up_fails_the_next_run_ends_the_same() {
    for which in ALL {
        let calls = {
            let stage = Stage::whole(which);
            stage.server.calls()
        };
        for (n, call) in ends(which).map_while(|n| Some((n, calls.get(n)?))) {
            for fault in faults(call) {
                let stage = Stage::new(which);
                stage.server.fail(n, fault.clone());
                let at = format!("{which:?}, call {n}, {fault:?}");
                if let Err(error) = stage.up() {
                    let said = format!("{error:#}");
                    assert!(!said.contains("t0ken") && !said.contains("seal-key"), "{at}: {said}");
                }
                stage.up().unwrap_or_else(|error| panic!("{at}: the next run: {error:#}"));
                stage.check_whole(&at);
                stage.check_calls(Some(n));
            }
        }
    }
}

#[test]
fn whenever_up_is_interrupted_the_next_run_ends_the_same() {
    for which in ALL {
        behind_each_call(which, 10, |n, at| {
            let mut stage = Stage::new(which);
            let stops = Some((stage.clock.clone(), n));
            stage.world().stops = stops;
            match stage.up() {
                Ok(_) => return true,
                Err(error) => assert!(error.is::<Interrupted>(), "{at}: {error:#}"),
            }
            stage.world().stops = None;
            stage.clock = Virtual::new();
            stage.up().unwrap_or_else(|error| panic!("{at}: {error:#}"));
            stage.check_whole(at);
            false
        });
    }
}

#[test]
fn machines_that_nobody_knows_or_that_are_two_are_told() {
    for which in ALL {
        let stage = Stage::whole(which);
        let (w, copies) = {
            let world = stage.world();
            let id = world.machine("w.demo")[0];
            (id, world.machines[&id].body.clone())
        };
        let mut stranger = copies.clone();
        stranger["name"] = json!("x.demo");
        match which {
            Which::Hetzner | Which::Gcp | Which::Aws => stranger["labels"]["kimg-node"] = json!("x"),
            Which::DigitalOcean => stranger = replaced(&stranger, ":node:w", ":node:x"),
            Which::OpenStack => stranger["metadata"]["kimg-node"] = json!("x"),
            Which::Linode | Which::Vultr | Which::Proxmox => {
                stranger = replaced(&stranger, "kimg-node.w", "kimg-node.x")
            }
        }
        stage.world().machines.insert(90, Machine { body: stranger, looked: 9, ..Machine::default() });
        let plan = stage.plan();
        assert!(plan.drift[0].starts_with("x ("), "{:?}", plan.drift);
        assert!(plan.steps.is_empty() && plan.refusals.is_empty());
        assert!(plan.monthly_now > Some(which.monthly()) || which == Which::Proxmox);
        stage.world().machines.insert(91, Machine { body: copies, looked: 9, ..Machine::default() });
        assert!(stage.plan().refusals[0].contains(&format!("w has several machines ({w}, 91)")), "{:?}", stage.plan());
        // Without its master a cluster has no store: a new one is nothing that happens by itself.
        let master = stage.world().machine("m.demo")[0];
        stage.world().machines.remove(&master);
        assert!(stage.plan().refusals[0].contains("the store went with it"), "{:?}", stage.plan());
    }
}

/// The same with another text in it.
fn replaced(body: &Value, what: &str, with: &str) -> Value {
    serde_json::from_str(&body.to_string().replace(what, with)).unwrap()
}

#[test]
fn a_cluster_without_secrets_has_nothing_at_the_provider() {
    for which in ALL {
        let stage = Stage::whole(which);
        let empty = tempfile::tempdir().unwrap();
        let clone = Settings { dir: empty.path().into(), ..stage.settings.clone() };
        let clone = Stage { settings: clone, ..stage };
        let inventory = clone.cloud().inventory().unwrap();
        assert!(destroy::things(&inventory).is_empty() && inventory.servers.is_empty(), "{which:?}: {inventory:?}");
        assert_eq!(clone.plan().refusals.len(), 2, "{which:?}: {:?}", clone.plan());
        assert!(clone.plan().refusals[0].contains("copy the secrets/ here"), "{which:?}: {:?}", clone.plan());
        assert!(destroy::check(&inventory).unwrap_err().is::<BadInput>(), "{which:?}");
    }
}

#[test]
fn a_name_that_would_be_the_address_of_something_else_is_none() {
    for id in ["", "a/b", "..", "a?b", "a#b", "a%2fb", "a b", &"a".repeat(256)] {
        assert!(checked(id, "a VPC").is_err(), "{id}");
    }
    for id in ["5a4981aa-9653-4bd1-bef5-d6bff52042e4", "kimg:demo:0123456789ab:node:w_1"] {
        assert_eq!(checked(id, "a VPC").unwrap(), id);
    }
    for which in ALL {
        let stage = Stage::new(which);
        let name = format!("kimg-demo-{}", ca());
        let (kind, id) = match which {
            Which::Hetzner => ("networks", json!(0)),
            Which::DigitalOcean | Which::Vultr => ("vpcs", json!("")),
            Which::Linode => ("data", json!(0)),
            Which::OpenStack => ("routers", json!("")),
            // Its things have the names that kimg gave them; of its machines a test beside them tells.
            // Names are fields of a form at AWS, and numbers at Proxmox.
            Which::Gcp | Which::Aws | Which::Proxmox => continue,
        };
        let one = json!({"name": name, "label": name, "description": name, "id": id, "labels": {"kimg-cluster": "demo", "kimg-ca": ca()}});
        // Behind the token and the subnets.
        let first = if which == Which::OpenStack { 2 } else { 0 };
        stage.server.fail(first, Fault::Instead(Reply::json(200, &json!({kind: [one]}))));
        let error = format!("{:#}", stage.destroy().unwrap_err());
        assert!(
            error.contains("no id of a network")
                || error.contains("no id of a VPC")
                || error.contains("calls a VPC ``")
                || error.contains("calls a router ``"),
            "{error}"
        );
        stage.check_only_asked(0);
    }
}

#[test]
fn a_lost_worker_is_made_anew_and_takes_its_name_over() {
    for which in ALL {
        let stage = Stage::whole(which);
        let old = stage.world().machine("w.demo")[0];
        stage.world().machines.remove(&old);
        let done = stage.up().unwrap();
        assert_eq!(done.made, ["w"], "{which:?}");
        stage.check_whole("made anew");
        assert!(stage.world().tokens.is_empty(), "used up");
    }
}

#[test]
fn a_worker_that_missed_its_token_stays_until_somebody_removes_it() {
    for which in ALL {
        let stage = Stage::whole(which);
        let old = stage.world().machine("w.demo")[0];
        // As if the run had ended when the machine was made, and nobody came back for an hour.
        stage.world().nodes.remove("w");
        stage.clock.client().clock().sleep(2 * LIFE).unwrap();
        let before = stage.server.calls().len();
        let error = stage.up().unwrap_err().to_string();
        assert!(error.contains("not joined within the hour") && error.contains("`kimg destroy --node w`"), "{error}");
        stage.check_only_asked(before);
        let of = |found: &Inventory| destroy::of_node(&stage.settings, found, "w").unwrap_or_default();
        destroy::destroy(&*stage.cloud(), &stage.clock.client(), of, |_| ()).unwrap();
        assert!(!stage.world().machines.contains_key(&old), "{which:?}");
        assert_eq!(stage.up().unwrap().made, ["w"], "{which:?}");
        stage.check_whole("made anew");
        let inventory = stage.cloud().inventory().unwrap();
        for (node, says) in [("m", "the store goes with m"), ("x", "x has no machine")] {
            let error = destroy::of_node(&stage.settings, &inventory, node).unwrap_err();
            assert!(error.is::<BadInput>() && error.to_string().contains(says), "{error:#}");
        }
    }
}

#[test]
fn however_long_an_image_takes_tokens_are_fresh_and_it_is_packed_once() {
    for which in ALL {
        let text = format!("{}[[nodes]]\nname = \"v\"\nrole = \"worker\"\n", settings(which, "").text);
        let stage = Stage::of(which, read(&text));
        stage.world().packing = 2 * LIFE;
        assert_eq!(stage.up().unwrap().made, ["m", "w", "v"], "{which:?}");
        assert_eq!(stage.world().packed, [Role::Master, Role::Worker], "{which:?}");
        assert_eq!(stage.world().nodes.len(), 3, "{which:?}");
    }
}

#[test]
fn what_stands_in_the_way_of_a_plan_stops_up_too() {
    type Change = fn(&mut World);
    let untouched: Change = |_| ();
    let without_master: Change = |world| {
        let master = world.machine("m.demo")[0];
        world.machines.remove(&master);
    };
    let without_worker: Change = |world| {
        let worker = world.machine("w.demo")[0];
        world.machines.remove(&worker);
    };
    for which in rented() {
        let cases = [
            ("network = \"10.90.0.0/20\"\n", untouched, "a network keeps its addresses"),
            ("", without_master, "the store went with it"),
            ("budget = 6\n", without_worker, "and the budget is 6.00"),
        ];
        for (more, change, says) in cases {
            let stage = Stage::whole(which);
            change(&mut stage.world());
            let stage = Stage { settings: settings(which, more), ..stage };
            let before = stage.server.calls().len();
            let error = stage.up().unwrap_err();
            assert!(error.is::<BadInput>() && error.to_string().contains(says), "{which:?}: {error:#}");
            stage.check_only_asked(before);
        }
    }
}

#[test]
fn what_a_provider_refuses_is_a_sentence() {
    for (which, says) in ALL.into_iter().zip([
        "no room in this location",
        "has none of this type",
        "has none of this type",
        "has none of this type",
        "has none of this type",
        "has none of this type",
        "has none of this type",
        "no space left on device",
    ]) {
        let stage = Stage::new(which);
        stage.world().refuses = true;
        let error = format!("{:#}", stage.up().unwrap_err());
        assert!(error.contains(says), "{error}");
        let stage = Stage::new(which);
        // There is no account at Proxmox.
        if which != Which::Proxmox {
            stage.world().limit = Some(1);
            let error = format!("{:#}", stage.up().unwrap_err());
            assert!(error.contains("may have no more of these"), "{error}");
        }
        stage.destroy().unwrap();
        assert!(stage.world().is_empty(), "{which:?}");
        let error = format!("{:#}", stage.cloud_by("wr0ng").offer().unwrap_err());
        assert!(error.contains("does not take the token of") && !error.contains("wr0ng"), "{error}");
        let patience = Reply::json(429, &json!({})).header("retry-after", "9000");
        stage.server.fail(stage.server.calls().len(), Fault::Instead(patience));
        let error = format!("{:#}", stage.cloud().offer().unwrap_err());
        assert!(error.contains("wants more patience"), "{error}");
    }
    for which in [Which::DigitalOcean, Which::OpenStack, Which::Gcp] {
        let stage = Stage::new(which);
        stage.world().account = Some(1);
        let error = stage.up().unwrap_err();
        assert!(error.is::<BadInput>() && error.to_string().contains("the account may have 1 more"), "{error:#}");
    }
    let stage = Stage::new(Which::DigitalOcean);
    stage.world().things.insert(("vpc", 9), json!({"name": "other", "ip_range": "10.80.0.0/20"}));
    let error = format!("{:#}", stage.up().unwrap_err());
    assert!(error.contains("write another network under [provider]"), "{error}");
}

#[test]
fn a_cluster_that_never_is_ready_is_given_up_with_what_it_said() {
    for which in ALL {
        let stage = Stage::new(which);
        stage.world().away = usize::MAX;
        let error = format!("{:#}", stage.up().unwrap_err());
        assert!(error.contains("it does not answer yet") && error.contains("not done after 15 minutes"), "{error}");
        assert!(error.contains("`kimg up` goes on waiting"), "{error}");
        stage.world().away = 0;
        stage.world().unready = usize::MAX;
        let error = format!("{:#}", stage.up().unwrap_err());
        assert!(error.contains("w is not ready: no network yet"), "{error}");
    }
}

#[test]
fn everything_is_made_anew_around_a_backup() {
    for which in ALL {
        let stage = Stage::new(which);
        let refuse = |_: IpAddr| crate::input::bad("the snapshot is damaged");
        let error = stage.up_with(Some(&refuse)).unwrap_err();
        assert!(error.is::<BadInput>() && format!("{error:#}").contains("waits for a backup"), "{error:#}");
        assert_eq!(stage.world().machines.len(), 1, "no worker sees an empty store");
        // Whoever gives it one by hand goes on with `up`.
        let give = |_: IpAddr| -> Result<()> {
            let mut world = stage.world();
            world.restored = true;
            // As the backup knows it: the machine of before.
            world.nodes.insert("w".into(), 1);
            Ok(())
        };
        give("192.0.2.1".parse().unwrap()).unwrap();
        stage.up().unwrap();
        stage.check_whole("gone on");

        let stage = Stage::new(which);
        let asked = std::cell::Cell::new(0);
        let give = |_: IpAddr| -> Result<()> {
            // Its node API is not there at once.
            if asked.replace(asked.get() + 1) < 3 {
                anyhow::bail!("connecting: refused");
            }
            let mut world = stage.world();
            world.restored = true;
            world.nodes.insert("w".into(), 1);
            Ok(())
        };
        let done = stage.up_with(Some(&give)).unwrap();
        assert_eq!((done.made, asked.get()), (vec!["m".to_string(), "w".to_string()], 4));
        stage.check_whole("restored");
    }
}
