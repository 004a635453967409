//! Every provider against a stateful fake of it. The same questions for all: is the image there once and whole,
//! is everything else gone, and is each call one that the provider has published; with any call failing in any way.

use super::aws::Aws;
use super::digitalocean::DigitalOcean;
use super::fakes::{self, Object, Shared, Upload, World, held};
use super::gcp::Gcp;
use super::google::Account;
use super::hetzner::Hetzner;
use super::linode::Linode;
use super::openstack::OpenStack;
use super::proxmox::Proxmox;
use super::s3::{Bucket, Store};
use super::schema::Published;
use super::vultr::Vultr;
use super::{Leftover, Local, Provider, Uploaded, upload};
use crate::image::leave::Keys;
use crate::image::manifest::FileSum;
use crate::image::output::Format;
use crate::image::reader::Disk;
use crate::image::testing::{self, Fixture};
use crate::pki::Secrets;
use crate::web::Interrupted;
use crate::web::fake::{self, Call, Fault, Reply, Server, Virtual};
use indicatif::ProgressBar;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    S3,
    Aws,
    DigitalOcean,
    Gcp,
    Hetzner,
    Linode,
    OpenStack,
    Proxmox,
    Vultr,
}

const ALL: [Which; 9] = [
    Which::S3,
    Which::Aws,
    Which::DigitalOcean,
    Which::Gcp,
    Which::Hetzner,
    Which::Linode,
    Which::OpenStack,
    Which::Proxmox,
    Which::Vultr,
];

impl Which {
    fn answer(self, call: &Call, world: &mut World) -> Reply {
        match self {
            _ if call.path.starts_with("/bucket/") => fakes::s3::answer(call, world),
            Which::S3 => panic!("{}", call.path),
            Which::Aws => fakes::aws::answer(call, world),
            Which::DigitalOcean => fakes::digitalocean::answer(call, world),
            Which::Gcp => fakes::gcp::answer(call, world),
            Which::Hetzner => fakes::hetzner::answer(call, world),
            Which::Linode => fakes::linode::answer(call, world),
            Which::OpenStack => fakes::openstack::answer(call, world),
            Which::Proxmox => fakes::proxmox::answer(call, world),
            Which::Vultr => fakes::vultr::answer(call, world),
        }
    }

    fn published(self) -> Published {
        Published::new(match self {
            Which::S3 => include_str!("../../tests/data/providers/s3.json"),
            Which::Aws => include_str!("../../tests/data/providers/aws.json"),
            Which::DigitalOcean => include_str!("../../tests/data/providers/digitalocean.json"),
            Which::Gcp => include_str!("../../tests/data/providers/gcp.json"),
            Which::Hetzner => include_str!("../../tests/data/providers/hetzner.json"),
            Which::Linode => include_str!("../../tests/data/providers/linode.json"),
            Which::OpenStack => include_str!("../../tests/data/providers/openstack.json"),
            Which::Proxmox => include_str!("../../tests/data/providers/proxmox.json"),
            Which::Vultr => include_str!("../../tests/data/providers/vultr.json"),
        })
    }
}

/// A provider and the world that it talks to.
struct Stage {
    which: Which,
    world: Shared,
    server: Server,
    clock: Arc<Virtual>,
}

impl Stage {
    fn new(which: Which) -> Stage {
        let world: Shared = Arc::default();
        let there = world.clone();
        let server = Server::start(move |call| {
            let mut world = held(&there);
            let reply = which.answer(call, &mut world);
            let World { answered, stops, .. } = &mut *world;
            fake::count(answered, stops.as_ref());
            reply
        });
        Stage { which, world, server, clock: Virtual::new() }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        held(&self.world)
    }

    fn provider_for(&self, client: &crate::web::Client) -> Box<dyn Provider> {
        let url = self.server.url();
        let (ebs, ec2, v1) = (format!("{url}/ebs"), format!("{url}/ec2"), format!("{url}/v1"));
        let env = |name: &str| {
            let value = match name {
                "AWS_ACCESS_KEY_ID" => "key",
                "AWS_ENDPOINT_URL_EBS" => ebs.as_str(),
                "AWS_ENDPOINT_URL_EC2" => ec2.as_str(),
                "AWS_SECRET_ACCESS_KEY" | "OS_PASSWORD" | "PROXMOX_TOKEN_SECRET" => "s3cr3t",
                "PROXMOX_TOKEN_ID" => "kimg@pve!up",
                "DIGITALOCEAN_TOKEN" | "HCLOUD_TOKEN" | "LINODE_TOKEN" | "VULTR_API_KEY" => "t0ken",
                "HCLOUD_ENDPOINT" => v1.as_str(),
                "DIGITALOCEAN_API_URL"
                | "LINODE_URL"
                | "VULTR_API_URL"
                | "OS_AUTH_URL"
                | "PROXMOX_URL"
                | "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE"
                | "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE" => url.as_str(),
                "OS_USERNAME" | "OS_PROJECT_NAME" => "demo",
                _ => return None,
            };
            Some(value.to_string())
        };
        let bucket = || Bucket::open(client, &env, "bucket", "", Some(&url), None).unwrap().with_parts_of(PART);
        match self.which {
            Which::S3 => Box::new(Store::new(bucket())),
            Which::Aws => Box::new(Aws::new(client, &env, Some("eu-central-1")).unwrap()),
            Which::DigitalOcean => Box::new(DigitalOcean::new(client, &env, "fra1", bucket()).unwrap()),
            Which::Gcp => {
                let account = Account::of(client, &fakes::gcp::key_file(&url, "kimg@p")).unwrap();
                Box::new(Gcp::new(&env, account, "archive").unwrap().with_pieces_of(PART))
            }
            Which::Hetzner => {
                let provider = Hetzner::new(client, &env, Some("nbg1"), "cx23").unwrap();
                Box::new(provider.with_writer(Box::new(fakes::hetzner::Disk(self.world.clone()))))
            }
            Which::Linode => Box::new(Linode::new(client, &env, "eu-central").unwrap()),
            Which::OpenStack => Box::new(OpenStack::new(client, &env, Some("R1")).unwrap()),
            Which::Proxmox => Box::new(Proxmox::new(client, &env, "pve", "local").unwrap()),
            Which::Vultr => Box::new(Vultr::new(client, &env, bucket()).unwrap()),
        }
    }

    fn provider(&self) -> Box<dyn Provider> {
        self.provider_for(&self.clock.client())
    }

    fn upload(&self, image: &Local) -> anyhow::Result<Uploaded> {
        upload(&*self.provider(), image, &ProgressBar::hidden())
    }

    /// Whether exactly this image is there, whole.
    fn has(&self, image: &Local) -> bool {
        let sent = std::fs::read(&image.path).unwrap();
        let world = self.world();
        match self.which {
            Which::S3 => world.objects.len() == 1 && world.objects.values().all(|o| o.bytes == sent),
            _ => {
                world.images.len() == 1
                    && world.images.values().all(|i| i.name == image.name && unpadded(&i.bytes) == sent)
            }
        }
    }

    /// Things that are neither an image nor nothing.
    fn rest(&self) -> Vec<String> {
        let world = self.world();
        let uploads = world.uploads.values().map(|u| format!("upload of {}", u.key));
        let objects = world.objects.keys().filter(|_| self.which != Which::S3).cloned();
        let used = |id: &String| world.images.values().any(|image| image.snapshot == *id);
        let snapshots = world.snapshots.keys().filter(|id| !used(id)).cloned();
        let servers = world.servers.values().map(|server| server.name.clone());
        uploads.chain(objects).chain(snapshots).chain(servers).chain(world.keys.values().cloned()).collect()
    }

    fn is_empty(&self) -> bool {
        let world = self.world();
        let (images, snapshots) = (world.images.is_empty(), world.snapshots.is_empty());
        let servers = world.servers.is_empty() && world.keys.is_empty();
        images && snapshots && servers && world.objects.is_empty() && world.uploads.is_empty()
    }

    /// `but`: a call that was cut, and so is not what was sent.
    fn check_calls(&self, but: Option<usize>) {
        let (s3, own) = (Which::S3.published(), self.which.published());
        for (_, call) in self.server.calls().into_iter().enumerate().filter(|(n, _)| Some(*n) != but) {
            if call.path.starts_with("/bucket/") { s3.check(&call) } else { own.check(&call) }
        }
    }
}

/// Without the zeros at the end, which a disk has more of than its file.
fn unpadded(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    &bytes[..end]
}

const PART: u64 = 64 << 10;

/// An image of two and a half parts.
fn image(dir: &Path) -> Local {
    let path = dir.join("disk");
    let bytes: Vec<u8> = (0..40u32 << 10).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    std::fs::write(&path, &bytes).unwrap();
    Local {
        name: "kimg-c-master-0123456789ab".into(),
        role: "master".into(),
        sum: FileSum::of(&path).unwrap(),
        path,
        disk_size: 3 << 30,
        disk_sha256: "0123456789ab".into(),
    }
}

#[test]
fn an_image_arrives_once_and_by_published_calls() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    for which in ALL {
        let stage = Stage::new(which);
        stage.world().slow = 3;
        let first = stage.upload(&image).unwrap();
        assert!(!first.reused && stage.has(&image), "{which:?}");
        assert_eq!(stage.rest(), Vec::<String>::new(), "{which:?}");
        let sent = stage.server.calls().len();
        let again = stage.upload(&image).unwrap();
        assert_eq!(again, Uploaded { id: first.id.clone(), reused: true }, "{which:?}");
        assert!(stage.server.calls()[sent..].iter().all(|c| c.body.len() < 1000), "{which:?}: sent again");
        let listed = stage.provider().list().unwrap();
        assert_eq!((listed.len(), listed[0].name.as_str()), (1, image.name.as_str()), "{which:?}");
        stage.provider().delete(&first.id).unwrap();
        stage.provider().delete(&first.id).unwrap();
        assert!(stage.is_empty(), "{which:?}");
        stage.check_calls(None);
    }
}

/// What kimg signs in with, or signs calls by.
fn names_a_secret(text: &str) -> bool {
    ["s3cr3t", "t0ken", "PRIVATE KEY", "X-Amz-Signature="].iter().any(|secret| text.contains(secret))
}

/// What is logged while a test runs, down to the last detail.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn of<T>(&self, what: impl FnOnce() -> T) -> T {
        let log = self.clone();
        let log = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || log.clone());
        tracing::subscriber::with_default(log.finish(), what)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn any_call_may_fail_in_any_way() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    // Hundreds of uploads each: they share all cores.
    let each = &|which: Which| {
        let log = Log::default();
        let calls = {
            let stage = Stage::new(which);
            stage.upload(&image).unwrap();
            stage.server.calls().len()
        };
        let limited = Reply::json(429, &json!({"id": "too_many_requests"})).header("retry-after", "20");
        let faults = [
            Fault::CutRequest(100),
            Fault::CutAnswer(0),
            Fault::CutAnswer(40),
            Fault::Instead(Reply::new(503)),
            Fault::After(Reply::new(504)),
            Fault::Instead(limited),
            Fault::Instead(Reply::new(403)),
        ];
        for n in 0..calls {
            for fault in &faults {
                let stage = Stage::new(which);
                stage.server.fail(n, fault.clone());
                let at = format!("{which:?}, call {n}, {fault:?}");
                let ended = log.of(|| stage.upload(&image));
                if let Err(error) = &ended {
                    assert!(!names_a_secret(&format!("{error:#}")), "{at}: {error:#}");
                }
                match ended {
                    Ok(_) => assert!(stage.has(&image), "{at}"),
                    Err(error) if format!("{error:#}").contains("kimg gc") => {}
                    Err(error) => assert!(stage.is_empty(), "{at}: {error:#}: {:?}", stage.rest()),
                }
                // The next run gets there in any case, and `kimg gc` finds what is left.
                stage.upload(&image).unwrap_or_else(|error| panic!("{at}: the next run: {error:#}"));
                let provider = stage.provider();
                for leftover in provider.leftovers().unwrap() {
                    provider.discard(&leftover).unwrap();
                }
                assert!(stage.has(&image), "{at}: after another run");
                assert_eq!(stage.rest(), Vec::<String>::new(), "{at}");
                stage.check_calls(Some(n));
            }
        }
        let text = log.text();
        assert!(text.contains("trying again") && !names_a_secret(&text), "{which:?}: {text}");
    };
    std::thread::scope(|scope| {
        ALL.map(|which| scope.spawn(move || each(which))).into_iter().for_each(|thread| thread.join().unwrap())
    });
}

/// All that a provider was given of an image, in whichever form it takes one, is searched for each key of the cluster.
#[test]
fn no_provider_receives_a_key() {
    let dir = tempfile::tempdir().unwrap();
    let disk = |form: &str| {
        let raw = dir.path().join(form);
        let fixture = Fixture { settings: format!("secrets = \"{form}\"\n"), ..Fixture::new(dir.path()) };
        testing::image(&fixture, &raw);
        raw
    };
    let (sealed, plain) = (disk("sealed"), disk("plain"));
    let keys = Keys::of(&Secrets::open(&dir.path().join("secrets"))).unwrap();
    let received = dir.path().join("received");
    // What is in what came: the files of the disk, and what the form has besides.
    let found_in = |bytes: &[u8]| {
        std::fs::write(&received, bytes).unwrap();
        let inside = keys.search(Disk::open(&received).unwrap()).unwrap();
        [inside, keys.search(bytes).unwrap()].concat()
    };
    // Google's archive unpacks to a GiB at least; the long set searches one of an image.
    for which in ALL.into_iter().filter(|which| *which != Which::Gcp) {
        for (raw, clean) in [(&sealed, true), (&plain, false)] {
            // That keys would be found is shown for one packed and one plain form.
            if !clean && ![Which::S3, Which::OpenStack].contains(&which) {
                continue;
            }
            let stage = Stage::new(which);
            let path = dir.path().join("form");
            match stage.provider().format() {
                Format::Raw => drop(std::fs::copy(raw, &path).unwrap()),
                form => form.write(raw, &path).unwrap(),
            }
            let image = Local { sum: FileSum::of(&path).unwrap(), path, ..image(dir.path()) };
            stage.upload(&image).unwrap();
            let (sent, world) = (std::fs::read(&image.path).unwrap(), stage.world());
            assert_eq!(world.images.len() + world.objects.len(), 1, "{which:?}");
            let images = world.images.values().map(|image| &image.bytes);
            for bytes in images.chain(world.objects.values().map(|object| &object.bytes)) {
                assert!(bytes.starts_with(&sent), "{which:?}");
                let found = found_in(&bytes[..sent.len()]);
                assert_eq!(found.is_empty(), clean, "{which:?}: {found:?}");
            }
            let told: Vec<u8> =
                stage.server.calls().iter().flat_map(|call| format!("{:?}", call.headers).into_bytes()).collect();
            assert!(keys.search(&told[..]).unwrap().is_empty(), "{which:?}");
        }
    }
}

#[test]
fn what_a_provider_does_not_take_is_said_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    for (which, says) in [
        (Which::Aws, "the snapshot is 'error'"),
        (Which::DigitalOcean, "not an image"),
        (Which::Gcp, "no valid disk"),
        (Which::Hetzner, "no rescue system today"),
        (Which::Linode, "did not take"),
        (Which::OpenStack, "killed"),
        (Which::Proxmox, "checksum mismatch"),
        (Which::Vultr, "did not import"),
    ] {
        let stage = Stage::new(which);
        stage.world().refuses = true;
        let error = format!("{:#}", stage.upload(&image).unwrap_err());
        assert!(error.contains(says), "{error}");
        assert!(stage.is_empty(), "{which:?}");
    }
    for which in [Which::S3, Which::Aws, Which::Gcp, Which::Hetzner, Which::OpenStack] {
        let stage = Stage::new(which);
        stage.world().damages = true;
        let error = format!("{:#}", stage.upload(&image).unwrap_err());
        assert!(error.contains("damaged"), "{error}");
        assert!(stage.is_empty(), "{which:?}");
    }
    for which in [Which::DigitalOcean, Which::Vultr] {
        let stage = Stage::new(which);
        stage.world().private = true;
        let error = format!("{:#}", stage.upload(&image).unwrap_err());
        assert!(error.contains("must allow public objects"), "{error}");
        assert!(stage.is_empty() && !stage.server.log().iter().any(|c| c.starts_with("POST /v2/")), "{which:?}");
    }
}

#[test]
fn an_import_that_never_ends_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    for which in ALL.into_iter().filter(|which| *which != Which::S3) {
        let stage = Stage::new(which);
        stage.world().slow = usize::MAX;
        let error = format!("{:#}", stage.upload(&image).unwrap_err());
        assert!(error.contains("not done after 60 minutes"), "{error}");
        assert!(stage.is_empty(), "{which:?}");
    }
}

#[test]
fn a_crash_leaves_parts_that_the_next_run_uses() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    let stage = Stage::new(Which::S3);
    // As a killed run leaves it: the first part is there.
    let bytes = std::fs::read(&image.path).unwrap();
    let key = format!("{}.raw.zst", image.name);
    let parts = BTreeMap::from([(1, bytes[..PART as usize].to_vec())]);
    let upload = Upload { key, sum: image.sum.sha256.clone(), public: false, parts };
    stage.world().uploads.insert("u0".into(), upload);
    let left = stage.provider().leftovers().unwrap();
    assert_eq!(left, [Leftover { kind: "upload".into(), id: format!("{}.raw.zst?u0", image.name) }]);
    stage.upload(&image).unwrap();
    assert!(stage.has(&image));
    let sent: usize = stage.server.calls().iter().filter(|c| c.method == "PUT").map(|c| c.body.len()).sum();
    assert_eq!(sent, bytes.len() - PART as usize);
}

#[test]
fn a_store_that_never_ends_is_read_for_as_long_as_the_image_is() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    let stage = Stage::new(Which::S3);
    let bytes = vec![7; image.sum.size as usize + 1000];
    stage.world().objects.insert("x".into(), fakes::Object { sum: String::new(), bytes, public: false });
    let error = stage.provider().wait("x", &image).unwrap_err().to_string();
    let read = crate::cache::hash::hex_of(&vec![7; image.sum.size as usize + 1]);
    assert!(error.contains(&read) && error.contains("damaged"), "{error}");
}

#[test]
fn only_blocks_that_hold_something_are_sent() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = dir.path().join("disk");
    let block = 512 << 10;
    std::fs::write(&path, [vec![1; block], vec![0; 2 * block], vec![2; block / 2]].concat()).unwrap();
    let image = Local { sum: FileSum::of(&path).unwrap(), path, ..image(other.path()) };
    let stage = Stage::new(Which::Aws);
    stage.world().busy = true;
    stage.upload(&image).unwrap();
    assert!(stage.has(&image));
    let indices: Vec<usize> = stage.world().snapshots.values().flat_map(|s| s.blocks.keys().copied()).collect();
    assert_eq!(indices, [0, 3]);
    assert_eq!(stage.clock.slept_secs(), [1]);
    let rotten = Stage::new(Which::Aws);
    rotten.world().rots = true;
    let error = format!("{:#}", rotten.upload(&image).unwrap_err());
    assert!(error.contains("EBS has damaged") && error.contains("block 0"), "{error}");
    assert!(rotten.is_empty());
}

#[test]
fn a_snapshot_without_an_image_is_found() {
    let stage = Stage::new(Which::Aws);
    // The tag alone may be somebody else's.
    for (id, description) in [("snap-9", "kimg-demo-worker-0123"), ("snap-8", "a backup of kimg's volumes")] {
        let description = description.into();
        let snapshot = fakes::Snapshot { status: "pending".into(), description, ..fakes::Snapshot::default() };
        stage.world().snapshots.insert(id.into(), snapshot);
    }
    let left = stage.provider().leftovers().unwrap();
    assert_eq!(left, [Leftover { kind: "snapshot".into(), id: "snap-9".into() }]);
    stage.world().lists_all = true;
    assert_eq!(stage.provider().leftovers().unwrap(), left);
    stage.provider().discard(&left[0]).unwrap();
    assert!(stage.world().snapshots.keys().eq(["snap-8"]));
    stage.check_calls(None);
}

#[test]
fn servers_and_keys_of_earlier_runs_are_found() {
    let stage = Stage::new(Which::Hetzner);
    let server = || fakes::Server { name: "kimg-upload-1".into(), locked: 3, ..fakes::Server::default() };
    stage.world().servers.extend([("1".to_string(), server()), ("2".to_string(), server())]);
    stage.world().keys.insert("3".into(), "kimg-upload-1".into());
    let image =
        fakes::Image { name: "kimg-c-master-01".into(), status: "unavailable".into(), ..fakes::Image::default() };
    stage.world().images.insert("4".into(), image);
    let provider = stage.provider();
    let left = provider.leftovers().unwrap();
    let known: Vec<String> = left.iter().map(|left| format!("{} {}", left.kind, left.id)).collect();
    assert_eq!(known, ["image 4", "server 1", "server 2", "ssh-key 3"]);
    for leftover in &left {
        provider.discard(leftover).unwrap();
        provider.discard(leftover).unwrap();
    }
    assert!(stage.is_empty());
    stage.check_calls(None);
}

#[test]
fn an_image_that_glance_was_taking_when_it_crashed_is_found() {
    let stage = Stage::new(Which::OpenStack);
    for (id, name, status) in [
        ("i1", "kimg-c-worker-0123456789ab", "saving"),
        ("i2", "kimg-c-worker-0123456789ab", "queued"),
        ("i3", "kimg-c-master-0123456789ab", "active"),
        ("i4", "kimg-c-master-0123456789ab", "deactivated"),
        ("i5", "somebody's", "saving"),
    ] {
        let image = fakes::Image { name: name.into(), status: status.into(), ..fakes::Image::default() };
        stage.world().images.insert(id.into(), image);
    }
    let left: Vec<String> = stage.provider().leftovers().unwrap().into_iter().map(|known| known.id).collect();
    assert_eq!(left, ["i1", "i2"]);
}

#[test]
fn an_archive_that_is_there_is_not_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    // The hundred bytes that the fake does not take at first go there twice.
    for (flip, sent) in [(0, 0), (1, (160 << 10) + 100)] {
        let stage = Stage::new(Which::Gcp);
        let key = format!("kimg-staging-{}.tar.gz", image.name);
        let mut bytes = std::fs::read(&image.path).unwrap();
        bytes[9] ^= flip;
        stage.world().objects.insert(key.clone(), Object { bytes, ..Object::default() });
        assert_eq!(stage.provider().leftovers().unwrap(), [Leftover { kind: "object".into(), id: key }]);
        stage.upload(&image).unwrap();
        assert!(stage.has(&image) && stage.rest().is_empty());
        let bytes: usize = stage.server.calls().iter().filter(|c| c.method == "PUT").map(|c| c.body.len()).sum();
        assert_eq!(bytes, sent);
    }
}

#[test]
fn what_another_run_ended_stays() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    for (method, fine) in [("PUT", false), ("POST", true)] {
        let stage = Stage::new(Which::S3);
        stage.world().rival = Some((method, std::fs::read(&image.path).unwrap()));
        assert_eq!(stage.upload(&image).is_ok(), fine, "{method}");
        assert!(stage.has(&image) && stage.rest().is_empty(), "{method}");
    }
}

#[test]
fn whenever_the_user_interrupts_nothing_temporary_stays() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    for which in ALL {
        let mut interrupted = 0;
        for n in 0.. {
            let stage = Stage::new(which);
            stage.world().stops = Some((stage.clock.clone(), n));
            match stage.upload(&image) {
                Ok(_) => break,
                Err(error) => {
                    assert!(error.is::<Interrupted>(), "{which:?}, call {n}: {error:#}");
                    assert!(stage.is_empty(), "{which:?}, call {n}: {:?}", stage.rest());
                    interrupted += 1;
                }
            }
        }
        assert!(interrupted > 3, "{which:?}");
    }
}

#[test]
fn a_place_that_takes_no_bytes_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    let stage = Stage::new(Which::Linode);
    stage.world().expired = true;
    let error = format!("{:#}", stage.upload(&image).unwrap_err());
    assert!(error.contains("has expired") && !error.contains("s3cr3t"), "{error}");
    assert!(stage.is_empty());
    let stage = Stage::new(Which::Linode);
    stage.world().clear = true;
    let error = format!("{:#}", stage.upload(&image).unwrap_err());
    assert!(error.contains("without TLS"), "{error}");
    assert!(stage.is_empty());
    // Cloud Storage gives out another place when it is asked.
    let stage = Stage::new(Which::Gcp);
    stage.world().expired = true;
    stage.upload(&image).unwrap();
    assert!(stage.has(&image) && stage.rest().is_empty());
    let large = Local { disk_size: 7 << 30, ..image };
    let error = Stage::new(Which::Linode).upload(&large).unwrap_err();
    assert!(error.is::<crate::input::BadInput>(), "{error:#}");
}

#[test]
fn a_list_without_end_is_given_up() {
    // Proxmox has no pages.
    for which in ALL.into_iter().filter(|which| *which != Which::Proxmox) {
        let stage = Stage::new(which);
        stage.world().endless = true;
        let error = format!("{:#}", stage.provider().list().unwrap_err());
        assert!(error.contains("without end"), "{which:?}: {error}");
    }
}

#[test]
fn what_was_not_asked_for_is_not_removed() {
    for which in [Which::S3, Which::DigitalOcean, Which::Vultr] {
        let stage = Stage::new(which);
        for key in ["1700000000-5.age", "../../1800000000-5.age", "kimg-demo-worker-0123.raw.zst", "kimg-staging-1/x"] {
            stage.world().objects.insert(key.into(), Object::default());
        }
        for (id, key) in [("u1", "1700000000-5.age"), ("u2", "kimg-demo-worker-0123.raw.zst")] {
            stage.world().uploads.insert(id.into(), Upload { key: key.into(), ..Upload::default() });
        }
        stage.world().lists_all = true;
        let left: Vec<String> = stage.provider().leftovers().unwrap().into_iter().map(|known| known.id).collect();
        assert_eq!(left, ["kimg-demo-worker-0123.raw.zst?u2", "kimg-staging-1/x"], "{which:?}");
        if which == Which::S3 {
            let images: Vec<String> = stage.provider().list().unwrap().into_iter().map(|image| image.id).collect();
            assert_eq!(images, ["kimg-demo-worker-0123.raw.zst"]);
        }
    }
}

#[test]
fn who_answers_in_a_providers_place_is_no_empty_list() {
    for which in [Which::S3, Which::Aws, Which::Proxmox] {
        for ask in [|p: &dyn Provider| p.list().map(drop), |p: &dyn Provider| p.leftovers().map(drop)] {
            let stage = Stage::new(which);
            stage.server.fail(0, Fault::Instead(Reply::new(200).body(b"<html>portal</html>")));
            let error = ask(&*stage.provider()).expect_err("no list").to_string();
            assert!(error.contains("what answers is no") || error.contains("is no JSON"), "{which:?}: {error}");
        }
    }
}

#[test]
fn an_address_with_a_password_is_refused_and_not_shown() {
    let client = Virtual::new().client();
    let env = |name: &str| {
        let address = ["URL", "ENDPOINT"].iter().any(|part| name.contains(part));
        Some(if address { "https://u:pa55@api.example" } else { "s3cr3t" }.to_string())
    };
    let bucket = Bucket::open(&client, &env, "bucket", "", Some("https://s3.example"), None).unwrap();
    let account = Account::of(&client, &fakes::gcp::key_file("https://google.example", "kimg@p")).unwrap();
    for error in [
        Bucket::open(&client, &env, "bucket", "", Some("https://u:pa55@s3.example"), None).unwrap_err(),
        Aws::new(&client, &env, Some("r")).unwrap_err(),
        DigitalOcean::new(&client, &env, "fra1", bucket.clone()).unwrap_err(),
        Gcp::new(&env, account, "archive").unwrap_err(),
        Hetzner::new(&client, &env, None, "cx23").unwrap_err(),
        Linode::new(&client, &env, "eu-central").unwrap_err(),
        OpenStack::new(&client, &env, None).unwrap_err(),
        Proxmox::new(&client, &env, "pve", "local").unwrap_err(),
        Vultr::new(&client, &env, bucket).unwrap_err(),
    ] {
        assert!(error.is::<crate::input::BadInput>(), "{error:#}");
        assert!(error.to_string().contains("leave that out") && !error.to_string().contains("pa55"), "{error:#}");
    }
}

#[test]
fn a_signature_is_no_older_than_the_try() {
    let stage = Stage::new(Which::S3);
    stage.server.fail(0, Fault::Instead(Reply::new(429).header("retry-after", "800")));
    stage.provider().list().unwrap();
    let dates: Vec<String> = stage.server.calls().iter().map(|c| c.header("x-amz-date").to_string()).collect();
    assert!(dates.len() == 2 && dates[1] > dates[0], "{dates:?}");
}

#[test]
fn no_token_goes_out_in_clear() {
    let clock = Virtual::new();
    let env = |name: &str| match name {
        "DIGITALOCEAN_API_URL" | "HCLOUD_ENDPOINT" | "LINODE_URL" | "VULTR_API_URL" | "OS_AUTH_URL" => {
            Some("http://api.example".to_string())
        }
        _ => Some("s3cr3t".to_string()),
    };
    let client = clock.client();
    let bucket = |url: &str| Bucket::open(&client, &env, "bucket", "", Some(url), None);
    assert!(bucket("http://s3.example").is_err() && bucket("httpx://s3.example").is_err());
    let shelf = bucket("https://s3.example").unwrap();
    for error in [
        DigitalOcean::new(&client, &env, "fra1", shelf.clone()).unwrap_err(),
        Hetzner::new(&client, &env, None, "cx23").unwrap_err(),
        Linode::new(&client, &env, "eu-central").unwrap_err(),
        OpenStack::new(&client, &env, None).unwrap_err(),
        Proxmox::new(&client, &env, "pve", "local").unwrap_err(),
        Vultr::new(&client, &env, shelf).unwrap_err(),
    ] {
        assert!(error.to_string().contains("https:// only"), "{error}");
    }
    let account = || Account::of(&client, &fakes::gcp::key_file("https://google.example", "kimg@p")).unwrap();
    for name in ["CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE", "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE"] {
        let env = |asked: &str| (asked == name).then(|| "http://google.example".to_string());
        assert!(Gcp::new(&env, account(), "archive").unwrap_err().to_string().contains("https:// only"));
    }
    for name in ["AWS_ENDPOINT_URL_EBS", "AWS_ENDPOINT_URL_EC2"] {
        let env = |asked: &str| match asked {
            "AWS_ACCESS_KEY_ID" | "AWS_SECRET_ACCESS_KEY" => Some("s3cr3t".to_string()),
            _ => (asked == name).then(|| "http://aws.example".to_string()),
        };
        assert!(Aws::new(&client, &env, Some("r")).unwrap_err().to_string().contains("https:// only"));
    }
    let error = Account::of(&client, &fakes::gcp::key_file("http://google.example", "kimg@p")).unwrap_err();
    assert!(error.to_string().contains("https:// only"), "{error}");
    let stage = Stage::new(Which::OpenStack);
    stage.world().glance = Some("http://glance.example/image");
    let error = stage.provider().list().unwrap_err().to_string();
    assert!(error.contains("http://glance.example"), "{error}");
}

#[test]
fn a_token_that_ran_out_is_renewed() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    for which in [Which::OpenStack, Which::Gcp] {
        let stage = Stage::new(which);
        let provider = stage.provider();
        provider.list().unwrap();
        stage.world().token += 1;
        upload(&*provider, &image, &ProgressBar::hidden()).unwrap();
        assert!(stage.has(&image), "{which:?}");
    }
}

#[test]
fn a_dry_run_shows_the_calls_and_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    for (which, call) in [
        (Which::S3, "POST "),
        (Which::DigitalOcean, "POST http"),
        (Which::Aws, "/snapshots/completion/snap-0"),
        (Which::Gcp, "PUT https://UPLOAD"),
        (Which::Hetzner, "ssh root@192.0.2.1: 163840 bytes"),
        (Which::Linode, "PUT https://UPLOAD"),
        (Which::OpenStack, "PUT https://GLANCE/v2/images/IMAGE/file"),
        (Which::Proxmox, "name=\"checksum-algorithm\""),
        (Which::Vultr, "/v2/snapshots/create-from-url"),
    ] {
        let stage = Stage::new(which);
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = lines.clone();
        let client = stage.clock.client().dry(move |line| sink.lock().unwrap().push(line.to_string()));
        upload(&*stage.provider_for(&client), &image, &ProgressBar::hidden()).unwrap();
        let text = lines.lock().unwrap().join("\n");
        assert!(text.contains(call) && text.contains("(secret)"), "{which:?}: {text}");
        assert!(!names_a_secret(&text), "{which:?}: {text}");
        assert!(stage.server.calls().is_empty(), "{which:?}");
    }
}
