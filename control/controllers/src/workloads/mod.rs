//! Controllers that make pods: replica sets, deployments, daemon sets, stateful sets, jobs, cron jobs.

mod claim;
mod deployment;
mod job;
mod make;
mod replica;

use std::sync::Arc;

use crate::context::Context;

pub fn start(context: &Arc<Context>) {
    replica::start(context);
    deployment::start(context);
    job::start(context);
}
