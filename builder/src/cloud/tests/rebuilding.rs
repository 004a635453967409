//! One machine's disk is made anew, whole or cut off.

use super::*;
use std::sync::atomic::Ordering::Relaxed;

/// Puts image 78 under the master, and tells it something.
pub(super) fn rebuild(stage: &Stage, user_data: &str) -> Result<()> {
    let cloud = stage.cloud();
    let there = cloud.inventory()?;
    let (network, firewall) = (&there.networks[0], &there.firewalls[0]);
    let server = there.servers.iter().find(|server| server.node == "m").unwrap();
    let (node, role, size, image_id, image) = ("m", Role::Master, server.size.as_str(), "78", SUM);
    cloud.rebuild_server(
        server,
        &Order { node, role, size, image_id, image, user_data, network, firewall, on_volume: false },
    )
}

/// The same of a cluster as it is `there`, where the user interrupts it behind so many calls; whether it came to its end.
pub(super) fn cut_off(which: Which, there: &World, calls: usize) -> (Stage, bool) {
    let mut stage = Stage::new(which);
    *stage.world() = there.clone();
    let stops = Some((stage.clock.clone(), there.answered + calls));
    stage.world().stops = stops;
    let ended = rebuild(&stage, "told");
    let whole = !stage.clock.stopped.load(Relaxed);
    assert!(ended.is_ok() || !whole, "call {calls}: {ended:?}");
    stage.world().stops = None;
    stage.clock = Virtual::new();
    (stage, whole)
}
