//! Google: tokens for what the right key signed, Cloud Storage and Compute Engine.

use super::super::google::crc32c;
use super::{Image, Object, Task, Upload, World};
use crate::web::fake::{Call, Reply};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use rsa::pkcs1::EncodeRsaPublicKey;
use rsa::pkcs8::{EncodePrivateKey, LineEnding};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// Making one takes a while.
static KEY: LazyLock<rsa::RsaPrivateKey> =
    LazyLock::new(|| rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).unwrap());

/// A service account's key file.
pub(crate) fn key_file(url: &str, email: &str) -> String {
    let pem = KEY.to_pkcs8_pem(LineEnding::LF).unwrap().to_string();
    json!({"type": "service_account", "project_id": "p", "client_email": email, "private_key": pem,
        "token_uri": format!("{url}/token")})
    .to_string()
}

fn token(call: &Call, world: &mut World) -> Reply {
    let body = String::from_utf8(call.body.clone()).unwrap();
    let grant = "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion=";
    let (text, signature) = body.strip_prefix(grant).unwrap().rsplit_once('.').unwrap();
    let public = KEY.to_public_key().to_pkcs1_der().unwrap();
    let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public.as_bytes());
    if key.verify(text.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap()).is_err() {
        return Reply::json(400, &json!({"error": "invalid_grant"}));
    }
    let part = |n: usize| -> Value {
        let part = text.split('.').nth(n).unwrap();
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
    };
    assert_eq!(part(0), json!({"alg": "RS256", "typ": "JWT"}));
    let (iat, exp) = (part(1)["iat"].as_i64().unwrap(), part(1)["exp"].as_i64().unwrap());
    assert!(part(1)["iss"] == "kimg@p" && iat >= 1_800_000_000 && exp - iat <= 3600);
    assert_eq!(part(1)["aud"], format!("http://{}/token", call.header("host")));
    world.token += 1;
    Reply::json(
        200,
        &json!({"access_token": format!("t0ken-{}", world.token), "expires_in": 3599, "token_type": "Bearer"}),
    )
}

pub(in super::super) fn answer(call: &Call, world: &mut World) -> Reply {
    if call.path == "/token" {
        return token(call, world);
    }
    if call.method == "PUT" {
        return piece(call, world);
    }
    if call.header("authorization") != format!("Bearer t0ken-{}", world.token) {
        return Reply::new(401);
    }
    if let Some(path) = call.path.strip_prefix("/compute/v1/projects/p/global/") {
        return compute(call, path, world);
    }
    if call.path.starts_with("/upload/") {
        let id = world.task();
        let key = call.asked("name").unwrap().to_string();
        let upload = Upload { key, sum: String::new(), public: false, parts: BTreeMap::new() };
        world.sessions.insert(id.clone(), upload);
        let place = format!("http://{}/place?upload_id={id}", call.header("host"));
        return Reply::new(200).header("location", &place);
    }
    let key = call.path.strip_prefix("/storage/v1/b/archive/o/").unwrap_or_default();
    match call.method.as_str() {
        "GET" if key.is_empty() => {
            let found: Vec<Value> = world.objects.keys().map(|key| json!({"name": key})).collect();
            Reply::json(200, &json!({"items": found}))
        }
        "GET" => match world.objects.get(key) {
            Some(object) => {
                let file = tempfile::NamedTempFile::new().unwrap();
                std::fs::write(file.path(), &object.bytes).unwrap();
                let size = object.bytes.len().to_string();
                Reply::json(200, &json!({"name": key, "size": size, "crc32c": crc32c(file.path()).unwrap()}))
            }
            None => Reply::new(404),
        },
        "DELETE" => Reply::new(if world.objects.remove(key).is_some() { 204 } else { 404 }),
        method => panic!("{method}"),
    }
}

/// Takes a piece, or a part of it, wherever what it has ends.
fn piece(call: &Call, world: &mut World) -> Reply {
    assert_eq!(call.header("authorization"), "", "the token went to the place");
    if std::mem::take(&mut world.expired) {
        return Reply::new(410);
    }
    let id = call.asked("upload_id").unwrap();
    let Some(upload) = world.sessions.get_mut(id) else { return Reply::new(404) };
    let range = call.header("content-range").strip_prefix("bytes ").unwrap();
    let (range, size) = range.split_once('/').unwrap();
    let (first, last) = range.split_once('-').unwrap();
    let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
    assert_eq!(last + 1 - first, call.body.len());
    let had = upload.parts.entry(0).or_default();
    if first <= had.len() && last >= had.len() {
        let new = &call.body[had.len() - first..];
        // It takes a little less than it is given, once.
        let short = if first == 0 && had.is_empty() { new.len() - 100 } else { new.len() };
        had.extend(&new[..short]);
    }
    if had.len() < size.parse().unwrap() {
        let had = had.len();
        return Reply::new(308).header("range", &format!("bytes=0-{}", had - 1));
    }
    let mut bytes = had.clone();
    if world.damages {
        bytes[7] ^= 1;
    }
    let key = upload.key.clone();
    world.objects.insert(key.clone(), Object { bytes, ..Object::default() });
    Reply::json(200, &json!({"name": key}))
}

fn compute(call: &Call, path: &str, world: &mut World) -> Reply {
    let shown = |image: &Image| json!({"name": image.name, "status": image.status});
    if let Some(id) = path.strip_prefix("operations/").map(|id| id.replace("%3A", ":")) {
        let slow = world.slow;
        let Some(task) = world.tasks.get_mut(&id) else { return Reply::new(404) };
        task.asked += 1;
        if task.asked <= slow && !task.ended {
            return Reply::json(200, &json!({"name": id, "status": "RUNNING"}));
        }
        task.ended = true;
        let mut said = json!({"name": id, "status": "DONE"});
        if task.end != "OK" {
            said["error"] = json!({"errors": [{"code": "X", "message": task.end}]});
        }
        return Reply::json(200, &said);
    }
    let id = path.strip_prefix("images/").map(str::to_string);
    let operation = |world: &mut World, end: &str, ended: bool| {
        let id = world.task();
        world.tasks.insert(id.clone(), Task { asked: 0, end: end.into(), image: None, ended });
        Reply::json(200, &json!({"name": id, "status": "RUNNING"}))
    };
    match (call.method.as_str(), id) {
        ("GET", None) => {
            // One image a page.
            let at: usize = call.asked("pageToken").map_or(0, |token| token.parse().unwrap());
            let items: Vec<Value> = world.images.values().skip(at).take(1).map(shown).collect();
            let mut page = if items.is_empty() { json!({}) } else { json!({"items": items}) };
            if world.endless || at + 1 < world.images.len() {
                page["nextPageToken"] = json!((at + 1).to_string());
            }
            Reply::json(200, &page)
        }
        ("POST", None) => {
            let body = call.json();
            let key = body["rawDisk"]["source"].as_str().unwrap().split("/archive/").nth(1).unwrap().to_string();
            let name = body["name"].as_str().unwrap().to_string();
            if world.images.contains_key(&name) {
                return Reply::new(409);
            }
            let bytes = world.objects.get(&key).map(|o| o.bytes.clone()).unwrap_or_default();
            let image = Image { name: name.clone(), status: "PENDING".into(), bytes, ..Image::default() };
            world.images.insert(name, image);
            let end = if world.refuses { "no valid disk" } else { "OK" };
            operation(world, end, false)
        }
        ("GET", Some(id)) => {
            let (slow, refuses) = (world.slow, world.refuses);
            let Some(image) = world.images.get_mut(&id) else { return Reply::new(404) };
            image.asked += 1;
            if image.asked > slow {
                image.status = if refuses { "FAILED".into() } else { "READY".into() };
            }
            Reply::json(200, &shown(&world.images[&id]))
        }
        ("DELETE", Some(id)) => {
            if world.images.remove(&id).is_none() {
                Reply::new(404)
            } else {
                operation(world, "OK", true)
            }
        }
        (method, _) => panic!("{method}"),
    }
}
