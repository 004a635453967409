//! Vultr: machines known by the tags `kimg-cluster.CLUSTER`, `kimg-ca.CA`, `kimg-node.NODE`, `kimg-role.ROLE` and
//! `kimg-image.SUM`; a VPC and groups of firewall rules, which bear no tags, by their descriptions, and block storage by its
//! label.
//! <https://www.vultr.com/api/>
//!
//! Nothing of it is unique: a machine is looked for before it is made. The rules of a firewall are made one by one, so an
//! interrupted run leaves some of them, and the next one sets the others. Whether a firewall filters the VPC, too, is not
//! published, so it lets the VPC through. None of this was tried at Vultr.

use super::marks::{DATA, IMAGE, NODE, ON_VOLUME, ROLE};
use super::rules::{Single, apart, together};
use super::tags::{bears, of_image, retagged, tagged};
use super::{
    Busy, Cents, Cloud, Firewall, Inventory, Network, Offer, Order, ROLES, Rule, Server, Size, State, Tenant, Thing,
    Volume, checked, explained, image_of, text,
};
use crate::input;
use crate::upload::api::Api;
use crate::upload::may_be_done;
use crate::upload::settings::Environment;
use crate::upload::vultr::{account, pages};
use crate::web::{Client, Request};
use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use node_metadata::Role;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

const INSTANCES: &str = "/v2/instances";
const FIREWALLS: &str = "/v2/firewalls";
const VPCS: &str = "/v2/vpcs";
const BLOCKS: &str = "/v2/blocks";
/// How long Vultr may take to put a snapshot on a disk.
const BUILT: Duration = Duration::from_secs(900);
const EVERY: Duration = Duration::from_secs(3);
/// All ports of a protocol.
const ALL: &str = "1-65535";

/// Its own clients take each of these for a call that was done.
const DONE: &[u16] = &[200, 201, 202, 204];

/// A cluster's part of an account.
#[derive(Debug)]
pub struct Vultr {
    api: Api,
    tenant: Tenant,
}

impl Vultr {
    /// The account of `VULTR_API_KEY`.
    ///
    /// # Errors
    /// There is no key.
    pub fn new(client: &Client, env: Environment<'_>, tenant: Tenant) -> Result<Vultr> {
        Ok(Vultr { api: account(client, env)?, tenant })
    }

    fn list(&self, path: &str, name: &str) -> Result<Vec<Value>> {
        pages(&self.api, path, name).map_err(explain)
    }

    /// Makes a thing. Where the answer is lost it is looked for by its name (the field `called`) and its tags.
    fn make(&self, path: &str, (list, key, called): (&str, &str, &str), body: &Value) -> Result<Value> {
        let request = Request::post(self.api.url(path)).json(body).hiding(false, true);
        let made = self.api.send(request).and_then(|answer| Ok(answer.expect(DONE)?.json()?[key].take()));
        made.or_else(|error| {
            if !may_be_done(&error) {
                return Err(error);
            }
            let same = |one: &Value| one[called] == body[called] && bears(one, body);
            let found = pages(&self.api.for_cleanup(), path, list);
            found.ok().and_then(|found| found.into_iter().find(same)).ok_or(error)
        })
        .map_err(explain)
    }

    /// The rules of a group as Vultr has them: each with its number.
    fn rules_of(&self, firewall: &str) -> Result<Vec<(Value, Single)>> {
        let all = self.list(&format!("{FIREWALLS}/{firewall}/rules"), "firewall_rules")?;
        Ok(all.into_iter().map(|one| (one["id"].clone(), single(&one))).collect())
    }

    fn instance(&self, server: &Server) -> Result<Value> {
        let found = self.list(INSTANCES, "instances")?.into_iter().find(|one| one["id"] == server.id.as_str());
        found.with_context(|| format!("the machine of {} is gone", server.node))
    }

    fn change(&self, server: &Server, body: &Value) -> Result<()> {
        let request = Request::patch(self.api.url(&format!("{INSTANCES}/{}", server.id)));
        let set = self.api.send(request.json(body).hiding(false, true).repeatable(true));
        set.and_then(|answer| answer.expect(DONE)).map(|_| ()).map_err(explain)
    }

    /// Live: the machine is not started anew. What is refused is asked again, whatever it is called.
    fn act_on(&self, volume: &Volume, action: &str, body: &Value) -> Result<()> {
        let request = Request::post(self.api.url(&format!("{BLOCKS}/{}/{action}", volume.id)));
        let answer = self.api.send(request.json(body).repeatable(true)).map_err(explain)?;
        match answer.status {
            status if DONE.contains(&status) => Ok(()),
            400 | 404 | 409 | 422 | 423 => Err(Busy(answer.refused().to_string()).into()),
            _ => Err(explain(answer.refused().into())),
        }
    }

    fn server(&self, one: &Value) -> Result<Server> {
        let address = |key: &str| text(one, key).parse().ok().filter(|address: &IpAddr| !address.is_unspecified());
        Ok(Server {
            id: id(one, "a machine")?,
            node: tagged(one, NODE).into(),
            image: image_of(tagged(one, IMAGE)),
            size: text(one, "plan").into(),
            region: text(one, "region").into(),
            state: match (text(one, "status"), text(one, "power_status")) {
                ("active", "running") => State::Running,
                ("active", "stopped") => State::Off,
                _ => State::Pending,
            },
            public: address("main_ip"),
            private: address("internal_ip"),
            created: text(one, "date_created").parse().ok(),
            on_volume: tagged(one, DATA) == ON_VOLUME,
        })
    }
}

fn id(one: &Value, what: &str) -> Result<String> {
    checked(text(one, "id"), what)
}

fn explain(error: anyhow::Error) -> anyhow::Error {
    explained(error, "Vultr", "VULTR_API_KEY")
}

fn volume(one: &Value, node: &str) -> Result<Volume> {
    let at = text(one, "attached_to_instance");
    Ok(Volume {
        id: id(one, "a volume")?,
        node: node.into(),
        gb: one["size_gb"].as_u64().context("the provider's answer names no size of a volume")?,
        region: text(one, "region").into(),
        server: (!at.is_empty()).then(|| at.to_string()),
    })
}

fn network(one: &Value) -> Result<Network> {
    Ok(Network {
        id: id(one, "a VPC")?,
        range: format!("{}/{}", text(one, "v4_subnet"), one["v4_subnet_mask"]),
        region: one["region"].as_str().map(Into::into),
        kept: false,
    })
}

/// A rule as it was asked for, in whichever of the forms that Vultr's clients know it comes back.
fn single(one: &Value) -> Single {
    let from = format!("{}/{}", text(one, "subnet"), one["subnet_size"]);
    let from = from.parse().map_or(from, |range: IpNet| range.to_string());
    let ports: String = text(one, "port").replace(':', "-").split_whitespace().collect();
    (text(one, "protocol").to_lowercase(), if ports == "-" { String::new() } else { ports }, from)
}

impl Cloud for Vultr {
    fn offer(&self) -> Result<Offer> {
        // Everybody may read the plans: only this tells whether the key counts.
        let account = self.api.send(Request::get(self.api.url("/v2/account"))).and_then(|answer| answer.expect(&[200]));
        account.map_err(explain)?;
        let region = self.tenant.region.as_str();
        let all = self.list("/v2/plans", "plans")?;
        let regions = |one: &Value| -> BTreeSet<String> {
            one["locations"].as_array().into_iter().flatten().filter_map(Value::as_str).map(Into::into).collect()
        };
        let size = |one: &Value| {
            let monthly = Some(Cents::of(one["monthly_cost"].as_f64()?)?);
            let (disk_gb, available) = (one["disk"].as_u64()?, regions(one).contains(region));
            Some((text(one, "id").to_string(), Size { monthly, disk_gb, available }))
        };
        let sizes: BTreeMap<_, _> = all.iter().filter_map(size).collect();
        if !sizes.values().any(|size| size.available) {
            let known: BTreeSet<String> = all.iter().flat_map(regions).collect();
            let known: Vec<String> = known.into_iter().collect();
            return input::bad(format!(
                "provider.region: Vultr has nothing in {region}; there are {}",
                known.join(", ")
            ));
        }
        Ok(Offer { currency: "USD".into(), sizes, room: None, gb: self.tenant.volume_price })
    }

    fn inventory(&self) -> Result<Inventory> {
        let mut inventory = Inventory::default();
        for one in self.list(VPCS, "vpcs")?.iter().filter(|one| one["description"] == self.tenant.name()) {
            inventory.networks.push(network(one)?);
        }
        for one in self.list(FIREWALLS, "firewall_groups")? {
            if let Some(role) = ROLES.into_iter().find(|role| text(&one, "description") == self.tenant.firewall(*role))
            {
                let id = id(&one, "a firewall")?;
                let rules = together(self.rules_of(&id)?.into_iter().map(|(_, rule)| rule));
                inventory.firewalls.push(Firewall { id, role, rules });
            }
        }
        // All, for those that only look like ours.
        for one in self.list(INSTANCES, "instances")? {
            let marks = self.tenant.marks(&one, text(&one, "label"));
            self.tenant.sort(self.server(&one)?, &marks, &mut inventory);
        }
        let prefix = self.tenant.volume("");
        for one in self.tenant.seen(self.list(BLOCKS, "blocks"), &mut inventory)? {
            if let Some(node) = text(&one, "label").strip_prefix(&prefix) {
                inventory.add_volume(volume(&one, node)?);
            }
        }
        Ok(inventory)
    }

    fn make_network(&self) -> Result<Network> {
        let range = self.tenant.network;
        let body = json!({
            "region": self.tenant.region,
            "description": self.tenant.name(),
            "v4_subnet": range.network(),
            "v4_subnet_mask": range.prefix_len(),
        });
        network(&self.make(VPCS, ("vpcs", "vpc", "description"), &body)?)
    }

    fn make_firewall(&self, role: Role) -> Result<Firewall> {
        let body = json!({"description": self.tenant.firewall(role)});
        let made = self.make(FIREWALLS, ("firewall_groups", "firewall_group", "description"), &body)?;
        let firewall = Firewall { id: id(&made, "the firewall")?, role, rules: self.rules(role) };
        self.set_rules(&firewall)?;
        Ok(firewall)
    }

    fn set_rules(&self, firewall: &Firewall) -> Result<()> {
        // Where somebody removed it, the machines are there already. Its rules come later: they tell that it is done.
        for one in self.list(INSTANCES, "instances")? {
            let (marks, role) = (self.tenant.marks(&one, ""), tagged(&one, ROLE));
            if marks.cluster && marks.ca && role == firewall.role.as_str() && one["firewall_group_id"] != firewall.id {
                let request = Request::patch(self.api.url(&format!("{INSTANCES}/{}", id(&one, "a machine")?)));
                let set = self.api.send(request.json(&json!({"firewall_group_id": firewall.id})).repeatable(true));
                set.and_then(|answer| answer.expect(DONE)).map_err(explain)?;
            }
        }
        let known = self.rules_of(&firewall.id)?;
        let wanted = apart(self.rules(firewall.role));
        let place = format!("{FIREWALLS}/{}/rules", firewall.id);
        for (protocol, ports, from) in wanted.iter().filter(|one| known.iter().all(|(_, known)| known != *one)) {
            let (subnet, size) = from.split_once('/').context("a range has a length")?;
            let size: u8 = size.parse().context("a range has a length")?;
            let mut body = json!({
                "ip_type": if subnet.contains(':') { "v6" } else { "v4" },
                "protocol": protocol.to_uppercase(),
                "subnet": subnet,
                "subnet_size": size,
            });
            if !ports.is_empty() {
                body["port"] = json!(ports.replace('-', ":"));
            }
            let made = self.api.send(Request::post(self.api.url(&place)).json(&body));
            made.and_then(|answer| answer.expect(DONE)).map_err(explain)?;
        }
        for (number, _) in known.iter().filter(|(_, known)| !wanted.contains(known)) {
            let number = number.as_u64().context("the provider's answer names no number of a firewall's rule")?;
            let gone = self.api.send(Request::delete(self.api.url(&format!("{place}/{number}"))));
            gone.and_then(|answer| answer.expect(&[200, 204, 404])).map_err(explain)?;
        }
        Ok(())
    }

    fn rules(&self, role: Role) -> BTreeSet<Rule> {
        self.tenant.rules_with_inside(role, ALL, "")
    }

    fn make_server(&self, order: &Order<'_>) -> Result<()> {
        let name = self.tenant.machine(order.node);
        let mut there = Inventory::default();
        for one in self.list(INSTANCES, "instances")?.iter().filter(|one| one["label"] == name.as_str()) {
            self.tenant.sort(self.server(one)?, &self.tenant.marks(one, &name), &mut there);
        }
        if let Some(foreign) = there.foreign.first() {
            return input::bad(&foreign.why);
        }
        if !there.servers.is_empty() {
            return Ok(());
        }
        let on_volume = (DATA, if order.on_volume { ON_VOLUME } else { "" });
        let marks = [(NODE, order.node), (ROLE, order.role.as_str()), of_image(order.image), on_volume];
        let body = json!({
            "region": self.tenant.region,
            "plan": order.size,
            "snapshot_id": order.image_id,
            "label": name,
            "hostname": order.node,
            "user_data": STANDARD.encode(order.user_data),
            "tags": self.tenant.tags(&marks),
            "attach_vpc": [order.network.id],
            "firewall_group_id": order.firewall.id,
            "enable_ipv6": false,
            "activation_email": false,
        });
        self.make(INSTANCES, ("instances", "instance", "label"), &body).map(|_| ())
    }

    /// Vultr's word for it is restoring: any snapshot may take the place of a disk.
    fn rebuild_server(&self, server: &Server, order: &Order<'_>) -> Result<()> {
        self.change(server, &json!({"user_data": STANDARD.encode(order.user_data)}))?;
        let request = Request::post(self.api.url(&format!("{INSTANCES}/{}/restore", server.id)));
        let answer = self.api.send(request.json(&json!({"snapshot_id": order.image_id}))).map_err(explain)?;
        match answer.status {
            status if DONE.contains(&status) => {}
            409 | 423 => return Err(Busy(answer.refused().to_string()).into()),
            _ => return Err(explain(answer.refused().into())),
        }
        self.api.client().poll(&format!("rebuilding {}", server.node), EVERY, BUILT, || {
            let one = self.instance(server)?;
            Ok((text(&one, "status") == "active" && text(&one, "server_status") != "locked").then_some(()))
        })
    }

    fn moves_to_volume(&self) -> bool {
        true
    }

    fn mark(&self, server: &Server, image: &str) -> Result<()> {
        let one = self.instance(server)?;
        let on_volume = if server.on_volume { ON_VOLUME } else { tagged(&one, DATA) };
        self.change(server, &json!({"tags": retagged(&one, &[of_image(image), (DATA, on_volume)])}))
    }

    fn start(&self, server: &Server) -> Result<()> {
        let request = Request::post(self.api.url(&format!("{INSTANCES}/{}/start", server.id))).repeatable(true);
        self.api.send(request).and_then(|answer| answer.expect(DONE)).map(|_| ()).map_err(explain)
    }

    fn make_volume(&self, node: &str, gb: u32) -> Result<()> {
        let label = self.tenant.volume(node);
        // Labels are not unique.
        if self.list(BLOCKS, "blocks")?.iter().any(|one| one["label"] == label.as_str()) {
            return Ok(());
        }
        let body = json!({"region": self.tenant.region, "size_gb": gb, "label": label, "block_type": "high_perf"});
        self.make(BLOCKS, ("blocks", "block", "label"), &body).map(|_| ())
    }

    fn attach(&self, volume: &Volume, server: &Server) -> Result<()> {
        self.act_on(volume, "attach", &json!({"instance_id": server.id, "live": true}))
    }

    fn detach(&self, volume: &Volume) -> Result<()> {
        self.act_on(volume, "detach", &json!({"live": true}))
    }

    fn delete(&self, thing: &Thing) -> Result<()> {
        let path = match thing.kind {
            "volume" => BLOCKS,
            "server" => INSTANCES,
            "network" => VPCS,
            _ => FIREWALLS,
        };
        let answer = self.api.send(Request::delete(self.api.url(&format!("{path}/{}", thing.id))))?;
        match answer.status {
            200 | 204 | 404 => Ok(()),
            // One that Vultr is at work on, and what machines are in.
            400 | 409 | 422 | 423 => Err(Busy(answer.refused().to_string()).into()),
            _ => Err(explain(answer.refused().into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_the_same_however_they_are_written_back() {
        let rule = |protocol: &str, port: &str, subnet: &str, size: u8| {
            single(&json!({"protocol": protocol, "port": port, "subnet": subnet, "subnet_size": size}))
        };
        let own = |protocol: &str, ports: &str, from: &str| (protocol.into(), ports.into(), from.into());
        for port in ["30000:32767", "30000-32767", "30000 - 32767"] {
            assert_eq!(rule("TCP", port, "0.0.0.0", 0), own("tcp", "30000-32767", "0.0.0.0/0"));
        }
        for port in ["", "-"] {
            assert_eq!(rule("icmp", port, "0:0::", 0), own("icmp", "", "::/0"));
        }
        assert_eq!(rule("udp", "53", "?", 9), own("udp", "53", "?/9"));
    }
}
