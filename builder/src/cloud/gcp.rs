//! Google Cloud: instances known by the labels `kimg-cluster`, `kimg-ca`, `kimg-node`, `kimg-role` and `kimg-image`; a
//! network with one subnetwork, rules of its firewall, and the master's reserved address by their names.
//! <https://cloud.google.com/compute/docs/reference/rest/v1>
//!
//! Names are unique in a project, those of instances in a zone, and each call bears a number by which its second sending is
//! known. The firewall lets nothing in by itself, the private network neither, and a rule of it has one set of ranges: so a
//! role has two, of which the second is for the network. A stopped instance keeps its private address, but the public one
//! only where it is reserved; and no disk can be written anew: a master's is changed for another one. None of this was
//! tried at Google.

mod disks;

use super::marks::{CA, CLUSTER, DATA, IMAGE, NODE, ON_VOLUME, ROLE, relabel};
use super::{
    Busy, Cloud, Firewall, Inventory, Marks, Network, Offer, Order, ROLES, Rule, Server, State, Tenant, Thing, Volume,
    checked, explained, image_of, no_region, text,
};
use crate::config::Provider;
use crate::input;
use crate::upload::google::{Account, Compute};
use crate::upload::settings::Environment;
use crate::web::{Answer, Client, Interrupted, Refused, Request, escape};
use anyhow::{Context, Result, anyhow, bail};
use node_metadata::Role;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

const EVERY: Duration = Duration::from_secs(3);
/// How long what a call needs may take to be ready.
const READY: Duration = Duration::from_secs(300);

/// A cluster's part of a project.
#[derive(Debug)]
pub struct Gcp {
    compute: Compute,
    tenant: Tenant,
    region: String,
    provider: Provider,
}

impl Gcp {
    /// The project of the key in the file of `GOOGLE_APPLICATION_CREDENTIALS`.
    ///
    /// # Errors
    /// There is no key.
    pub fn new(client: &Client, env: Environment<'_>, tenant: Tenant, provider: &Provider) -> Result<Gcp> {
        let compute = Compute::new(env, Account::open(client, env)?)?;
        let region = tenant.region.rsplit_once('-').map_or(tenant.region.as_str(), |(region, _)| region).to_string();
        Ok(Gcp { compute, tenant, region, provider: provider.clone() })
    }

    fn client(&self) -> &Client {
        self.compute.account.client()
    }

    /// A place in the cluster's zone.
    fn in_zone(&self, path: &str) -> String {
        format!("zones/{}/{path}", self.tenant.region)
    }

    /// A place in the cluster's region.
    fn in_region(&self, path: &str) -> String {
        format!("regions/{}/{path}", self.region)
    }

    fn send(&self, request: Request) -> Result<Answer> {
        self.compute.account.send(self.client(), request).map_err(explain)
    }

    /// A thing, where it is there.
    fn find(&self, path: &str) -> Result<Option<Value>> {
        let answer = self.send(Request::get(self.compute.url(path)))?;
        match answer.status {
            200 => answer.json().map(Some),
            404 => Ok(None),
            _ => Err(refused(&answer)),
        }
    }

    /// All pages of a list.
    fn pages(&self, path: &str) -> Result<Vec<Value>> {
        self.compute.account.pages(&self.compute.url(path)).map_err(explain)
    }

    fn list(&self, path: &str) -> Result<Vec<Value>> {
        Ok(self.pages(path)?.iter().flat_map(|page| entries(page, "items")).cloned().collect())
    }

    /// A call that changes something, once however often it is sent.
    fn once(&self, request: impl FnOnce(String) -> Request, path: &str) -> Request {
        let id = rand::random::<u128>();
        let (a, b, c, d) = ((id >> 96) as u32, (id >> 80) as u16, (id >> 64) as u16 & 0xFFF, (id >> 48) as u16 & 0xFFF);
        let id = format!("{a:08x}-{b:04x}-4{c:03x}-8{d:03x}-{:012x}", id as u64 & 0xFFFF_FFFF_FFFF);
        let between = if path.contains('?') { '&' } else { '?' };
        let url = self.compute.url(&format!("{path}{between}requestId={id}"));
        request(url).hiding(false, true).repeatable(true)
    }

    /// Sends such a call. What it needs may not be ready yet.
    fn call(&self, what: &str, request: impl FnOnce(String) -> Request, path: &str) -> Result<Answer> {
        let request = self.once(request, path);
        self.client().poll(what, EVERY, READY, || {
            let answer = self.send(request.clone())?;
            Ok(Some(answer).filter(|answer| !(answer.status == 400 && is_early(&answer.refused()))))
        })
    }

    /// Waits for what a call has begun.
    fn done(&self, answer: &Answer, what: &str) -> Result<()> {
        self.done_by(self.client(), answer, what)
    }

    fn done_by(&self, client: &Client, answer: &Answer, what: &str) -> Result<()> {
        if answer.status != 200 {
            return Err(refused(answer));
        }
        self.compute.done(client, &answer.json()?, what).map_err(explain)
    }

    fn post(&self, path: &str, body: &Value, what: &str) -> Result<()> {
        let request = |url: String| if body.is_null() { Request::post(url) } else { Request::post(url).json(body) };
        self.done(&self.call(what, request, path)?, what)
    }

    /// Makes a thing whose name nobody else has; whether it is made now, and was not there.
    fn make(&self, path: &str, body: &Value, what: &str) -> Result<bool> {
        let answer = self.call(what, |url| Request::post(url).json(body), path)?;
        if answer.status == 409 {
            return Ok(false);
        }
        self.done(&answer, what).map(|()| true)
    }

    /// Removes a thing, and waits until it is gone.
    fn remove(&self, path: &str, what: &str) -> Result<()> {
        let answer = self.send(Request::delete(self.compute.url(path)))?;
        let removed = if answer.status == 404 { Ok(()) } else { self.done(&answer, what) };
        removed.map_err(busy)
    }

    /// Things of this kind of all zones, or of all regions: a name is unique in one only.
    fn everywhere(&self, kind: &str) -> Result<Vec<Value>> {
        let pages = self.pages(&format!("aggregated/{kind}?maxResults=500"))?;
        let places = pages.iter().filter_map(|page| page["items"].as_object()).flat_map(|places| places.values());
        Ok(places.flat_map(|place| entries(place, kind)).cloned().collect())
    }

    fn instance(&self, server: &Server) -> Result<Value> {
        let path = format!("zones/{}/instances/{}", server.region, server.id);
        self.find(&path)?.with_context(|| format!("the machine of {} is gone", server.node))
    }

    fn marks<'a>(&self, one: &'a Value) -> Marks<'a> {
        let labels = &one["labels"];
        let (cluster, ca) = (labels[CLUSTER] == self.tenant.cluster, labels[CA] == self.tenant.ca);
        Marks { name: text(one, "name"), cluster, ca }
    }

    /// The names of the rules of a role: what all may reach, and what the private network may.
    fn rule_names(&self, role: Role) -> [String; 2] {
        let name = self.tenant.firewall(role);
        [name.clone(), format!("{name}-inside")]
    }

    /// Both rules of a role as they should be.
    fn lay_rules(&self, role: Role) -> Result<()> {
        let what = format!("the firewall of the {role}s");
        let own = BTreeSet::from([self.tenant.network.to_string()]);
        let rules = self.rules(role);
        for (name, inside) in self.rule_names(role).into_iter().zip([false, true]) {
            let allowed = |rule: &Rule| match rule.ports.as_str() {
                "" => json!({"IPProtocol": rule.protocol}),
                ports => json!({"IPProtocol": rule.protocol, "ports": [ports]}),
            };
            let of: Vec<&Rule> = rules.iter().filter(|rule| (rule.from == own) == inside).collect();
            let body = json!({
                "name": name,
                "network": format!("global/networks/{}", self.tenant.name()),
                "direction": "INGRESS",
                "priority": 1000,
                "sourceRanges": of.first().map(|rule| &rule.from),
                "targetTags": [self.tenant.firewall(role)],
                "allowed": of.iter().map(|rule| allowed(rule)).collect::<Vec<_>>(),
            });
            if !self.make("global/firewalls", &body, &what)? {
                let path = format!("global/firewalls/{name}");
                self.done(&self.call(&what, |url| Request::put(url).json(&body), &path)?, &what)?;
            }
        }
        Ok(())
    }

    /// What is left of a master's disks beside the one that it has; only what bears this cluster's labels.
    fn drop_disks(&self, zone: &str, names: &[String]) -> Result<()> {
        for name in names {
            let path = format!("zones/{zone}/disks/{name}");
            let found = self.find(&path)?;
            if found.is_some_and(|disk| disk["labels"][CA] == self.tenant.ca) {
                self.remove(&path, &format!("removing the disk {name}"))?;
            }
        }
        Ok(())
    }

    /// A master has one of these disks, and the other while they are changed.
    fn disks(&self, node: &str) -> [String; 2] {
        let name = self.tenant.machine(node);
        [name.clone(), format!("{name}--2")]
    }

    /// The master's public address, which outlives its machine.
    fn reserve(&self) -> Result<String> {
        let name = self.tenant.name();
        let what = "reserving the master's address";
        self.make(&self.in_region("addresses"), &json!({"name": name, "addressType": "EXTERNAL"}), what)?;
        let found = self.find(&self.in_region(&format!("addresses/{name}")))?;
        let found = found.with_context(|| format!("{what}: it is not there afterwards"))?;
        Ok(text(&found, "address").to_string())
    }

    /// The new disk takes the old one's place.
    fn change_disks(&self, server: &Server, one: &Value, attached: &Value, new: &str) -> Result<()> {
        let (place, zone, what) = (place(one)?, &server.region, format!("rebuilding {}", server.node));
        if one["status"] != "TERMINATED" {
            self.post(&format!("{place}/stop"), &Value::Null, &what)?;
        }
        if let Some(device) = attached["deviceName"].as_str() {
            let path = format!("{place}/detachDisk?deviceName={}", escape(device, true));
            self.post(&path, &Value::Null, &what)?;
        }
        let source = format!("zones/{zone}/disks/{new}");
        let disk = json!({"source": source, "boot": true, "autoDelete": true, "deviceName": "boot"});
        self.post(&format!("{place}/attachDisk"), &disk, &what)?;
        self.drop_disks(zone, &self.disks(&server.node).into_iter().filter(|name| name != new).collect::<Vec<_>>())?;
        self.post(&format!("{place}/start"), &Value::Null, &what)
    }
}

/// The newer families of machines take no others.
fn disk_type(zone: &str, size: &str) -> String {
    let generation = size.split('-').next().unwrap_or_default().chars().find_map(|c| c.to_digit(10));
    let is_new = generation.is_some_and(|generation| generation >= 4);
    format!("zones/{zone}/diskTypes/{}", if is_new { "hyperdisk-balanced" } else { "pd-balanced" })
}

fn entries<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

/// Names come with the address of what they belong to.
fn last<'a>(one: &'a Value, key: &str) -> &'a str {
    text(one, key).rsplit('/').next().unwrap_or_default()
}

/// The number of something, which no other has had.
fn number(one: &Value, what: &str) -> Result<String> {
    let id = checked(text(one, "id"), what)?;
    if id.bytes().all(|byte| byte.is_ascii_digit()) { Ok(id) } else { bail!("Google's answer calls {what} {id}") }
}

/// Where an instance is.
fn place(one: &Value) -> Result<String> {
    Ok(format!("zones/{}/instances/{}", checked(last(one, "zone"), "a zone")?, number(one, "a machine")?))
}

/// It waits for something that Google is at work on.
fn is_early(refused: &Refused) -> bool {
    ["resourceNotReady", "is not ready"].iter().any(|words| refused.said.contains(words))
}

fn is_in_use(refused: &Refused) -> bool {
    ["RESOURCE_IN_USE", "resourceInUse", "already being used"].iter().any(|words| refused.said.contains(words))
}

/// A refusal that says that something is in use or at work.
fn busy(error: anyhow::Error) -> anyhow::Error {
    let refused = error.chain().find_map(|cause| cause.downcast_ref::<Refused>());
    let busy = refused.filter(|refused| is_in_use(refused) || is_early(refused));
    let busy = busy.map(|refused| Busy(refused.to_string()));
    busy.map_or(error, Into::into)
}

fn refused(answer: &Answer) -> anyhow::Error {
    explain(answer.refused().into())
}

fn explain(error: anyhow::Error) -> anyhow::Error {
    let hurried = |refused: &Refused| {
        refused.status == 403 && ["rateLimitExceeded", "quota metric"].iter().any(|words| refused.said.contains(words))
    };
    if error.downcast_ref().is_some_and(hurried) {
        return error.context("Google wants more patience than kimg has; the same command goes on later");
    }
    explained(error, "Google", "GOOGLE_APPLICATION_CREDENTIALS")
}

/// What a rule lets in; nothing where it is none of those that kimg makes, so that it is put right.
fn rules_of(one: &Value, tag: &str) -> Vec<Rule> {
    let whole = one["direction"] == "INGRESS" && one["disabled"] != true && one["targetTags"] == json!([tag]);
    if !whole || !one["denied"].is_null() {
        return Vec::new();
    }
    let from: BTreeSet<String> = entries(one, "sourceRanges").filter_map(Value::as_str).map(Into::into).collect();
    let rule =
        |protocol: &str, ports: &str| Rule { protocol: protocol.into(), ports: ports.into(), from: from.clone() };
    let mut rules = Vec::new();
    for allowed in entries(one, "allowed") {
        let (protocol, mut ports) = (text(allowed, "IPProtocol"), entries(allowed, "ports").peekable());
        if ports.peek().is_none() {
            rules.push(rule(protocol, ""));
        }
        rules.extend(ports.filter_map(Value::as_str).map(|ports| rule(protocol, ports)));
    }
    rules
}

fn server(one: &Value) -> Result<Server> {
    let nic = &one["networkInterfaces"][0];
    let (labels, address) = (&one["labels"], |value: &Value| value.as_str().and_then(|text| text.parse().ok()));
    Ok(Server {
        id: number(one, "a machine")?,
        node: text(labels, NODE).into(),
        image: image_of(text(labels, IMAGE)),
        size: last(one, "machineType").into(),
        region: checked(last(one, "zone"), "a zone")?,
        state: match text(one, "status") {
            "RUNNING" => State::Running,
            "TERMINATED" => State::Off,
            _ => State::Pending,
        },
        public: address(&nic["accessConfigs"][0]["natIP"]),
        private: address(&nic["networkIP"]),
        created: text(one, "creationTimestamp").parse().ok(),
        on_volume: text(labels, DATA) == ON_VOLUME,
    })
}

impl Cloud for Gcp {
    fn offer(&self) -> Result<Offer> {
        let zone = self.tenant.region.as_str();
        let zones = self.list("zones?maxResults=500")?;
        if !zones.iter().any(|one| one["name"] == zone) {
            let known: Vec<&str> = zones.iter().map(|one| text(one, "name")).collect();
            return no_region("Google", "zone", zone, &known);
        }
        let region = self.find(&format!("regions/{}", self.region))?.unwrap_or_default();
        let left = |metric: &str| {
            let quota = entries(&region, "quotas").find(|quota| quota["metric"] == metric)?;
            // `as` keeps within bounds.
            Some((quota["limit"].as_f64()? - quota["usage"].as_f64()?) as u64)
        };
        let room = ["INSTANCES", "IN_USE_ADDRESSES"].into_iter().filter_map(left).min();
        let types = self.list(&self.in_zone("machineTypes?maxResults=500"))?;
        let fits = |one: &&Value| one["architecture"] != "ARM64";
        let disk_gb = u64::from(self.provider.disk_gb);
        let sizes = types.iter().filter(fits).map(|one| (text(one, "name").to_string(), disk_gb));
        // Prices stand in another API, which this key need not be allowed to ask.
        Ok(Offer::at_written_prices(&self.provider, sizes, room))
    }

    fn inventory(&self) -> Result<Inventory> {
        let (mut inventory, name) = (Inventory::default(), self.tenant.name());
        let rules =
            self.list(&format!("global/firewalls?filter={}", escape(&format!("name eq \"{name}-.*\""), true)))?;
        for role in ROLES {
            let names = self.rule_names(role);
            let of: Vec<&Value> = rules.iter().filter(|one| names.iter().any(|name| one["name"] == *name)).collect();
            if !of.is_empty() {
                let rules = of.iter().flat_map(|one| rules_of(one, &names[0])).collect();
                inventory.firewalls.push(Firewall { id: names[0].clone(), role, rules });
            }
        }
        if let Some(network) = self.find(&format!("global/networks/{name}"))? {
            for url in entries(&network, "subnetworks").filter_map(Value::as_str) {
                let mut parts = url.rsplit('/');
                let (subnet, region) = (parts.next().unwrap_or_default(), parts.nth(1).unwrap_or_default());
                let (subnet, region) = (checked(subnet, "a subnetwork")?, checked(region, "a region")?);
                if let Some(found) = self.find(&format!("regions/{region}/subnetworks/{subnet}"))? {
                    let range = text(&found, "ipCidrRange").into();
                    let elsewhere = (region != self.region).then(|| region.clone());
                    let id = format!("{region}/{subnet}");
                    inventory.networks.push(Network { id, range, region: elsewhere, kept: false });
                }
            }
            // It goes behind all that is in it.
            if inventory.networks.is_empty() && inventory.firewalls.is_empty() {
                inventory.rest.push(Thing { kind: "network", id: name.clone(), name: name.clone() });
            }
        }
        for one in self.everywhere("addresses")?.iter().filter(|one| one["name"] == name) {
            let id = format!("{}/{name}", checked(last(one, "region"), "a region")?);
            inventory.rest.push(Thing { kind: "address", id, name: text(one, "address").into() });
        }
        // All, for those that only look like ours.
        let instances = self.everywhere("instances")?;
        for one in &instances {
            self.tenant.sort(server(one)?, &self.marks(one), &mut inventory);
        }
        self.add_disks(&instances, &mut inventory)?;
        Ok(inventory)
    }

    fn make_network(&self) -> Result<Network> {
        let (name, what) = (self.tenant.name(), "making the private network");
        let network = json!({
            "name": name,
            "autoCreateSubnetworks": false,
            "routingConfig": {"routingMode": "REGIONAL"},
        });
        self.make("global/networks", &network, what)?;
        let range = self.tenant.network.to_string();
        let subnet = json!({
            "name": name,
            "network": format!("global/networks/{name}"),
            "ipCidrRange": range,
        });
        self.make(&self.in_region("subnetworks"), &subnet, what)?;
        Ok(Network { id: format!("{}/{name}", self.region), range, region: None, kept: false })
    }

    fn make_firewall(&self, role: Role) -> Result<Firewall> {
        self.lay_rules(role)?;
        Ok(Firewall { id: self.tenant.firewall(role), role, rules: self.rules(role) })
    }

    fn set_rules(&self, firewall: &Firewall) -> Result<()> {
        self.lay_rules(firewall.role)
    }

    /// A rule has ranges of one family, and the network has addresses of version 4 only.
    fn rules(&self, role: Role) -> BTreeSet<Rule> {
        self.tenant.rules_of_four(role, "")
    }

    fn make_server(&self, order: &Order<'_>) -> Result<()> {
        let name = self.tenant.machine(order.node);
        let mut access = json!({"type": "ONE_TO_ONE_NAT", "name": "External NAT"});
        if order.role == Role::Master {
            access["natIP"] = json!(self.reserve()?);
            self.drop_disks(&self.tenant.region, &self.disks(order.node))?;
        }
        let mut labels = self.tenant.labels(&[(NODE, order.node), (ROLE, order.role.as_str())]);
        relabel(&mut labels, order.image);
        if order.on_volume {
            labels[DATA] = json!(ON_VOLUME);
        }
        let (region, subnet) = order.network.id.split_once('/').context("the private network has no region")?;
        let body = json!({
            "name": name,
            "machineType": self.in_zone(&format!("machineTypes/{}", order.size)),
            "labels": labels,
            "tags": {"items": [order.firewall.id]},
            "networkInterfaces": [{
                "subnetwork": format!("regions/{region}/subnetworks/{subnet}"),
                "accessConfigs": [access],
            }],
            "disks": [{
                "boot": true,
                "autoDelete": true,
                "deviceName": "boot",
                "initializeParams": {
                    "diskName": name,
                    "sourceImage": format!("global/images/{}", order.image_id),
                    "diskSizeGb": self.provider.disk_gb.to_string(),
                    "diskType": disk_type(&self.tenant.region, order.size),
                    "labels": self.tenant.labels(&[]),
                },
            }],
            "metadata": {"items": [{"key": "user-data", "value": order.user_data}]},
        });
        if self.make(&self.in_zone("instances"), &body, &format!("making {name}"))? {
            return Ok(());
        }
        let Some(found) = self.find(&self.in_zone(&format!("instances/{name}")))? else {
            return input::bad(format!(
                "a disk is called {name}, as that of the machine would be; rename or remove it"
            ));
        };
        let mut there = Inventory::default();
        self.tenant.sort(server(&found)?, &self.marks(&found), &mut there);
        match there.foreign.first() {
            Some(foreign) => input::bad(&foreign.why),
            None => Ok(()),
        }
    }

    /// The new disk is made while the old one is there, so that what is refused leaves the machine as it was.
    fn rebuild_server(&self, server: &Server, order: &Order<'_>) -> Result<()> {
        let one = self.instance(server)?;
        let attached = entries(&one, "disks").find(|disk| disk["boot"] == true).cloned().unwrap_or_default();
        let has = last(&attached, "source");
        let others: Vec<String> = self.disks(&server.node).into_iter().filter(|name| name != has).collect();
        let new = others.first().context("a machine has one disk")?;
        self.drop_disks(&server.region, &others)?;
        let what = format!("making a disk for {}", server.node);
        let disk = json!({
            "name": new,
            "sourceImage": format!("global/images/{}", order.image_id),
            "sizeGb": self.provider.disk_gb.to_string(),
            "type": disk_type(&server.region, &server.size),
            "labels": self.tenant.labels(&[]),
        });
        if !self.make(&format!("zones/{}/disks", server.region), &disk, &what)? {
            return input::bad(format!("a disk is called {new}, as one of this cluster would be; rename or remove it"));
        }
        let (mut metadata, told) = (one["metadata"].clone(), json!({"key": "user-data", "value": order.user_data}));
        let others = entries(&one["metadata"], "items").filter(|item| item["key"] != "user-data").cloned();
        metadata["items"] = others.chain([told]).collect();
        let place = place(&one)?;
        if let Err(error) = self.post(&format!("{place}/setMetadata"), &metadata, &what) {
            if !error.is::<Refused>() {
                return Err(error);
            }
            // Else it would be paid for until the next one is made. What was refused is the error all the same.
            return Err(match self.drop_disks(&server.region, std::slice::from_ref(new)) {
                Ok(()) => error,
                Err(stays) => error.context(format!("the disk {new} is left over ({stays:#})")),
            });
        }
        // From here on nothing is as it was, whatever is refused.
        self.change_disks(server, &one, &attached, new).map_err(|error| match error.is::<Interrupted>() {
            true => error,
            false => anyhow!("{error:#}"),
        })
    }

    fn mark(&self, server: &Server, image: &str) -> Result<()> {
        let one = self.instance(server)?;
        let mut labels = one["labels"].clone();
        relabel(&mut labels, image);
        let body = json!({"labels": labels, "labelFingerprint": one["labelFingerprint"]});
        let (path, what) = (format!("{}/setLabels", place(&one)?), format!("labelling {}", server.node));
        let answer = self.call(&what, |url| Request::post(url).json(&body), &path)?;
        // It is done in a moment, and whoever notes it has something to do that goes with it: an interrupt comes behind.
        self.done_by(&self.client().for_cleanup(), &answer, &what)
    }

    fn start(&self, server: &Server) -> Result<()> {
        let path = format!("zones/{}/instances/{}/start", server.region, server.id);
        self.post(&path, &Value::Null, &format!("starting {}", server.node))
    }

    fn make_volume(&self, node: &str, gb: u32) -> Result<()> {
        self.new_volume(node, gb)
    }

    fn attach(&self, volume: &Volume, server: &Server) -> Result<()> {
        self.connect(volume, server)
    }

    fn detach(&self, volume: &Volume) -> Result<()> {
        self.disconnect(volume)
    }

    /// A machine's end is not waited for: there are several.
    fn delete(&self, thing: &Thing) -> Result<()> {
        let what = format!("removing the {} {}", thing.kind, thing.name);
        match thing.kind {
            "server" => {}
            "volume" | "disk" => return self.delete_disk(&thing.id, &what),
            "address" => {
                let (region, name) = thing.id.split_once('/').unwrap_or((&self.region, &thing.id));
                return self.remove(&format!("regions/{region}/addresses/{name}"), &what);
            }
            "network" => {
                let path = match thing.id.split_once('/') {
                    Some((region, subnet)) => format!("regions/{region}/subnetworks/{subnet}"),
                    None => format!("global/networks/{}", thing.id),
                };
                return self.remove(&path, &what);
            }
            _ => {
                let names = [thing.id.clone(), format!("{}-inside", thing.id)];
                return names.iter().try_for_each(|name| self.remove(&format!("global/firewalls/{name}"), &what));
            }
        }
        let all = self.everywhere("instances")?;
        let Some(one) = all.iter().find(|one| one["id"] == thing.id.as_str()) else { return Ok(()) };
        let answer = self.send(Request::delete(self.compute.url(&place(one)?)))?;
        let refusal = answer.refused();
        match answer.status {
            200 | 404 => Ok(()),
            _ if refusal.said.contains("protected") => {
                bail!("the machine {} is protected against deletion; take that off at Google", thing.name)
            }
            400 | 409 if is_early(&refusal) || is_in_use(&refusal) => Err(Busy(refusal.to_string()).into()),
            _ => Err(refused(&answer)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_kimg_did_not_make_so_let_nothing_in() {
        let whole = json!({"direction": "INGRESS", "targetTags": ["t"], "sourceRanges": ["0.0.0.0/0"],
            "allowed": [{"IPProtocol": "tcp", "ports": ["80", "443"]}, {"IPProtocol": "icmp"}]});
        let found: Vec<(String, String)> =
            rules_of(&whole, "t").into_iter().map(|rule| (rule.protocol, rule.ports)).collect();
        let own = |protocol: &str, ports: &str| (protocol.to_string(), ports.to_string());
        assert_eq!(found, [own("tcp", "80"), own("tcp", "443"), own("icmp", "")]);
        for (key, value) in [
            ("direction", json!("EGRESS")),
            ("disabled", json!(true)),
            ("targetTags", json!(["t", "u"])),
            ("denied", json!([])),
        ] {
            let mut changed = whole.clone();
            changed[key] = value;
            assert_eq!(rules_of(&changed, "t"), [], "{key}");
        }
    }

    #[test]
    fn a_machine_has_a_number_and_a_zone_that_are_some() {
        let one = |id: &str, zone: &str| server(&json!({"id": id, "zone": format!("zones/{zone}")}));
        assert_eq!(one("77", "europe-west3-a").unwrap().region, "europe-west3-a");
        for (id, zone) in [("", "z"), ("m--demo", "z"), ("7/..", "z"), ("77", ""), ("77", "z?x")] {
            assert!(one(id, zone).is_err(), "{id} in {zone}");
        }
    }

    #[test]
    fn newer_machines_have_other_disks() {
        for (size, disk) in
            [("e2-small", "pd-balanced"), ("n2d-standard-4", "pd-balanced"), ("c4-standard-2", "hyperdisk-balanced")]
        {
            assert_eq!(disk_type("z", size), format!("zones/z/diskTypes/{disk}"));
        }
    }
}
