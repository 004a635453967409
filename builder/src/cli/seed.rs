//! `kimg seed NODE`.

use crate::client::{block_on, kube};
use crate::config::Settings;
use crate::hint::{dir_flag, next, program};
use crate::input;
use crate::local::state;
use crate::pki::{Secrets, secrets};
use crate::seed::token::{BootstrapToken, LIFE};
use crate::seed::{self, Begin, Interface};
use anyhow::Result;
use node_metadata::Role;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, clap::Args)]
pub(super) struct SeedArgs {
    /// Node of cluster.toml
    node: String,
    /// Check the size of the user-data against the limit of this provider (names as in docs/uploads.md)
    #[arg(long = "for", aliases = ["to", "at", "provider"], value_name = "PROVIDER")]
    provider: Option<String>,
    /// Write a NoCloud drive (FAT volume CIDATA) instead of printing user-data
    #[arg(long, value_name = "FILE")]
    drive: Option<PathBuf>,
    /// Interface for the drive's network-config: its hardware address, and address/prefix unless DHCP gives one
    #[arg(long = "mac", value_name = "MAC[=ADDRESS/PREFIX]", requires = "drive")]
    interfaces: Vec<String>,
    /// Minutes the token is good for
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=60))]
    minutes: u64,
    /// Let this node take over the name of a node that still answers
    #[arg(long)]
    replace: bool,
    /// A new machine for a master that was lost with its store: it serves nothing until `kimg backup restore`
    #[arg(long)]
    await_backup: bool,
    /// A new machine for one of several masters, which joins the others
    #[arg(long, conflicts_with = "await_backup")]
    join_etcd: bool,
    /// URL of the API server [default: as for `kimg kubeconfig`]
    #[arg(long)]
    server: Option<String>,
}

pub(super) fn run(args: &SeedArgs, settings: &Settings) -> Result<()> {
    let node = settings.node(&args.node)?;
    if let Some(path) = &args.drive {
        input::writable_place(path)?;
        seed::check_replaceable(path)?;
    }
    let interfaces =
        args.interfaces.iter().enumerate().map(|(number, text)| interface(number, text)).collect::<Result<Vec<_>>>()?;
    let secrets = Secrets::of_cluster(&settings.secrets_dir(), &settings.name)?;
    let token = (node.entry.role == Role::Worker).then(BootstrapToken::random);
    if args.await_backup && node.entry.role != Role::Master {
        return input::bad(format!("--await-backup: {} is a worker and has no store", args.node));
    }
    if args.join_etcd && !(node.entry.role == Role::Master && settings.has_several_masters()) {
        return input::bad(format!("--join-etcd: {} is not one of several masters in cluster.toml", args.node));
    }
    let begin = match (args.await_backup, args.join_etcd) {
        (true, _) => Begin::AwaitBackup,
        (_, true) => Begin::JoinEtcd,
        _ => Begin::Join(token.as_ref()),
    };
    let user_data = seed::user_data(settings, node, seed::Place::Elsewhere, begin, &secrets)?;
    // Before the token goes to the API server: what is refused here leaves nothing behind.
    if let Some(provider) = &args.provider {
        let sentence = seed::check_for(provider, &user_data)?;
        eprintln!("user-data: {sentence}");
    }
    if let Some(token) = &token {
        let life = Duration::from_secs(args.minutes * 60).min(LIFE);
        let api = state::api_client(settings, &secrets, args.server.as_deref())?;
        if let Err(error) = block_on(kube::create_token(&api, token, &node.entry.name, args.replace, life)) {
            return Err(error.context(format!(
                "the API server at {} did not take the token, so that this seed would be of no use; \
                 start the master first, or name it with --server",
                api.target()
            )));
        }
    }
    match &args.drive {
        Some(path) => {
            let volume = seed::drive(settings, &node.entry.name, &user_data, &interfaces)?;
            secrets::write_private(path, &volume)?;
            println!("{}", path.display());
            next(&format!("attach it to {} as a second disk and start the machine", node.entry.name));
        }
        None => {
            print!("{user_data}");
            next(&format!(
                "give this to {} as its user-data, then: {} status{}",
                node.entry.name,
                program(),
                dir_flag(settings)
            ));
        }
    }
    Ok(())
}

fn interface(number: usize, text: &str) -> Result<Interface> {
    let (mac, address) = match text.split_once('=') {
        Some((mac, address)) => (mac, Some(address)),
        None => (text, None),
    };
    let octets: Vec<&str> = mac.split(':').collect();
    let mac_ok = octets.len() == 6 && octets.iter().all(|o| o.len() == 2 && u8::from_str_radix(o, 16).is_ok());
    let address_ok = address.is_none_or(|a| a.contains('/') && a.parse::<ipnet::IpNet>().is_ok());
    if !mac_ok || !address_ok {
        return input::bad(format!("--mac {text}: write 52:54:00:12:34:56, or 52:54:00:12:34:56=10.0.0.5/24"));
    }
    Ok(Interface { name: format!("nic{number}"), mac: mac.to_lowercase(), address: address.map(str::to_string) })
}
