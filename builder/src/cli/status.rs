//! `kimg status`.

use super::roll::step_name;
use crate::backup::{self, away};
use crate::client::tls;
use crate::client::{Https, block_on, kube};
use crate::config::Settings;
use crate::hint::{dir_flag, next, program};
use crate::input;
use crate::local::state;
use crate::local::status::{self, Status};
use crate::logs::line::harmless;
use crate::node::members::Masters;
use crate::oci::registry::credentials::environment;
use crate::pki::authority::Authority;
use crate::pki::{Secrets, issue, successor};
use crate::roll::api::Kube;
use crate::roll::begin;
use crate::roll::copy::LocalCopy;
use crate::roll::journal::{Journal, Outcome};
use crate::roll::members::{self, Members};
use crate::web::Client;
use anyhow::{Context, Result, bail};
use node_metadata::STATUS_PORT;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How often the place of `[backup] to` is looked at, which may be far away.
const AWAY: Duration = Duration::from_secs(60);
/// To the upper left, and nothing is left there.
const CLEAR: &str = "\x1b[H\x1b[2J";

#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    /// As JSON; with --watch each picture that differs from the one before in a line
    #[arg(long)]
    json: bool,
    /// Look again and again until Ctrl-C; in a pipe only what differs is shown
    #[arg(long)]
    watch: bool,
    /// Print a link to the status page; it is good for ten minutes, and once
    #[arg(long, conflicts_with_all = ["json", "watch"])]
    link: bool,
    /// With --watch: the pause between two looks, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 2, requires = "watch", value_parser = clap::value_parser!(u64).range(1..=3600))]
    every: u64,
}

pub(super) fn show(args: &StatusArgs, settings: &Settings) -> Result<ExitCode> {
    if args.link {
        return link(settings);
    }
    let mut looker = Looker { settings, away: None };
    if args.watch {
        return watch(args, &mut looker).map(|never| match never {});
    }
    let found = looker.look()?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&found).context("writing JSON")?);
    } else {
        print!("{}", shown(&found));
    }
    let any_runs = found.by_hand || found.nodes.iter().any(|n| n.vm == "running");
    let hint = if any_runs { "node --node NAME services" } else { "up" };
    next(&format!("{} {hint}{}", program(), dir_flag(settings)));
    let all_ready = found.nodes.iter().all(|n| n.status == "Ready");
    Ok(if all_ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The link alone stands on standard output.
fn link(settings: &Settings) -> Result<ExitCode> {
    if !settings.status_page {
        return input::bad(format!(
            "cluster {} has no status page; write `[status]` with `page = true` into cluster.toml, then `kimg build all` and \
             `kimg roll master`",
            settings.name
        ));
    }
    let secrets = Secrets::of_cluster(&settings.secrets_dir(), &settings.name)?;
    let admin = issue::admin(&secrets)?;
    let api = state::api_client_with(settings, &secrets, None, &admin)?;
    let (host, port) = match (state::api_port(settings), state::status_port(settings)) {
        (Some(_), None) => bail!(
            "the master was started before cluster.toml had `[status]`; `kimg roll master` starts it with the page"
        ),
        (Some(_), Some(port)) => ("127.0.0.1".to_owned(), port),
        (None, _) => (api.server_name(), STATUS_PORT),
    };
    let target = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let (token, certificate) = block_on(async {
        // Whether it answers, and as whom, is known before there is a token.
        let tls = tls::config(&successor::bundle(&secrets, Authority::Cluster)?, &admin, None)?;
        let page = Https::new(target.clone(), host.clone(), tls);
        let certificate = page.certificate().await.context("looking for the status page")?;
        Ok((kube::status_token(&api).await?, certificate))
    })?;
    println!("https://{target}/#{token}");
    eprintln!(
        "good for ten minutes, and once. The browser does not know the cluster's CA: go on only if it says that the \
         certificate's SHA-256 fingerprint is\n{}",
        tls::fingerprint(&certificate)
    );
    Ok(ExitCode::SUCCESS)
}

/// Ends with an error, or by a signal: nothing has to be put right then.
fn watch(args: &StatusArgs, looker: &mut Looker<'_>) -> Result<std::convert::Infallible> {
    let mut out = std::io::stdout();
    let screen = out.is_terminal() && !args.json;
    let mut before = String::new();
    loop {
        let found = looker.look()?;
        let text = if args.json {
            format!("{}\n", serde_json::to_string(&found).context("writing JSON")?)
        } else {
            shown(&found)
        };
        if text != before {
            let head = if screen { CLEAR } else { "" };
            let between = if screen || args.json || before.is_empty() { "" } else { "\n" };
            write!(out, "{head}{between}{text}").and_then(|()| out.flush()).context("writing")?;
            before = text;
        }
        std::thread::sleep(Duration::from_secs(args.every));
    }
}

/// Looks, and remembers what need not be looked for each time.
struct Looker<'a> {
    settings: &'a Settings,
    /// When the place of copies was looked at, and what there is to say of it.
    away: Option<(Instant, Option<String>)>,
}

impl Looker<'_> {
    fn look(&mut self) -> Result<Status> {
        let mut found = status::status(self.settings)?;
        match self.roll(found.api_error.is_none()) {
            Ok(last) => found.roll = last.filter(|journal| journal.outcome == Outcome::Running),
            Err(error) => found.warnings.push(format!("Whether a roll is under way is not known: {error:#}")),
        }
        if found.api_error.is_none() {
            found.warnings.extend(self.members());
            found.warnings.extend(self.settings.spares_left());
            let inventory = backup::look(self.settings)?;
            found.warnings.extend(backup::warning(self.settings, &inventory, backup::now_ms()));
            if self.away.as_ref().is_none_or(|(at, _)| at.elapsed() > AWAY) {
                let looked =
                    Client::new(None).and_then(|client| away::Away::look(self.settings, &client, &environment));
                self.away = Some((Instant::now(), away::warning(&looked, backup::now_ms())));
            }
            found.warnings.extend(self.away.as_ref().and_then(|(_, warning)| warning.clone()));
        }
        Ok(found)
    }
}

impl Looker<'_> {
    /// The journal of the last roll; without an API server as this machine knows it.
    fn roll(&self, has_api: bool) -> Result<Option<Journal>> {
        let copy = LocalCopy::of(&self.settings.run_dir());
        if !has_api {
            return Ok(copy.read()?.map(|kept| kept.journal));
        }
        let secrets = Secrets::of_cluster(&self.settings.secrets_dir(), &self.settings.name)?;
        let api = state::api_client(self.settings, &secrets, None)?;
        Ok(begin::last(Kube(&api), &copy)?.map(|last| last.journal))
    }

    /// What is wrong with the etcd that several masters share.
    fn members(&self) -> Vec<String> {
        if !self.settings.has_several_masters() {
            return Vec::new();
        }
        let listed = Secrets::of_cluster(&self.settings.secrets_dir(), &self.settings.name)
            .and_then(|secrets| Masters::new(self.settings, &secrets).list());
        let list = match listed {
            Ok(list) => list,
            Err(error) => return vec![format!("The members of etcd could not be asked for: {error:#}")],
        };
        let members = self.settings.members();
        let lacks = |(node, name): (&String, &String)| Some(format!("{node}: {}", members::lacks(&list, name)?));
        members.iter().filter_map(lacks).collect()
    }
}

/// The table, and what there is to say beside it.
fn shown(found: &Status) -> String {
    let said = match &found.api_error {
        Some(why) if found.stopped => vec![why.clone()],
        Some(error) => vec![format!("The API server does not answer: {error}")],
        None => found.warnings.clone(),
    };
    let said = found.roll.iter().map(under_way).chain(said);
    said.fold(status::table(found), |text, line| format!("{text}\n{line}\n"))
}

fn under_way(journal: &Journal) -> String {
    let steps: Vec<String> =
        journal.nodes.iter().map(|entry| format!("{} {}", harmless(&entry.node), step_name(entry.step))).collect();
    let (what, way) = match journal {
        journal if journal.removes() => ("removal of nodes", "`kimg roll` goes on with it"),
        journal if journal.heals() => ("healing of nodes", "`kimg heal` goes on with it"),
        journal if journal.back => ("roll back", "`kimg roll` goes on with it"),
        _ => ("roll", "`kimg roll` goes on with it, and `kimg roll --rollback` goes back"),
    };
    format!(
        "A {what} is under way since {}, or was interrupted: {}. Where none works on it, {way}.",
        journal.started.strftime("%F %T UTC"),
        steps.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roll::fake::Fake;
    use crate::roll::journal::Step;
    use crate::roll::plan::Wish;
    use crate::roll::tests::{journal_on, rules};

    #[test]
    fn a_roll_under_way_is_told_with_its_nodes() {
        let fake = Fake::new(2);
        let images = ["w1", "w2"].map(|name| (name.to_owned(), "new".to_owned())).into();
        let mut journal = journal_on(&fake, &fake, &Wish { images, ..Wish::default() }, rules(), false);
        journal.nodes[0].step = Step::Booting;
        let said = under_way(&journal);
        assert!(said.starts_with("A roll is under way") && said.contains("w1 booting, w2 waiting"), "{said}");
        journal.nodes.iter_mut().for_each(|entry| entry.to.clear());
        assert!(under_way(&journal).starts_with("A removal of nodes"));
        journal.nodes.iter_mut().for_each(|entry| entry.to = entry.from.clone());
        assert!(under_way(&journal).contains("`kimg heal` goes on"));
    }
}
