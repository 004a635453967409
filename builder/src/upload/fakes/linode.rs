//! Linode: slots for images, and the store behind them, which knows nothing of tokens.

use super::{Image, World};
use crate::web::fake::{Call, Reply};
use serde_json::{Value, json};

pub(in super::super) fn answer(call: &Call, world: &mut World) -> Reply {
    if let Some(id) = call.path.strip_prefix("/slot/") {
        assert_eq!(call.header("authorization"), "", "the token went to the store");
        let expired = world.expired;
        return match world.images.get_mut(id) {
            Some(image) if image.status == "pending_upload" && !expired => {
                image.bytes.clone_from(&call.body);
                Reply::new(200)
            }
            _ => {
                Reply::new(403).body(b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>")
            }
        };
    }
    if call.header("authorization") != "Bearer t0ken" {
        return Reply::json(401, &json!({"errors": [{"reason": "Invalid Token"}]}));
    }
    let shown = |(id, image): (&String, &Image)| json!({"id": format!("private/{id}"), "label": "l", "description": image.name, "status": image.status});
    let id = call.path.strip_prefix("/v4/images/private%2F").map(str::to_string);
    match (call.method.as_str(), id) {
        ("POST", None) => {
            world.count += 1;
            let id = world.count.to_string();
            let name = call.json()["description"].as_str().unwrap().split(' ').next().unwrap().to_string();
            world.images.insert(id.clone(), Image { name, status: "pending_upload".into(), ..Image::default() });
            let scheme = if world.clear { "http://store.example" } else { &format!("http://{}", call.header("host")) };
            let place = format!("{scheme}/slot/{id}?Signature=s3cr3t");
            Reply::json(200, &json!({"image": shown((&id, &world.images[&id])), "upload_to": place}))
        }
        ("GET", None) => {
            // One image a page.
            let at: usize = call.asked("page").unwrap().parse().unwrap();
            let page: Vec<Value> = world.images.iter().skip(at - 1).take(1).map(shown).collect();
            let pages = if world.endless { at + 1 } else { world.images.len().max(1) };
            Reply::json(200, &json!({"data": page, "page": at, "pages": pages}))
        }
        ("GET", Some(id)) => {
            let (slow, refuses) = (world.slow, world.refuses);
            let Some(image) = world.images.get_mut(&id) else { return Reply::new(404) };
            image.asked += 1;
            if image.asked > slow && !image.bytes.is_empty() {
                image.status = "available".into();
            }
            let reply = Reply::json(200, &shown((&id, &world.images[&id])));
            if refuses {
                // What it does not take is gone.
                world.images.remove(&id);
                return Reply::new(404);
            }
            reply
        }
        ("DELETE", Some(id)) => {
            if world.images.remove(&id).is_some() {
                Reply::json(200, &json!({}))
            } else {
                Reply::new(404)
            }
        }
        (method, _) => panic!("{method}"),
    }
}
