//! AWS: machine images of EC2, each made of a snapshot whose blocks are sent by the EBS direct APIs.
//! <https://docs.aws.amazon.com/ebs/latest/userguide/ebs-accessing-snapshot.html>
//!
//! No bucket and no role is needed, and blocks of zeros are not sent. EBS checks the SHA-256 of each block, and in the
//! end that of all of them.

use super::ec2::{Ec2, service};
use super::settings::Environment;
use super::sigv4::{EMPTY, Signer, query};
use super::{Leftover, Local, PREFIX, Provider, Remote, State, Temporaries, adopt};
use crate::cache::hash;
use crate::image::output::Format;
use crate::input;
use crate::web::{Answer, Client, Request};
use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use indicatif::ProgressBar;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::time::Duration;

/// The size of a block, by the protocol.
const BLOCK: usize = 512 << 10;
const EVERY: Duration = Duration::from_secs(10);
const LIMIT: Duration = Duration::from_secs(3600);
/// How often a new image may be asked for before it is known.
const UNSEEN: u32 = 12;
/// Minutes without a block after which EBS gives a snapshot up.
const TIMEOUT: u32 = 60;
/// How often EBS may say that it is asked too much.
const PATIENCE: u32 = 8;

/// An account and a region.
#[derive(Debug)]
pub struct Aws {
    client: Client,
    ebs: (String, Signer),
    ec2: Ec2,
    temporaries: Temporaries,
}

impl Aws {
    /// The account of AWS' own variables or file.
    ///
    /// # Errors
    /// There are no credentials, or no region.
    pub fn new(client: &Client, env: Environment<'_>, region: Option<&str>) -> Result<Aws> {
        let region = region.map(str::to_string).or_else(|| env("AWS_REGION")).or_else(|| env("AWS_DEFAULT_REGION"));
        let Some(region) = region else {
            return input::bad("--region is missing, e.g. eu-central-1; or set AWS_REGION");
        };
        let (ebs, ec2) = (service(env, &region, "ebs")?, Ec2::new(env, &region)?);
        Ok(Aws { client: client.clone(), ebs, ec2, temporaries: Temporaries::default() })
    }

    /// A call of EC2; `would` is what a dry run takes for the answer.
    fn ec2(&self, client: &Client, action: &str, pairs: &[(&str, &str)], would: &str) -> Result<Answer> {
        // Only this one makes something, and its name is free once.
        let request = self.ec2.request(action, pairs).repeatable(action != "RegisterImage");
        client.send(&request.would(200, &Value::String(would.into())))
    }

    /// A call of EBS, which says in words that it is asked too much.
    fn ebs(&self, request: &Request, headers: &[(&str, &str)], sum: &str) -> Result<Answer> {
        let mut tries = 0;
        loop {
            let answer = self.client.send(&self.ebs.1.sign_each(request.clone(), headers, sum))?;
            let busy = answer.status == 400
                && format!("{} {}", answer.header("x-amzn-errortype").unwrap_or_default(), answer.refused().said)
                    .contains("Throttl");
            if !busy || tries == PATIENCE {
                return Ok(answer);
            }
            self.client.clock().sleep(Duration::from_secs(1 << tries))?;
            tries += 1;
        }
    }

    /// kimg's images, each with its snapshots.
    fn images(&self, client: &Client, only: Option<&str>) -> Result<Vec<(Remote, Vec<String>)>> {
        let name = format!("{PREFIX}*");
        let mut pairs = vec![("Owner.1", "self"), ("Filter.1.Name", "name"), ("Filter.1.Value.1", name.as_str())];
        if let Some(id) = only {
            pairs.extend([("Filter.2.Name", "image-id"), ("Filter.2.Value.1", id)]);
        }
        let image = |one: &Value| {
            let text = |key: &str| one[key].as_str().unwrap_or_default().to_string();
            let remote = Remote {
                id: Some(text("imageId")).filter(|id| !id.is_empty())?,
                name: Some(text("name")).filter(|name| name.starts_with(PREFIX))?,
                state: match text("imageState").as_str() {
                    "available" => State::Ready,
                    "pending" | "transient" => State::Pending,
                    other => State::Broken(format!("its state is '{other}'")),
                },
                created: text("creationDate"),
            };
            let disks = one["blockDeviceMapping"].as_array().into_iter().flatten();
            Some((remote, disks.filter_map(|disk| Some(disk["ebs"]["snapshotId"].as_str()?.to_string())).collect()))
        };
        let found = self.ec2.described(client, "DescribeImages", &pairs, "imagesSet")?;
        Ok(found.iter().filter_map(image).collect())
    }

    /// Makes a snapshot of the disk.
    fn snapshot(&self, image: &Local, bar: &ProgressBar) -> Result<String> {
        let body = json!({
            "VolumeSize": image.disk_size.div_ceil(1 << 30),
            "Description": image.name,
            "Tags": [{"Key": "Name", "Value": image.name}, {"Key": "kimg", "Value": image.disk_sha256}],
            // With it, a second call makes no second snapshot.
            "ClientToken": format!("{:032x}", rand::random::<u128>()),
            "Timeout": TIMEOUT,
        });
        let request = Request::post(format!("{}/snapshots", self.ebs.0)).json(&body).repeatable(true);
        let request = request.would(201, &json!({"SnapshotId": "snap-0", "BlockSize": BLOCK}));
        let made = self.ebs(&request, &[], &hash::hex_of(body.to_string().as_bytes()))?.expect(&[201])?.json()?;
        let id = made["SnapshotId"].as_str().context("the answer names no snapshot")?.to_string();
        self.temporaries.add("snapshot", &id);
        if made["BlockSize"] != BLOCK {
            bail!("EBS wants blocks of {} bytes, and kimg knows {BLOCK}", made["BlockSize"]);
        }
        let sums = self.blocks(&id, image, bar)?;
        let (count, sum) = (
            sums.len().to_string(),
            STANDARD.encode(hash::sha256(&sums.values().flatten().copied().collect::<Vec<_>>())),
        );
        let headers = [
            ("x-amz-changedblockscount", count.as_str()),
            ("x-amz-checksum", sum.as_str()),
            ("x-amz-checksum-algorithm", "SHA256"),
            ("x-amz-checksum-aggregation-method", "LINEAR"),
        ];
        let request = Request::post(format!("{}/snapshots/completion/{id}", self.ebs.0)).repeatable(true);
        let request = request.would(202, &json!({"Status": "completed"}));
        self.ebs(&request, &headers, EMPTY)?.expect(&[202])?;
        self.client.poll(&format!("the snapshot {id}"), EVERY, LIMIT, || {
            let (action, set) = ("DescribeSnapshots", "snapshotSet");
            let would =
                format!("<{action}Response><{set}><item><status>completed</status></item></{set}></{action}Response>");
            let answer = self.ec2(&self.client, action, &[("SnapshotId.1", &id)], &would)?;
            let found = &self.ec2.read(action, answer)?[set][0];
            match found["status"].as_str().unwrap_or_default() {
                "completed" => Ok(Some(())),
                "pending" => Ok(None),
                other => bail!(
                    "EBS did not take {}: the snapshot is '{other}' {}",
                    image.name,
                    found["statusMessage"].as_str().unwrap_or_default()
                ),
            }
        })?;
        self.read_back(&id, image, &sums)?;
        Ok(id)
    }

    /// Sends the blocks that hold something; the SHA-256 of each.
    fn blocks(&self, id: &str, image: &Local, bar: &ProgressBar) -> Result<BTreeMap<u64, [u8; 32]>> {
        let mut file = File::open(&image.path).with_context(|| format!("opening {}", image.path.display()))?;
        let mut sums = BTreeMap::new();
        for index in 0.. {
            let mut block = vec![0; BLOCK];
            let length = fill(&mut file, &mut block).with_context(|| format!("reading {}", image.path.display()))?;
            if length == 0 {
                break;
            }
            if block.iter().any(|byte| *byte != 0) {
                let sum = hash::sha256(&block);
                let (shown, size) = (STANDARD.encode(sum), BLOCK.to_string());
                let headers = [
                    ("x-amz-checksum", shown.as_str()),
                    ("x-amz-checksum-algorithm", "SHA256"),
                    ("x-amz-data-length", size.as_str()),
                ];
                let request = Request::put(format!("{}/snapshots/{id}/blocks/{index}", self.ebs.0));
                let request = request.bytes("application/octet-stream", block).would(201, &Value::Null);
                self.ebs(&request, &headers, &hex::encode(sum))?.expect(&[201])?;
                sums.insert(index, sum);
            }
            bar.inc(length as u64);
        }
        Ok(sums)
    }

    /// Reads what the snapshot has, and compares it with what was sent.
    fn read_back(&self, id: &str, image: &Local, sent: &BTreeMap<u64, [u8; 32]>) -> Result<()> {
        let damaged =
            |what: String| format!("EBS has damaged {}: {what} of the snapshot {id} is not as it was sent", image.name);
        let place = format!("{}/snapshots/{id}/blocks", self.ebs.0);
        let (mut left, mut page) = (sent.clone(), String::new());
        // Each page has a block at least, or is the last.
        for _ in 0..=sent.len() {
            let asked = if page.is_empty() { String::new() } else { format!("?{}", query(&[("pageToken", &page)])) };
            let request = Request::get(format!("{place}{asked}")).would(200, &json!({"Blocks": []}));
            let listed = self.ebs(&request, &[], EMPTY)?.expect(&[200])?.json()?;
            if self.client.is_dry() {
                return Ok(());
            }
            for one in listed["Blocks"].as_array().into_iter().flatten() {
                let index = one["BlockIndex"].as_u64().context("a block that EBS lists has no index")?;
                let token = one["BlockToken"].as_str().context("a block that EBS lists has no token")?;
                let request = Request::get(format!("{place}/{index}?{}", query(&[("blockToken", token)])));
                let block = self.ebs(&request, &[], EMPTY)?.expect(&[200])?;
                if left.remove(&index) != Some(hash::sha256(&block.body)) {
                    bail!(damaged(format!("block {index}")));
                }
            }
            page = listed["NextToken"].as_str().unwrap_or_default().to_string();
            if page.is_empty() {
                break;
            }
        }
        match left.keys().next() {
            Some(index) => bail!(damaged(format!("block {index}"))),
            None => Ok(()),
        }
    }

    fn delete_snapshot(&self, id: &str) -> Result<()> {
        let answer = self.ec2(&self.client.for_cleanup(), "DeleteSnapshot", &[("SnapshotId", id)], "")?;
        if answer.refused().said.contains("InvalidSnapshot.NotFound") {
            return Ok(());
        }
        answer.expect(&[200]).map(|_| ())
    }
}

/// Reads until the block is full or the file ends.
fn fill(file: &mut File, block: &mut [u8]) -> std::io::Result<usize> {
    let mut length = 0;
    while length < block.len() {
        match file.read(&mut block[length..]) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

impl Provider for Aws {
    fn format(&self) -> Format {
        Format::Raw
    }

    fn list(&self) -> Result<Vec<Remote>> {
        Ok(self.images(&self.client, None)?.into_iter().map(|(image, _)| image).collect())
    }

    fn import(&self, image: &Local, bar: &ProgressBar) -> Result<String> {
        let snapshot = self.snapshot(image, bar)?;
        let size = image.disk_size.div_ceil(1 << 30).to_string();
        let description = format!("kimg {}, disk sha256 {}", image.role, image.disk_sha256);
        let pairs: [(&str, &str); 13] = [
            ("Name", &image.name),
            ("Description", &description),
            ("Architecture", "x86_64"),
            ("VirtualizationType", "hvm"),
            ("RootDeviceName", "/dev/xvda"),
            ("BlockDeviceMapping.1.DeviceName", "/dev/xvda"),
            ("BlockDeviceMapping.1.Ebs.SnapshotId", &snapshot),
            ("BlockDeviceMapping.1.Ebs.VolumeType", "gp3"),
            ("BlockDeviceMapping.1.Ebs.VolumeSize", &size),
            ("BlockDeviceMapping.1.Ebs.DeleteOnTermination", "true"),
            ("EnaSupport", "true"),
            ("BootMode", "uefi-preferred"),
            ("ImdsSupport", "v2.0"),
        ];
        let would = "<RegisterImageResponse><imageId>ami-0</imageId></RegisterImageResponse>";
        let made = self.ec2(&self.client, "RegisterImage", &pairs, would).and_then(|answer| {
            let read = self.ec2.read("RegisterImage", answer)?;
            Ok(read["imageId"].as_str().context("the answer names no image")?.to_string())
        });
        let id = made.or_else(|error| adopt(self, &image.name, error))?;
        // It goes with the image from now on.
        self.temporaries.keep(&snapshot);
        Ok(id)
    }

    fn wait(&self, id: &str, image: &Local) -> Result<()> {
        if self.client.is_dry() {
            return Ok(());
        }
        // What was registered a moment ago may not be listed yet.
        let mut unseen = 0;
        self.client.poll(&format!("the image {id}"), EVERY, LIMIT, || {
            let found = self.images(&self.client, Some(id))?.into_iter().next();
            match found.map(|(known, _)| known.state) {
                Some(State::Ready) => Ok(Some(())),
                Some(State::Pending) => Ok(None),
                Some(State::Broken(why)) => bail!("AWS did not take {}: {why}", image.name),
                None if unseen < UNSEEN => {
                    unseen += 1;
                    Ok(None)
                }
                None => bail!("AWS knows no image {id} any more"),
            }
        })
    }

    fn delete(&self, id: &str) -> Result<()> {
        let client = self.client.for_cleanup();
        for (_, snapshots) in self.images(&client, Some(id))? {
            let answer = self.ec2(&client, "DeregisterImage", &[("ImageId", id)], "")?;
            if !answer.refused().said.contains("InvalidAMIID") {
                answer.expect(&[200])?;
            }
            for snapshot in snapshots {
                self.delete_snapshot(&snapshot)?;
            }
        }
        Ok(())
    }

    fn tidy(&self) -> Result<()> {
        self.temporaries.clear(|leftover| self.discard(leftover))
    }

    /// Snapshots of kimg that no image has, and images that will never be ready.
    fn leftovers(&self) -> Result<Vec<Leftover>> {
        let images = self.images(&self.client, None)?;
        // The tag may be somebody else's, too.
        let name = format!("{PREFIX}*");
        let pairs = [
            ("Owner.1", "self"),
            ("Filter.1.Name", "tag-key"),
            ("Filter.1.Value.1", "kimg"),
            ("Filter.2.Name", "description"),
            ("Filter.2.Value.1", name.as_str()),
        ];
        let found = self.ec2.described(&self.client, "DescribeSnapshots", &pairs, "snapshotSet")?;
        let used = |id: &String| images.iter().any(|(_, snapshots)| snapshots.contains(id));
        // A server that overlooks what was asked for lists what is not ours to remove.
        let ours = |one: &Value| {
            let id = one["snapshotId"].as_str()?;
            one["description"].as_str()?.starts_with(PREFIX).then(|| id.to_string())
        };
        let loose = found.iter().filter_map(ours).filter(|id| !used(id));
        let loose: Vec<Leftover> = loose.map(|id| Leftover { kind: "snapshot".into(), id }).collect();
        let broken = images.into_iter().filter(|(image, _)| matches!(image.state, State::Broken(_)));
        Ok(loose.into_iter().chain(broken.map(|(image, _)| Leftover { kind: "image".into(), id: image.id })).collect())
    }

    fn discard(&self, leftover: &Leftover) -> Result<()> {
        if leftover.kind == "snapshot" { self.delete_snapshot(&leftover.id) } else { self.delete(&leftover.id) }
    }
}
