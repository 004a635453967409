//! AWS: instances of EC2 known by the tags `kimg-cluster`, `kimg-ca`, `kimg-node`, `kimg-role` and `kimg-image`, called by the
//! tag `Name`; all else that they need by the first two.
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/>
//!
//! A call that bears a token of ours is known by it when it is sent twice; for others a thing is looked for by its tags
//! before it is made. Where `cluster.toml` names no subnet, a VPC has a way out by an internet gateway and a route; its one
//! subnet is made last, so the network counts once that is there. Security groups filter the private network, too. A
//! worker's interface and its public address come and go with it; a master's are there before it, so that its metadata says
//! both from the first boot on, and outlive it. A running instance takes another root volume, and keeps its user-data: other
//! user-data it takes while it is stopped.
//! What was made or removed a moment ago is not known everywhere at once. None of this was tried at AWS.

mod volumes;

use super::marks::{CA, CLUSTER, DATA, IMAGE, NODE, ON_VOLUME, ROLE};
use super::rules::{Single, apart, together};
use super::{
    Busy, Cloud, Firewall, Inventory, Marks, Network, Offer, Order, ROLES, Rule, Server, State, Tenant, Thing, Volume,
    checked, explained, image_of, no_region, text,
};
use crate::config::Provider;
use crate::input;
use crate::machines::NO_IMAGE;
use crate::upload::ec2::{Ec2, refused};
use crate::upload::may_be_done;
use crate::upload::settings::Environment;
use crate::web::{Client, Interrupted, Refused};
use anyhow::{Result, anyhow, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use node_metadata::Role;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

const EVERY: Duration = Duration::from_secs(3);
/// How long what was made may be unknown, and what was removed be known.
const SEEN: Duration = Duration::from_secs(60);
/// How long EC2 may be at work on a machine.
const SETTLED: Duration = Duration::from_secs(900);
/// How often a machine may be asked for before it is known.
const UNSEEN: u32 = 20;
/// All ports of a protocol.
const ALL: &str = "0-65535";
const ROOT: &str = "/dev/xvda";

/// The fields of a call.
type Pairs = Vec<(String, String)>;

/// A kind of thing: what EC2 calls it in a tag, and how it is listed.
struct Kind {
    name: &'static str,
    list: &'static str,
    set: &'static str,
}

const VPC: Kind = Kind { name: "vpc", list: "DescribeVpcs", set: "vpcSet" };
const SUBNET: Kind = Kind { name: "subnet", list: "DescribeSubnets", set: "subnetSet" };
const GATEWAY: Kind = Kind { name: "internet-gateway", list: "DescribeInternetGateways", set: "internetGatewaySet" };
const GROUP: Kind = Kind { name: "security-group", list: "DescribeSecurityGroups", set: "securityGroupInfo" };
const INTERFACE: Kind =
    Kind { name: "network-interface", list: "DescribeNetworkInterfaces", set: "networkInterfaceSet" };
const ADDRESS: Kind = Kind { name: "elastic-ip", list: "DescribeAddresses", set: "addressesSet" };

/// A cluster's part of an account.
#[derive(Debug)]
pub struct Aws {
    client: Client,
    ec2: Ec2,
    tenant: Tenant,
    provider: Provider,
}

impl Aws {
    /// The account of AWS' own variables or file.
    ///
    /// # Errors
    /// There are no credentials.
    pub fn new(client: &Client, env: Environment<'_>, tenant: Tenant, provider: &Provider) -> Result<Aws> {
        let ec2 = Ec2::new(env, region_of(&tenant.region))?;
        Ok(Aws { client: client.clone(), ec2, tenant, provider: provider.clone() })
    }

    fn list_by(&self, client: &Client, action: &str, pairs: &Pairs, set: &str) -> Result<Vec<Value>> {
        self.ec2.described(client, action, pairs, set).map_err(explain)
    }

    fn list(&self, action: &str, pairs: &[(&str, &str)], set: &str) -> Result<Vec<Value>> {
        self.list_by(&self.client, action, &fields(pairs), set)
    }

    /// What bears the cluster's tags.
    fn ours_by(&self, client: &Client, kind: &Kind) -> Result<Vec<Value>> {
        let filters = filters(&[
            (&format!("tag:{CLUSTER}"), &[&self.tenant.cluster]),
            (&format!("tag:{CA}"), &[&self.tenant.ca]),
        ]);
        let mut all = self.list_by(client, kind.list, &filters, kind.set)?;
        all.retain(|one| tag(one, CLUSTER) == self.tenant.cluster && tag(one, CA) == self.tenant.ca);
        Ok(all)
    }

    fn ours(&self, kind: &Kind) -> Result<Vec<Value>> {
        self.ours_by(&self.client, kind)
    }

    /// The subnet that `cluster.toml` names, and the cluster's own.
    fn subnets(&self) -> Result<Vec<Value>> {
        let named = match &self.provider.subnet {
            Some(id) => self.list_by(&self.client, SUBNET.list, &filters(&[("subnet-id", &[id])]), SUBNET.set)?,
            None => Vec::new(),
        };
        Ok(named.into_iter().chain(self.ours(&SUBNET)?).collect())
    }

    fn is_named(&self, subnet: &Value) -> bool {
        self.provider.subnet.as_deref() == Some(text(subnet, "subnetId"))
    }

    /// Waits for what was made a moment ago.
    fn seen(&self, what: &str, find: impl Fn() -> Result<Option<Value>>) -> Result<Value> {
        self.client.poll(what, EVERY, SEEN, find)
    }

    /// A call that changes something, `again` where it may be sent twice; `done` are the errors that say that it was.
    fn call(&self, action: &str, pairs: &Pairs, again: bool, done: &[&str]) -> Result<Value> {
        let secret = pairs.iter().any(|(name, _)| name.starts_with("UserData"));
        let request = self.ec2.request(action, pairs).repeatable(again).hiding(false, secret);
        let begun = self.client.clock().now();
        let answer = self.client.poll(action, EVERY, 2 * SEEN, || {
            let answer = self.client.send(&request).map_err(explain)?;
            let said = refused(&answer).said;
            let waited = Duration::try_from(self.client.clock().now().duration_since(begun)).unwrap_or_default();
            let early = answer.status == 400 && (said.contains(".NotFound:") || said.contains("Interface.InUse:"));
            Ok(Some(answer).filter(|_| !early || waited >= SEEN))
        })?;
        let said = refused(&answer).said;
        if answer.status == 400 && done.iter().any(|code| said.starts_with(code)) {
            return Ok(Value::Null);
        }
        self.ec2.read(action, answer).map_err(explain)
    }

    /// Makes a thing without a token of ours: it is looked for before, and where the answer is lost. What is `same` among
    /// those of its kind is it, and the answer holds it as `key`.
    fn once(
        &self,
        kind: &Kind,
        (action, key): (&str, &str),
        pairs: &[(&str, &str)],
        same: &dyn Fn(&Value) -> bool,
    ) -> Result<Value> {
        let look = |client: &Client| -> Result<Option<Value>> {
            Ok(self.ours_by(client, kind)?.into_iter().find(|one| same(one)))
        };
        if let Some(there) = look(&self.client)? {
            return Ok(there);
        }
        let mut all = fields(pairs);
        all.extend(self.tags(1, kind.name, &self.tenant.name(), &[]));
        let made = self.call(action, &all, false, &[]);
        let made = made.map(|made| if key.is_empty() { made } else { made[key].clone() });
        made.or_else(|error| match may_be_done(&error) {
            true => look(&self.client.for_cleanup()).ok().flatten().ok_or(error),
            false => Err(error),
        })
    }

    /// The fields by which a call has the thing that it makes, or the `nth` of several, bear the cluster's tags.
    fn tags(&self, nth: usize, kind: &str, name: &str, more: &[(&str, &str)]) -> Pairs {
        let mut pairs = vec![(format!("TagSpecification.{nth}.ResourceType"), kind.to_string())];
        let own = [("Name", name), (CLUSTER, self.tenant.cluster.as_str()), (CA, self.tenant.ca.as_str())];
        for (n, (key, value)) in (1..).zip(own.iter().chain(more)) {
            pairs.push((format!("TagSpecification.{nth}.Tag.{n}.Key"), (*key).into()));
            pairs.push((format!("TagSpecification.{nth}.Tag.{n}.Value"), (*value).into()));
        }
        pairs
    }

    /// All instances of the region but for those that have come to their end, which are listed for a while.
    fn instances(&self) -> Result<Vec<Value>> {
        let states = ["pending", "running", "shutting-down", "stopping", "stopped"];
        let mut pairs = filters(&[("instance-state-name", &states)]);
        pairs.extend(fields(&[("MaxResults", "1000")]));
        self.instances_by(&pairs)
    }

    fn instances_by(&self, pairs: &Pairs) -> Result<Vec<Value>> {
        let found = self.list_by(&self.client, "DescribeInstances", pairs, "reservationSet")?;
        Ok(found.iter().flat_map(|one| entries(one, "instancesSet")).cloned().collect())
    }

    /// Waits until EC2 is through with what it does to a machine.
    fn settled(&self, id: &str, what: &str) -> Result<String> {
        let (pairs, mut unseen) = (filters(&[("instance-id", &[id])]), 0);
        self.client.poll(what, EVERY, SETTLED, || {
            let found = self.instances_by(&pairs)?;
            let Some(one) = found.first() else {
                unseen += 1;
                return if unseen > UNSEEN { bail!("{what}: the machine {id} is gone") } else { Ok(None) };
            };
            match text(&one["instanceState"], "name") {
                "pending" | "stopping" => Ok(None),
                state @ ("shutting-down" | "terminated") => {
                    let why = [text(&one["stateReason"], "code"), text(&one["stateReason"], "message")].join(": ");
                    Err(explain(Refused { what: what.into(), status: 400, said: format!("{state}: {why}") }.into()))
                }
                state => Ok(Some(state.to_string())),
            }
        })
    }

    fn marks<'a>(&self, one: &'a Value) -> Marks<'a> {
        let (cluster, ca) = (tag(one, CLUSTER) == self.tenant.cluster, tag(one, CA) == self.tenant.ca);
        Marks { name: tag(one, "Name"), cluster, ca }
    }

    /// Puts an interface behind a firewall, where it is not.
    fn protect(&self, interface: &Value, group: &str) -> Result<()> {
        let groups: Vec<&str> = entries(interface, "groupSet").map(|one| text(one, "groupId")).collect();
        if groups == [group] {
            return Ok(());
        }
        let id = id(interface, "networkInterfaceId", "an interface")?;
        let pairs = fields(&[("NetworkInterfaceId", &id), ("SecurityGroupId.1", group)]);
        self.call("ModifyNetworkInterfaceAttribute", &pairs, true, &[]).map(drop)
    }

    /// The master's interface, to which its public address leads.
    fn reserve(&self, order: &Order<'_>) -> Result<String> {
        let (subnet, group) = (order.network.id.as_str(), order.firewall.id.as_str());
        let pairs = [("SubnetId", subnet), ("SecurityGroupId.1", group)];
        let make = ("CreateNetworkInterface", "networkInterface");
        let interface = self.once(&INTERFACE, make, &pairs, &|one| text(one, "subnetId") == subnet)?;
        self.protect(&interface, group)?;
        let interface = id(&interface, "networkInterfaceId", "an interface")?;
        let address = self.once(&ADDRESS, ("AllocateAddress", ""), &[("Domain", "vpc")], &|_| true)?;
        if text(&address, "networkInterfaceId") != interface {
            let address = id(&address, "allocationId", "an address")?;
            let pairs = fields(&[
                ("AllocationId", &address),
                ("NetworkInterfaceId", &interface),
                ("AllowReassociation", "true"),
            ]);
            self.call("AssociateAddress", &pairs, true, &[])?;
        }
        Ok(interface)
    }

    /// The rules of a security group as EC2 has them: each with its id.
    fn rules_of(&self, group: &str) -> Result<Vec<(String, Single)>> {
        let mut pairs = filters(&[("group-id", &[group])]);
        pairs.extend(fields(&[("MaxResults", "1000")]));
        let all = self.list_by(&self.client, "DescribeSecurityGroupRules", &pairs, "securityGroupRuleSet")?;
        let rule = |one: &Value| Ok((id(one, "securityGroupRuleId", "a rule")?, single(one)));
        all.iter().filter(|one| text(one, "isEgress") == "false").map(rule).collect()
    }

    /// Tasks that put another root volume under a machine.
    fn replacements(&self, server: &Server) -> Result<Vec<Value>> {
        let pairs = filters(&[("instance-id", &[&server.id])]);
        self.list_by(&self.client, "DescribeReplaceRootVolumeTasks", &pairs, "replaceRootVolumeTaskSet")
    }

    /// Puts a new root volume of an image under a machine, which runs.
    fn replace_root(&self, server: &Server, image: &str, what: &str) -> Result<()> {
        // That of an earlier run.
        self.client.poll(what, EVERY, SETTLED, || {
            let found = self.replacements(server)?;
            let on = |task: &Value| ["pending", "in-progress", "failing"].contains(&text(task, "taskState"));
            Ok((!found.iter().any(on)).then_some(()))
        })?;
        let pairs = fields(&[
            ("InstanceId", &server.id),
            ("ImageId", image),
            ("DeleteReplacedRootVolume", "true"),
            ("ClientToken", &token()),
        ]);
        let made = self.call("CreateReplaceRootVolumeTask", &pairs, true, &[]).map_err(busy)?;
        let task = id(&made["replaceRootVolumeTask"], "replaceRootVolumeTaskId", "a task")?;
        self.client.poll(what, EVERY, SETTLED, || {
            let found = self.replacements(server)?;
            let state = found.iter().find(|one| text(one, "replaceRootVolumeTaskId") == task);
            match state.map(|one| text(one, "taskState")).unwrap_or_default() {
                "succeeded" => Ok(Some(())),
                // The old one is still there.
                "failed" => {
                    let said = "AWS could not put another root volume there, and the old one stays".to_string();
                    Err(Refused { what: what.into(), status: 400, said }.into())
                }
                "failed-detached" => bail!(
                    "{what}: AWS has left it without a root volume; terminate the instance {} at AWS, and `kimg heal master` \
                     makes another machine",
                    server.id
                ),
                // It is at work, or not listed yet.
                _ => Ok(None),
            }
        })
    }

    /// Gives a machine other user-data, for which it is stopped and started.
    fn tell(&self, server: &Server, user_data: &str, what: &str) -> Result<()> {
        let pairs = fields(&[("InstanceId", &server.id), ("Attribute", "userData")]);
        let action = "DescribeInstanceAttribute";
        let known = self.client.send(&self.ec2.request(action, &pairs)).map_err(explain)?;
        let known = self.ec2.read(action, known).map_err(explain)?;
        let told = STANDARD.encode(user_data);
        // However it is wrapped.
        if text(&known["userData"], "value").split_whitespace().collect::<String>() == told {
            return Ok(());
        }
        self.call("StopInstances", &fields(&[("InstanceId.1", &server.id)]), true, &[])?;
        self.settled(&server.id, what)?;
        let pairs = fields(&[("InstanceId", &server.id), ("UserData.Value", &told)]);
        self.call("ModifyInstanceAttribute", &pairs, true, &[])?;
        self.start(server)?;
        self.settled(&server.id, what).map(drop)
    }

    fn delete_gateway(&self, gateway: &str) -> Result<()> {
        for one in self.ours(&GATEWAY)?.iter().filter(|one| text(one, "internetGatewayId") == gateway) {
            for vpc in entries(one, "attachmentSet") {
                let vpc = id(vpc, "vpcId", "a VPC")?;
                self.remove("DetachInternetGateway", &[("InternetGatewayId", gateway), ("VpcId", &vpc)])?;
            }
        }
        self.remove("DeleteInternetGateway", &[("InternetGatewayId", gateway)])
    }

    /// Asks for a thing's end; what is in use may go later.
    fn remove(&self, action: &str, pairs: &[(&str, &str)]) -> Result<()> {
        let answer = self.client.send(&self.ec2.request(action, pairs)).map_err(explain)?;
        let refused = refused(&answer);
        match answer.status {
            200 => Ok(()),
            400 if [".NotFound:", "Gateway.NotAttached:"].iter().any(|gone| refused.said.contains(gone)) => Ok(()),
            400 if refused.said.contains("OperationNotPermitted") => {
                bail!("it is protected against termination; take that off at AWS ({})", refused.said)
            }
            _ => Err(busy(explain(refused.into()))),
        }
    }
}

/// The region of a zone.
pub(super) fn region_of(zone: &str) -> &str {
    let behind = |at: usize| zone[at..].find(|c: char| !c.is_ascii_digit()).map_or(zone.len(), |n| at + n);
    zone.find(|c: char| c.is_ascii_digit()).map_or(zone, |at| &zone[..behind(at)])
}

fn fields(pairs: &[(&str, &str)]) -> Pairs {
    pairs.iter().map(|(name, value)| ((*name).to_string(), (*value).to_string())).collect()
}

/// Which entries of a list are asked for.
fn filters(all: &[(&str, &[&str])]) -> Pairs {
    let mut pairs = Pairs::new();
    for (n, (name, values)) in (1..).zip(all) {
        pairs.push((format!("Filter.{n}.Name"), (*name).into()));
        let values = (1..).zip(*values);
        pairs.extend(values.map(|(m, value)| (format!("Filter.{n}.Value.{m}"), (*value).into())));
    }
    pairs
}

/// By which a call is known that is sent twice.
fn token() -> String {
    format!("{:032x}", rand::random::<u128>())
}

fn entries<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

/// What a tag says.
fn tag<'a>(one: &'a Value, key: &str) -> &'a str {
    entries(one, "tagSet").find(|tag| text(tag, "key") == key).map_or("", |tag| text(tag, "value"))
}

fn id(one: &Value, key: &str, what: &str) -> Result<String> {
    checked(text(one, key), what)
}

fn explain(error: anyhow::Error) -> anyhow::Error {
    if error.downcast_ref().is_some_and(|refused: &Refused| refused.said.contains("RequestLimitExceeded")) {
        return error.context("AWS wants more patience than kimg has; the same command goes on later");
    }
    explained(error, "AWS", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
}

/// A refusal that says that something is in use or at work.
fn busy(error: anyhow::Error) -> anyhow::Error {
    let words = [
        "DependencyViolation",
        ".InUse",
        "VolumeInUse",
        "currently in use",
        "IncorrectState",
        "IncorrectInstanceState",
    ];
    let is_busy = |refused: &&Refused| refused.status == 400 && words.iter().any(|word| refused.said.contains(word));
    let busy = error.chain().find_map(|cause| cause.downcast_ref().filter(is_busy)).map(|refused| refused.to_string());
    busy.map_or(error, |said| Busy(said).into())
}

fn single(one: &Value) -> Single {
    let protocol = text(one, "ipProtocol");
    let ports = match (text(one, "fromPort"), text(one, "toPort")) {
        ("-1" | "", _) => String::new(),
        (first, last) if first == last => first.into(),
        (first, last) => format!("{first}-{last}"),
    };
    let from =
        ["cidrIpv4", "cidrIpv6", "prefixListId"].into_iter().map(|key| text(one, key)).find(|from| !from.is_empty());
    let group = || format!("group {}", text(&one["referencedGroupInfo"], "groupId"));
    (if protocol == "-1" { "any" } else { protocol }.into(), ports, from.map_or_else(group, Into::into))
}

/// The other way round, as the fields of permission `n`.
fn written(n: usize, (protocol, ports, from): &Single) -> Pairs {
    let (first, last) = match ports.as_str() {
        "" => ("-1", "-1"),
        ports => ports.split_once('-').unwrap_or((ports, ports)),
    };
    [("IpProtocol", protocol.as_str()), ("FromPort", first), ("ToPort", last), ("IpRanges.1.CidrIp", from)]
        .map(|(field, value)| (format!("IpPermissions.{n}.{field}"), value.to_string()))
        .into()
}

fn server(one: &Value) -> Result<Server> {
    let address = |key: &str| text(one, key).parse().ok();
    // When it was launched is when it was started the last time.
    let made = text(&one["networkInterfaceSet"][0]["attachment"], "attachTime");
    let made = if made.is_empty() { text(one, "launchTime") } else { made };
    Ok(Server {
        id: id(one, "instanceId", "a machine")?,
        node: tag(one, NODE).into(),
        image: image_of(tag(one, IMAGE)),
        size: text(one, "instanceType").into(),
        region: text(&one["placement"], "availabilityZone").into(),
        state: match text(&one["instanceState"], "name") {
            "running" => State::Running,
            "stopped" => State::Off,
            _ => State::Pending,
        },
        public: address("ipAddress"),
        private: address("privateIpAddress"),
        created: made.parse().ok(),
        on_volume: tag(one, DATA) == ON_VOLUME,
    })
}

impl Cloud for Aws {
    fn offer(&self) -> Result<Offer> {
        let zone = self.tenant.region.as_str();
        let zones = self.list("DescribeAvailabilityZones", &[], "availabilityZoneInfo")?;
        let known: Vec<&str> = zones.iter().map(|one| text(one, "zoneName")).collect();
        if !known.contains(&zone) {
            return no_region("AWS", "zone", zone, &known);
        }
        if let Some(subnet) = &self.provider.subnet
            && !self.subnets()?.iter().any(|one| self.is_named(one))
        {
            let region = region_of(zone);
            return input::bad(format!(
                "provider.subnet: the account at AWS has no subnet {subnet} in {region}; write the id of one, or remove this \
                 line, and the cluster has a VPC of its own"
            ));
        }
        let mut pairs = filters(&[("location", &[zone])]);
        pairs.extend(fields(&[("LocationType", "availability-zone"), ("MaxResults", "1000")]));
        let set = "instanceTypeOfferingSet";
        let offered = self.list_by(&self.client, "DescribeInstanceTypeOfferings", &pairs, set)?;
        // All of them are described by many pages.
        let wanted: BTreeSet<&str> = self.provider.types.values().map(String::as_str).collect();
        let asked: Vec<&str> = wanted.iter().copied().collect();
        let pairs = filters(&[("processor-info.supported-architecture", &["x86_64"]), ("instance-type", &asked)]);
        let fits = self.list_by(&self.client, "DescribeInstanceTypes", &pairs, "instanceTypeSet")?;
        let is_fit = |name: &&str| !wanted.contains(name) || fits.iter().any(|one| text(one, "instanceType") == *name);
        let disk_gb = u64::from(self.provider.disk_gb);
        let sizes = offered.iter().map(|one| text(one, "instanceType")).filter(is_fit);
        // Prices stand in another API, and what an account may have in a third.
        Ok(Offer::at_written_prices(&self.provider, sizes.map(|name| (name.to_string(), disk_gb)), None))
    }

    fn inventory(&self) -> Result<Inventory> {
        let mut inventory = Inventory::default();
        for one in self.subnets()? {
            let kept = self.is_named(&one);
            let (id, range) = (id(&one, "subnetId", "a subnet")?, text(&one, "cidrBlock").into());
            let region = Some(text(&one, "availabilityZone").to_string());
            inventory.networks.push(Network { id, range, region, kept });
        }
        for one in self.ours(&GROUP)? {
            if let Some(role) = ROLES.into_iter().find(|role| text(&one, "groupName") == self.tenant.firewall(*role)) {
                let id = id(&one, "groupId", "a firewall")?;
                let rules = together(self.rules_of(&id)?.into_iter().map(|(_, rule)| rule));
                inventory.firewalls.push(Firewall { id, role, rules });
            }
        }
        let name = self.tenant.name();
        let mut rest = |kind: &'static str, id: String, name: &str| {
            inventory.rest.push(Thing { kind, id, name: name.into() });
        };
        for one in self.ours(&INTERFACE)? {
            rest("network-interface", id(&one, "networkInterfaceId", "an interface")?, text(&one, "privateIpAddress"));
        }
        for one in self.ours(&ADDRESS)? {
            rest("address", id(&one, "allocationId", "an address")?, text(&one, "publicIp"));
        }
        // What the subnet needs goes behind it, and the VPC behind all that is in it.
        if inventory.networks.iter().all(|network| network.kept) {
            let gateways = self.ours(&GATEWAY)?;
            for one in &gateways {
                rest("internet-gateway", id(one, "internetGatewayId", "a gateway")?, &name);
            }
            if gateways.is_empty() && inventory.firewalls.is_empty() {
                for one in self.ours(&VPC)? {
                    rest("vpc", id(&one, "vpcId", "a VPC")?, &name);
                }
            }
        }
        // All, for those that only look like ours.
        for one in self.instances()? {
            self.tenant.sort(server(&one)?, &self.marks(&one), &mut inventory);
        }
        self.add_volumes(&mut inventory)?;
        Ok(inventory)
    }

    fn make_network(&self) -> Result<Network> {
        let range = self.tenant.network.to_string();
        let of_range = |one: &Value| text(one, "cidrBlock") == range;
        let vpc = self.once(&VPC, ("CreateVpc", "vpc"), &[("CidrBlock", &range)], &of_range)?;
        let vpc = id(&vpc, "vpcId", "the VPC")?;
        let gateway = self.once(&GATEWAY, ("CreateInternetGateway", "internetGateway"), &[], &|_| true)?;
        let gateway = id(&gateway, "internetGatewayId", "the gateway")?;
        let pairs = fields(&[("InternetGatewayId", &gateway), ("VpcId", &vpc)]);
        self.call("AttachInternetGateway", &pairs, true, &["Resource.AlreadyAssociated"])?;
        let of_vpc = filters(&[("vpc-id", &[&vpc]), ("association.main", &["true"])]);
        let table = self.seen("the routes of the VPC", || {
            let found = self.list_by(&self.client, "DescribeRouteTables", &of_vpc, "routeTableSet")?;
            Ok(found.into_iter().next())
        })?;
        let table = id(&table, "routeTableId", "a table of routes")?;
        let pairs = fields(&[("RouteTableId", &table), ("DestinationCidrBlock", "0.0.0.0/0"), ("GatewayId", &gateway)]);
        self.call("CreateRoute", &pairs, true, &["RouteAlreadyExists"])?;
        let zone = self.tenant.region.as_str();
        let pairs = [("VpcId", vpc.as_str()), ("CidrBlock", &range), ("AvailabilityZone", zone)];
        let subnet = self.once(&SUBNET, ("CreateSubnet", "subnet"), &pairs, &|_| true)?;
        Ok(Network { id: id(&subnet, "subnetId", "the subnet")?, range, region: Some(zone.into()), kept: false })
    }

    fn make_firewall(&self, role: Role) -> Result<Firewall> {
        let name = self.tenant.firewall(role);
        let subnet = self.seen("the private network", || Ok(self.subnets()?.into_iter().next()))?;
        let vpc = id(&subnet, "vpcId", "the VPC")?;
        let description = format!("kimg: {role}s");
        let pairs = [("GroupName", name.as_str()), ("GroupDescription", &description), ("VpcId", &vpc)];
        let same = |one: &Value| text(one, "groupName") == name && text(one, "vpcId") == vpc;
        let made = self.once(&GROUP, ("CreateSecurityGroup", ""), &pairs, &same)?;
        let firewall = Firewall { id: id(&made, "groupId", "the firewall")?, role, rules: self.rules(role) };
        self.set_rules(&firewall)?;
        Ok(firewall)
    }

    fn set_rules(&self, firewall: &Firewall) -> Result<()> {
        // Where somebody removed it, the machines are there already. Its rules come later: they tell that it is done.
        for one in self.instances()? {
            let marks = self.marks(&one);
            if marks.cluster && marks.ca && tag(&one, ROLE) == firewall.role.as_str() {
                self.protect(&one["networkInterfaceSet"][0], &firewall.id)?;
            }
        }
        let (known, wanted) = (self.rules_of(&firewall.id)?, apart(self.rules(firewall.role)));
        let missing = wanted.iter().filter(|one| known.iter().all(|(_, known)| known != *one));
        let mut pairs: Pairs = (1..).zip(missing).flat_map(|(n, rule)| written(n, rule)).collect();
        if !pairs.is_empty() {
            pairs.extend(fields(&[("GroupId", &firewall.id)]));
            self.call("AuthorizeSecurityGroupIngress", &pairs, true, &["InvalidPermission.Duplicate"])?;
        }
        let others = known.iter().filter(|(_, rule)| !wanted.contains(rule));
        let mut pairs: Pairs =
            (1..).zip(others).map(|(n, (id, _))| (format!("SecurityGroupRuleId.{n}"), id.clone())).collect();
        if !pairs.is_empty() {
            pairs.extend(fields(&[("GroupId", &firewall.id)]));
            self.call("RevokeSecurityGroupIngress", &pairs, true, &["InvalidSecurityGroupRuleId.NotFound"])?;
        }
        Ok(())
    }

    /// The VPC has addresses of version 4 only.
    fn rules(&self, role: Role) -> BTreeSet<Rule> {
        self.tenant.rules_of_four(role, ALL)
    }

    fn make_server(&self, order: &Order<'_>) -> Result<()> {
        let (name, mut there) = (self.tenant.machine(order.node), Inventory::default());
        for one in self.instances()?.iter().filter(|one| tag(one, "Name") == name) {
            self.tenant.sort(server(one)?, &self.marks(one), &mut there);
        }
        if let Some(foreign) = there.foreign.first() {
            return input::bad(&foreign.why);
        }
        if !there.servers.is_empty() {
            return Ok(());
        }
        let mut pairs = fields(&[
            ("ImageId", order.image_id),
            ("InstanceType", order.size),
            ("MinCount", "1"),
            ("MaxCount", "1"),
            ("ClientToken", &token()),
            ("UserData", &STANDARD.encode(order.user_data)),
            ("InstanceInitiatedShutdownBehavior", "stop"),
            ("MetadataOptions.HttpEndpoint", "enabled"),
            ("MetadataOptions.HttpTokens", "required"),
            // Pods that may ask are one behind their node.
            ("MetadataOptions.HttpPutResponseHopLimit", "2"),
            ("BlockDeviceMapping.1.DeviceName", ROOT),
            ("BlockDeviceMapping.1.Ebs.VolumeSize", &self.provider.disk_gb.to_string()),
            ("BlockDeviceMapping.1.Ebs.VolumeType", "gp3"),
            ("BlockDeviceMapping.1.Ebs.DeleteOnTermination", "true"),
            ("NetworkInterface.1.DeviceIndex", "0"),
        ]);
        pairs.extend(match order.role {
            Role::Master => fields(&[("NetworkInterface.1.NetworkInterfaceId", &self.reserve(order)?)]),
            Role::Worker => fields(&[
                ("NetworkInterface.1.SubnetId", &order.network.id),
                ("NetworkInterface.1.SecurityGroupId.1", &order.firewall.id),
                ("NetworkInterface.1.AssociatePublicIpAddress", "true"),
                ("NetworkInterface.1.DeleteOnTermination", "true"),
            ]),
        });
        let image = Some((IMAGE, order.image)).filter(|(_, image)| *image != NO_IMAGE);
        let on_volume = Some((DATA, ON_VOLUME)).filter(|_| order.on_volume);
        let more: Vec<(&str, &str)> =
            [(NODE, order.node), (ROLE, order.role.as_str())].into_iter().chain(image).chain(on_volume).collect();
        pairs.extend(self.tags(1, "instance", &name, &more));
        // Its own, which goes with it.
        pairs.extend(self.tags(2, "volume", &name, &[(ROLE, order.role.as_str())]));
        let made = self.call("RunInstances", &pairs, true, &[])?;
        let made = id(&made["instancesSet"][0], "instanceId", "the machine")?;
        // There may be no room for it after all.
        self.settled(&made, &format!("making {name}")).map(drop)
    }

    /// Only a machine that runs takes another root volume. One that was stopped has a new one already, or one whose store is
    /// given up.
    fn rebuild_server(&self, server: &Server, order: &Order<'_>) -> Result<()> {
        let what = format!("rebuilding {}", server.node);
        if self.settled(&server.id, &what)? == "stopped" {
            self.start(server)?;
            self.settled(&server.id, &what)?;
        }
        self.replace_root(server, order.image_id, &what)?;
        // From here on nothing is as it was, whatever is refused.
        self.tell(server, order.user_data, &what).map_err(|error| match error.is::<Interrupted>() {
            true => error,
            false => anyhow!("{error:#}"),
        })
    }

    fn mark(&self, server: &Server, image: &str) -> Result<()> {
        let mut pairs = fields(&[("ResourceId.1", &server.id), ("Tag.1.Key", IMAGE)]);
        if image == NO_IMAGE {
            return self.call("DeleteTags", &pairs, true, &[]).map(drop);
        }
        pairs.extend(fields(&[("Tag.1.Value", image)]));
        self.call("CreateTags", &pairs, true, &[]).map(drop)
    }

    fn start(&self, server: &Server) -> Result<()> {
        self.call("StartInstances", &fields(&[("InstanceId.1", &server.id)]), true, &[]).map(drop)
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
        let (action, field) = match thing.kind {
            "volume" | "disk" => ("DeleteVolume", "VolumeId"),
            "server" => ("TerminateInstances", "InstanceId.1"),
            "internet-gateway" => return self.delete_gateway(&thing.id),
            "network" => ("DeleteSubnet", "SubnetId"),
            "network-interface" => ("DeleteNetworkInterface", "NetworkInterfaceId"),
            "address" => ("ReleaseAddress", "AllocationId"),
            "vpc" => ("DeleteVpc", "VpcId"),
            _ => ("DeleteSecurityGroup", "GroupId"),
        };
        self.remove(action, &[(field, &thing.id)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_zone_has_its_regions_name_at_its_beginning() {
        for (zone, region) in [
            ("eu-central-1a", "eu-central-1"),
            ("us-west-2-lax-1b", "us-west-2"),
            ("ap-southeast-10c", "ap-southeast-10"),
            ("eu-central-1", "eu-central-1"),
            ("nowhere", "nowhere"),
        ] {
            assert_eq!(region_of(zone), region);
        }
    }

    #[test]
    fn rules_are_told_apart_however_they_came_to_be() {
        let rule = |more: Value| {
            let mut one = json!({"ipProtocol": "tcp", "fromPort": "80", "toPort": "80"});
            one.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            single(&one)
        };
        let own = |protocol: &str, ports: &str, from: &str| (protocol.into(), ports.into(), from.into());
        assert_eq!(rule(json!({"cidrIpv4": "0.0.0.0/0"})), own("tcp", "80", "0.0.0.0/0"));
        assert_eq!(rule(json!({"toPort": "81", "cidrIpv6": "::/0"})), own("tcp", "80-81", "::/0"));
        assert_eq!(rule(json!({"referencedGroupInfo": {"groupId": "sg-1"}})), own("tcp", "80", "group sg-1"));
        let any = json!({"ipProtocol": "-1", "fromPort": "-1", "toPort": "-1", "prefixListId": "pl-1"});
        assert_eq!(rule(any), own("any", "", "pl-1"));
    }
}
