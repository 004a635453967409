//! Controllers that make pods: replica sets, deployments, daemon sets, stateful sets, jobs, cron jobs.

mod claim;
mod cron;
mod daemon;
mod deployment;
mod history;
mod job;
mod make;
mod replica;
mod stateful;

use std::sync::Arc;

use crate::context::Context;

pub fn start(context: &Arc<Context>) {
    replica::start(context);
    deployment::start(context);
    daemon::start(context);
    stateful::start(context);
    job::start(context);
    cron::start(context);
}
