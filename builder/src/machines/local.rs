//! VMs on this machine, as `kimg up` makes them.
//!
//! The images that they can be made from lie in `run/images/` ([`crate::local::stock`]).

use super::{Ended, Machine, Machines, Order};
use crate::client::block_on;
use crate::config::Settings;
use crate::local::state::{State, Vm};
use crate::local::up::ImageFile;
use crate::local::{console, down, rebuild, state, stock};
use crate::node::Target;
use crate::pki::Secrets;
use crate::progress::Progress;
use anyhow::{Context, Result, bail};
use node_api::{NodeStatus, path};
use std::collections::BTreeSet;
use std::time::Duration;

/// How long a node may take to say what it is.
const ASK: Duration = Duration::from_secs(5);

/// The VMs of a cluster.
#[derive(Debug)]
pub struct LocalMachines<'a> {
    settings: &'a Settings,
    secrets: &'a Secrets,
}

impl<'a> LocalMachines<'a> {
    /// Of this cluster.
    pub fn new(settings: &'a Settings, secrets: &'a Secrets) -> LocalMachines<'a> {
        LocalMachines { settings, secrets }
    }
}

impl Machines for LocalMachines<'_> {
    fn list(&self) -> Result<Vec<Machine>> {
        let state = State::load(&self.settings.run_dir())?;
        let machine = |(name, vm): (&String, &Vm)| Machine {
            node: name.clone(),
            image: vm.image.clone(),
            running: vm.running(),
            keeps_data: true,
            on_volume: false,
        };
        Ok(state.vms.iter().map(machine).collect())
    }

    fn offer(&mut self, image: &ImageFile) -> Result<()> {
        let (run_dir, _lock) = state::lock(self.settings)?;
        stock::keep(&run_dir, image)
    }

    fn holds(&self, image: &str) -> Result<bool> {
        Ok(stock::path(&self.settings.run_dir(), image).is_file())
    }

    fn rebuild(&mut self, order: &Order<'_>) -> Result<Ended> {
        let file = stock::path(&self.settings.run_dir(), order.image);
        if !file.is_file() {
            bail!("the image {} is no longer in {}", short(order.image), self.settings.run_dir().display());
        }
        let image = ImageFile { path: file, id: order.image.to_string() };
        let node = self.settings.node(order.node)?;
        rebuild::rebuild(self.settings, self.secrets, node, &image, order.token, order.data, &Progress::hidden())
    }

    fn remove(&mut self, node: &str) -> Result<Ended> {
        down::remove(self.settings, self.secrets, node)
    }

    fn boot(&self, node: &str) -> Option<String> {
        let target = Target { node: Some(node.to_owned()), ..Target::default() };
        let asked = async {
            let client = target.client(self.settings)?;
            tokio::time::timeout(ASK, client.get::<NodeStatus>(path::STATUS)).await.context("asking the node")?
        };
        block_on(asked).ok().map(|status| status.boot_id)
    }

    fn console(&self, node: &str) -> Vec<String> {
        console::last_lines(&self.settings.run_dir().join(node).join("console.log"), 24)
    }

    fn panics(&self, node: &str) -> Option<String> {
        console::panics(&self.settings.run_dir().join(node).join("console.log"))
    }

    /// The images that nobody needs any more.
    fn tidy(&self) -> Result<()> {
        let (run_dir, _lock) = state::lock(self.settings)?;
        stock::tidy(&run_dir, &State::load(&run_dir)?, &BTreeSet::new())
    }
}

/// The beginning of an image's hash, as people are shown it.
pub fn short(image: &str) -> &str {
    image.get(..12).unwrap_or(image)
}
