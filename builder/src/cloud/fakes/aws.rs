//! EC2: a call with a token is the same call again, what was made is not known at once, and what is in use does not go.

use super::{CREATED, Machine, World, number, page, private, public};
use crate::cache::hash;
use crate::upload::sigv4::Signer;
use crate::web::Request;
use crate::web::fake::{Call, Reply};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

const ZONE: &str = "eu-west-1a";
/// The key's id, whose secret is the token of all tests.
pub(in super::super) const KEY: &str = "AKIAT";

/// The fields of a call.
struct Asked(BTreeMap<String, String>);

impl Asked {
    fn of(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// A list: all fields behind these names, in order.
    fn list(&self, name: &str) -> Vec<&str> {
        (1..).map_while(|n| self.0.get(&format!("{name}.{n}"))).map(String::as_str).collect()
    }

    /// What a filter asks for.
    fn filter(&self, name: &str) -> Option<Vec<&str>> {
        let n = (1..).map_while(|n| self.0.get(&format!("Filter.{n}.Name"))).position(|known| known == name)?;
        Some(self.list(&format!("Filter.{}.Value", n + 1)))
    }

    fn is_asked(&self, filter: &str, value: &str) -> bool {
        self.filter(filter).is_none_or(|values| values.contains(&value))
    }

    /// The tags that a thing is to bear, and among them its name.
    fn tags(&self, kind: &str) -> Map<String, Value> {
        self.tags_of(1, kind)
    }

    fn tags_of(&self, nth: usize, kind: &str) -> Map<String, Value> {
        assert_eq!(self.of(&format!("TagSpecification.{nth}.ResourceType")), kind);
        let tag = |n| {
            let key = self.0.get(&format!("TagSpecification.{nth}.Tag.{n}.Key"))?;
            Some((key.clone(), json!(self.of(&format!("TagSpecification.{nth}.Tag.{n}.Value")))))
        };
        (1..).map_while(tag).collect()
    }
}

pub(in super::super) fn action(call: &Call) -> String {
    let of = |(name, _, value): (String, _, Vec<u8>)| (name == "Action").then(|| String::from_utf8(value).unwrap());
    call.form().into_iter().find_map(of).unwrap()
}

pub(in super::super) fn answer(call: &Call, world: &mut World) -> Reply {
    assert_eq!(call.path, "/ec2/");
    if !is_signed(call, world) {
        return error(401, "AuthFailure", "AWS was not able to validate the provided access credentials");
    }
    let form = call.form().into_iter().map(|(name, _, value)| (name, String::from_utf8(value).unwrap()));
    let (asked, action) = (Asked(form.collect()), action(call));
    if action.starts_with("Describe") {
        return described(&action, &asked, world);
    }
    let removes = ["Delete", "Detach", "Release", "Terminate"].iter().any(|word| action.starts_with(word));
    if !removes {
        for value in asked.0.values() {
            if world.operations.remove(&format!("fresh-{value}")).is_some() {
                return error(400, "InvalidID.NotFound", "it does not exist");
            }
        }
    }
    match if removes { remove(&action, &asked, world) } else { write(&action, &asked, world) } {
        Ok(done) => answered(&action, &done),
        Err((code, said)) => error(400, code, said),
    }
}

/// Whether a secret that counts has signed it: that of a session, or another one, which has none.
fn is_signed(call: &Call, world: &World) -> bool {
    let session = Some(call.header("x-amz-security-token")).filter(|token| !token.is_empty()).map(String::from);
    let also = world.also.clone().filter(|_| session.is_none());
    [Some("t0ken".into()), also].into_iter().flatten().any(|secret| signs(call, secret, session.clone()))
}

fn signs(call: &Call, secret: String, token: Option<String>) -> bool {
    let signer = Signer { key: KEY.into(), secret, token, region: "eu-west-1".into(), service: "ec2" };
    let date = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", call.header("x-amz-date")).unwrap();
    let now = date.to_zoned(jiff::tz::TimeZone::UTC).unwrap().timestamp();
    let request = Request::post(format!("http://{}{}", call.header("host"), call.path));
    let signed = signer.sign(request, &[], &hash::hex_of(&call.body), now).unwrap();
    signed.secret_of("authorization") == Some(call.header("authorization"))
}

fn described(action: &str, asked: &Asked, world: &mut World) -> Reply {
    let of_kind = |world: &World, kind: &'static str| -> Vec<Value> {
        let all = world.of(kind).map(|(id, body)| shown(world, kind, id, body));
        let bears = |one: &Value| {
            let tagged = |key: &str| {
                let tags = one["tagSet"].as_array().into_iter().flatten();
                tags.filter(|tag| tag["key"] == key).map(|tag| tag["value"].as_str().unwrap()).collect::<String>()
            };
            ["kimg-cluster", "kimg-ca"].iter().all(|key| asked.is_asked(&format!("tag:{key}"), &tagged(key)))
        };
        all.filter(bears).collect()
    };
    let (set, all): (&str, Vec<Value>) = match action {
        "DescribeAvailabilityZones" => {
            ("availabilityZoneInfo", [ZONE, "eu-west-1b"].map(|zone| json!({"zoneName": zone})).into())
        }
        "DescribeInstanceTypeOfferings" => {
            assert!(asked.filter("location") == Some(vec![ZONE]) && asked.of("LocationType") == "availability-zone");
            let all =
                ["t3.medium", "t4g.small", "t3.small"].map(|name| json!({"instanceType": name, "location": ZONE}));
            ("instanceTypeOfferingSet", all.into())
        }
        "DescribeInstanceTypes" => {
            assert_eq!(asked.filter("processor-info.supported-architecture"), Some(vec!["x86_64"]));
            let all = ["t3.medium", "t3.small"].into_iter().filter(|name| asked.is_asked("instance-type", name));
            ("instanceTypeSet", all.map(|name| json!({"instanceType": name})).collect())
        }
        "DescribeVpcs" => ("vpcSet", of_kind(world, "vpc")),
        "DescribeSubnets" => {
            let all = of_kind(world, "subnet").into_iter();
            let is_asked = |one: &Value| asked.is_asked("subnet-id", one["subnetId"].as_str().unwrap());
            ("subnetSet", all.filter(is_asked).collect())
        }
        "DescribeInternetGateways" => ("internetGatewaySet", of_kind(world, "gateway")),
        "DescribeSecurityGroups" => ("securityGroupInfo", of_kind(world, "firewall")),
        "DescribeNetworkInterfaces" => ("networkInterfaceSet", of_kind(world, "interface")),
        "DescribeAddresses" => ("addressesSet", of_kind(world, "address")),
        "DescribeVolumes" => {
            let all = of_kind(world, "volume").into_iter().chain(of_kind(world, "disk")).collect();
            drop(world.volumes());
            ("volumeSet", all)
        }
        "DescribeRouteTables" => {
            let vpc = asked.filter("vpc-id").unwrap()[0];
            assert!(asked.filter("association.main") == Some(vec!["true"]));
            ("routeTableSet", vec![json!({"routeTableId": format!("rtb-{vpc}"), "vpcId": vpc})])
        }
        "DescribeSecurityGroupRules" => {
            let group = number(asked.filter("group-id").unwrap()[0]);
            let rules = world.things[&("firewall", group)]["rules"].as_array().cloned().unwrap_or_default();
            let egress = json!({"securityGroupRuleId": "0", "isEgress": "true", "ipProtocol": "-1", "fromPort": "-1",
                "toPort": "-1", "cidrIpv4": "0.0.0.0/0"});
            ("securityGroupRuleSet", [egress].into_iter().chain(rules).collect())
        }
        "DescribeInstances" => {
            world.look();
            let ended =
                world.operations.iter().filter(|(name, _)| name.starts_with("ended-")).map(|(_, one)| one.clone());
            let all = world.machines.iter().map(|(id, machine)| instance(world, *id, machine)).chain(ended);
            let state = |one: &Value| one["instanceState"]["name"].as_str().unwrap().to_string();
            let is_asked = |one: &Value| {
                asked.is_asked("instance-id", one["instanceId"].as_str().unwrap())
                    && asked.is_asked("instance-state-name", &state(one))
            };
            ("reservationSet", all.filter(is_asked).map(|one| json!({"instancesSet": [one]})).collect())
        }
        "DescribeReplaceRootVolumeTasks" => {
            world.look();
            let server = asked.filter("instance-id").unwrap()[0];
            let tasks = world.operations.iter().filter(|(name, _)| name.starts_with("task-"));
            let state = |task: &Value| match &world.machines[&number(server)] {
                _ if task["failed"] == true => "failed",
                machine if machine.looked <= world.slow => "in-progress",
                _ => "succeeded",
            };
            let one =
                |(name, task): (&String, &Value)| json!({"replaceRootVolumeTaskId": name, "taskState": state(task)});
            let all = tasks.filter(|(_, task)| task["server"] == server).map(one);
            ("replaceRootVolumeTaskSet", all.collect())
        }
        "DescribeInstanceAttribute" => {
            assert_eq!(asked.of("Attribute"), "userData");
            let Some(machine) = world.machines.get(&number(asked.of("InstanceId"))) else {
                return error(400, "InvalidInstanceID.NotFound", "it does not exist");
            };
            let told = STANDARD.encode(machine.body["user_data"].as_str().unwrap());
            let (first, rest) = told.split_at(told.len() / 2);
            return answered(action, &json!({"userData": {"value": format!("{first}\n{rest}\n")}}));
        }
        what => panic!("{what}"),
    };
    // Addresses have no pages.
    if action == "DescribeAddresses" {
        return answered(action, &json!({set: all}));
    }
    let at: usize = asked.0.get("NextToken").map_or(1, |token| token.parse().unwrap());
    let (some, more) = page(&all, at);
    let next = if more { (at + 1).to_string() } else { String::new() };
    answered(action, &json!({set: some, "nextToken": next}))
}

type Done = Result<Value, (&'static str, &'static str)>;

fn write(action: &str, asked: &Asked, world: &mut World) -> Done {
    let id = |name: &str| number(asked.of(name));
    match action {
        "CreateVpc" => make(asked, world, ("vpc", "vpc"), "vpc", json!({"range": asked.of("CidrBlock")})),
        "CreateInternetGateway" => make(asked, world, ("gateway", "internet-gateway"), "internetGateway", json!({})),
        "AttachInternetGateway" => {
            assert!(world.things.contains_key(&("vpc", id("VpcId"))));
            let gateway = world.things.get_mut(&("gateway", id("InternetGatewayId"))).unwrap();
            if gateway["vpc"].is_string() {
                return Err(("Resource.AlreadyAssociated", "it is already attached"));
            }
            gateway["vpc"] = json!(asked.of("VpcId"));
            Ok(json!({"return": "true"}))
        }
        "CreateRoute" => {
            let vpc = asked.of("RouteTableId").strip_prefix("rtb-").unwrap();
            assert_eq!(world.things[&("gateway", id("GatewayId"))]["vpc"], vpc);
            assert_eq!(asked.of("DestinationCidrBlock"), "0.0.0.0/0");
            let vpc = world.things.get_mut(&("vpc", number(vpc))).unwrap();
            if vpc["routed"] == true {
                return Err(("RouteAlreadyExists", "it exists"));
            }
            vpc["routed"] = json!(true);
            Ok(json!({"return": "true"}))
        }
        "CreateSubnet" => {
            let vpc = &world.things[&("vpc", id("VpcId"))];
            assert!(vpc["routed"] == true && vpc["range"] == asked.of("CidrBlock"), "it is made last");
            if world.of("subnet").any(|(_, one)| one["vpc"] == asked.of("VpcId")) {
                return Err(("InvalidSubnet.Conflict", "it conflicts with another subnet"));
            }
            let body =
                json!({"vpc": asked.of("VpcId"), "range": asked.of("CidrBlock"), "zone": asked.of("AvailabilityZone")});
            make(asked, world, ("subnet", "subnet"), "subnet", body)
        }
        "CreateSecurityGroup" => {
            let name = asked.of("GroupName");
            assert!(world.things.contains_key(&("vpc", id("VpcId"))));
            if world.of("firewall").any(|(_, one)| one["name"] == name) {
                return Err(("InvalidGroup.Duplicate", "it already exists"));
            }
            let body = json!({"vpc": asked.of("VpcId"), "group": name});
            make(asked, world, ("firewall", "security-group"), "", body)
        }
        "AuthorizeSecurityGroupIngress" => {
            let field = |n: usize, name: &str| asked.of(&format!("IpPermissions.{n}.{name}")).to_string();
            let group = ("firewall", id("GroupId"));
            let mut rules = world.things[&group]["rules"].as_array().cloned().unwrap_or_default();
            for n in (1..).take_while(|n| !field(*n, "IpProtocol").is_empty()) {
                let rule = json!({"isEgress": "false", "ipProtocol": field(n, "IpProtocol"), "fromPort": field(n, "FromPort"),
                    "toPort": field(n, "ToPort"), "cidrIpv4": field(n, "IpRanges.1.CidrIp")});
                let same = |known: &Value| {
                    ["ipProtocol", "fromPort", "toPort", "cidrIpv4"].iter().all(|key| known[key] == rule[key])
                };
                if rules.iter().any(same) {
                    return Err(("InvalidPermission.Duplicate", "it already exists"));
                }
                let mut rule = rule;
                rule["securityGroupRuleId"] = json!(world.number().to_string());
                rules.push(rule);
            }
            world.things.get_mut(&group).unwrap()["rules"] = json!(rules);
            Ok(json!({"return": "true"}))
        }
        "RevokeSecurityGroupIngress" => {
            let (gone, group) = (asked.list("SecurityGroupRuleId"), ("firewall", id("GroupId")));
            let rules = world.things.get_mut(&group).unwrap()["rules"].as_array_mut().unwrap();
            rules.retain(|rule| !gone.contains(&rule["securityGroupRuleId"].as_str().unwrap()));
            Ok(json!({"return": "true"}))
        }
        "CreateNetworkInterface" => {
            let body = json!({"subnet": asked.of("SubnetId"), "firewall": id("SecurityGroupId.1")});
            make(asked, world, ("interface", "network-interface"), "networkInterface", body)
        }
        "ModifyNetworkInterfaceAttribute" => {
            let (interface, group) = (asked.of("NetworkInterfaceId"), id("SecurityGroupId.1"));
            assert!(world.things.contains_key(&("firewall", group)));
            let of = |world: &World| {
                world.machines.iter().find(|(id, one)| interface_of(**id, one) == interface).map(|(id, _)| *id)
            };
            if let Some(machine) = of(world) {
                world.machines.get_mut(&machine).unwrap().body["firewalls"] = json!([{"firewall": group}]);
            }
            if let Some(one) = interface.parse().ok().and_then(|id| world.things.get_mut(&("interface", id))) {
                one["firewall"] = json!(group);
            }
            Ok(json!({"return": "true"}))
        }
        "AllocateAddress" => make(asked, world, ("address", "elastic-ip"), "", json!({})),
        "AssociateAddress" => {
            assert!(world.things.contains_key(&("interface", id("NetworkInterfaceId"))));
            let address = world.things.get_mut(&("address", id("AllocationId"))).unwrap();
            address["interface"] = json!(asked.of("NetworkInterfaceId"));
            Ok(json!({"return": "true"}))
        }
        "CreateTags" | "DeleteTags" => {
            let Some(machine) = world.machines.get_mut(&id("ResourceId.1")) else {
                return Err(("InvalidInstanceID.NotFound", "it does not exist"));
            };
            let (key, labels) = (asked.of("Tag.1.Key"), machine.body["labels"].as_object_mut().unwrap());
            match action {
                "CreateTags" => labels.insert(key.into(), json!(asked.of("Tag.1.Value"))),
                _ => labels.remove(key),
            };
            Ok(json!({"return": "true"}))
        }
        "RunInstances" => run(asked, world),
        "CreateVolume" => {
            let began = format!("token-{}", asked.of("ClientToken"));
            if let Some(known) = world.operations.get(&began) {
                return Ok(known.clone());
            }
            assert!(asked.of("VolumeType") == "gp3" && asked.of("AvailabilityZone") == ZONE);
            let body = json!({"size": asked.of("Size").parse::<u64>().unwrap(), "region": ZONE});
            let made = make(asked, world, ("volume", "volume"), "", body)?;
            world.operations.insert(began, made.clone());
            Ok(made)
        }
        "AttachVolume" => {
            assert_eq!(asked.of("Device"), "/dev/sdg", "somebody has attached one as /dev/sdf");
            carried(world.carry(id("VolumeId"), Some(id("InstanceId"))))
        }
        _ => change(action, asked, world),
    }
}

fn carried(refused: Option<&str>) -> Done {
    match refused {
        None => Ok(json!({"status": "attaching"})),
        Some("not_found") => Err(("InvalidVolume.NotFound", "it does not exist")),
        Some("locked") => Err(("IncorrectState", "it is not 'running'")),
        Some(_) => Err(("VolumeInUse", "it is already attached to an instance")),
    }
}

fn run(asked: &Asked, world: &mut World) -> Done {
    let began = format!("token-{}", asked.of("ClientToken"));
    if let Some(known) = world.operations.get(&began) {
        return Ok(known.clone());
    }
    if world.full() {
        return Err((
            "VcpuLimitExceeded",
            "You have requested more vCPU capacity than your current vCPU limit of 1 allows",
        ));
    }
    assert!(
        asked.of("MetadataOptions.HttpTokens") == "required" && asked.of("BlockDeviceMapping.1.Ebs.VolumeSize") == "25"
    );
    let of = |name: &str| asked.of(&format!("NetworkInterface.1.{name}"));
    let (subnet, group, at) = match of("NetworkInterfaceId") {
        "" => {
            assert!(of("AssociatePublicIpAddress") == "true" && of("DeleteOnTermination") == "true");
            (of("SubnetId").to_string(), number(of("SecurityGroupId.1")), None)
        }
        interface => {
            let known = &world.things[&("interface", number(interface))];
            if world.machines.iter().any(|(id, machine)| interface_of(*id, machine) == interface) {
                return Err(("InvalidNetworkInterface.InUse", "Interface is in use"));
            }
            assert!(leads(world, number(interface)), "its metadata would say no public address");
            (known["subnet"].as_str().unwrap().into(), known["firewall"].as_u64().unwrap(), Some(number(interface)))
        }
    };
    let there = |kind, id| world.things.contains_key(&(kind, id));
    assert!(there("subnet", number(&subnet)) && there("firewall", group));
    let mut labels = asked.tags("instance");
    assert_eq!(asked.tags_of(2, "volume")["kimg-role"], labels["kimg-role"]);
    let user_data = String::from_utf8(STANDARD.decode(asked.of("UserData")).unwrap()).unwrap();
    // As all fakes have it.
    let body = json!({"name": labels.remove("Name"), "size": asked.of("InstanceType"), "region": ZONE, "labels": labels,
        "user_data": user_data, "vpc_uuid": subnet, "firewalls": [{"firewall": group}], "interface": at.map(|at| at.to_string())});
    let id = world.number();
    let answer = json!({"instancesSet": [{"instanceId": id.to_string()}]});
    if world.refuses {
        let why = json!({"code": "Server.InsufficientInstanceCapacity", "message": "There is no more of it"});
        let ended = json!({"instanceId": id.to_string(), "instanceState": {"name": "terminated"}, "stateReason": why});
        world.operations.insert(format!("ended-{id}"), ended);
        return Ok(answer);
    }
    world.operations.insert(began, answer.clone());
    world.machines.insert(id, Machine { body, at, ..Machine::default() });
    Ok(answer)
}

/// What happens to a machine that is there.
fn change(action: &str, asked: &Asked, world: &mut World) -> Done {
    let id = number(asked.0.get("InstanceId").map_or_else(|| asked.of("InstanceId.1"), String::as_str));
    let began = format!("token-{}", asked.of("ClientToken"));
    if let Some(known) = world.operations.get(&began) {
        return Ok(known.clone());
    }
    let (task, fails) = (format!("task-{}", world.number()), world.keeps_disks);
    let Some(machine) = world.machines.get_mut(&id).filter(|machine| !machine.going) else {
        return Err(("IncorrectInstanceState", "it is shutting down"));
    };
    match action {
        "StartInstances" => machine.off = false,
        "StopInstances" => machine.off = true,
        "ModifyInstanceAttribute" => {
            assert!(machine.off, "user-data is that of a stopped instance");
            let told = STANDARD.decode(asked.of("UserData.Value")).unwrap();
            machine.body["user_data"] = json!(String::from_utf8(told).unwrap());
        }
        "CreateReplaceRootVolumeTask" => {
            if machine.off {
                return Err(("IncorrectInstanceState", "it does not run"));
            }
            assert_eq!(asked.of("DeleteReplacedRootVolume"), "true");
            if !fails {
                machine.rebuild(asked.of("ImageId"));
            }
            let answer = json!({"replaceRootVolumeTask": {"replaceRootVolumeTaskId": task}});
            world.operations.insert(task, json!({"server": id.to_string(), "failed": fails}));
            world.operations.insert(began, answer.clone());
            return Ok(answer);
        }
        what => panic!("{what}"),
    }
    Ok(json!({"return": "true"}))
}

fn remove(action: &str, asked: &Asked, world: &mut World) -> Done {
    if action == "DeleteTags" {
        return write(action, asked, world);
    }
    if action == "TerminateInstances" {
        let Some(machine) = world.machines.get_mut(&number(asked.of("InstanceId.1"))) else {
            return Err(("InvalidInstanceID.NotFound", "it does not exist"));
        };
        (machine.going, machine.looked) = (true, if machine.going { machine.looked } else { 0 });
        return Ok(json!({"return": "true"}));
    }
    if action == "DetachVolume" {
        let volume = number(asked.of("VolumeId"));
        return match world.attached(volume) {
            Some(at) if asked.of("InstanceId") == at.to_string() => carried(world.carry(volume, None)),
            _ => Err(("IncorrectState", "it is in the 'available' state")),
        };
    }
    let (kind, name) = match action {
        "DeleteVolume" if world.attached(number(asked.of("VolumeId"))).is_some() => {
            return Err(("VolumeInUse", "it is currently attached"));
        }
        "DeleteVolume" if world.things.contains_key(&("disk", number(asked.of("VolumeId")))) => {
            ("disk", asked.of("VolumeId"))
        }
        "DeleteVolume" => ("volume", asked.of("VolumeId")),
        "DeleteVpc" => ("vpc", asked.of("VpcId")),
        "DeleteSubnet" => ("subnet", asked.of("SubnetId")),
        "DeleteInternetGateway" | "DetachInternetGateway" => ("gateway", asked.of("InternetGatewayId")),
        "DeleteSecurityGroup" => ("firewall", asked.of("GroupId")),
        "DeleteNetworkInterface" => ("interface", asked.of("NetworkInterfaceId")),
        "ReleaseAddress" => ("address", asked.of("AllocationId")),
        what => panic!("{what}"),
    };
    let Some(one) = world.things.get(&(kind, number(name))).cloned() else {
        return Err(("InvalidID.NotFound", "it does not exist"));
    };
    let any = |kind: &str, key: &str, value: Value| world.of(kind).any(|(_, one)| one[key] == value);
    let id = number(name);
    let used = match action {
        "DeleteVpc" => ["subnet", "gateway", "firewall"].iter().any(|kind| any(kind, "vpc", json!(name))),
        "DeleteSubnet" => {
            any("interface", "subnet", json!(name)) || world.machines.values().any(|one| one.body["vpc_uuid"] == name)
        }
        "DetachInternetGateway" => world.of("address").any(|(_, one)| one["interface"].is_string()),
        "DeleteInternetGateway" => one["vpc"].is_string(),
        "DeleteSecurityGroup" => {
            let behind = |machine: &Machine| machine.body["firewalls"][0]["firewall"] == id;
            any("interface", "firewall", json!(id)) || world.machines.values().any(behind)
        }
        "DeleteNetworkInterface" => world.machines.iter().any(|(id, machine)| interface_of(*id, machine) == name),
        "DeleteVolume" => false,
        _ => one["interface"].is_string(),
    };
    match (used, action) {
        (true, "DeleteNetworkInterface") => return Err(("InvalidParameterValue", "it is currently in use")),
        (true, "ReleaseAddress") => return Err(("InvalidIPAddress.InUse", "it is in use")),
        (true, _) => return Err(("DependencyViolation", "it has dependencies and cannot be deleted")),
        _ => {}
    }
    if action == "DetachInternetGateway" {
        world.things.get_mut(&(kind, id)).unwrap()["vpc"] = Value::Null;
        return Ok(json!({"return": "true"}));
    }
    world.things.remove(&(kind, id));
    for (_, address) in world.things.iter_mut().filter(|((known, _), _)| kind == "interface" && *known == "address") {
        if address["interface"] == name {
            address["interface"] = Value::Null;
        }
    }
    Ok(json!({"return": "true"}))
}

/// Makes a thing with the tags that it is to bear; the answer shows it as `key`, or itself.
fn make(asked: &Asked, world: &mut World, (kind, called): (&'static str, &str), key: &str, mut body: Value) -> Done {
    let mut tags = asked.tags(called);
    let name = tags.remove("Name").unwrap();
    body["name"] = if kind == "firewall" { body["group"].take() } else { name };
    body["tags"] = Value::Object(tags);
    let id = world.add(kind, &body);
    world.operations.insert(format!("fresh-{id}"), Value::Null);
    let shown = shown(world, kind, id, &body);
    Ok(if key.is_empty() { shown } else { json!({key: shown}) })
}

fn shown(world: &World, kind: &str, id: u64, body: &Value) -> Value {
    let tag = |(key, value): (&String, &Value)| json!({"key": key, "value": value});
    let tags: Vec<Value> = body["tags"].as_object().into_iter().flatten().map(tag).collect();
    let name = id.to_string();
    let mut one = match kind {
        "vpc" => json!({"vpcId": name, "cidrBlock": body["range"]}),
        "subnet" => {
            json!({"subnetId": name, "vpcId": body["vpc"], "cidrBlock": body["range"], "availabilityZone": body["zone"]})
        }
        "gateway" if body["vpc"].is_string() => {
            json!({"internetGatewayId": name, "attachmentSet": [{"vpcId": body["vpc"], "state": "available"}]})
        }
        "gateway" => json!({"internetGatewayId": name}),
        "firewall" => json!({"groupId": name, "groupName": body["name"], "vpcId": body["vpc"]}),
        "interface" => json!({"networkInterfaceId": name, "subnetId": body["subnet"], "privateIpAddress": private(id),
            "groupSet": [{"groupId": body["firewall"].to_string()}]}),
        "volume" | "disk" => {
            let at = body["server"].as_u64().map(|at| json!([{"instanceId": at.to_string(), "status": "attached"}]));
            let status = if at.is_some() { "in-use" } else { "available" };
            json!({"volumeId": name, "size": body["size"].to_string(), "availabilityZone": body["region"],
                "status": status, "attachmentSet": at.unwrap_or(json!([]))})
        }
        _ => {
            let leads = body["interface"].as_str().map(|interface| world.public(number(interface)));
            json!({"allocationId": name, "publicIp": leads, "networkInterfaceId": body["interface"]})
        }
    };
    one["tagSet"] = json!(tags);
    one
}

/// Whether an address leads to an interface.
fn leads(world: &World, interface: u64) -> bool {
    let interface = json!(interface.to_string());
    world.of("address").any(|(_, one)| one["interface"] == interface)
}

/// The interface of a machine: its own, or one that was there before it.
fn interface_of(id: u64, machine: &Machine) -> String {
    machine.body["interface"].as_str().map_or(format!("of-{id}"), String::from)
}

fn instance(world: &World, id: u64, machine: &Machine) -> Value {
    let body = &machine.body;
    let state = match machine {
        Machine { going: true, .. } => "shutting-down",
        Machine { off: true, .. } => "stopped",
        // A root volume is changed while it runs.
        Machine { disks: 0, .. } if !world.runs(id) => "pending",
        _ => "running",
    };
    let own = [("Name", &body["name"])].into_iter().filter(|(_, name)| name.is_string());
    let labels = body["labels"].as_object().into_iter().flatten().map(|(key, value)| (key.as_str(), value));
    let tags: Vec<Value> = own.chain(labels).map(|(key, value)| json!({"key": key, "value": value})).collect();
    let at = machine.at.unwrap_or(id);
    // Only an address of its own outlives a stop.
    let address = (state == "running" || leads(world, at)).then(|| public(at));
    json!({"instanceId": id.to_string(), "instanceType": body["size"], "instanceState": {"name": state}, "tagSet": tags,
        "blockDeviceMapping": [{"deviceName": "/dev/xvda"}, {"deviceName": "/dev/sdf"}],
        "placement": {"availabilityZone": body["region"]}, "privateIpAddress": private(at), "ipAddress": address,
        "launchTime": "2027-02-01T00:00:00.000Z", "networkInterfaceSet": [{"networkInterfaceId": interface_of(id, machine),
            "groupSet": [{"groupId": body["firewalls"][0]["firewall"].to_string()}],
            "attachment": {"attachTime": CREATED.replace('Z', ".000Z")}}]})
}

fn answered(action: &str, value: &Value) -> Reply {
    let root = format!("{action}Response");
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<{root} xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\">"
    );
    Reply::new(200).body(format!("{text}{}</{root}>", xml(value)).as_bytes())
}

fn xml(value: &Value) -> String {
    let element = |name: &str, value: &Value| format!("<{name}>{}</{name}>\n", xml(value));
    match value {
        Value::Array(all) => all.iter().map(|one| element("item", one)).collect(),
        Value::Object(all) => {
            all.iter().filter(|(_, one)| !one.is_null()).map(|(name, one)| element(name, one)).collect()
        }
        Value::String(text) => text.replace('&', "&amp;").replace('<', "&lt;"),
        other => panic!("{other}"),
    }
}

fn error(status: u16, code: &str, said: &str) -> Reply {
    let errors = format!("<Errors><Error><Code>{code}</Code><Message>{said}</Message></Error></Errors>");
    Reply::new(status).body(format!("<Response>{errors}<RequestID>r</RequestID></Response>").as_bytes())
}
