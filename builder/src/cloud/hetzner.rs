//! Hetzner Cloud: servers, networks and firewalls, known by the labels `kimg-cluster` and `kimg-ca`.
//! <https://docs.hetzner.cloud/reference/cloud>
//!
//! Names of servers, networks, firewalls and volumes are unique in a project. A firewall filters what comes from outside; the
//! private network is behind it.

use super::marks::{CA, CLUSTER, DATA, IMAGE, NODE, ON_VOLUME, ROLE, relabel};
use super::{
    ANYWHERE, Busy, Cents, Cloud, Firewall, Inventory, Marks, Network, Offer, Order, ROLES, Rule, Server, Size, State,
    Tenant, Thing, Volume, explained, image_of, no_region, numbered, open_ports, text,
};
use crate::logs::line::harmless;
use crate::upload::api::Api;
use crate::upload::hetzner::{done, pages, project};
use crate::upload::may_be_done;
use crate::upload::settings::Environment;
use crate::web::{Client, Request, escape};
use anyhow::{Context, Result, bail};
use node_metadata::Role;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// A cluster's part of a project.
#[derive(Debug)]
pub struct Hetzner {
    api: Api,
    tenant: Tenant,
}

impl Hetzner {
    /// The project of `HCLOUD_TOKEN`.
    ///
    /// # Errors
    /// There is no token.
    pub fn new(client: &Client, env: Environment<'_>, tenant: Tenant) -> Result<Hetzner> {
        Ok(Hetzner { api: project(client, env)?, tenant })
    }

    /// What bears the cluster's labels.
    fn ours(&self, path: &str, list: &str) -> Result<Vec<Value>> {
        let selector = escape(&format!("{CLUSTER}={}", self.tenant.cluster), true);
        let mut all = pages(&self.api, path, list, &format!("label_selector={selector}")).map_err(explain)?;
        all.retain(|one| one["labels"][CA] == self.tenant.ca);
        Ok(all)
    }

    /// Makes a thing. Where the answer is lost it is looked for by its name, which no other has.
    fn make(&self, path: &str, list: &str, key: &str, body: &Value) -> Result<Value> {
        let request = Request::post(self.api.url(path)).json(body).hiding(false, true);
        let made = self.api.send(request).and_then(|answer| answer.expect(&[201])?.json());
        made.or_else(|error| {
            if !may_be_done(&error) {
                return Err(error);
            }
            let found =
                pages(&self.api.for_cleanup(), path, list, &format!("name={}", escape(text(body, "name"), true)));
            let ours = |one: &Value| [CLUSTER, CA].iter().all(|key| one["labels"][key] == body["labels"][key]);
            match found.map(|found| found.into_iter().find(ours)) {
                Ok(Some(one)) => Ok(json!({key: one})),
                _ => Err(error),
            }
        })
        .map_err(explain)
    }

    /// The network zone of the location.
    fn zone(&self) -> Result<String> {
        let all = pages(&self.api, "/locations", "locations", "").map_err(explain)?;
        match all.iter().find(|one| one["name"] == self.tenant.region.as_str()) {
            Some(one) => Ok(text(one, "network_zone").to_string()),
            None => {
                let known: Vec<&str> = all.iter().map(|one| text(one, "name")).collect();
                no_region("Hetzner", "location", &self.tenant.region, &known)
            }
        }
    }

    /// Asked twice, Hetzner says that it is done or under way.
    fn act_on(&self, volume: &Volume, action: &str, with: impl Fn(Request) -> Request) -> Result<()> {
        let request = Request::post(self.api.url(&format!("/volumes/{}/actions/{action}", volume.id)));
        let answer = self.api.send(with(request).repeatable(true)).map_err(explain)?;
        match answer.status {
            201 => {
                done(&self.api, &answer.json()?["action"], &format!("{action}ing the data volume of {}", volume.node))
            }
            404 | 409 | 412 | 422 | 423 => Err(Busy(answer.refused().to_string()).into()),
            _ => Err(explain(answer.refused().into())),
        }
    }

    fn written(&self, role: Role) -> Vec<Value> {
        let rule = |rule: Rule| {
            let mut written = json!({"direction": "in", "protocol": rule.protocol, "source_ips": rule.from});
            if !rule.ports.is_empty() {
                written["port"] = json!(rule.ports);
            }
            written
        };
        self.rules(role).into_iter().map(rule).collect()
    }
}

/// Hetzner's numbers as the names that they are.
fn id(value: &Value, what: &str) -> Result<String> {
    Ok(numbered(value, what)?.to_string())
}

fn number(id: &str) -> Result<u64> {
    id.parse().with_context(|| format!("{id} is no number of Hetzner's"))
}

fn explain(error: anyhow::Error) -> anyhow::Error {
    explained(error, "Hetzner", "HCLOUD_TOKEN")
}

/// A price's net amount.
fn net(price: &Value) -> Option<Cents> {
    price["price_monthly"]["net"].as_str()?.parse().ok().and_then(Cents::of)
}

/// The price at a location.
fn at<'a>(prices: &'a Value, location: &str) -> Option<&'a Value> {
    prices.as_array()?.iter().find(|price| price["location"] == location)
}

fn rule(written: &Value) -> Option<Rule> {
    (written["direction"] == "in").then(|| Rule {
        protocol: text(written, "protocol").into(),
        ports: text(written, "port").into(),
        from: written["source_ips"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(Into::into)
            .collect(),
    })
}

impl Cloud for Hetzner {
    fn offer(&self) -> Result<Offer> {
        self.zone()?;
        let region = self.tenant.region.as_str();
        let pricing = self.api.send(Request::get(self.api.url("/pricing"))).and_then(|a| a.expect(&[200])?.json());
        let pricing = pricing.map_err(explain)?["pricing"].take();
        let address = pricing["primary_ips"].as_array().into_iter().flatten().find(|one| one["type"] == "ipv4");
        let Some(address) = address.and_then(|one| at(&one["prices"], region)).and_then(net) else {
            bail!(
                "Hetzner's price list has no price of an IPv4 address in {region}, so what a machine costs is not known"
            );
        };
        let types = pages(&self.api, "/server_types", "server_types", "").map_err(explain)?;
        let size = |one: &Value| {
            let price = net(at(&one["prices"], region)?)?;
            let monthly = Some([price, address].into_iter().sum());
            let (disk_gb, available) = (one["disk"].as_u64()?, true);
            Some((text(one, "name").to_string(), Size { monthly, disk_gb, available }))
        };
        let sizes = types.iter().filter(|one| one["architecture"] == "x86").filter_map(size).collect();
        let gb = pricing["volume"]["price_per_gb_month"]["net"].as_str().and_then(|net| net.parse().ok());
        Ok(Offer { currency: harmless(text(&pricing, "currency")), sizes, room: None, gb })
    }

    fn inventory(&self) -> Result<Inventory> {
        let mut inventory = Inventory::default();
        for one in self.ours("/networks", "networks")? {
            inventory.networks.push(network(&one)?);
        }
        for one in self.ours("/firewalls", "firewalls")? {
            let rules = one["rules"].as_array().into_iter().flatten().filter_map(rule).collect();
            let (id, name) = (id(&one, "a firewall")?, text(&one, "name"));
            match ROLES.into_iter().find(|role| name == self.tenant.firewall(*role)) {
                Some(role) => inventory.firewalls.push(Firewall { id, role, rules }),
                None => inventory.rest.push(Thing { kind: "firewall", id, name: name.into() }),
            }
        }
        // All, for those that only look like ours.
        for one in pages(&self.api, "/servers", "servers", "").map_err(explain)? {
            let labels = &one["labels"];
            let (name, cluster) = (text(&one, "name"), labels[CLUSTER] == self.tenant.cluster);
            let marks = Marks { name, cluster, ca: labels[CA] == self.tenant.ca };
            self.tenant.sort(server(&one)?, &marks, &mut inventory);
        }
        for one in self.ours("/volumes", "volumes")? {
            inventory.add_volume(volume(&one)?);
        }
        Ok(inventory)
    }

    fn make_network(&self) -> Result<Network> {
        let range = self.tenant.network.to_string();
        let body = json!({
            "name": self.tenant.name(),
            "ip_range": range,
            "subnets": [{"type": "cloud", "ip_range": range, "network_zone": self.zone()?}],
            "labels": self.tenant.labels(&[]),
        });
        let made = self.make("/networks", "networks", "network", &body)?;
        network(&made["network"])
    }

    fn make_firewall(&self, role: Role) -> Result<Firewall> {
        // Where somebody removed it, the machines are there already.
        let servers = self.ours("/servers", "servers")?;
        let servers = servers.iter().filter(|one| one["labels"][ROLE] == role.as_str());
        let apply: Vec<Value> = servers.map(|one| json!({"type": "server", "server": {"id": one["id"]}})).collect();
        let body = json!({
            "name": self.tenant.firewall(role),
            "rules": self.written(role),
            "apply_to": apply,
            "labels": self.tenant.labels(&[(ROLE, role.as_str())]),
        });
        let made = self.make("/firewalls", "firewalls", "firewall", &body)?;
        Ok(Firewall { id: id(&made["firewall"], "the firewall")?, role, rules: self.rules(role) })
    }

    fn set_rules(&self, firewall: &Firewall) -> Result<()> {
        let request = Request::post(self.api.url(&format!("/firewalls/{}/actions/set_rules", firewall.id)));
        let request = request.json(&json!({"rules": self.written(firewall.role)})).repeatable(true);
        let done_all = self.api.send(request).and_then(|answer| {
            let answer = answer.expect(&[201])?.json()?;
            let actions = answer["actions"].as_array().cloned().unwrap_or_default();
            actions.iter().try_for_each(|action| done(&self.api, action, "setting a firewall's rules"))
        });
        done_all.map_err(explain)
    }

    fn rules(&self, role: Role) -> BTreeSet<Rule> {
        let rule = |(protocol, ports): (&str, String)| Rule {
            protocol: protocol.into(),
            ports,
            from: ANYWHERE.map(String::from).into(),
        };
        open_ports(role, self.tenant.status_page).into_iter().map(rule).collect()
    }

    fn make_server(&self, order: &Order<'_>) -> Result<()> {
        let mut labels = self.tenant.labels(&[(NODE, order.node), (ROLE, order.role.as_str())]);
        relabel(&mut labels, order.image);
        if order.on_volume {
            labels[DATA] = json!(ON_VOLUME);
        }
        let body = json!({
            "name": self.tenant.machine(order.node),
            "server_type": order.size,
            "image": order.image_id,
            "location": self.tenant.region,
            "user_data": order.user_data,
            "networks": [number(&order.network.id)?],
            "firewalls": [{"firewall": number(&order.firewall.id)?}],
            "labels": labels,
        });
        let made = self.make("/servers", "servers", "server", &body)?;
        if made["action"].is_object() {
            done(&self.api, &made["action"], &format!("making {}", self.tenant.machine(order.node)))?;
        }
        Ok(())
    }

    /// Hetzner switches it off before.
    fn rebuild_server(&self, server: &Server, order: &Order<'_>) -> Result<()> {
        let request = Request::post(self.api.url(&format!("/servers/{}/actions/rebuild", server.id)));
        let body = json!({"image": order.image_id, "user_data": order.user_data});
        let answer = self.api.send(request.json(&body).hiding(false, true)).map_err(explain)?;
        match answer.status {
            201 => done(&self.api, &answer.json()?["action"], &format!("rebuilding {}", server.node)),
            409 | 423 => Err(Busy(answer.refused().to_string()).into()),
            _ => Err(explain(answer.refused().into())),
        }
    }

    fn moves_to_volume(&self) -> bool {
        true
    }

    fn mark(&self, server: &Server, image: &str) -> Result<()> {
        let all = self.ours("/servers", "servers")?;
        let one = all.iter().find(|one| one["id"].as_u64().is_some_and(|id| server.id.parse() == Ok(id)));
        let mut labels = one.with_context(|| format!("the machine of {} is gone", server.node))?["labels"].clone();
        relabel(&mut labels, image);
        if server.on_volume {
            labels[DATA] = json!(ON_VOLUME);
        }
        let request = Request::put(self.api.url(&format!("/servers/{}", server.id))).json(&json!({"labels": labels}));
        self.api.send(request).and_then(|answer| answer.expect(&[200])).map(|_| ()).map_err(explain)
    }

    fn start(&self, server: &Server) -> Result<()> {
        let request = Request::post(self.api.url(&format!("/servers/{}/actions/poweron", server.id)));
        let started = self.api.send(request.repeatable(true)).and_then(|answer| answer.expect(&[201])?.json());
        done(&self.api, &started.map_err(explain)?["action"], &format!("starting {}", server.node))
    }

    fn make_volume(&self, node: &str, gb: u32) -> Result<()> {
        let body = json!({
            "name": self.tenant.volume(node),
            "size": gb,
            "location": self.tenant.region,
            "labels": self.tenant.labels(&[(NODE, node)]),
        });
        let made = self.make("/volumes", "volumes", "volume", &body)?;
        match &made["action"] {
            action if action.is_object() => done(&self.api, action, &format!("making the data volume of {node}")),
            _ => Ok(()),
        }
    }

    fn attach(&self, volume: &Volume, server: &Server) -> Result<()> {
        let body = json!({"server": number(&server.id)?, "automount": false});
        self.act_on(volume, "attach", |request| request.json(&body))
    }

    fn detach(&self, volume: &Volume) -> Result<()> {
        self.act_on(volume, "detach", |request| request)
    }

    fn delete(&self, thing: &Thing) -> Result<()> {
        let path = match thing.kind {
            "server" => "/servers",
            "network" => "/networks",
            "volume" => "/volumes",
            _ => "/firewalls",
        };
        let answer = self.api.send(Request::delete(self.api.url(&format!("{path}/{}", thing.id))))?;
        let refused = answer.refused();
        match answer.status {
            200 | 204 | 404 => Ok(()),
            _ if refused.said.contains("protected") => {
                bail!("the {} {} is protected against deletion; take that off at Hetzner", thing.kind, thing.name)
            }
            409 | 422 | 423 => Err(Busy(refused.to_string()).into()),
            _ => Err(explain(refused.into())),
        }
    }
}

fn network(one: &Value) -> Result<Network> {
    Ok(Network { id: id(one, "a network")?, range: text(one, "ip_range").into(), region: None, kept: false })
}

fn volume(one: &Value) -> Result<Volume> {
    Ok(Volume {
        id: id(one, "a volume")?,
        node: text(&one["labels"], NODE).into(),
        gb: one["size"].as_u64().context("the provider's answer names no size of a volume")?,
        region: text(&one["location"], "name").into(),
        server: one["server"].as_u64().map(|id| id.to_string()),
    })
}

fn server(one: &Value) -> Result<Server> {
    let address = |value: &Value| value.as_str().and_then(|text| text.parse().ok());
    Ok(Server {
        id: id(one, "a server")?,
        node: text(&one["labels"], NODE).into(),
        image: image_of(text(&one["labels"], IMAGE)),
        size: text(&one["server_type"], "name").into(),
        region: text(&one["location"], "name").into(),
        state: match text(one, "status") {
            "running" => State::Running,
            "off" => State::Off,
            _ => State::Pending,
        },
        public: address(&one["public_net"]["ipv4"]["ip"]),
        private: address(&one["private_net"][0]["ip"]),
        created: one["created"].as_str().and_then(|text| text.parse().ok()),
        on_volume: text(&one["labels"], DATA) == ON_VOLUME,
    })
}
