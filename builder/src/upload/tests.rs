//! Every provider against a stateful fake of it. The same questions for all: is the image there once and whole,
//! is everything else gone, and is each call one that the provider has published; with any call failing in any way.

use super::digitalocean::DigitalOcean;
use super::openstack::OpenStack;
use super::s3::{Bucket, Store};
use super::schema::Published;
use super::{Leftover, Local, Provider, Uploaded, upload};
use crate::cache::hash;
use crate::image::manifest::FileSum;
use crate::web::Interrupted;
use crate::web::fake::{Call, Fault, Reply, Server, Virtual};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard};

/// What the fakes know. One world is all of a provider's servers.
#[derive(Default)]
struct World {
    objects: BTreeMap<String, Object>,
    uploads: BTreeMap<String, Upload>,
    images: BTreeMap<String, Image>,
    count: usize,
    /// How often an image is asked for before it is ready.
    slow: usize,
    /// The importer does not take what it is given.
    refuses: bool,
    /// The bucket lets nobody in.
    private: bool,
    /// The store damages what it keeps.
    damages: bool,
    /// The token that counts.
    token: usize,
    /// Another kimg ends the upload with these bytes before a call of this method.
    rival: Option<(&'static str, Vec<u8>)>,
    /// The user interrupts kimg by this clock when an upload has been ended.
    stops: Option<Arc<Virtual>>,
    /// Lists have a next page always.
    endless: bool,
    /// Where Keystone says that Glance is.
    glance: Option<&'static str>,
}

#[derive(Default)]
struct Object {
    bytes: Vec<u8>,
    sum: String,
    public: bool,
}

struct Upload {
    key: String,
    sum: String,
    public: bool,
    parts: BTreeMap<u64, Vec<u8>>,
}

#[derive(Default)]
struct Image {
    name: String,
    status: String,
    bytes: Vec<u8>,
    asked: usize,
}

type Shared = Arc<Mutex<World>>;

fn held(world: &Shared) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn s3(call: &Call, world: &mut World) -> Reply {
    let key = call.path.strip_prefix("/bucket/").unwrap().to_string();
    let anonymous = call.header("authorization").is_empty();
    if anonymous && !world.objects.get(&key).is_some_and(|o| o.public && !world.private) {
        return Reply::new(403);
    }
    if !anonymous && call.header("x-amz-content-sha256") != hash::hex_of(&call.body) {
        return Reply::new(400).body(b"<Error><Code>XAmzContentSHA256Mismatch</Code></Error>");
    }
    let upload = call.asked("uploadId").map(str::to_string);
    let public = call.header("x-amz-acl") == "public-read";
    let rival = world.rival.take_if(|(method, _)| *method == call.method && upload.is_some());
    if let Some((_, bytes)) = rival {
        world.uploads.clear();
        world.objects.insert(key.clone(), Object { sum: hash::hex_of(&bytes), bytes, public });
    }
    match (call.method.as_str(), upload) {
        ("GET", None) if key.is_empty() => {
            let prefix = call.asked("prefix").unwrap_or_default();
            let of = |key: &str, rest: &str| format!("<Key>{key}</Key>{rest}");
            let list: String = if call.asked("uploads").is_some() {
                let found = world.uploads.iter().filter(|(_, u)| u.key.starts_with(prefix));
                found
                    .map(|(id, u)| format!("<Upload>{}</Upload>", of(&u.key, &format!("<UploadId>{id}</UploadId>"))))
                    .collect()
            } else {
                let found = world.objects.keys().filter(|k| k.starts_with(prefix));
                found.map(|k| format!("<Contents>{}</Contents>", of(k, "<LastModified>now</LastModified>"))).collect()
            };
            let next = if world.endless { "<NextContinuationToken>t</NextContinuationToken>" } else { "" };
            let more = format!("<IsTruncated>{}</IsTruncated>{next}", world.endless);
            Reply::new(200).body(format!("<R>{more}{list}</R>").as_bytes())
        }
        ("GET", Some(id)) => match world.uploads.get(&id) {
            Some(upload) => {
                let part = |(n, bytes): (&u64, &Vec<u8>)| {
                    format!(
                        "<Part><PartNumber>{n}</PartNumber><ETag>&quot;{n}&quot;</ETag><Size>{}</Size></Part>",
                        bytes.len()
                    )
                };
                Reply::new(200).body(upload.parts.iter().map(part).collect::<String>().as_bytes())
            }
            None => Reply::new(404),
        },
        ("GET" | "HEAD", None) => match world.objects.get(&key) {
            Some(object) if call.header("range").is_empty() => {
                Reply::new(200).header("x-amz-meta-sha256", &object.sum).body(&object.bytes)
            }
            Some(object) => Reply::new(206).body(&object.bytes[..1]),
            None => Reply::new(404),
        },
        ("POST", None) => {
            world.count += 1;
            let id = format!("u{}", world.count);
            let sum = call.header("x-amz-meta-sha256").to_string();
            world.uploads.insert(id.clone(), Upload { key, sum, public, parts: BTreeMap::new() });
            Reply::new(200).body(format!("<UploadId>{id}</UploadId>").as_bytes())
        }
        ("PUT", Some(id)) => {
            let number: u64 = call.asked("partNumber").unwrap().parse().unwrap();
            match world.uploads.get_mut(&id) {
                Some(upload) => {
                    upload.parts.insert(number, call.body.clone());
                    Reply::new(200).header("etag", &format!("\"{number}\""))
                }
                None => Reply::new(404),
            }
        }
        ("POST", Some(id)) => {
            let Some(upload) = world.uploads.remove(&id) else { return Reply::new(404) };
            let named: Vec<u64> = upload.parts.keys().copied().collect();
            let body = String::from_utf8(call.body.clone()).unwrap();
            assert!(named.iter().all(|n| body.contains(&format!("<PartNumber>{n}</PartNumber>"))), "{body}");
            let mut bytes: Vec<u8> = upload.parts.into_values().flatten().collect();
            if world.damages {
                bytes[7] ^= 1;
            }
            world.objects.insert(upload.key, Object { bytes, sum: upload.sum, public: upload.public });
            if let Some(clock) = &world.stops {
                clock.stopped.store(true, Relaxed);
            }
            Reply::new(200)
        }
        ("PUT", None) => {
            let sum = call.header("x-amz-meta-sha256").to_string();
            world.objects.insert(key, Object { bytes: call.body.clone(), sum, public });
            Reply::new(200)
        }
        ("DELETE", Some(id)) => Reply::new(if world.uploads.remove(&id).is_some() { 204 } else { 404 }),
        ("DELETE", None) => {
            world.objects.remove(&key);
            Reply::new(204)
        }
        (method, _) => panic!("{method}"),
    }
}

fn digitalocean(call: &Call, world: &mut World) -> Reply {
    if call.header("authorization") != "Bearer t0ken" {
        return Reply::json(401, &json!({"id": "unauthorized"}));
    }
    let shown = |(id, image): (&String, &Image)| {
        json!({"id": id.parse::<u64>().unwrap(), "name": image.name, "status": image.status,
            "error_message": if image.status == "deleted" { "not an image" } else { "" }})
    };
    let id = call.path.strip_prefix("/v2/images/").map(str::to_string);
    match (call.method.as_str(), id) {
        ("GET", None) => {
            let images: Vec<Value> = world.images.iter().map(shown).collect();
            let next = world.endless.then(|| format!("http://{}/v2/images?page=2", call.header("host")));
            Reply::json(200, &json!({"images": images, "links": {"pages": {"next": next}}}))
        }
        ("POST", None) => {
            let body = call.json();
            let key = body["url"].as_str().unwrap().split("/bucket/").nth(1).unwrap().to_string();
            world.count += 1;
            let id = world.count.to_string();
            let bytes = world.objects.get(&key).map(|o| o.bytes.clone()).unwrap_or_default();
            let name = body["name"].as_str().unwrap().to_string();
            world.images.insert(id.clone(), Image { name, status: "NEW".into(), bytes, asked: 0 });
            Reply::json(202, &json!({"image": shown((&id, &world.images[&id]))}))
        }
        ("GET", Some(id)) => {
            let (slow, refuses) = (world.slow, world.refuses);
            let Some(image) = world.images.get_mut(&id) else { return Reply::new(404) };
            image.asked += 1;
            if image.asked > slow {
                image.status = if refuses { "deleted".into() } else { "available".into() };
            } else if image.asked > 1 {
                image.status = "pending".into();
            }
            Reply::json(200, &json!({"image": shown((&id, &world.images[&id]))}))
        }
        ("DELETE", Some(id)) => Reply::new(if world.images.remove(&id).is_some() { 204 } else { 404 }),
        (method, _) => panic!("{method}"),
    }
}

fn openstack(call: &Call, world: &mut World) -> Reply {
    if call.path == "/v3/auth/tokens" {
        if call.json()["auth"]["identity"]["password"]["user"]["password"] != "s3cr3t" {
            return Reply::new(401);
        }
        world.token += 1;
        let url = world.glance.map_or(format!("http://{}/image", call.header("host")), str::to_string);
        let endpoints = json!([{"interface": "public", "region": "R1", "url": url},
            {"interface": "internal", "region": "R1", "url": "http://inside"}]);
        let token = json!({"token": {"catalog": [{"type": "image", "endpoints": endpoints}]}});
        return Reply::json(201, &token).header("x-subject-token", &format!("t{}", world.token));
    }
    if call.header("x-auth-token") != format!("t{}", world.token) {
        return Reply::new(401);
    }
    let shown = |(id, image): (&String, &Image)| {
        let sum = hex::encode(ring::digest::digest(&ring::digest::SHA512, &image.bytes));
        json!({"id": id, "name": image.name, "status": image.status, "size": image.bytes.len(),
            "os_hash_algo": "sha512", "os_hash_value": sum})
    };
    let id = call.path.strip_prefix("/image/v2/images/").map(str::to_string);
    match (call.method.as_str(), id) {
        ("GET", None) => {
            // One image a page.
            let after = call.asked("marker").unwrap_or_default();
            let mut rest = world.images.iter().filter(|(id, _)| id.as_str() > after);
            let mut page = json!({"images": rest.next().map(shown).into_iter().collect::<Vec<_>>()});
            if rest.next().is_some() {
                let marker = page["images"][0]["id"].as_str().unwrap().to_string();
                page["next"] = json!(format!("/v2/images?tag=kimg&limit=100&marker={marker}"));
            }
            if world.endless {
                page["next"] = json!("/v2/images?tag=kimg&limit=100");
            }
            Reply::json(200, &page)
        }
        ("POST", None) => {
            world.count += 1;
            let id = format!("i{}", world.count);
            let name = call.json()["name"].as_str().unwrap().to_string();
            let image = Image { name, status: "queued".into(), ..Image::default() };
            world.images.insert(id.clone(), image);
            Reply::json(201, &shown((&id, &world.images[&id])))
        }
        ("PUT", Some(path)) => {
            let (damages, slow) = (world.damages, world.slow);
            let Some(image) = world.images.get_mut(path.strip_suffix("/file").unwrap()) else { return Reply::new(404) };
            if image.status != "queued" {
                return Reply::new(409);
            }
            image.bytes.clone_from(&call.body);
            if damages {
                image.bytes[7] ^= 1;
            }
            image.status = if slow > 0 { "saving".into() } else { "active".into() };
            Reply::new(204)
        }
        ("GET", Some(id)) => {
            let (slow, refuses) = (world.slow, world.refuses);
            let Some(image) = world.images.get_mut(&id) else { return Reply::new(404) };
            image.asked += 1;
            if image.status == "saving" && image.asked > slow {
                image.status = "active".into();
            }
            if refuses {
                image.status = "killed".into();
            }
            Reply::json(200, &shown((&id, &world.images[&id])))
        }
        ("DELETE", Some(id)) => Reply::new(if world.images.remove(&id).is_some() { 204 } else { 404 }),
        (method, _) => panic!("{method}"),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    S3,
    DigitalOcean,
    OpenStack,
}

const ALL: [Which; 3] = [Which::S3, Which::DigitalOcean, Which::OpenStack];

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
            match which {
                _ if call.path.starts_with("/bucket/") => s3(call, &mut world),
                Which::OpenStack => openstack(call, &mut world),
                _ => digitalocean(call, &mut world),
            }
        });
        Stage { which, world, server, clock: Virtual::new() }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        held(&self.world)
    }

    fn provider_for(&self, client: &crate::web::Client) -> Box<dyn Provider> {
        let url = self.server.url();
        let env = |name: &str| {
            let value = match name {
                "AWS_ACCESS_KEY_ID" => "key",
                "AWS_SECRET_ACCESS_KEY" | "OS_PASSWORD" => "s3cr3t",
                "DIGITALOCEAN_TOKEN" => "t0ken",
                "DIGITALOCEAN_API_URL" | "OS_AUTH_URL" => url.as_str(),
                "OS_USERNAME" | "OS_PROJECT_NAME" => "demo",
                _ => return None,
            };
            Some(value.to_string())
        };
        let bucket = || Bucket::open(client, &env, "bucket", "", Some(&url), None).unwrap().with_parts_of(PART);
        match self.which {
            Which::S3 => Box::new(Store::new(bucket())),
            Which::DigitalOcean => Box::new(DigitalOcean::new(client, &env, "fra1", bucket()).unwrap()),
            Which::OpenStack => Box::new(OpenStack::new(client, &env, Some("R1")).unwrap()),
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
            _ => world.images.len() == 1 && world.images.values().all(|i| i.name == image.name && i.bytes == sent),
        }
    }

    /// Things that are neither an image nor nothing.
    fn rest(&self) -> Vec<String> {
        let world = self.world();
        let uploads = world.uploads.values().map(|u| format!("upload of {}", u.key));
        let objects = world.objects.keys().filter(|_| self.which != Which::S3).cloned();
        uploads.chain(objects).collect()
    }

    fn is_empty(&self) -> bool {
        let world = self.world();
        world.images.is_empty() && world.objects.is_empty() && world.uploads.is_empty()
    }

    /// `but`: a call that was cut, and so is not what was sent.
    fn check_calls(&self, but: Option<usize>) {
        let s3 = Published::new(include_str!("../../tests/data/providers/s3.json"));
        let own = match self.which {
            Which::OpenStack => Published::new(include_str!("../../tests/data/providers/openstack.json")),
            _ => Published::new(include_str!("../../tests/data/providers/digitalocean.json")),
        };
        for (_, call) in self.server.calls().into_iter().enumerate().filter(|(n, _)| Some(*n) != but) {
            if call.path.starts_with("/bucket/") { s3.check(&call) } else { own.check(&call) }
        }
    }
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

#[test]
fn any_call_may_fail_in_any_way() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    for which in ALL {
        let calls = {
            let stage = Stage::new(which);
            stage.upload(&image).unwrap();
            stage.server.calls().len()
        };
        let limited = Reply::json(429, &json!({"id": "too_many_requests"})).header("retry-after", "20");
        for n in 0..calls {
            for fault in [
                Fault::CutRequest(100),
                Fault::CutAnswer(0),
                Fault::CutAnswer(40),
                Fault::Instead(Reply::new(503)),
                Fault::After(Reply::new(504)),
                Fault::Instead(limited.clone()),
                Fault::Instead(Reply::new(403)),
            ] {
                let stage = Stage::new(which);
                stage.server.fail(n, fault.clone());
                let at = format!("{which:?}, call {n}, {fault:?}");
                match stage.upload(&image) {
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
    }
}

#[test]
fn what_a_provider_does_not_take_is_said_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    for (which, says) in [(Which::DigitalOcean, "not an image"), (Which::OpenStack, "killed")] {
        let stage = Stage::new(which);
        stage.world().refuses = true;
        let error = format!("{:#}", stage.upload(&image).unwrap_err());
        assert!(error.contains(says), "{error}");
        assert!(stage.is_empty(), "{which:?}");
    }
    for which in [Which::S3, Which::OpenStack] {
        let stage = Stage::new(which);
        stage.world().damages = true;
        let error = format!("{:#}", stage.upload(&image).unwrap_err());
        assert!(error.contains("damaged"), "{error}");
        assert!(stage.is_empty(), "{which:?}");
    }
    let stage = Stage::new(Which::DigitalOcean);
    stage.world().private = true;
    let error = format!("{:#}", stage.upload(&image).unwrap_err());
    assert!(error.contains("must allow public objects"), "{error}");
    assert!(stage.is_empty() && !stage.server.log().iter().any(|c| c == "POST /v2/images"));
}

#[test]
fn an_import_that_never_ends_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    for which in [Which::DigitalOcean, Which::OpenStack] {
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
fn an_object_is_removed_when_its_answer_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    for which in [Which::S3, Which::DigitalOcean] {
        let stage = Stage::new(which);
        stage.world().stops = Some(stage.clock.clone());
        let error = stage.upload(&image).unwrap_err();
        assert!(error.is::<Interrupted>(), "{error:#}");
        assert!(stage.is_empty(), "{which:?}");
    }
}

#[test]
fn a_list_without_end_is_given_up() {
    for which in ALL {
        let stage = Stage::new(which);
        stage.world().endless = true;
        let error = format!("{:#}", stage.provider().list().unwrap_err());
        assert!(error.contains("without end"), "{which:?}: {error}");
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
        "DIGITALOCEAN_API_URL" | "OS_AUTH_URL" => Some("http://api.example".to_string()),
        _ => Some("s3cr3t".to_string()),
    };
    let client = clock.client();
    let bucket = |url: &str| Bucket::open(&client, &env, "bucket", "", Some(url), None);
    assert!(bucket("http://s3.example").is_err() && bucket("httpx://s3.example").is_err());
    let shelf = bucket("https://s3.example").unwrap();
    let error = DigitalOcean::new(&client, &env, "fra1", shelf).unwrap_err().to_string();
    assert!(error.contains("https:// only"), "{error}");
    assert!(OpenStack::new(&client, &env, None).unwrap_err().to_string().contains("https:// only"));
    let stage = Stage::new(Which::OpenStack);
    stage.world().glance = Some("http://glance.example/image");
    let error = stage.provider().list().unwrap_err().to_string();
    assert!(error.contains("http://glance.example"), "{error}");
}

#[test]
fn a_token_that_ran_out_is_renewed() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    let stage = Stage::new(Which::OpenStack);
    let provider = stage.provider();
    provider.list().unwrap();
    stage.world().token += 1;
    upload(&*provider, &image, &ProgressBar::hidden()).unwrap();
    assert!(stage.has(&image));
}

#[test]
fn a_dry_run_shows_the_calls_and_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    for (which, call) in [
        (Which::S3, "POST "),
        (Which::DigitalOcean, "POST http"),
        (Which::OpenStack, "PUT https://GLANCE/v2/images/IMAGE/file"),
    ] {
        let stage = Stage::new(which);
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = lines.clone();
        let client = stage.clock.client().dry(move |line| sink.lock().unwrap().push(line.to_string()));
        upload(&*stage.provider_for(&client), &image, &ProgressBar::hidden()).unwrap();
        let text = lines.lock().unwrap().join("\n");
        assert!(text.contains(call) && text.contains("(secret)"), "{which:?}: {text}");
        assert!(!text.contains("s3cr3t") && !text.contains("t0ken"), "{which:?}: {text}");
        assert!(stage.server.calls().is_empty(), "{which:?}");
    }
}
