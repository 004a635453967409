//! DigitalOcean, which fetches from the store beside it.

use super::{Image, World};
use crate::web::fake::{Call, Reply};
use serde_json::{Value, json};

pub(in super::super) fn answer(call: &Call, world: &mut World) -> Reply {
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
            world.images.insert(id.clone(), Image { name, status: "NEW".into(), bytes, ..Image::default() });
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
