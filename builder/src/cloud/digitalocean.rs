//! DigitalOcean: droplets known by the tag `kimg:CLUSTER:CA`; VPC, firewalls, key and volumes, which bear no tags, by their
//! names. A volume could bear some, but `destroy` removes tags, and volumes stay.
//! <https://docs.digitalocean.com/reference/api/reference/>
//!
//! A droplet of a custom image must name an SSH key, so there is one, whose private half nobody keeps.
//! Names of droplets are not unique: one is looked for before it is made.
//! A VPC that has become its region's default stays: nobody can remove it.
//! A firewall filters the private network, too, and lets nothing out by itself.

use super::marks::ON_VOLUME;
use super::{
    ANYWHERE, Busy, Cents, Cloud, Firewall, Inventory, Marks, Network, Offer, Order, ROLES, Rule, Server, Size, State,
    Tenant, Thing, Volume, checked, explained, image_of, numbered, text,
};
use crate::input;
use crate::machines::NO_IMAGE;
use crate::upload::api::Api;
use crate::upload::digitalocean::{account, pages};
use crate::upload::may_be_done;
use crate::upload::rescue::Keys;
use crate::upload::settings::Environment;
use crate::web::{Client, Request, escape};
use anyhow::{Context, Result, bail};
use node_metadata::Role;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long DigitalOcean may take to put an image on a disk.
const BUILT: Duration = Duration::from_secs(900);
const EVERY: Duration = Duration::from_secs(3);
/// All ports of a protocol.
const ALL: &str = "0";

/// A cluster's part of an account.
#[derive(Debug)]
pub struct DigitalOcean {
    api: Api,
    tenant: Tenant,
}

impl DigitalOcean {
    /// The account of `DIGITALOCEAN_TOKEN`.
    ///
    /// # Errors
    /// There is no token.
    pub fn new(client: &Client, env: Environment<'_>, tenant: Tenant) -> Result<DigitalOcean> {
        Ok(DigitalOcean { api: account(client, env, "a token that reads and writes")?, tenant })
    }

    /// The cluster's tag, and with `more` one below it.
    fn tag(&self, more: &str) -> String {
        let own = format!("kimg:{}:{}", self.tenant.cluster, self.tenant.ca);
        if more.is_empty() { own } else { format!("{own}:{more}") }
    }

    fn list(&self, path: &str, name: &str) -> Result<Vec<Value>> {
        let joint = if path.contains('?') { '&' } else { '?' };
        pages(&self.api, &format!("{path}{joint}per_page=200"), name).map_err(explain)
    }

    /// What bears this name.
    fn named(&self, path: &str, list: &str, name: &str) -> Result<Option<Value>> {
        Ok(self.list(path, list)?.into_iter().find(|one| one["name"] == name))
    }

    /// Makes a thing. Where the answer is lost it is looked for by its name and its tags.
    fn make(&self, path: &str, (list, key): (&str, &str), status: u16, body: &Value) -> Result<Value> {
        let request = Request::post(self.api.url(path)).json(body).hiding(false, true);
        let made = self.api.send(request).and_then(|answer| answer.expect(&[status])?.json());
        let made = made.or_else(|error| {
            if !may_be_done(&error) {
                return Err(error);
            }
            let first = format!("{path}?per_page=200");
            let found = pages(&self.api.for_cleanup(), &first, list);
            let same =
                |one: &Value| one["name"] == body["name"] && tags(body).all(|tag| tags(one).any(|its| its == tag));
            match found.map(|found| found.into_iter().find(same)) {
                Ok(Some(one)) => Ok(json!({key: one})),
                _ => Err(error),
            }
        });
        Ok(made.map_err(explain)?[key].take())
    }

    /// A tag that droplets and firewalls can name. Making it twice is as good as once.
    fn ensure_tag(&self, name: &str) -> Result<()> {
        let request = Request::post(self.api.url("/v2/tags")).json(&json!({"name": name})).repeatable(true);
        let made = self.api.send(request).and_then(|answer| answer.expect(&[200, 201]));
        made.map(|_| ()).map_err(explain)
    }

    /// The id of the key that nobody has.
    fn key(&self) -> Result<u64> {
        let name = self.tenant.name();
        let known = self.named("/v2/account/keys", "ssh_keys", &name)?;
        let key = match known {
            Some(known) => known,
            None => {
                let body = json!({"name": name, "public_key": Keys::new()?.client});
                self.make("/v2/account/keys", ("ssh_keys", "ssh_key"), 201, &body)?
            }
        };
        numbered(&key, "the SSH key")
    }

    /// Asked twice, DigitalOcean says that it is done or under way.
    fn act_on(&self, volume: &Volume, action: &str, droplet: &str) -> Result<()> {
        let droplet: u64 = droplet.parse().with_context(|| format!("{droplet} is no droplet"))?;
        let body = json!({"type": action, "droplet_id": droplet, "region": volume.region});
        let request = Request::post(self.api.url(&format!("/v2/volumes/{}/actions", volume.id)));
        let answer = self.api.send(request.json(&body).repeatable(true)).map_err(explain)?;
        match answer.status {
            202 => Ok(()),
            404 | 409 | 422 => Err(Busy(answer.refused().to_string()).into()),
            _ => Err(explain(answer.refused().into())),
        }
    }

    fn firewall_body(&self, role: Role) -> Value {
        let inbound =
            |rule: Rule| json!({"protocol": rule.protocol, "ports": rule.ports, "sources": {"addresses": rule.from}});
        let inbound: Vec<Value> = self.rules(role).into_iter().map(inbound).collect();
        let outbound =
            |protocol: &str| json!({"protocol": protocol, "ports": ALL, "destinations": {"addresses": ANYWHERE}});
        let outbound = ["tcp", "udp", "icmp"].map(outbound);
        json!({
            "name": self.tenant.firewall(role),
            "tags": [self.tag(role.as_str())],
            "inbound_rules": inbound,
            "outbound_rules": outbound,
        })
    }
}

fn tags(one: &Value) -> impl Iterator<Item = &str> {
    one["tags"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// How the tag of an image begins.
fn image_tag(role: Role) -> &'static str {
    match role {
        Role::Master => "master-image:",
        Role::Worker => "image:",
    }
}

/// The tag of a node's image. A master's is its own, as a tag is taken from a droplet by removing it everywhere.
fn tag_of_image(role: Role, node: &str, image: &str) -> String {
    let whose = if role == Role::Master { format!("{node}:") } else { String::new() };
    format!("{}{whose}{image}", image_tag(role))
}

/// The name of what has no number.
fn id(one: &Value, what: &str) -> Result<String> {
    checked(text(one, "id"), what)
}

fn explain(error: anyhow::Error) -> anyhow::Error {
    explained(error, "DigitalOcean", "DIGITALOCEAN_TOKEN")
}

fn rule(written: &Value) -> Rule {
    let from = written["sources"]["addresses"].as_array();
    let ports = text(written, "ports");
    Rule {
        protocol: text(written, "protocol").into(),
        ports: if ports.is_empty() || ports == "all" { ALL.into() } else { ports.into() },
        from: from.into_iter().flatten().filter_map(Value::as_str).map(Into::into).collect(),
    }
}

impl Cloud for DigitalOcean {
    fn offer(&self) -> Result<Offer> {
        let get = |path: &str| {
            self.api.send(Request::get(self.api.url(path))).and_then(|a| a.expect(&[200])?.json()).map_err(explain)
        };
        let account = get("/v2/account")?["account"].take();
        if account["status"] == "locked" {
            return input::bad(format!("DigitalOcean has locked the account: {}", text(&account, "status_message")));
        }
        let region = self.tenant.region.as_str();
        let all = self.list("/v2/sizes", "sizes")?;
        let regions = |one: &Value| -> BTreeSet<String> {
            one["regions"].as_array().into_iter().flatten().filter_map(Value::as_str).map(Into::into).collect()
        };
        let size = |one: &Value| {
            let monthly = Some(Cents::of(one["price_monthly"].as_f64()?)?);
            let available = one["available"] == true && regions(one).contains(region);
            Some((text(one, "slug").to_string(), Size { monthly, disk_gb: one["disk"].as_u64()?, available }))
        };
        let sizes: BTreeMap<_, _> = all.iter().filter_map(size).collect();
        if !sizes.values().any(|size| size.available) {
            let known: BTreeSet<String> = all.iter().flat_map(regions).collect();
            let known: Vec<String> = known.into_iter().collect();
            return input::bad(format!(
                "provider.region: DigitalOcean has nothing in {region}; there are {}",
                known.join(", ")
            ));
        }
        let used = get("/v2/droplets?per_page=1")?["meta"]["total"].as_u64().unwrap_or(0);
        let room = account["droplet_limit"].as_u64().map(|limit| limit.saturating_sub(used));
        Ok(Offer { currency: "USD".into(), sizes, room, gb: self.tenant.volume_price })
    }

    fn inventory(&self) -> Result<Inventory> {
        let name = self.tenant.name();
        let mut inventory = Inventory::default();
        for one in self.list("/v2/vpcs", "vpcs")?.iter().filter(|one| one["name"] == name.as_str()) {
            inventory.networks.push(network(one)?);
        }
        for one in self.list("/v2/firewalls", "firewalls")? {
            if let Some(role) = ROLES.into_iter().find(|role| text(&one, "name") == self.tenant.firewall(*role)) {
                let rules = one["inbound_rules"].as_array().into_iter().flatten().map(rule).collect();
                inventory.firewalls.push(Firewall { id: id(&one, "a firewall")?, role, rules });
            }
        }
        // All, for those that only look like ours.
        for one in self.list("/v2/droplets", "droplets")? {
            self.sort(&one, &mut inventory)?;
        }
        for key in self.list("/v2/account/keys", "ssh_keys")?.iter().filter(|one| one["name"] == name.as_str()) {
            let id = numbered(key, "the SSH key")?.to_string();
            inventory.rest.push(Thing { kind: "ssh-key", id, name: name.clone() });
        }
        let prefix = self.tenant.volume("");
        for one in self.tenant.seen(self.list("/v2/volumes", "volumes"), &mut inventory)? {
            if let Some(node) = text(&one, "name").strip_prefix(&prefix) {
                inventory.add_volume(volume(&one, node)?);
            }
        }
        // The cluster's own tag, by which droplets are known, goes last.
        let own = self.tag("");
        let below = format!("{own}:");
        let tags = self.list("/v2/tags", "tags")?;
        let ours = |tag: &&str| *tag == own || tag.starts_with(&below);
        let (last, others): (Vec<&str>, Vec<&str>) =
            tags.iter().map(|one| text(one, "name")).filter(ours).partition(|tag| *tag == own);
        for tag in others.into_iter().chain(last) {
            inventory.rest.push(Thing { kind: "tag", id: checked(tag, "a tag")?, name: tag.into() });
        }
        Ok(inventory)
    }

    fn make_network(&self) -> Result<Network> {
        let range = self.tenant.network.to_string();
        let body = json!({"name": self.tenant.name(), "region": self.tenant.region, "ip_range": range});
        network(&self.make("/v2/vpcs", ("vpcs", "vpc"), 201, &body)?)
    }

    fn make_firewall(&self, role: Role) -> Result<Firewall> {
        self.ensure_tag(&self.tag(role.as_str()))?;
        let made = self.make("/v2/firewalls", ("firewalls", "firewall"), 202, &self.firewall_body(role))?;
        Ok(Firewall { id: id(&made, "the firewall")?, role, rules: self.rules(role) })
    }

    fn set_rules(&self, firewall: &Firewall) -> Result<()> {
        self.ensure_tag(&self.tag(firewall.role.as_str()))?;
        let request = Request::put(self.api.url(&format!("/v2/firewalls/{}", firewall.id)));
        let set = self.api.send(request.json(&self.firewall_body(firewall.role))).and_then(|a| a.expect(&[200]));
        set.map(|_| ()).map_err(explain)
    }

    fn rules(&self, role: Role) -> BTreeSet<Rule> {
        self.tenant.rules_with_inside(role, ALL, ALL)
    }

    fn make_server(&self, order: &Order<'_>) -> Result<()> {
        let name = self.tenant.machine(order.node);
        let place = format!("/v2/droplets?name={}", escape(&name, true));
        let mut there = Inventory::default();
        self.list(&place, "droplets")?.iter().try_for_each(|one| self.sort(one, &mut there))?;
        if let Some(foreign) = there.foreign.first() {
            return input::bad(&foreign.why);
        }
        if !there.servers.is_empty() {
            return Ok(());
        }
        let mut more = vec![String::new(), order.role.to_string(), format!("node:{}", order.node)];
        if order.image != NO_IMAGE {
            more.push(tag_of_image(order.role, order.node, order.image));
        }
        if order.on_volume {
            more.push(format!("data:{ON_VOLUME}"));
        }
        let tags: Vec<String> = more.iter().map(|more| self.tag(more)).collect();
        tags.iter().try_for_each(|tag| self.ensure_tag(tag))?;
        let image: u64 = order.image_id.parse().with_context(|| format!("{} is no image", order.image_id))?;
        let body = json!({
            "name": name,
            "region": self.tenant.region,
            "size": order.size,
            "image": image,
            "ssh_keys": [self.key()?],
            "vpc_uuid": order.network.id,
            "tags": tags,
            "user_data": order.user_data,
            "with_droplet_agent": false,
        });
        self.make("/v2/droplets", ("droplets", "droplet"), 202, &body).map(|_| ())
    }

    /// A droplet keeps what it was told when it was made: a master's was told to wait for a backup.
    fn rebuild_server(&self, server: &Server, order: &Order<'_>) -> Result<()> {
        let image: u64 = order.image_id.parse().with_context(|| format!("{} is no image", order.image_id))?;
        let place = format!("/v2/droplets/{}/actions", server.id);
        let request = Request::post(self.api.url(&place)).json(&json!({"type": "rebuild", "image": image}));
        let answer = self.api.send(request).map_err(explain)?;
        let action = match answer.status {
            201 => numbered(&answer.json()?["action"], "an action")?,
            // Another one is under way.
            422 if answer.refused().said.to_lowercase().contains("pending") => {
                return Err(Busy(answer.refused().to_string()).into());
            }
            409 | 423 => return Err(Busy(answer.refused().to_string()).into()),
            _ => return Err(explain(answer.refused().into())),
        };
        let what = format!("rebuilding {}", server.node);
        self.api.client().poll(&what, EVERY, BUILT, || {
            let asked = self.api.send(Request::get(self.api.url(&format!("{place}/{action}"))));
            let found = asked.and_then(|answer| answer.expect(&[200])?.json()).map_err(explain)?;
            match text(&found["action"], "status") {
                "completed" => Ok(Some(())),
                "errored" => bail!("{what}: DigitalOcean says only that it failed"),
                _ => Ok(None),
            }
        })
    }

    fn mark(&self, server: &Server, image: &str) -> Result<()> {
        let prefix = self.tag(image_tag(Role::Master));
        let wanted = self.tag(&tag_of_image(Role::Master, &server.node, image));
        let all = self.list("/v2/droplets", "droplets")?;
        let one = all.iter().find(|one| one["id"].as_u64().is_some_and(|id| server.id.parse() == Ok(id)));
        let one = one.with_context(|| format!("the machine of {} is gone", server.node))?;
        for tag in tags(one).filter(|tag| tag.starts_with(&prefix) && *tag != wanted) {
            let gone = self.api.send(Request::delete(self.api.url(&format!("/v2/tags/{}", checked(tag, "a tag")?))));
            gone.and_then(|answer| answer.expect(&[200, 204, 404])).map_err(explain)?;
        }
        if image == NO_IMAGE {
            return Ok(());
        }
        self.ensure_tag(&wanted)?;
        let resource = json!({"resource_id": server.id, "resource_type": "droplet"});
        let request = Request::post(self.api.url(&format!("/v2/tags/{wanted}/resources")));
        let request = request.json(&json!({"resources": [resource]})).repeatable(true);
        self.api.send(request).and_then(|answer| answer.expect(&[200, 204])).map(|_| ()).map_err(explain)
    }

    fn start(&self, server: &Server) -> Result<()> {
        let request = Request::post(self.api.url(&format!("/v2/droplets/{}/actions", server.id)));
        let request = request.json(&json!({"type": "power_on"})).repeatable(true);
        self.api.send(request).and_then(|answer| answer.expect(&[201])).map(|_| ()).map_err(explain)
    }

    fn make_volume(&self, node: &str, gb: u32) -> Result<()> {
        let body = json!({"name": self.tenant.volume(node), "size_gigabytes": gb, "region": self.tenant.region});
        self.make("/v2/volumes", ("volumes", "volume"), 201, &body).map(|_| ())
    }

    fn attach(&self, volume: &Volume, server: &Server) -> Result<()> {
        self.act_on(volume, "attach", &server.id)
    }

    fn detach(&self, volume: &Volume) -> Result<()> {
        let server = volume.server.as_deref().context("the data volume is at no machine")?;
        self.act_on(volume, "detach", server)
    }

    fn delete(&self, thing: &Thing) -> Result<()> {
        let path = match thing.kind {
            "volume" => "/v2/volumes",
            "server" => "/v2/droplets",
            "network" => "/v2/vpcs",
            "firewall" => "/v2/firewalls",
            "ssh-key" => "/v2/account/keys",
            _ => "/v2/tags",
        };
        let answer = self.api.send(Request::delete(self.api.url(&format!("{path}/{}", thing.id))))?;
        match answer.status {
            200 | 204 | 404 => Ok(()),
            // A VPC with members is forbidden to go.
            403 if thing.kind == "network" => Err(Busy(answer.refused().to_string()).into()),
            409 | 422 => Err(Busy(answer.refused().to_string()).into()),
            _ => Err(explain(answer.refused().into())),
        }
    }
}

fn volume(one: &Value, node: &str) -> Result<Volume> {
    Ok(Volume {
        id: id(one, "a volume")?,
        node: node.into(),
        gb: one["size_gigabytes"].as_u64().context("the provider's answer names no size of a volume")?,
        region: text(&one["region"], "slug").into(),
        server: one["droplet_ids"][0].as_u64().map(|id| id.to_string()),
    })
}

fn network(one: &Value) -> Result<Network> {
    Ok(Network {
        id: id(one, "a VPC")?,
        range: text(one, "ip_range").into(),
        region: one["region"].as_str().map(Into::into),
        kept: one["default"] == true,
    })
}

impl DigitalOcean {
    /// Puts a droplet where it belongs.
    fn sort(&self, one: &Value, into: &mut Inventory) -> Result<()> {
        let (own, named) = (self.tag(""), format!("kimg:{}", self.tenant.cluster));
        let below = format!("{named}:");
        let marks = Marks {
            name: text(one, "name"),
            cluster: tags(one).any(|tag| tag == named || tag.starts_with(&below)),
            ca: tags(one).any(|tag| tag == own),
        };
        self.tenant.sort(self.server(one)?, &marks, into);
        Ok(())
    }

    fn server(&self, one: &Value) -> Result<Server> {
        let networks = one["networks"]["v4"].as_array().map(Vec::as_slice).unwrap_or_default();
        let address =
            |kind: &str| networks.iter().find(|net| net["type"] == kind)?["ip_address"].as_str()?.parse().ok();
        let tagged = |what: &str| {
            let prefix = self.tag(what);
            tags(one).find_map(|tag| tag.strip_prefix(&prefix)).unwrap_or_default().to_string()
        };
        let image = ROLES.map(|role| tagged(image_tag(role))).concat();
        Ok(Server {
            id: numbered(one, "a droplet")?.to_string(),
            node: tagged("node:"),
            // Behind the name of its node, where it is a master's that was made by this kimg.
            image: image_of(image.rsplit_once(':').map_or(image.as_str(), |(_, sum)| sum)),
            size: text(one, "size_slug").into(),
            region: text(&one["region"], "slug").into(),
            state: match text(one, "status") {
                "active" => State::Running,
                "off" | "archive" => State::Off,
                _ => State::Pending,
            },
            public: address("public"),
            private: address("private"),
            created: one["created_at"].as_str().and_then(|text| text.parse().ok()),
            on_volume: tagged("data:") == ON_VOLUME,
        })
    }
}
