//! Vultr, which fetches from the store beside it.

use super::{Image, World};
use crate::web::fake::{Call, Reply};
use serde_json::{Value, json};

pub(in super::super) fn answer(call: &Call, world: &mut World) -> Reply {
    if call.header("authorization") != "Bearer t0ken" {
        return Reply::json(401, &json!({"error": "Invalid API token.", "status": 401}));
    }
    let shown = |(id, image): (&String, &Image)| json!({"id": id, "description": image.name, "status": image.status, "date_created": "2026-01-01"});
    let id = call.path.strip_prefix("/v2/snapshots/").map(str::to_string);
    match (call.method.as_str(), id) {
        ("GET", None) => {
            // One snapshot a page; the cursor is where it goes on.
            let at: usize = call.asked("cursor").map_or(0, |cursor| cursor.trim_end_matches("%3D").parse().unwrap());
            let page: Vec<Value> = world.images.iter().skip(at).take(1).map(shown).collect();
            let more = world.endless || at + 1 < world.images.len();
            let next = if more { format!("{}=", at + 1) } else { String::new() };
            Reply::json(200, &json!({"snapshots": page, "meta": {"links": {"next": next, "prev": ""}}}))
        }
        ("POST", Some(_)) => {
            let body = call.json();
            let key = body["url"].as_str().unwrap().split("/bucket/").nth(1).unwrap().to_string();
            world.count += 1;
            let id = format!("s{}", world.count);
            let bytes = world.objects.get(&key).map(|o| o.bytes.clone()).unwrap_or_default();
            let name = body["description"].as_str().unwrap().to_string();
            world.images.insert(id.clone(), Image { name, status: "pending".into(), bytes, ..Image::default() });
            Reply::json(202, &json!({"snapshot": shown((&id, &world.images[&id]))}))
        }
        ("GET", Some(id)) => {
            let (slow, refuses) = (world.slow, world.refuses);
            let Some(image) = world.images.get_mut(&id) else { return Reply::new(404) };
            image.asked += 1;
            if image.asked > slow {
                image.status = if refuses { "deleted".into() } else { "complete".into() };
            }
            Reply::json(200, &json!({"snapshot": shown((&id, &world.images[&id]))}))
        }
        ("DELETE", Some(id)) => Reply::new(if world.images.remove(&id).is_some() { 204 } else { 404 }),
        (method, _) => panic!("{method}"),
    }
}
