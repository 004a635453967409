//! Linode (Akamai): machines and firewalls known by the tags `kimg-cluster.CLUSTER`, `kimg-ca.CA`, `kimg-node.NODE`,
//! `kimg-role.ROLE` and `kimg-image.SUM`; a VPC, which bears no tags, by its label.
//! <https://techdocs.akamai.com/linode-api/reference/api>
//!
//! Labels of machines, firewalls, VPCs and volumes are unique in an account. A firewall's and a volume's have room for 32
//! characters, so they bear the fingerprint, and a volume's a sum of its node. A firewall filters the VPC, too.
//! A machine of a custom image boots by `linode/direct-disk`, and must name a key or a password: it names a key whose
//! private half nobody keeps. That the call which makes a machine takes `kernel` is known from Linode's own clients of
//! 2026; that a VPC's interface gets its address by DHCP is not published. Neither was tried at Linode.

use super::marks::{DATA, IMAGE, NODE, ON_VOLUME, ROLE};
use super::tags::{bears, of_image, retagged, tagged};
use super::{
    Busy, Cents, Cloud, Firewall, Inventory, Network, Offer, Order, ROLES, Rule, Server, Size, State, Tenant, Thing,
    Volume, explained, image_of, numbered, text,
};
use crate::input;
use crate::machines::NO_IMAGE;
use crate::seed::token::BootstrapToken;
use crate::upload::api::Api;
use crate::upload::linode::{account, pages};
use crate::upload::may_be_done;
use crate::upload::rescue::Keys;
use crate::upload::settings::Environment;
use crate::web::{Client, Request};
use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use node_metadata::Role;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

const INSTANCES: &str = "/v4/linode/instances";
const FIREWALLS: &str = "/v4/networking/firewalls";
const VPCS: &str = "/v4/vpcs";
const VOLUMES: &str = "/v4/volumes";
/// Where a machine that is being made anew is in the private network: that address is its configuration's, which goes with
/// its disk.
const AT: &str = "kimg-at";
/// How long Linode may take to put an image on a disk.
const BUILT: Duration = Duration::from_secs(900);
const EVERY: Duration = Duration::from_secs(3);
/// All ports of a protocol.
const ALL: &str = "1-65535";

/// A cluster's part of an account.
#[derive(Debug)]
pub struct Linode {
    api: Api,
    tenant: Tenant,
}

impl Linode {
    /// The account of `LINODE_TOKEN`.
    ///
    /// # Errors
    /// There is no token.
    pub fn new(client: &Client, env: Environment<'_>, tenant: Tenant) -> Result<Linode> {
        let scopes = "a token with the scopes linodes, firewall, vpc, images and ips, each read_write";
        Ok(Linode { api: account(client, env, scopes)?, tenant })
    }

    fn list(&self, path: &str) -> Result<Vec<Value>> {
        pages(&self.api, path, |request| request).map_err(explain)
    }

    /// Makes a thing. Where the answer is lost it is looked for by its label, which no other has, and its tags.
    fn make(&self, path: &str, body: &Value) -> Result<Value> {
        let request = Request::post(self.api.url(path)).json(body).hiding(false, true);
        let made = self.api.send(request).and_then(|answer| answer.expect(&[200])?.json());
        made.or_else(|error| {
            if !may_be_done(&error) {
                return Err(error);
            }
            let same = |one: &Value| one["label"] == body["label"] && bears(one, body);
            let found = pages(&self.api.for_cleanup(), path, |request| request);
            found.ok().and_then(|found| found.into_iter().find(same)).ok_or(error)
        })
        .map_err(explain)
    }

    fn subnet(&self, network: &Network) -> Result<u64> {
        let vpcs = self.list(VPCS)?;
        let vpc = vpcs.iter().find(|one| is(one, &network.id));
        numbered(&vpc.context("the private network is gone; `kimg up` makes it")?["subnets"][0], "a subnet")
    }

    fn instance(&self, server: &Server) -> Result<Value> {
        let found = self.list(INSTANCES)?.into_iter().find(|one| is(one, &server.id));
        found.with_context(|| format!("the machine of {} is gone", server.node))
    }

    /// Asked twice, or while it is at work on the machine, Linode refuses with a reason.
    fn act_on(&self, volume: &Volume, action: &str, with: impl Fn(Request) -> Request) -> Result<()> {
        let request = Request::post(self.api.url(&format!("{VOLUMES}/{}/{action}", volume.id)));
        let answer = self.api.send(with(request).repeatable(true)).map_err(explain)?;
        match answer.status {
            200 => Ok(()),
            400 | 404 | 409 => Err(Busy(answer.refused().to_string()).into()),
            _ => Err(explain(answer.refused().into())),
        }
    }

    /// Takes the data volume from a machine whose configuration went with its disk: who has it as attached still may not
    /// have it in the new one.
    fn let_go(&self, server: &Server) -> Result<()> {
        self.api.client().poll(&format!("detaching the data volume of {}", server.node), EVERY, BUILT, || {
            let known = self.inventory()?;
            let Some(volume) = known.volumes.iter().find(|volume| volume.server.as_ref() == Some(&server.id)) else {
                return Ok(Some(()));
            };
            match self.detach(volume) {
                Err(error) if !error.is::<Busy>() => Err(error),
                _ => Ok(None),
            }
        })
    }

    fn written(&self, role: Role) -> Value {
        let rule = |rule: Rule| {
            let of = |v6: bool| rule.from.iter().filter(|range| range.contains(':') == v6).collect::<Vec<_>>();
            let mut addresses = json!({});
            for (family, v6) in [("ipv4", false), ("ipv6", true)] {
                if !of(v6).is_empty() {
                    addresses[family] = json!(of(v6));
                }
            }
            let mut written =
                json!({"action": "ACCEPT", "protocol": rule.protocol.to_uppercase(), "addresses": addresses});
            if !rule.ports.is_empty() {
                written["ports"] = json!(rule.ports);
            }
            written
        };
        let inbound: Vec<Value> = self.rules(role).into_iter().map(rule).collect();
        json!({"inbound": inbound, "inbound_policy": "DROP", "outbound": [], "outbound_policy": "ACCEPT"})
    }

    /// A firewall's label; its name would be too long.
    fn firewall(&self, role: Role) -> String {
        format!("kimg-{}-{role}", self.tenant.ca)
    }

    /// The addresses of machines in private networks.
    fn inside(&self) -> Result<BTreeMap<u64, IpAddr>> {
        let all = self.list("/v4/vpcs/ips")?;
        let one = |one: &Value| {
            let address: IpAddr = text(one, "address").parse().ok()?;
            let ours = matches!(address, IpAddr::V4(address) if self.tenant.network.contains(&address));
            Some((one["linode_id"].as_u64().filter(|_| ours)?, address))
        };
        Ok(all.iter().filter_map(one).collect())
    }

    fn server(&self, one: &Value, inside: &BTreeMap<u64, IpAddr>) -> Result<Server> {
        let id = numbered(one, "a machine")?;
        let private = inside.get(&id).copied().or_else(|| tagged(one, AT).parse().ok());
        let own = one["ipv4"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let outside = |address: &IpAddr| matches!(address, IpAddr::V4(four) if !four.is_private());
        Ok(Server {
            id: id.to_string(),
            node: tagged(one, NODE).into(),
            image: image_of(tagged(one, IMAGE)),
            size: text(one, "type").into(),
            region: text(one, "region").into(),
            state: match text(one, "status") {
                "running" => State::Running,
                "offline" | "stopped" => State::Off,
                _ => State::Pending,
            },
            public: own.filter_map(|text| text.parse().ok()).find(outside),
            private,
            // Without a zone, and in UTC.
            created: format!("{}Z", text(one, "created")).parse().ok(),
            on_volume: tagged(one, DATA) == ON_VOLUME,
        })
    }
}

/// A price, which may be another one in a region.
fn monthly(one: &Value, region: &str) -> Option<f64> {
    let here = one["region_prices"].as_array().into_iter().flatten().find(|price| price["id"] == region);
    here.unwrap_or(&one["price"])["monthly"].as_f64()
}

fn is(one: &Value, id: &str) -> bool {
    one["id"].as_u64().is_some_and(|number| id.parse() == Ok(number))
}

fn explain(error: anyhow::Error) -> anyhow::Error {
    explained(error, "Linode", "LINODE_TOKEN")
}

fn rule(written: &Value) -> Rule {
    let ranges = |family: &str| written["addresses"][family].as_array().into_iter().flatten().filter_map(Value::as_str);
    Rule {
        protocol: text(written, "protocol").to_lowercase(),
        ports: text(written, "ports").into(),
        from: ranges("ipv4").chain(ranges("ipv6")).map(Into::into).collect(),
    }
}

fn volume(one: &Value) -> Result<Volume> {
    Ok(Volume {
        id: numbered(one, "a volume")?.to_string(),
        node: tagged(one, NODE).into(),
        gb: one["size"].as_u64().context("the provider's answer names no size of a volume")?,
        region: text(one, "region").into(),
        server: one["linode_id"].as_u64().map(|id| id.to_string()),
    })
}

fn network(one: &Value) -> Result<Network> {
    Ok(Network {
        id: numbered(one, "a VPC")?.to_string(),
        range: text(&one["subnets"][0], "ipv4").into(),
        region: one["region"].as_str().map(Into::into),
        kept: false,
    })
}

impl Cloud for Linode {
    fn offer(&self) -> Result<Offer> {
        let region = self.tenant.region.as_str();
        let regions = self.list("/v4/regions")?;
        let Some(found) = regions.iter().find(|one| one["id"] == region) else {
            let known: Vec<&str> = regions.iter().map(|one| text(one, "id")).collect();
            return input::bad(format!(
                "provider.region: Linode has no region {region}; there are {}",
                known.join(", ")
            ));
        };
        for needed in ["VPCs", "Metadata", "Cloud Firewall"] {
            if !found["capabilities"].as_array().is_some_and(|has| has.iter().any(|one| one == needed)) {
                return input::bad(format!(
                    "provider.region: Linode's {region} lacks {needed}, which a cluster needs; write another"
                ));
            }
        }
        let size = |one: &Value| {
            let monthly = Some(Cents::of(monthly(one, region)?)?);
            let disk_gb = one["disk"].as_u64()? / 1024;
            Some((text(one, "id").to_string(), Size { monthly, disk_gb, available: true }))
        };
        let sizes = self.list("/v4/linode/types")?.iter().filter_map(size).collect();
        let kinds = self.list("/v4/volumes/types")?;
        let gb = kinds.iter().find(|one| one["id"] == "volume").and_then(|one| monthly(one, region));
        Ok(Offer { currency: "USD".into(), sizes, room: None, gb })
    }

    fn inventory(&self) -> Result<Inventory> {
        let mut inventory = Inventory::default();
        for one in self.list(VPCS)?.iter().filter(|one| one["label"] == self.tenant.name()) {
            inventory.networks.push(network(one)?);
        }
        for one in self.list(FIREWALLS)? {
            let marks = self.tenant.marks(&one, "");
            if !marks.cluster || !marks.ca {
                continue;
            }
            let id = numbered(&one, "a firewall")?.to_string();
            match ROLES.into_iter().find(|role| tagged(&one, ROLE) == role.as_str()) {
                Some(role) => {
                    let rules = one["rules"]["inbound"].as_array().into_iter().flatten().map(rule).collect();
                    inventory.firewalls.push(Firewall { id, role, rules });
                }
                None => inventory.rest.push(Thing { kind: "firewall", id, name: text(&one, "label").into() }),
            }
        }
        let inside = self.inside()?;
        // All, for those that only look like ours.
        for one in self.list(INSTANCES)? {
            let marks = self.tenant.marks(&one, text(&one, "label"));
            self.tenant.sort(self.server(&one, &inside)?, &marks, &mut inventory);
        }
        for one in self.tenant.seen(self.list(VOLUMES), &mut inventory)? {
            let marks = self.tenant.marks(&one, "");
            if marks.cluster && marks.ca {
                inventory.add_volume(volume(&one)?);
            }
        }
        Ok(inventory)
    }

    fn make_network(&self) -> Result<Network> {
        let subnet = json!({"label": "nodes", "ipv4": self.tenant.network.to_string()});
        let body = json!({"label": self.tenant.name(), "region": self.tenant.region, "subnets": [subnet]});
        network(&self.make(VPCS, &body)?)
    }

    fn make_firewall(&self, role: Role) -> Result<Firewall> {
        // Where somebody removed it, the machines are there already.
        let there = self.inventory()?.servers;
        let machines = self.list(INSTANCES)?;
        let of_role =
            |one: &&Value| tagged(one, ROLE) == role.as_str() && there.iter().any(|server| is(one, &server.id));
        let machines: Vec<&Value> = machines.iter().filter(of_role).map(|one| &one["id"]).collect();
        let body = json!({
            "label": self.firewall(role),
            "rules": self.written(role),
            "devices": {"linodes": machines},
            "tags": self.tenant.tags(&[(ROLE, role.as_str())]),
        });
        let made = self.make(FIREWALLS, &body)?;
        Ok(Firewall { id: numbered(&made, "the firewall")?.to_string(), role, rules: self.rules(role) })
    }

    fn set_rules(&self, firewall: &Firewall) -> Result<()> {
        let request = Request::put(self.api.url(&format!("{FIREWALLS}/{}/rules", firewall.id)));
        let set = self.api.send(request.json(&self.written(firewall.role))).and_then(|answer| answer.expect(&[200]));
        set.map(|_| ()).map_err(explain)
    }

    fn rules(&self, role: Role) -> BTreeSet<Rule> {
        self.tenant.rules_with_inside(role, ALL, "")
    }

    fn make_server(&self, order: &Order<'_>) -> Result<()> {
        let subnet = self.subnet(order.network)?;
        let firewall: u64 = order.firewall.id.parse().context("the firewall has no number of Linode's")?;
        let on_volume = (DATA, if order.on_volume { ON_VOLUME } else { "" });
        let body = json!({
            "label": self.tenant.machine(order.node),
            "region": self.tenant.region,
            "type": order.size,
            "image": order.image_id,
            "kernel": "linode/direct-disk",
            "booted": true,
            "swap_size": 0,
            "authorized_keys": [Keys::new()?.client.trim()],
            "metadata": {"user_data": STANDARD.encode(order.user_data)},
            "interface_generation": "legacy_config",
            "interfaces": [{"purpose": "public"}, {"purpose": "vpc", "subnet_id": subnet}],
            "firewall_id": firewall,
            "network_helper": false,
            "tags": self.tenant.tags(&[(NODE, order.node), (ROLE, order.role.as_str()), of_image(order.image), on_volume]),
        });
        self.make(INSTANCES, &body).map(|_| ())
    }

    /// With the disk goes the configuration: the way in which it boots, and its place in the private network.
    fn rebuild_server(&self, server: &Server, order: &Order<'_>) -> Result<()> {
        let private =
            server.private.with_context(|| format!("{} has no address in the private network", server.node))?;
        let subnet = self.subnet(order.network)?;
        let place = format!("{INSTANCES}/{}", server.id);
        let body = json!({
            "image": order.image_id,
            // It must have one, and a node has no use for it.
            "root_pass": format!("{}.{}", BootstrapToken::random(), BootstrapToken::random()),
            "booted": false,
            "metadata": {"user_data": STANDARD.encode(order.user_data)},
        });
        let request = Request::post(self.api.url(&format!("{place}/rebuild"))).json(&body).hiding(false, true);
        let answer = self.api.send(request).map_err(explain)?;
        match answer.status {
            200 => {}
            400 | 409
                if text(&answer.json().unwrap_or_default()["errors"][0], "reason").to_lowercase().contains("busy") =>
            {
                return Err(Busy(answer.refused().to_string()).into());
            }
            _ => return Err(explain(answer.refused().into())),
        }
        self.api.client().poll(&format!("rebuilding {}", server.node), EVERY, BUILT, || {
            Ok((text(&self.instance(server)?, "status") == "offline").then_some(()))
        })?;
        if order.on_volume {
            self.let_go(server)?;
        }
        let configs = self.list(&format!("{place}/configs"))?;
        let config = numbered(configs.first().context("the rebuilt machine has no configuration")?, "a configuration")?;
        let body = json!({
            "kernel": "linode/direct-disk",
            "helpers": {"network": false, "distro": false, "modules_dep": false, "updatedb_disabled": false, "devtmpfs_automount": false},
            "interfaces": [{"purpose": "public"}, {"purpose": "vpc", "subnet_id": subnet, "ipv4": {"vpc": private}}],
        });
        let request = Request::put(self.api.url(&format!("{place}/configs/{config}"))).json(&body);
        self.api.send(request).and_then(|answer| answer.expect(&[200])).map_err(explain)?;
        self.start(server)
    }

    fn moves_to_volume(&self) -> bool {
        true
    }

    fn mark(&self, server: &Server, image: &str) -> Result<()> {
        let at = server.private.filter(|_| image == NO_IMAGE).map_or(String::new(), |at| at.to_string());
        let one = self.instance(server)?;
        let on_volume = if server.on_volume { ON_VOLUME } else { tagged(&one, DATA) };
        let tags = retagged(&one, &[of_image(image), (AT, &at), (DATA, on_volume)]);
        let request = Request::put(self.api.url(&format!("{INSTANCES}/{}", server.id))).json(&json!({"tags": tags}));
        self.api.send(request).and_then(|answer| answer.expect(&[200])).map(|_| ()).map_err(explain)
    }

    fn start(&self, server: &Server) -> Result<()> {
        let request = Request::post(self.api.url(&format!("{INSTANCES}/{}/boot", server.id))).repeatable(true);
        self.api.send(request).and_then(|answer| answer.expect(&[200])).map(|_| ()).map_err(explain)
    }

    fn make_volume(&self, node: &str, gb: u32) -> Result<()> {
        let sum: String = Sha256::digest(node).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        let body = json!({
            "label": self.tenant.volume(&sum),
            "size": gb,
            "region": self.tenant.region,
            "tags": self.tenant.tags(&[(NODE, node)]),
        });
        self.make(VOLUMES, &body).map(|_| ())
    }

    /// Into the configuration that the machine was booted by, which is its only one.
    fn attach(&self, volume: &Volume, server: &Server) -> Result<()> {
        let id: u64 = server.id.parse().with_context(|| format!("{} is no number of Linode's", server.id))?;
        self.act_on(volume, "attach", |request| request.json(&json!({"linode_id": id, "persist_across_boots": true})))
    }

    fn detach(&self, volume: &Volume) -> Result<()> {
        self.act_on(volume, "detach", |request| request)
    }

    fn delete(&self, thing: &Thing) -> Result<()> {
        let path = match thing.kind {
            "volume" => VOLUMES,
            "server" => INSTANCES,
            "network" => VPCS,
            _ => FIREWALLS,
        };
        let answer = self.api.send(Request::delete(self.api.url(&format!("{path}/{}", thing.id))))?;
        match answer.status {
            200 | 204 | 404 => Ok(()),
            // One that Linode is at work on, and a VPC with machines in it.
            400 | 409 => Err(Busy(answer.refused().to_string()).into()),
            _ => Err(explain(answer.refused().into())),
        }
    }
}
