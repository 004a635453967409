//! `kimg store …`: asks a master's node API, which asks its API server.  Nothing here opens a store.

use crate::backup::{self, age, snapshot};
use crate::client::block_on;
use crate::client::node::NodeClient;
use crate::config::Settings;
use crate::input;
use crate::local::state;
use crate::logs::line::harmless;
use crate::node::Target;
use crate::table;
use anyhow::{Context, Result};
use node_api::{Done, StoreMember, path};
use node_metadata::Role;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// More than any store that its master can hold in memory.
const MOST_BYTES: u64 = 8 << 30;

#[derive(Debug, clap::Args)]
pub(super) struct StoreArgs {
    /// Master of cluster.toml [default: the first one that runs]
    #[arg(long, short, global = true)]
    node: Option<String>,
    /// Address of the node, where it is not the one in cluster.toml
    #[arg(long, global = true)]
    address: Option<String>,
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Debug, clap::Subcommand)]
enum StoreCommand {
    /// Write a snapshot of the running store to a file; Secrets stay encrypted in it
    Snapshot {
        /// File to write; it must not exist
        file: PathBuf,
    },
    /// Put a snapshot in the place of the store: what was written after it is lost
    Restore {
        /// Snapshot of this cluster, of the embedded store or of etcd, or an encrypted backup
        file: PathBuf,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Move everything from the embedded store to etcd, or back, and compare it object by object.
    /// The master's image must carry etcd (`store = "etcd"`); meanwhile the API does not answer
    Migrate {
        /// Where to
        #[arg(long)]
        to: Engine,
    },
    /// Read the whole store through, and compare it with what the API server has in memory
    Check,
    /// The members of etcd, one on each master, as one of them sees them
    Members {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// The engines of the store.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Engine {
    /// One log of the API server's own
    Embedded,
    /// etcd on the master
    Etcd,
}

pub(super) fn run(args: &StoreArgs, settings: &Settings) -> Result<()> {
    if let Some(name) = &args.node
        && args.address.is_none()
    {
        let node = settings.node(name)?;
        if node.entry.role != Role::Master {
            return input::bad(format!("{name} is a worker and has no store; name a master, or leave --node out"));
        }
    }
    let target = Target { node: args.node.clone(), address: args.address.clone(), fingerprint: None };
    match &args.command {
        StoreCommand::Snapshot { file } => {
            if file.exists() {
                return input::bad(format!("{} exists; give another name", file.display()));
            }
            input::writable_place(file)?;
            let size = block_on(save(&target.client(settings)?, file))?;
            println!("{}: {size} bytes", file.display());
        }
        StoreCommand::Restore { file, yes } => {
            let bytes = read_snapshot(settings, file)?;
            put_in_place(settings, &target, bytes, &file.display().to_string(), *yes)?;
        }
        StoreCommand::Migrate { to } => {
            if settings.has_several_masters() {
                return input::bad(
                    "several masters share the store, which is etcd's; `kimg scale masters 1` leaves one of them, whose \
                     store can be moved",
                );
            }
            let to = match to {
                Engine::Embedded => node_api::StoreEngine::Embedded,
                Engine::Etcd => node_api::StoreEngine::Etcd,
            };
            let body = serde_json::to_value(node_api::Migrate { to }).context("writing the request")?;
            let done: Done = block_on(target.client(settings)?.post(path::STORE_MIGRATE, Some(&body)))?;
            println!("{}", done.message);
        }
        StoreCommand::Members { json } => {
            let members: Vec<StoreMember> = block_on(target.client(settings)?.get(path::STORE_MEMBERS))?;
            match json {
                true => println!("{}", serde_json::to_string_pretty(&members).context("writing JSON")?),
                false => print!("{}", table_of(&members)),
            }
        }
        StoreCommand::Check => {
            let client = target.client(settings)?;
            let mut text = Vec::new();
            block_on(client.text(path::STORE_CHECK, |piece| {
                text.extend_from_slice(piece);
                Ok(())
            }))?;
            println!("{}", String::from_utf8_lossy(&text));
        }
    }
    Ok(())
}

fn table_of(members: &[StoreMember]) -> String {
    let row = |member: &StoreMember| {
        let vote = match (member.learner, member.leader) {
            (true, _) => "none yet",
            (false, true) => "leads",
            (false, false) => "yes",
        };
        let state = match (member.healthy, member.started) {
            (true, _) => "healthy",
            (false, true) => "does not answer",
            (false, false) => "has not started yet",
        };
        [harmless(&member.name), harmless(&member.peer), vote.into(), state.into()].to_vec()
    };
    table::render(&["MEMBER", "PEER", "VOTE", "STATE"], &members.iter().map(row).collect::<Vec<_>>())
}

/// Takes a snapshot over; the file has its name only when it is whole.
async fn save(client: &NodeClient, file: &Path) -> Result<u64> {
    let part = file.with_added_extension("part");
    let mut options = OpenOptions::new();
    // Not everything in it is encrypted.
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut out = options.open(&part).with_context(|| format!("creating {}", part.display()))?;
    let taken = take(client, &mut out, &part).await.and_then(|size| {
        std::fs::rename(&part, file).with_context(|| format!("naming {}", file.display()))?;
        Ok(size)
    });
    if taken.is_err() {
        // The sentence about the failure says more than one about what is left.
        drop(std::fs::remove_file(&part));
    }
    taken
}

async fn take(client: &NodeClient, out: &mut File, part: &Path) -> Result<u64> {
    let mut size = 0;
    let writing = || format!("writing {}", part.display());
    client
        .text(path::STORE_SNAPSHOT, |piece| {
            size += piece.len() as u64;
            out.write_all(piece).with_context(writing)
        })
        .await?;
    out.sync_all().with_context(writing)?;
    Ok(size)
}

/// A snapshot, or a backup that is one once it is decrypted.
pub(super) fn read_snapshot(settings: &Settings, file: &Path) -> Result<Vec<u8>> {
    // Its beginning first: what is no snapshot is not read in full.
    let mut begin = Vec::new();
    input::open(file)?
        .take(age::MAGIC.len() as u64)
        .read_to_end(&mut begin)
        .with_context(|| format!("reading {}", file.display()))?;
    let bytes = if begin == age::MAGIC {
        backup::open(settings, file, &input::bytes(file, MOST_BYTES)?)?
    } else if begin.starts_with(snapshot::MAGIC) {
        input::bytes(file, MOST_BYTES)?
    } else {
        return input::bad(format!("{} is neither a snapshot nor a backup of a store", file.display()));
    };
    match snapshot::check(&bytes) {
        Ok(()) => Ok(bytes),
        Err(why) => input::bad(format!("{} is no whole snapshot of a store: {why}; name another copy", file.display())),
    }
}

/// Has a master put a snapshot in its store's place, once the user agrees; `what` names it.
pub(super) fn put_in_place(settings: &Settings, target: &Target, bytes: Vec<u8>, what: &str, yes: bool) -> Result<()> {
    println!("{what} takes the place of everything in the cluster's store");
    if !yes && !input::agreed("Go on?")?.unwrap_or(false) {
        return input::bad("nothing was changed; --yes says yes in advance");
    }
    let done: Done = block_on(target.client(settings)?.post_bytes(path::STORE_RESTORE, bytes))?;
    println!("{}", done.message);
    let mut masters = settings.nodes_of(Role::Master).map(|node| &node.entry.name);
    let master = masters.find(|name| target.node.as_ref().is_none_or(|node| node == *name));
    match master {
        Some(name) if target.address.is_none() => state::backup_has_come(settings, name),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::Secrets;

    #[test]
    fn only_snapshots_are_sent() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x");
        let text = "name = \"demo\"\nnodes = [{ name = \"m\", role = \"master\" }]\n";
        let settings = crate::config::parse(Path::new("cluster.toml"), text, dir.path()).unwrap();
        Secrets::ensure(&settings.secrets_dir(), "demo").unwrap();
        let said = |content: &[u8]| {
            std::fs::write(&file, content).unwrap();
            let error = read_snapshot(&settings, &file).unwrap_err();
            assert!(error.is::<input::BadInput>());
            error.to_string()
        };
        assert!(read_snapshot(&settings, &file).unwrap_err().is::<input::BadInput>());
        assert!(said(b"something else").contains("neither a snapshot nor a backup"));
        assert!(said(b"age-encryption.org/v1\n-> X25519 x\n").contains("no file that age encrypted"));
        for damaged in ["KIMG-STORE-LOG-2", "KIMG-STORE-LOG-2junk", "KIMG-STORE-LOG-3xxxx"] {
            assert!(said(damaged.as_bytes()).contains("no whole snapshot"));
        }
        let key = Secrets::of_cluster(&settings.secrets_dir(), "demo").unwrap().backup_key().unwrap();
        assert!(said(&age::encrypt(&key, b"KIMG-STORE-LOG-2")).contains("no whole snapshot"));
        let whole = snapshot::tests::whole();
        for content in [whole.clone(), age::encrypt(&key, &whole)] {
            std::fs::write(&file, content).unwrap();
            assert_eq!(read_snapshot(&settings, &file).unwrap(), whole);
        }
    }
}
