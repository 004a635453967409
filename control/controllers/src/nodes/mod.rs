//! Controllers about nodes: their pod ranges, their health, and what happens to pods on sick ones.

mod evict;
mod ipam;
mod lifecycle;

use std::sync::Arc;

use crate::context::Context;

pub fn start(context: &Arc<Context>) -> anyhow::Result<()> {
    if context.settings.allocate_node_cidrs {
        ipam::start(context)?;
    }
    lifecycle::start(context);
    evict::start(context);
    Ok(())
}
