//! An S3-compatible store.

use super::{Object, Upload, World};
use crate::cache::hash;
use crate::web::fake::{Call, Reply};
use std::collections::BTreeMap;

pub(in super::super) fn answer(call: &Call, world: &mut World) -> Reply {
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
            let prefix = call.asked("prefix").filter(|_| !world.lists_all).unwrap_or_default();
            let root = if call.asked("uploads").is_some() { "ListMultipartUploadsResult" } else { "ListBucketResult" };
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
            Reply::new(200).body(format!("<{root}>{more}{list}</{root}>").as_bytes())
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
