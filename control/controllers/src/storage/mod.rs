//! Volumes: which claim has which volume, volumes made on a node's own disk, and protection of what is in use.

mod bind;
mod claims;
mod local_path;
mod protect;
mod volumes;

use std::sync::Arc;

use control_client::{Key, Queue};

use crate::context::Context;
use crate::runner;

pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
pub const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";

pub fn start(context: &Arc<Context>) {
    let claims = Arc::new(Queue::<Key>::default());
    let volumes = Arc::new(Queue::<Key>::default());
    context.caches.claims.subscribe({
        let (claims, volumes) = (claims.clone(), volumes.clone());
        move |change| {
            claims.add(Key::of(&**change.object()));
            let volume = change.object().spec.as_ref().and_then(|s| s.volume_name.clone()).filter(|n| !n.is_empty());
            if let Some(volume) = volume {
                volumes.add(Key::new("", &volume));
            }
        }
    });
    context.caches.volumes.subscribe({
        let (claims, volumes, context) = (claims.clone(), volumes.clone(), context.clone());
        move |change| {
            volumes.add(Key::of(&**change.object()));
            let reference = change.object().spec.as_ref().and_then(|s| s.claim_ref.as_ref());
            match reference {
                Some(r) => claims
                    .add(Key::new(r.namespace.as_deref().unwrap_or_default(), r.name.as_deref().unwrap_or_default())),
                // A free volume may suit any claim that waits.
                None => wake_open_claims(&context, &claims),
            }
        }
    });
    context.caches.classes.subscribe({
        let (claims, context) = (claims.clone(), context.clone());
        move |_| wake_open_claims(&context, &claims)
    });
    context.caches.nodes.subscribe({
        // A node that has removed a volume's data, or that is gone.
        let volumes = volumes.clone();
        move |change| {
            let before = change.old().map(|n| local_path::to_remove(n)).unwrap_or_default();
            before.iter().for_each(|name| volumes.add(Key::new("", name)));
        }
    });
    runner::run("persistentvolume-claims", &claims, 2, {
        let context = context.clone();
        move |key| {
            let context = context.clone();
            async move { claims::work(&context, &key).await }
        }
    });
    runner::run("persistentvolume-volumes", &volumes, 2, {
        let context = context.clone();
        move |key| {
            let context = context.clone();
            async move { volumes::work(&context, &key).await }
        }
    });
    protect::start(context);
}

fn wake_open_claims(context: &Context, queue: &Queue<Key>) {
    for claim in context.caches.claims.list() {
        if !bind::is_bound(&claim) {
            queue.add(Key::of(&*claim));
        }
    }
}
