//! EBS' direct APIs and EC2.

use super::{Image, Snapshot, World};
use crate::cache::hash;
use crate::web::fake::{Call, Reply};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const BLOCK: usize = 512 << 10;

pub(in super::super) fn answer(call: &Call, world: &mut World) -> Reply {
    let service = if call.path == "/ec2/" { "ec2" } else { "ebs" };
    let scope = format!("/eu-central-1/{service}/aws4_request");
    if !call.header("authorization").contains(&scope) {
        return Reply::new(403);
    }
    if call.header("x-amz-content-sha256") != hash::hex_of(&call.body) {
        return Reply::new(403).body(b"SignatureDoesNotMatch");
    }
    if service == "ec2" { ec2(call, world) } else { ebs(call, world) }
}

fn ebs(call: &Call, world: &mut World) -> Reply {
    let path: Vec<&str> = call.path.strip_prefix("/ebs/snapshots").unwrap().split('/').skip(1).collect();
    if std::mem::take(&mut world.busy) {
        return Reply::json(400, &json!({"message": "slow down"})).header("x-amzn-errortype", "ThrottlingException");
    }
    match (call.method.as_str(), &path[..]) {
        ("POST", []) => {
            let body = call.json();
            let token = body["ClientToken"].as_str().unwrap().to_string();
            let known = world.snapshots.iter().find(|(_, snapshot)| snapshot.token == token).map(|(id, _)| id.clone());
            let id = known.unwrap_or_else(|| {
                world.count += 1;
                let id = format!("snap-{}", world.count);
                let size = body["VolumeSize"].as_u64().unwrap() as usize;
                let description = body["Description"].as_str().unwrap().into();
                let status = "pending".into();
                let snapshot = Snapshot { token, description, size, status, ..Snapshot::default() };
                world.snapshots.insert(id.clone(), snapshot);
                id
            });
            Reply::json(201, &json!({"SnapshotId": id, "BlockSize": BLOCK, "Status": "pending"}))
        }
        ("PUT", [id, "blocks", index]) => {
            let sum = STANDARD.encode(hash::sha256(&call.body));
            let Some(snapshot) = world.snapshots.get_mut(*id) else { return Reply::new(404) };
            if call.header("x-amz-checksum") != sum || call.body.len() != BLOCK || snapshot.status != "pending" {
                return Reply::json(400, &json!({"message": "invalid block"}));
            }
            snapshot.blocks.insert(index.parse().unwrap(), call.body.clone());
            Reply::json(201, &json!({})).header("x-amz-checksum", &sum)
        }
        ("GET", [id, "blocks"]) => {
            let Some(snapshot) = world.snapshots.get(*id).filter(|snapshot| snapshot.status == "completed") else {
                return Reply::new(404);
            };
            // A block a page.
            let from = call.query.strip_prefix("pageToken=p%2B").map_or(0, |from| from.parse().unwrap());
            let mut blocks = snapshot.blocks.keys().copied().filter(|index| *index >= from);
            let listed: Vec<Value> = blocks
                .next()
                .map(|index| json!({"BlockIndex": index, "BlockToken": format!("t+{index}")}))
                .into_iter()
                .collect();
            let next = blocks.next().map(|index| format!("p+{index}"));
            Reply::json(200, &json!({"Blocks": listed, "BlockSize": BLOCK, "NextToken": next}))
        }
        ("GET", [id, "blocks", index]) => {
            let block = world.snapshots.get(*id).and_then(|snapshot| snapshot.blocks.get(&index.parse().unwrap()));
            let Some(block) = block.filter(|_| call.query == format!("blockToken=t%2B{index}")) else {
                return Reply::new(404);
            };
            let mut block = block.clone();
            block[BLOCK - 1] ^= u8::from(world.rots);
            Reply::new(200).body(&block)
        }
        ("POST", ["completion", id]) => {
            let (slow, damages) = (world.slow, world.damages);
            let Some(snapshot) = world.snapshots.get_mut(*id) else { return Reply::new(404) };
            let sums: Vec<u8> = snapshot.blocks.values().flat_map(|block| hash::sha256(block)).collect();
            let same = call.header("x-amz-checksum") == STANDARD.encode(hash::sha256(&sums)) && !damages;
            if !same || call.header("x-amz-changedblockscount") != snapshot.blocks.len().to_string() {
                return Reply::json(400, &json!({"message": "the checksum says that it is damaged"}));
            }
            snapshot.left = slow;
            snapshot.completed = true;
            Reply::json(202, &json!({"Status": "pending"}))
        }
        (method, path) => panic!("{method} {path:?}"),
    }
}

fn ec2(call: &Call, world: &mut World) -> Reply {
    let form: BTreeMap<String, String> =
        call.form().into_iter().map(|(k, _, v)| (k, String::from_utf8(v).unwrap())).collect();
    let of = |name: &str| form.get(name).cloned().unwrap_or_default();
    let refused = |code: &str| {
        Reply::new(400)
            .body(format!("<Response><Errors><Error><Code>{code}</Code></Error></Errors></Response>").as_bytes())
    };
    let action = of("Action");
    let answered =
        |text: String| Reply::new(200).body(format!("<{action}Response>{text}</{action}Response>").as_bytes());
    match action.as_str() {
        "DescribeImages" => {
            let only = (of("Filter.2.Name") == "image-id").then(|| of("Filter.2.Value.1"));
            let slow = world.slow;
            let found = world.images.iter_mut().filter(|(id, _)| only.as_ref().is_none_or(|only| only == *id));
            let text: String = found
                .map(|(id, image)| {
                    image.asked += usize::from(only.is_some());
                    if image.asked > slow {
                        image.status = "available".into();
                    }
                    let disk = format!("<item><ebs><snapshotId>{}</snapshotId></ebs></item>", image.snapshot);
                    format!(
                        "<item><imageId>{id}</imageId><imageState>{}</imageState><name>{}</name>\
                         <blockDeviceMapping>{disk}</blockDeviceMapping></item>",
                        image.status, image.name
                    )
                })
                .collect();
            let next = if world.endless { "<nextToken>t</nextToken>" } else { "" };
            answered(format!("<imagesSet>{text}</imagesSet>{next}"))
        }
        "DescribeSnapshots" => {
            let only = of("SnapshotId.1");
            let (refuses, lists_all) = (world.refuses, world.lists_all);
            let start = of("Filter.2.Value.1").trim_end_matches('*').to_string();
            let asked = |id: &String, known: &Snapshot| {
                (only.is_empty() || only == *id) && (lists_all || known.description.starts_with(&start))
            };
            let found = world.snapshots.iter_mut().filter(|(id, known)| asked(id, known));
            let text: String = found
                .map(|(id, snapshot)| {
                    match snapshot.left {
                        _ if !snapshot.completed => {}
                        0 if refuses => snapshot.status = "error".into(),
                        0 => snapshot.status = "completed".into(),
                        _ => snapshot.left -= 1,
                    }
                    let told = format!("<description>{}</description>", snapshot.description);
                    format!("<item><snapshotId>{id}</snapshotId><status>{}</status>{told}</item>", snapshot.status)
                })
                .collect();
            answered(format!("<snapshotSet>{text}</snapshotSet>"))
        }
        "RegisterImage" => {
            let (name, snapshot) = (of("Name"), of("BlockDeviceMapping.1.Ebs.SnapshotId"));
            if world.images.values().any(|image| image.name == name) {
                return refused("InvalidAMIName.Duplicate");
            }
            let Some(found) = world.snapshots.get(&snapshot).filter(|found| found.status == "completed") else {
                return refused("InvalidSnapshot.NotFound");
            };
            assert_eq!(of("BlockDeviceMapping.1.Ebs.VolumeSize"), found.size.to_string());
            let bytes = found.bytes();
            world.count += 1;
            let id = format!("ami-{}", world.count);
            let image = Image { name, status: "pending".into(), bytes, asked: 0, snapshot };
            world.images.insert(id.clone(), image);
            answered(format!("<imageId>{id}</imageId>"))
        }
        "DeregisterImage" => match world.images.remove(&of("ImageId")) {
            Some(_) => answered("<return>true</return>".into()),
            None => refused("InvalidAMIID.Unavailable"),
        },
        "DeleteSnapshot" => {
            let id = of("SnapshotId");
            if world.images.values().any(|image| image.snapshot == id) {
                return refused("InvalidSnapshot.InUse");
            }
            match world.snapshots.remove(&id) {
                Some(_) => answered("<return>true</return>".into()),
                None => refused("InvalidSnapshot.NotFound"),
            }
        }
        action => panic!("{action}"),
    }
}
