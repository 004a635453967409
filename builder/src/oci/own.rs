//! The cluster's own registry: reached through the node API of its master, as the operator, under its fixed name.

use super::reference::Reference;
use super::registry::Registry;
use crate::config::Settings;
use crate::input;
use crate::logs::line::harmless;
use crate::node::Target;
use crate::pki::{Authority, Secrets, issue, successor};
use crate::web::Client;
use anyhow::Result;
use node_metadata::REGISTRY;

/// `kimg registry`
#[derive(Debug, clap::Subcommand)]
pub enum RegistryCommand {
    /// List the images
    Ls,
    /// Remove an image, and what no other is made of
    Rm {
        /// Its name, as `kimg registry ls` shows it
        name: String,
    },
}

/// Runs `kimg registry`.
pub fn run(command: &RegistryCommand, settings: &Settings) -> Result<()> {
    let registry = registry(settings, &Client::interruptible(None)?)?;
    match command {
        RegistryCommand::Ls => {
            for name in registry.names()? {
                println!("{REGISTRY}/{}", harmless(&name));
            }
        }
        RegistryCommand::Rm { name } => {
            let name = Reference::parse(name)?;
            if name.authority != REGISTRY {
                return input::bad(format!(
                    "{name} is not in the cluster's registry, whose names begin with {REGISTRY}/"
                ));
            }
            registry.remove(&name)?;
            println!("{name}: removed");
        }
    }
    Ok(())
}

/// The registry of a cluster; `client` says how long is waited.
///
/// # Errors
/// The cluster has none, or its keys are not here.
pub(super) fn registry(settings: &Settings, client: &Client) -> Result<Registry> {
    if settings.registry.is_none() {
        return input::bad(format!(
            "cluster {} has no registry: write [registry] in cluster.toml, build both images, and start the nodes with them",
            settings.name
        ));
    }
    let (_, place, _) = Target::default().place(settings)?;
    let secrets = Secrets::of_cluster(&settings.secrets_dir(), &settings.name)?;
    let authority = successor::bundle(&secrets, Authority::Cluster)?;
    let client = client.of_server(&authority, &issue::node_operator(&secrets)?, &place)?;
    Ok(Registry::new(&client, REGISTRY, None, false))
}

/// What to do where there is no cluster.
pub(super) fn needs_cluster(name: &Reference) -> String {
    format!("{name} is in the registry of a cluster; name the cluster's folder with --dir")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::BadInput;
    use std::path::Path;

    #[test]
    fn a_cluster_without_a_registry_says_how_to_get_one() {
        let text = "name = \"demo\"\nnodes = [{ name = \"m\", role = \"master\" }]\n";
        let settings = crate::config::parse(Path::new("cluster.toml"), text, Path::new("/nowhere")).unwrap();
        let error = registry(&settings, &Client::new(None).unwrap()).unwrap_err();
        assert!(error.is::<BadInput>() && error.to_string().contains("write [registry] in cluster.toml"), "{error}");
    }
}
