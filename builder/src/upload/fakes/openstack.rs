//! Keystone and Glance.

use super::{Image, World};
use crate::web::fake::{Call, Reply};
use serde_json::json;

pub(in super::super) fn answer(call: &Call, world: &mut World) -> Reply {
    if call.path == "/v3/auth/tokens" {
        if call.json()["auth"]["identity"]["password"]["user"]["password"] != "s3cr3t" {
            return Reply::new(401);
        }
        world.token += 1;
        let url = world.glance.map_or(format!("http://{}/image", call.header("host")), str::to_string);
        let endpoints = json!([{"interface": "public", "region": "R1", "url": url},
            {"interface": "internal", "region": "R1", "url": "http://inside"}]);
        let token = json!({"token": {"catalog": [{"type": "image", "endpoints": endpoints}]}});
        return Reply::json(201, &token).header("x-subject-token", &format!("t0ken-{}", world.token));
    }
    if call.header("x-auth-token") != format!("t0ken-{}", world.token) {
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
