//! OpenStack: machines of Nova known by the metadata `kimg-cluster`, `kimg-ca`, `kimg-node`, `kimg-role` and `kimg-image`; what
//! Neutron has for them (network, subnet, router, security groups, ports, floating IPs) by names that follow from the
//! cluster's (a floating IP: its description).
//! <https://docs.openstack.org/api-ref/compute/>, <https://docs.openstack.org/api-ref/network/v2/>
//!
//! Nothing of it is unique: a thing is looked for before it is made. A machine's port and its public address are there before
//! it is, so that its metadata says both from the first boot on; they go right before it does. Those of a machine that could
//! not be made stay, and are taken by the next one of its node.
//! A network counts once its subnet and its router are there. A machine that never began to run (there was no room for it) is
//! none: it is removed when one is made.
//! Other user-data is taken by a rebuild since microversion 2.57 (Queens, 2018).
//! None of this was tried at a cloud.

mod volumes;

use super::marks::{CA, CLUSTER, DATA, IMAGE, NODE, ON_VOLUME, ROLE};
use super::rules::{Single, apart, together};
use super::{
    ANYWHERE, Busy, Cloud, Firewall, Inventory, Marks, Network, Offer, Order, ROLES, Rule, Server, State, Tenant,
    Thing, Volume, checked, explained, image_of, text,
};
use crate::config::{Provider, PublicAddress};
use crate::input;
use crate::machines::NO_IMAGE;
use crate::upload::keystone::{Keystone, Service};
use crate::upload::settings::Environment;
use crate::upload::{PAGES, may_be_done};
use crate::web::{Answer, Client, Refused, Request, escape};
use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use node_metadata::Role;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

const SERVERS: &str = "/servers";
const NETWORKS: &str = "/v2.0/networks";
const SUBNETS: &str = "/v2.0/subnets";
const ROUTERS: &str = "/v2.0/routers";
const PORTS: &str = "/v2.0/ports";
const ADDRESSES: &str = "/v2.0/floatingips";
const GROUPS: &str = "/v2.0/security-groups";
const RULES: &str = "/v2.0/security-group-rules";
/// How long Nova may take to put an image on a disk.
const BUILT: Duration = Duration::from_secs(900);
const EVERY: Duration = Duration::from_secs(3);
/// All ports of a protocol.
const ALL: &str = "1-65535";

/// A cluster's part of a project.
#[derive(Debug)]
pub struct OpenStack {
    client: Client,
    keystone: Keystone,
    tenant: Tenant,
    provider: Provider,
}

impl OpenStack {
    /// The project of `OS_…`.
    ///
    /// # Errors
    /// A variable is missing.
    pub fn new(client: &Client, env: Environment<'_>, tenant: Tenant, provider: &Provider) -> Result<OpenStack> {
        Ok(OpenStack {
            client: client.clone(),
            keystone: Keystone::new(env, Some(&tenant.region))?,
            tenant,
            provider: provider.clone(),
        })
    }

    fn send_by(&self, client: &Client, service: Service, make: &dyn Fn(&str) -> Request) -> Result<Answer> {
        let of_version = |url: &str| match service {
            Service::Compute => make(url).header("openstack-api-version", "compute 2.57"),
            _ => make(url),
        };
        self.keystone.send(client, service, &of_version).map_err(explain)
    }

    fn nova(&self, make: &dyn Fn(&str) -> Request) -> Result<Answer> {
        self.send_by(&self.client, Service::Compute, make)
    }

    fn neutron(&self, make: &dyn Fn(&str) -> Request) -> Result<Answer> {
        self.send_by(&self.client, Service::Network, make)
    }

    /// All entries of a list, page by page.
    fn list_by(&self, client: &Client, service: Service, path: &str, name: &str) -> Result<Vec<Value>> {
        let (mut all, mut marker) = (Vec::new(), String::new());
        let with = if path.contains('?') { '&' } else { '?' };
        for _ in 0..PAGES {
            let ask = |url: &str| Request::get(format!("{url}{path}{with}limit=100{marker}"));
            let page = self.send_by(client, service, &ask)?.expect(&[200]).map_err(explain)?.json()?;
            let found = page[name].as_array().with_context(|| format!("the answer has no list '{name}'"))?;
            let links = page[format!("{name}_links")].as_array();
            let more = links.is_some_and(|links| links.iter().any(|link| link["rel"] == "next"));
            let last = found.last().filter(|_| more).map(|last| id(last, "an entry")).transpose()?;
            all.extend(found.iter().cloned());
            match last {
                Some(last) => marker = format!("&marker={last}"),
                None => return Ok(all),
            }
        }
        bail!("OpenStack lists {name} without end")
    }

    fn servers(&self) -> Result<Vec<Value>> {
        self.list_by(&self.client, Service::Compute, "/servers/detail", "servers")
    }

    fn things(&self, path: &str, name: &str) -> Result<Vec<Value>> {
        self.list_by(&self.client, Service::Network, path, name)
    }

    /// A thing of Neutron's, which is looked for before it is made, and where the answer is lost.
    fn once(
        &self,
        (path, list, key): (&str, &str, &str),
        body: &Value,
        same: &dyn Fn(&Value) -> bool,
    ) -> Result<Value> {
        let named = match body["name"].as_str() {
            Some(name) => format!("{path}?name={}", escape(name, true)),
            None => path.to_string(),
        };
        let look = |client: &Client| -> Result<Option<Value>> {
            let all = self.list_by(client, Service::Network, &named, list)?;
            Ok(all.into_iter().find(|one| one["name"] == body["name"] && same(one)))
        };
        if let Some(there) = look(&self.client)? {
            return Ok(there);
        }
        let made = self.neutron(&|url| Request::post(format!("{url}{path}")).json(&json!({ key: body })));
        let made = made.and_then(|answer| Ok(answer.expect(&[201]).map_err(explain)?.json()?[key].clone()));
        made.or_else(|error| match may_be_done(&error) {
            true => look(&self.client.for_cleanup()).ok().flatten().ok_or(error),
            false => Err(error),
        })
    }

    /// The network with public addresses.
    fn external(&self) -> Result<String> {
        let all = self.things(NETWORKS, "networks")?;
        let external: Vec<&Value> = all.iter().filter(|one| one["router:external"] == true).collect();
        let found = match (&self.provider.external_network, &external[..]) {
            (Some(name), _) => all.iter().find(|one| one["name"] == name.as_str()),
            (None, [only]) => Some(*only),
            (None, _) => None,
        };
        match found {
            Some(one) => id(one, "the external network"),
            None => {
                let known: Vec<&str> = external.iter().map(|one| text(one, "name")).collect();
                if known.is_empty() {
                    return input::bad(
                        "provider.external-network: this project sees no external network at OpenStack; write the name of the \
                         one that has public addresses, or ask who runs the cloud",
                    );
                }
                let wanted = self.provider.external_network.as_deref().unwrap_or("which of several");
                input::bad(format!(
                    "provider.external-network: {wanted} is not known at OpenStack; there are {}",
                    known.join(", ")
                ))
            }
        }
    }

    /// What the ports and the address of a node's machine are called.
    fn port_name(&self, node: &str) -> String {
        format!("{}-{node}", self.tenant.name())
    }

    fn is_ours(&self, name: &str) -> bool {
        !self.node_of(name).is_empty()
    }

    /// The node whose a port or an address is; none where it is another's.
    fn node_of(&self, name: &str) -> String {
        let rest = name.strip_prefix(&self.tenant.name()).and_then(|rest| rest.strip_prefix('-'));
        rest.unwrap_or_default().to_string()
    }

    /// Leads the router's packets into the subnet.
    fn link(&self, router: &str, subnet: &str) -> Result<()> {
        if self.is_linked(router, subnet)? {
            return Ok(());
        }
        let body = json!({"subnet_id": subnet});
        let place = format!("{ROUTERS}/{router}/add_router_interface");
        let linked = self.neutron(&|url| Request::put(format!("{url}{place}")).json(&body));
        match linked.and_then(|answer| answer.expect(&[200]).map_err(explain)) {
            // An answer may have been lost.
            Err(error) if !self.is_linked(router, subnet).unwrap_or(false) => Err(error),
            _ => Ok(()),
        }
    }

    fn is_linked(&self, router: &str, subnet: &str) -> Result<bool> {
        let ports = self.things(&format!("{PORTS}?device_id={router}"), "ports")?;
        Ok(ports.iter().any(|port| in_subnet(port, subnet)))
    }

    /// A port of a node's machine; one that an earlier try left is taken.
    fn port(&self, order: &Order<'_>, network: &str) -> Result<String> {
        let groups = json!([order.firewall.id]);
        let body = json!({
            "name": self.port_name(order.node),
            "network_id": network,
            "security_groups": groups,
            // By which its firewall is found.
            "description": order.role.as_str(),
        });
        let port = self.once((PORTS, "ports", "port"), &body, &|one| one["network_id"] == network)?;
        let id = id(&port, "a port")?;
        if port["security_groups"] != groups {
            self.protect(&id, &groups)?;
        }
        Ok(id)
    }

    /// Puts a port behind a firewall.
    fn protect(&self, port: &str, groups: &Value) -> Result<()> {
        let body = json!({"port": {"security_groups": groups}});
        let set = self.neutron(&|url| Request::put(format!("{url}{PORTS}/{port}")).json(&body))?;
        set.expect(&[200]).map(drop).map_err(explain)
    }

    /// A floating IP that leads to a port of a node's machine.
    fn lead(&self, node: &str, port: &str) -> Result<()> {
        let name = self.port_name(node);
        let body = json!({"floating_network_id": self.external()?, "port_id": port, "description": name});
        let found = self.once((ADDRESSES, "floatingips", "floatingip"), &body, &|one| one["description"] == name)?;
        if found["port_id"] == port {
            return Ok(());
        }
        let place = format!("{ADDRESSES}/{}", id(&found, "a floating IP")?);
        let body = json!({"floatingip": {"port_id": port}});
        let set = self.neutron(&|url| Request::put(format!("{url}{place}")).json(&body))?;
        set.expect(&[200]).map(drop).map_err(explain)
    }

    /// Nova's number of a flavor, and of a machine what it shows now.
    fn flavor(&self, size: &str) -> Result<String> {
        let all = self.list_by(&self.client, Service::Compute, "/flavors/detail", "flavors")?;
        match all.iter().find(|one| one["name"] == size) {
            Some(one) => id(one, "a flavor"),
            None => input::bad(format!("OpenStack has no flavor {size} any more")),
        }
    }

    fn look(&self, server: &str) -> Result<Option<Value>> {
        let answer = self.nova(&|url| Request::get(format!("{url}{SERVERS}/{server}")))?;
        match answer.status {
            404 => Ok(None),
            _ => Ok(Some(answer.expect(&[200]).map_err(explain)?.json()?["server"].clone())),
        }
    }

    /// Waits until Nova is through with a machine.
    fn settled(&self, server: &str, what: &str) -> Result<Value> {
        self.client.poll(what, EVERY, BUILT, || {
            let one = self.look(server)?.with_context(|| format!("{what}: the machine is gone"))?;
            if text(&one, "status") == "ERROR" {
                let fault = text(&one["fault"], "message");
                let fault = if fault.is_empty() { "OpenStack does not say why" } else { fault };
                match fault.to_lowercase().contains("no valid host") {
                    true => bail!(
                        "OpenStack has none of this type in this region now; write another type or region under [provider] \
                         ({fault})"
                    ),
                    false => bail!("{what}: {fault}"),
                }
            }
            Ok((!["BUILD", "REBUILD"].contains(&text(&one, "status"))).then_some(one))
        })
    }

    /// Sends an action to a machine.
    fn act(&self, server: &str, body: &Value) -> Result<Answer> {
        self.nova(&|url| Request::post(format!("{url}{SERVERS}/{server}/action")).json(body).hiding(false, true))
    }

    /// Removes a machine with its ports and addresses, and asks for its own end last: while it is there, the rest is found.
    fn delete_server(&self, server: &str) -> Result<()> {
        if self.look(server)?.is_some_and(|one| one["locked"] == true) {
            bail!("the server {server} is locked; unlock it at OpenStack");
        }
        let ports = self.things(&format!("{PORTS}?device_id={server}"), "ports")?;
        let ports: Vec<&Value> = ports.iter().filter(|port| self.is_ours(text(port, "name"))).collect();
        if !ports.is_empty() {
            for one in self.things_of_routers(ADDRESSES, "floatingips")? {
                let of_port = ports.iter().any(|port| port["id"] == one["port_id"]);
                if of_port && self.is_ours(text(&one, "description")) {
                    self.remove(Service::Network, &format!("{ADDRESSES}/{}", id(&one, "a floating IP")?))?;
                }
            }
        }
        for port in ports {
            self.remove(Service::Network, &format!("{PORTS}/{}", id(port, "a port")?))?;
        }
        self.remove(Service::Compute, &format!("{SERVERS}/{server}"))
    }

    /// Routers and floating IPs, also where cluster.toml does not ask for any (now); not every cloud has them.
    fn things_of_routers(&self, path: &str, list: &str) -> Result<Vec<Value>> {
        let none = |error: &anyhow::Error| {
            let refused = error.chain().find_map(|cause| cause.downcast_ref::<Refused>());
            self.provider.public_address == PublicAddress::Port && refused.is_some_and(|refused| refused.status == 404)
        };
        match self.things(path, list) {
            Err(error) if none(&error) => Ok(Vec::new()),
            listed => listed,
        }
    }

    fn delete_router(&self, router: &str) -> Result<()> {
        for port in self.things(&format!("{PORTS}?device_id={router}"), "ports")? {
            if !text(&port, "device_owner").contains("router_interface") {
                continue;
            }
            let body = json!({"subnet_id": id_of(&port["fixed_ips"][0], "subnet_id", "a subnet")?});
            let place = format!("{ROUTERS}/{router}/remove_router_interface");
            let gone = self.neutron(&|url| Request::put(format!("{url}{place}")).json(&body))?;
            asked_for(&gone)?;
        }
        self.remove(Service::Network, &format!("{ROUTERS}/{router}"))
    }

    fn remove(&self, service: Service, path: &str) -> Result<()> {
        asked_for(&self.send_by(&self.client, service, &|url| Request::delete(format!("{url}{path}")))?)
    }

    fn server(&self, one: &Value) -> Result<Server> {
        let metadata = &one["metadata"];
        let state = match (text(one, "status"), text(one, "OS-EXT-STS:task_state")) {
            (_, "deleting") => State::Pending,
            ("ACTIVE", _) => State::Running,
            ("SHUTOFF", _) => State::Off,
            _ => State::Pending,
        };
        let all = one["addresses"].as_object().into_iter().flat_map(|networks| networks.values());
        let all = all.filter_map(Value::as_array).flatten().filter_map(|known| {
            let at: IpAddr = text(known, "addr").parse().ok().filter(IpAddr::is_ipv4)?;
            Some((at, text(known, "OS-EXT-IPS:type") == "floating"))
        });
        let (inside, outside): (Vec<_>, Vec<_>) =
            all.partition(|(at, floats)| !floats && IpNet::V4(self.tenant.network).contains(at));
        Ok(Server {
            id: id(one, "a machine")?,
            node: text(metadata, NODE).into(),
            image: image_of(text(metadata, IMAGE)),
            size: text(&one["flavor"], "original_name").into(),
            // Each region has servers of its own.
            region: self.tenant.region.clone(),
            state,
            public: outside.first().map(|(at, _)| *at),
            private: inside.first().map(|(at, _)| *at),
            created: text(one, "created").parse().ok(),
            on_volume: text(metadata, DATA) == ON_VOLUME,
        })
    }

    fn marks<'a>(&self, one: &'a Value) -> Marks<'a> {
        let (cluster, ca) = (text(&one["metadata"], CLUSTER), text(&one["metadata"], CA));
        Marks { name: text(one, "name"), cluster: cluster == self.tenant.cluster, ca: ca == self.tenant.ca }
    }

    /// Puts the machines where they belong; one that never ran is something to remove, and no machine.
    fn sort(&self, servers: &[Value], into: &mut Inventory) -> Result<()> {
        for one in servers {
            let (server, marks) = (self.server(one)?, self.marks(one));
            if marks.cluster && marks.ca && never_ran(one) {
                into.rest.push(server.thing());
            } else {
                self.tenant.sort(server, &marks, into);
            }
        }
        Ok(())
    }

    /// The network, where it is whole, and what else is there for machines to be made in.
    fn ground(&self, into: &mut Inventory) -> Result<()> {
        let name = escape(&self.tenant.name(), true);
        let of = |path: &str, list: &str| self.things(&format!("{path}?name={name}"), list);
        let subnets = of(SUBNETS, "subnets")?;
        let routed = self.provider.public_address == PublicAddress::FloatingIp;
        let routers = self.things_of_routers(&format!("{ROUTERS}?name={name}"), "routers")?;
        let ports = self.things(PORTS, "ports")?;
        let is_of_router = |port: &&Value| routers.iter().any(|router| router["id"] == port["device_id"]);
        let whole = |subnet: &&Value| {
            !routed || ports.iter().filter(is_of_router).any(|port| in_subnet(port, text(subnet, "id")))
        };
        match subnets.iter().find(whole) {
            Some(subnet) => {
                let (id, range) = (id_of(subnet, "network_id", "a network")?, text(subnet, "cidr").into());
                into.networks.push(Network { id, range, region: None, kept: false });
            }
            // What an interrupted run left of one.
            None => {
                for one in of(NETWORKS, "networks")? {
                    into.rest.push(Thing { kind: "network", id: id(&one, "a network")?, name: self.tenant.name() });
                }
            }
        }
        for router in &routers {
            into.rest.push(Thing { kind: "router", id: id(router, "a router")?, name: self.tenant.name() });
        }
        let free = |port: &&Value| self.is_ours(text(port, "name")) && text(port, "device_id").is_empty();
        let free: Vec<&Value> = ports.iter().filter(free).collect();
        for one in self.things_of_routers(ADDRESSES, "floatingips")? {
            let leads = one["port_id"].is_string() && free.iter().all(|port| port["id"] != one["port_id"]);
            if self.is_ours(text(&one, "description")) && !leads {
                let (id, name) = (id(&one, "a floating IP")?, self.node_of(text(&one, "description")));
                into.rest.push(Thing { kind: "floating-ip", id, name });
            }
        }
        for port in free {
            let (id, name) = (id(port, "a port")?, self.node_of(text(port, "name")));
            into.rest.push(Thing { kind: "port", id, name });
        }
        Ok(())
    }
}

/// The rules of a security group as Neutron has them: each with its id.
fn rules_of(group: &Value) -> Vec<(Value, Single)> {
    let all = group["security_group_rules"].as_array().into_iter().flatten();
    all.filter(|one| one["direction"] == "ingress").map(|one| (one["id"].clone(), single(one))).collect()
}

fn id(one: &Value, what: &str) -> Result<String> {
    id_of(one, "id", what)
}

fn id_of(one: &Value, key: &str, what: &str) -> Result<String> {
    checked(text(one, key), what)
}

fn explain(error: anyhow::Error) -> anyhow::Error {
    explained(error, "OpenStack", "OS_…")
}

fn in_subnet(port: &Value, subnet: &str) -> bool {
    port["fixed_ips"].as_array().is_some_and(|all| all.iter().any(|at| at["subnet_id"] == subnet))
}

fn never_ran(one: &Value) -> bool {
    text(one, "status") == "ERROR" && one["OS-SRV-USG:launched_at"].is_null()
}

/// Whether a removal was taken; what is in use may go later.
fn asked_for(answer: &Answer) -> Result<()> {
    match answer.status {
        200 | 202 | 204 | 404 => Ok(()),
        409 => Err(Busy(answer.refused().to_string()).into()),
        _ => Err(explain(answer.refused().into())),
    }
}

/// A rule as it was asked for. One for everybody may come back without a range.
fn single(one: &Value) -> Single {
    let protocol = match text(one, "protocol") {
        "" => "any",
        "ipv6-icmp" | "icmpv6" => "icmp",
        known => known,
    };
    let ports = match (one["port_range_min"].as_u64(), one["port_range_max"].as_u64()) {
        (Some(first), Some(last)) if first == last => first.to_string(),
        (Some(first), Some(last)) => format!("{first}-{last}"),
        _ => String::new(),
    };
    let [everybody, by_v6] = ANYWHERE;
    let everybody = if text(one, "ethertype") == "IPv6" { by_v6 } else { everybody };
    let from = match (text(one, "remote_ip_prefix"), text(one, "remote_group_id")) {
        ("", "") => everybody.to_string(),
        ("", group) => format!("group {group}"),
        (range, _) => range.parse().map_or(range.to_string(), |range: IpNet| range.to_string()),
    };
    (protocol.into(), ports, from)
}

/// The other way round.
fn written(group: &str, (protocol, ports, from): &Single) -> Value {
    let v6 = from.contains(':');
    let mut rule = json!({
        "security_group_id": group,
        "direction": "ingress",
        "ethertype": if v6 { "IPv6" } else { "IPv4" },
        "protocol": if v6 && protocol == "icmp" { "ipv6-icmp" } else { protocol.as_str() },
        "remote_ip_prefix": from,
    });
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    if let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) {
        (rule["port_range_min"], rule["port_range_max"]) = (json!(first), json!(last));
    }
    rule
}

impl Cloud for OpenStack {
    fn offer(&self) -> Result<Offer> {
        self.external()?;
        let flavors = self.list_by(&self.client, Service::Compute, "/flavors/detail", "flavors")?;
        let limits =
            self.nova(&|url| Request::get(format!("{url}/limits")))?.expect(&[200]).map_err(explain)?.json()?;
        let limits = &limits["limits"]["absolute"];
        // Below nothing: there is none.
        let most = limits["maxTotalInstances"].as_u64();
        let room = most.zip(limits["totalInstancesUsed"].as_u64()).map(|(most, used)| most.saturating_sub(used));
        let sizes = flavors.iter().filter_map(|one| Some((text(one, "name").to_string(), one["disk"].as_u64()?)));
        Ok(Offer::at_written_prices(&self.provider, sizes, room))
    }

    fn inventory(&self) -> Result<Inventory> {
        let mut inventory = Inventory::default();
        self.ground(&mut inventory)?;
        for one in self.things(GROUPS, "security_groups")? {
            if let Some(role) = ROLES.into_iter().find(|role| text(&one, "name") == self.tenant.firewall(*role)) {
                let rules = together(rules_of(&one).into_iter().map(|(_, rule)| rule));
                inventory.firewalls.push(Firewall { id: id(&one, "a firewall")?, role, rules });
            }
        }
        // All, for those that only look like ours.
        self.sort(&self.servers()?, &mut inventory)?;
        self.add_volumes(&mut inventory)?;
        Ok(inventory)
    }

    fn make_network(&self) -> Result<Network> {
        let (name, range) = (self.tenant.name(), self.tenant.network.to_string());
        let routed = self.provider.public_address == PublicAddress::FloatingIp;
        let network = self.once((NETWORKS, "networks", "network"), &json!({"name": name}), &|_| true)?;
        let network = id(&network, "the network")?;
        let mut body = json!({"name": name, "network_id": network, "ip_version": 4, "cidr": range});
        if !routed {
            // The way out is by the machines' other port.
            body["gateway_ip"] = Value::Null;
        }
        let subnet = self.once((SUBNETS, "subnets", "subnet"), &body, &|one| one["network_id"] == network.as_str())?;
        if routed {
            let body = json!({"name": name, "external_gateway_info": {"network_id": self.external()?}});
            let router = self.once((ROUTERS, "routers", "router"), &body, &|_| true)?;
            self.link(&id(&router, "the router")?, &id(&subnet, "the subnet")?)?;
        }
        Ok(Network { id: network, range: text(&subnet, "cidr").into(), region: None, kept: false })
    }

    fn make_firewall(&self, role: Role) -> Result<Firewall> {
        let body = json!({"name": self.tenant.firewall(role), "description": format!("kimg: {role}s")});
        let made = self.once((GROUPS, "security_groups", "security_group"), &body, &|_| true)?;
        let firewall = Firewall { id: id(&made, "the firewall")?, role, rules: self.rules(role) };
        self.set_rules(&firewall)?;
        Ok(firewall)
    }

    fn set_rules(&self, firewall: &Firewall) -> Result<()> {
        // Where somebody removed it, the machines are there already. Its rules come later: they tell that it is done.
        let groups = json!([firewall.id]);
        for port in self.things(PORTS, "ports")? {
            let of_role = self.is_ours(text(&port, "name")) && text(&port, "description") == firewall.role.as_str();
            if of_role && port["security_groups"] != groups {
                self.protect(&id(&port, "a port")?, &groups)?;
            }
        }
        let place = format!("{GROUPS}/{}", firewall.id);
        let group = self.neutron(&|url| Request::get(format!("{url}{place}")))?;
        let known = rules_of(&group.expect(&[200]).map_err(explain)?.json()?["security_group"]);
        let wanted: BTreeSet<Single> = apart(self.rules(firewall.role));
        let missing = wanted.iter().filter(|one| known.iter().all(|(_, known)| known != *one));
        let missing: Vec<Value> = missing.map(|one| written(&firewall.id, one)).collect();
        if !missing.is_empty() {
            let body = json!({"security_group_rules": missing});
            let made = self.neutron(&|url| Request::post(format!("{url}{RULES}")).json(&body))?;
            made.expect(&[201]).map_err(explain)?;
        }
        for (rule, _) in known.iter().filter(|(_, known)| !wanted.contains(known)) {
            let rule = checked(rule.as_str().unwrap_or_default(), "a rule")?;
            self.remove(Service::Network, &format!("{RULES}/{rule}"))?;
        }
        Ok(())
    }

    fn rules(&self, role: Role) -> BTreeSet<Rule> {
        self.tenant.rules_with_inside(role, ALL, "")
    }

    fn make_server(&self, order: &Order<'_>) -> Result<()> {
        let name = self.tenant.machine(order.node);
        let mut servers = self.servers()?;
        servers.retain(|one| one["name"] == name.as_str());
        let mut there = Inventory::default();
        self.sort(&servers, &mut there)?;
        if let Some(foreign) = there.foreign.first() {
            return input::bad(&foreign.why);
        }
        if !there.servers.is_empty() {
            return Ok(());
        }
        for broken in &there.rest {
            self.delete_server(&broken.id)?;
            self.client.poll(&format!("removing the machine {}, which never ran", broken.id), EVERY, BUILT, || {
                Ok(self.look(&broken.id)?.is_none().then_some(()))
            })?;
        }
        let flavor = self.flavor(order.size)?;
        let inside = self.port(order, &order.network.id)?;
        // The first one leads out.
        let ports = match self.provider.public_address {
            PublicAddress::FloatingIp => {
                self.lead(order.node, &inside)?;
                vec![inside]
            }
            PublicAddress::Port => vec![self.port(order, &self.external()?)?, inside],
        };
        let mut metadata = json!({
            CLUSTER: self.tenant.cluster,
            CA: self.tenant.ca,
            NODE: order.node,
            ROLE: order.role.as_str(),
        });
        if order.image != NO_IMAGE {
            metadata[IMAGE] = json!(order.image);
        }
        if order.on_volume {
            metadata[DATA] = json!(ON_VOLUME);
        }
        let ports: Vec<Value> = ports.into_iter().map(|port| json!({"port": port})).collect();
        let body = json!({"server": {
            "name": name,
            "imageRef": order.image_id,
            "flavorRef": flavor,
            "networks": ports,
            "user_data": STANDARD.encode(order.user_data),
            "metadata": metadata,
        }});
        let made = self.nova(&|url| Request::post(format!("{url}{SERVERS}")).json(&body).hiding(false, true));
        let made = made.and_then(|answer| Ok(answer.expect(&[202]).map_err(explain)?.json()?["server"].clone()));
        let made = made.or_else(|error| {
            if !may_be_done(&error) {
                return Err(error);
            }
            let all = self.list_by(&self.client.for_cleanup(), Service::Compute, "/servers/detail", "servers");
            let ours = |one: &Value| one["name"] == name.as_str() && one["metadata"] == metadata;
            all.ok().and_then(|all| all.into_iter().find(ours)).ok_or(error)
        })?;
        self.settled(&id(&made, "the machine")?, &format!("making {name}")).map(drop)
    }

    fn rebuild_server(&self, server: &Server, order: &Order<'_>) -> Result<()> {
        let body = json!({"rebuild": {"imageRef": order.image_id, "user_data": STANDARD.encode(order.user_data)}});
        let answer = self.act(&server.id, &body)?;
        match answer.status {
            202 => {}
            409 if !answer.refused().said.contains("locked") => {
                return Err(Busy(answer.refused().to_string()).into());
            }
            _ => return Err(explain(answer.refused().into())),
        }
        let rebuilt = self.settled(&server.id, &format!("rebuilding {}", server.node))?;
        // One that was off stays so.
        if text(&rebuilt, "status") == "SHUTOFF" { self.start(server) } else { Ok(()) }
    }

    fn mark(&self, server: &Server, image: &str) -> Result<()> {
        let place = format!("{SERVERS}/{}/metadata", server.id);
        let known = self.look(&server.id)?.with_context(|| format!("the machine of {} is gone", server.node))?;
        if image_of(text(&known["metadata"], IMAGE)) == image {
            return Ok(());
        }
        if image == NO_IMAGE {
            let gone = self.nova(&|url| Request::delete(format!("{url}{place}/{IMAGE}")))?;
            return gone.expect(&[204, 404]).map(drop).map_err(explain);
        }
        let body = json!({"metadata": {IMAGE: image}});
        let set = self.nova(&|url| Request::post(format!("{url}{place}")).json(&body).repeatable(true))?;
        set.expect(&[200]).map(drop).map_err(explain)
    }

    fn start(&self, server: &Server) -> Result<()> {
        let answer = self.act(&server.id, &json!({"os-start": null}))?;
        match answer.status {
            202 => Ok(()),
            // It runs already, or is about to.
            409 if !answer.refused().said.contains("locked") => Ok(()),
            _ => Err(explain(answer.refused().into())),
        }
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

    fn delete(&self, thing: &Thing) -> Result<()> {
        let path = match thing.kind {
            "server" => return self.delete_server(&thing.id),
            "volume" => return self.delete_volume(&thing.id),
            "router" => return self.delete_router(&thing.id),
            "network" => NETWORKS,
            "port" => PORTS,
            "floating-ip" => ADDRESSES,
            _ => GROUPS,
        };
        self.remove(Service::Network, &format!("{path}/{}", thing.id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_the_same_however_they_are_written_back() {
        let own = |protocol: &str, ports: &str, from: &str| (protocol.into(), ports.into(), from.into());
        for rule in [own("tcp", "80", "0.0.0.0/0"), own("udp", "30000-32767", "::/0"), own("icmp", "", "::/0")] {
            let rule: Single = rule;
            let mut back = written("g", &rule);
            assert_eq!(single(&back), rule);
            back["remote_ip_prefix"] = Value::Null;
            assert_eq!(single(&back), rule, "everybody without a range");
            back["remote_group_id"] = json!("g");
            assert_eq!(single(&back).2, "group g");
        }
        assert_eq!(written("g", &own("icmp", "", "::/0"))["protocol"], "ipv6-icmp");
        assert_eq!(single(&json!({"ethertype": "IPv4"})), own("any", "", "0.0.0.0/0"));
    }
}
