//! `kimg scale masters` at a provider: the one that is there gets an image that knows all, with its store; the others are made
//! one after the other, and join.

use super::{JOIN_LIMIT, joined, names, replaced};
use crate::cli::image::built_images;
use crate::cli::scale::{self, ScaleArgs};
use crate::cli::{cloud, roll, vm};
use crate::cloud::up::write_kubeconfig;
use crate::config::{FILE_NAME, Settings, edit};
use crate::heal;
use crate::hint::{dir_flag, next, program};
use crate::input;
use crate::machines::local::short;
use crate::machines::{Data, Machines as _, NO_IMAGE, Order};
use crate::pki::Secrets;
use crate::progress::Progress;
use crate::roll::members::Members as _;
use anyhow::{Context, Result};
use node_metadata::{Role, StoreEngine};
use std::process::ExitCode;

pub(super) fn grow(args: &ScaleArgs, settings: &Settings) -> Result<ExitCode> {
    let masters = names(settings);
    if args.count > 1 && settings.store == StoreEngine::Embedded {
        return input::bad(format!(
            "{FILE_NAME}: store: the embedded store is one master's alone; write store = \"etcd\", and `kimg build all` and \
             `kimg roll` move the store there; then there can be {}",
            args.count
        ));
    }
    let (text, new) = match args.count - masters.len() {
        0 => (None, settings.clone()),
        more => with_more(settings, &masters, more).map(|(text, new)| (Some(text), new))?,
    };
    let secrets = Secrets::of_cluster(&settings.secrets_dir(), &settings.name)?;
    let listed = cloud::machines(&new, &secrets, |machines| machines.list())?;
    let has = |name: &String| listed.iter().any(|one| one.node == *name && one.image != NO_IMAGE);
    let (there, missing): (Vec<String>, Vec<String>) = names(&new).into_iter().partition(has);
    if missing.is_empty() || listed.is_empty() {
        println!("{FILE_NAME} names {} masters", names(&new).len());
        if !args.dry_run {
            if let Some(text) = &text {
                scale::write(&new.dir.join(FILE_NAME), text, &settings.text)?;
            }
            let masters = crate::node::members::Masters::new(&new, &secrets);
            // The last one may have been made when this was interrupted, and not been told of the others.
            if missing.is_empty()
                && names(&new).len() > 1
                && names(&new).iter().any(|name| masters.serves(name).is_ok())
            {
                cloud::machines(&new, &secrets, |machines| machines.introduce_all())?;
            }
            // Nobody is there who could be joined, or nobody who is to join.
            vm::up(&vm::UpArgs { components: args.components.clone(), yes: args.yes }, &new)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if there.is_empty() {
        return input::bad(format!(
            "{} is between two disks: `kimg roll` goes on with a roll that was interrupted, and `kimg heal master` gives it the \
             newest copy of the store that there is",
            masters.join(", ")
        ));
    }
    println!("{FILE_NAME} gets {}", missing.join(", "));
    if let [only] = there.as_slice() {
        println!(
            "{only}: an image that knows all; its store is carried, the API is away for some minutes, pods run on"
        );
    }
    println!("{}: made one after the other, and each joins etcd before the next", missing.join(", "));
    if !cloud::agreed_to_masters(&new, args.yes || args.dry_run)? || args.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(text) = &text {
        scale::write(&new.dir.join(FILE_NAME), text, &settings.text)?;
    }
    if there.len() == 1 && !replaced(args, &new, &missing)? {
        return Ok(ExitCode::FAILURE);
    }
    // One of them may have been made when this was interrupted.
    cloud::machines(&new, &secrets, |machines| machines.introduce_all())?;
    roll::at_place(&new, |_, place, machines| {
        for name in &there {
            joined(&place.members, name, 10 * JOIN_LIMIT).with_context(|| format!("{name} is not as it should be"))?;
        }
        for name in &missing {
            let image = heal::image(machines, name, || {
                let mut images = built_images(&new, &[Role::Master], args.components.as_deref(), &Progress::new())?;
                images.remove(&Role::Master).context("there is no master image")
            })?;
            eprintln!("{name}: made from image {}", short(&image));
            machines.rebuild(&Order { node: name, image: short(&image), token: None, data: Data::JoinsEtcd })?;
            let lasts = || format!("{name} does not join the other masters");
            joined(&place.members, name, 10 * JOIN_LIMIT).with_context(lasts)?;
        }
        Ok(())
    })?;
    println!("cluster {} has {} masters, here and in {FILE_NAME}", new.name, names(&new).len());
    next(&format!("{} status{}", program(), dir_flag(&new)));
    Ok(ExitCode::SUCCESS)
}

/// The file with so many more masters, whose addresses the provider gives.
fn with_more(settings: &Settings, masters: &[String], more: usize) -> Result<(String, Settings)> {
    let all: Vec<String> = settings.nodes.iter().map(|node| node.entry.name.clone()).collect();
    let last = masters.last().context("cluster.toml names no master")?;
    let new: Vec<(String, Option<std::net::IpAddr>)> =
        scale::new_names(&all, Some(last), more, "master-").into_iter().map(|name| (name, None)).collect();
    let text = edit::with_masters(&settings.text, &new, last);
    let wanted = all.iter().cloned().chain(new.iter().map(|(name, _)| name.clone())).collect();
    let (_, grown) = scale::edited(settings, &text, wanted, "add masters")?;
    Ok((text, grown))
}

/// Those that are left know no more of the others, and the kubeconfig names one of them.
pub(super) fn stay(settings: &Settings) -> Result<()> {
    let secrets = Secrets::of_cluster(&settings.secrets_dir(), &settings.name)?;
    cloud::machines(settings, &secrets, |machines| machines.introduce_all())?;
    let masters = crate::node::members::Masters::new(settings, &secrets);
    let left = names(settings);
    let serves = left.iter().find(|name| masters.serves(name).is_ok()).context("no master's API server answers")?;
    write_kubeconfig(settings, &secrets, masters.address(serves)?).map(drop)
}
