//! `kimg roll --finish`: the store's format is raised, and with that the way back to images of before ends.

use super::{Place, RollArgs, at_place, confirmed};
use crate::config::Settings;
use crate::input;
use crate::local::interrupt::Interrupt;
use crate::roll::RealClock;
use crate::roll::api::Kube;
use crate::roll::begin;
use crate::roll::copy::LocalCopy;
use crate::roll::engine::Book;
use crate::roll::journal::{Journal, Outcome};
use crate::roll::lock::Holder;
use crate::roll::skew;
use anyhow::{Context, Result, bail};
use node_api::StoreFormat;
use node_metadata::Role;
use serde_json::json;
use std::time::{Duration, Instant};

/// How long API servers may be away once the store has another format.
const AWAY: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_secs(1);

pub(super) fn run(args: &RollArgs, settings: &Settings) -> Result<()> {
    at_place(settings, |_, place, _| finish(args, settings, place))
}

fn finish(args: &RollArgs, settings: &Settings, place: &Place<'_>) -> Result<()> {
    let kube = Kube(&place.api);
    kube.check_ready().context("the API server is not fit for it")?;
    let copy = LocalCopy::of(&settings.run_dir());
    let Some(store) = place.members.store_format()? else {
        return input::bad(
            "the masters' images are of before a store's format could be raised; roll the masters first",
        );
    };
    if store.format >= store.newest {
        return tell(args, &store, &said_of_newest(&store));
    }
    let last = begin::last(kube, &copy)?;
    if last.as_ref().is_some_and(|last| is_open(&last.journal)) {
        bail!(
            "the last roll has not come to its end, and its way back is still open: `kimg roll` goes on with it, `kimg roll \
             --rollback` goes back"
        );
    }
    for master in settings.nodes_of(Role::Master).map(|node| &node.entry.name) {
        let states = place.members.states(master)?;
        let (_, reads) = skew::reads(store.engine, states.as_ref());
        if reads < store.newest {
            return input::bad(format!(
                "the store would go from format {} to {}, and the image of {master} reads up to {reads}; `kimg roll {master}` \
                 comes first",
                store.format, store.newest
            ));
        }
    }
    if !args.json {
        println!(
            "the store goes from format {} to {}: images that do not read that cannot go on with it, so `kimg roll \
             --rollback` ends here",
            store.format, store.newest
        );
    }
    if args.dry_run || !(args.yes || confirmed()?) {
        return Ok(());
    }
    let (me, _alone, interrupt) = (Holder::me(), copy.lock()?, Interrupt::watch()?);
    begin::take_lock(kube, &me, &RealClock, &|| interrupt.asked(), &|line| eprintln!("{line}"))?;
    let raised = raise(kube, &copy, last, place, store);
    release(kube, &me);
    let raised = raised?;
    tell(args, &raised, &format!("the store is in format {} now", raised.format))
}

/// A roll that may still go back; one that only removed or healed has no way back.
fn is_open(last: &Journal) -> bool {
    match last.outcome {
        Outcome::Done => false,
        Outcome::Running => true,
        Outcome::Stopped => !last.removes() && !last.heals(),
    }
}

/// In etcd API servers open the raised store anew, and may be away meanwhile. A lock that is left ends by itself.
fn release(kube: Kube<'_>, me: &Holder) {
    let until = Instant::now() + AWAY;
    while let Err(error) = kube.release_lock(me) {
        if Instant::now() > until {
            return eprintln!("the roll's lock stays until it is no more renewed: {error:#}");
        }
        std::thread::sleep(LOOK);
    }
}

fn said_of_newest(store: &StoreFormat) -> String {
    format!("the store is in format {}, the newest that this release writes; nothing is to be raised", store.format)
}

/// The journal says it first: a roll back must not trust the format of before, however this ends.
fn raise(
    kube: Kube<'_>,
    copy: &LocalCopy,
    last: Option<Book>,
    place: &Place<'_>,
    store: StoreFormat,
) -> Result<StoreFormat> {
    if let Some(Book { mut journal, version, .. }) = last {
        journal.store = Some(StoreFormat { format: store.newest, ..store });
        let version = kube.save(&journal, Some(&version))?;
        copy.write(&journal, &version)?;
    }
    let raised = place.members.raise_store()?;
    if raised.format < store.newest {
        bail!("the store is still in format {}; `kimg logs kube-apiserver` may say why", raised.format);
    }
    Ok(raised)
}

fn tell(args: &RollArgs, store: &StoreFormat, sentence: &str) -> Result<()> {
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&json!({ "store": store })).context("writing JSON")?),
        false => println!("{sentence}"),
    }
    Ok(())
}
