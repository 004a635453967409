//! `kube-apiserver store rewrite`: seals everything by the key that writes, while no server runs.
//! A running server does the same by itself, at its start and after each change of its keys.

use std::path::PathBuf;

use anyhow::Context as _;
use store::{Sealed, Store as _};

use crate::storage::commands::PlaceFlags;

/// Flags of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// EncryptionConfiguration, as the server gets it.
    #[arg(long)]
    encryption_provider_config: Option<PathBuf>,
    /// File with the key of Secrets, as the server gets it.
    #[arg(long)]
    encryption_key_file: Option<PathBuf>,
    /// Only says which keys sealed what is stored; needs no key, and may be asked beside a server.
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    place: PlaceFlags,
}

/// Gives what there is to say.
pub(crate) fn run(args: &Args) -> anyhow::Result<String> {
    let ring =
        crate::encryption::keyring_of(args.encryption_provider_config.as_deref(), args.encryption_key_file.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(async {
        if args.list {
            let (entries, _) = args.place.place()?.read().await?;
            return Ok(crate::encryption::keys_in_use(&entries, &ring).join("\n"));
        }
        let sealed = Sealed::open(args.place.engine().await?, ring).await?;
        let count = sealed.rewrite(crate::encryption::encode_again).await?;
        let mut out = format!("{count} objects were sealed anew\n");
        for (key, count) in sealed.usage() {
            out.push_str(&format!("{key}: {count} objects\n"));
        }
        sealed.close();
        out.truncate(out.trim_end().len());
        Ok(out)
    })
}
