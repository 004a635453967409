//! `kimg logs`, and `kimg node logs` of one node.

use super::write_out;
use crate::client::block_on;
use crate::client::node::NodeClient;
use crate::config::Settings;
use crate::hint::next;
use crate::logs::{self, Printer, SOME, Source, Wanted, kept, line, show::Prefix};
use crate::node::Target;
use anyhow::Result;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Debug, clap::Args)]
pub(super) struct LogsArgs {
    /// Nodes of cluster.toml [default: all], and services: `init` is PID 1, `kernel`, `audit` who changed what on a
    /// master [default: all but audit]
    #[arg(value_name = "NODE|SERVICE")]
    names: Vec<String>,
    /// Not what nodes have now, but what they had when `kimg roll`, `heal` or `scale` ended their machines; also of
    /// nodes that are gone
    #[arg(long, conflicts_with = "follow")]
    kept: bool,
    #[command(flatten)]
    which: WhichLines,
}

#[derive(Debug, clap::Args)]
pub(super) struct WhichLines {
    /// Go on with new lines; a connection that is lost is made anew
    #[arg(long, short)]
    follow: bool,
    /// Only lines of so long ago: 90s, 10m, 1h30m, 2d
    #[arg(long, value_name = "SPAN", value_parser = line::span)]
    since: Option<Duration>,
    /// Only the last N lines of all [default: 200 where --since is not given]
    #[arg(long, alias = "lines", value_name = "N")]
    tail: Option<usize>,
}

impl WhichLines {
    fn wanted(&self, services: Vec<String>) -> Wanted {
        let tail = self.tail.or(self.since.is_none().then_some(SOME));
        Wanted { services, since: self.since, tail, audit: false }
    }

    async fn run(&self, sources: Vec<Source>, services: Vec<String>, prefix: Prefix) -> Result<ExitCode> {
        let wanted = self.wanted(services);
        let mut printer = Printer::new(prefix, write_out);
        let whole = if self.follow {
            logs::follow(sources, &wanted, &mut printer).await?
        } else {
            logs::show(sources, &wanted, &mut printer).await?
        };
        if self.tail.is_none() && self.since.is_none() && !self.follow {
            next(&format!("the last {SOME} lines; --tail N or --since 1h shows more, --follow goes on"));
        }
        Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

pub(super) fn run(args: &LogsArgs, settings: &Settings) -> Result<ExitCode> {
    let kept = if args.kept { Some(kept::list(settings)?) } else { None };
    let is_node = |name: &String| {
        settings.nodes.iter().any(|node| node.entry.name == *name)
            || kept.iter().flatten().any(|kept| kept.node == *name)
    };
    let (nodes, services): (Vec<String>, Vec<String>) = args.names.iter().cloned().partition(is_node);
    if let Some(kept) = &kept {
        let (wanted, now) = (args.which.wanted(services), jiff::Timestamp::now());
        kept::show(kept, &nodes, &wanted, now, &mut Printer::new(Prefix::Both, write_out))?;
        return Ok(ExitCode::SUCCESS);
    }
    let asked = settings.nodes.iter().map(|node| &node.entry.name).filter(|n| nodes.is_empty() || nodes.contains(n));
    let source = |name: &String| {
        let target = Target { node: Some(name.clone()), ..Target::default() };
        Source { node: name.as_str().into(), client: target.client(settings) }
    };
    block_on(args.which.run(asked.map(source).collect(), services, Prefix::Both))
}

/// The logs of one node, which need not be one of cluster.toml.
pub(super) async fn of_node(
    node: &str,
    client: NodeClient,
    services: &[String],
    which: &WhichLines,
) -> Result<ExitCode> {
    let prefix = if services.len() == 1 { Prefix::None } else { Prefix::Service };
    which.run(vec![Source { node: node.into(), client: Ok(client) }], services.to_vec(), prefix).await
}
