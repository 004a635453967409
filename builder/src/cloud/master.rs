//! A master under another image: its machine is rebuilt in place, and its store is carried from the old disk to the new one,
//! or stays on its data volume.
//!
//! ```text
//! image noted as `none` → store closed → copied to this machine → rebuilt → begins with the copy → image noted
//! ```
//! Whoever was ended on the way finds where it was: a machine whose image is `none` has been begun with; a copy that is
//! here is the last one of a closed store, and has not been begun with unless it says so. What has been begun with may
//! have acknowledged more since, so that it is closed and copied again before its disk goes.
//!
//! What lies on a data volume is closed and copied, too: the new system goes on with what is on the volume, and the copy is
//! for a volume that turns out to hold nothing. That a store lies on one is noted with the machine once its node has said so.

mod rejoin;

use super::machines::{CloudMachines, of};
use super::{Busy, Order as Ordered, Server, State, Volume, volumes};
use crate::client::node;
use crate::input::{self, BadInput};
use crate::machines::{Ended, NO_IMAGE, Order};
use crate::pki::secrets::write_private;
use crate::seed::{Begin, Place, user_data};
use crate::upload::may_be_done;
use crate::web::{Interrupted, Refused};
use anyhow::{Context, Result, bail};
use node_api::Masters;
use node_metadata::Role;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

const EVERY: Duration = Duration::from_secs(3);
/// How long a master is asked to close its store.
const CLOSED: Duration = Duration::from_secs(120);
/// How long a rebuilt machine may take to boot and to take its store.
const BEGUN: Duration = Duration::from_secs(900);
/// How long a provider may be at work on something else.
const FREE: Duration = Duration::from_secs(300);
/// More than any store that its master can hold in memory.
const MOST_BYTES: u64 = 8 << 30;

/// Where a rebuilt master has its store, and what it goes on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Onto {
    /// On its disk, with the copy.
    Disk,
    /// On its data volume, with the copy, whatever is there.
    Volume,
    /// With what is on its data volume; where that is nothing, with the copy.
    Same,
}

/// The last copy of a closed store, on this machine: readable to its owner alone, as not everything in it is encrypted.
#[derive(Debug)]
pub struct LastCopy(PathBuf);

impl LastCopy {
    /// In a cluster's `run/`.
    pub fn of(run_dir: &Path) -> LastCopy {
        LastCopy(run_dir.join("store.snapshot"))
    }

    /// Where its image stands that a master may have begun with it under.
    fn note(&self) -> PathBuf {
        self.0.with_extension("begun")
    }

    /// The copy, and the image of the master that may have begun with it.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self) -> Result<Option<(Vec<u8>, Option<String>)>> {
        if !input::is_there(&self.0)? {
            return Ok(None);
        }
        let note = self.note();
        let begun = if input::is_there(&note)? { Some(input::text(&note, input::SMALL)?) } else { None };
        Ok(Some((input::bytes(&self.0, MOST_BYTES)?, begun)))
    }

    /// In the place of what was there.
    fn keep(&self, snapshot: &[u8]) -> Result<()> {
        // What is to take its place has not been begun with.
        let written = write_private(&self.0, snapshot);
        written.and_then(|()| removed(&self.note()))
    }

    /// One that a master is about to begin with.
    fn keep_begun(&self, snapshot: &[u8], image: &str) -> Result<()> {
        removed(&self.0)?;
        self.begins(image)?;
        write_private(&self.0, snapshot)
    }

    fn begins(&self, image: &str) -> Result<()> {
        write_private(&self.note(), image.as_bytes())
    }

    /// The store goes on elsewhere.
    fn forget(&self) -> Result<()> {
        // Without the note it would be one that nobody has begun with.
        removed(&self.0)?;
        removed(&self.note())
    }
}

fn was_not_begun(error: &anyhow::Error) -> bool {
    let refused = error.chain().find_map(|cause| cause.downcast_ref::<node::Refused>());
    error.is::<BadInput>() || refused.is_some_and(node::Refused::was_not_begun)
}

fn removed(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

impl CloudMachines<'_> {
    fn last_copy(&self) -> LastCopy {
        LastCopy::of(&self.settings.run_dir())
    }

    /// Puts another image under the master, with its store. Called again after it was interrupted, it comes to the same.
    pub(super) fn carry(&self, order: &Order<'_>) -> Result<Ended> {
        let (node, last) = (order.node, self.last_copy());
        let server = self.server(node)?;
        let onto = match self.settings.node(node)?.data_gb {
            None => Onto::Disk,
            Some(_) if server.on_volume => Onto::Same,
            Some(_) => Onto::Volume,
        };
        let kept = last.read()?;
        let copy = match kept {
            // The answer may have been lost, or what was to be noted behind it.
            Some((copy, Some(image))) if image == order.image && [NO_IMAGE, order.image].contains(&&*server.image) => {
                return self.begin(&server, &copy, order.image, onto).map(|()| Ended::Clean);
            }
            Some((copy, None)) if server.image == NO_IMAGE => copy,
            // What it has acknowledged is on its volume, so that a disk that never answers again may go.
            Some((copy, Some(_))) if server.image == NO_IMAGE && onto == Onto::Same && !self.answers(&server) => copy,
            Some((copy, Some(image))) if server.image == NO_IMAGE => {
                // Whether it has begun is not known; what it has acknowledged since is not in that copy. It may be closed
                // again, too.
                self.begin_on(&server, &copy, &image, onto, true)?;
                self.close(&server)?
            }
            _ => {
                if onto == Onto::Volume {
                    self.knows_volumes(&server)?;
                }
                self.close(&server)?
            }
        };
        let mut made = false;
        let mut rebuilt = self.make_volume(node, onto).map(|done| made = done);
        rebuilt = rebuilt.and_then(|()| self.rebuild_in_place(&server, order.image, onto));
        if let Err(error) = rebuilt {
            let refused = error.chain().any(|cause| cause.is::<Refused>() || cause.is::<BadInput>());
            if refused && !may_be_done(&error) && server.image != NO_IMAGE {
                // The old disk is as it was.
                self.open_again(&server)?;
                last.forget()?;
                // Nobody shall take an empty one for what its master had.
                if made && let Err(also) = self.unmake_volume(node) {
                    return Err(error.context(format!(
                        "the data volume that was made for {node} is empty, and stays; remove it at the provider: {also:#}"
                    )));
                }
            }
            return Err(error);
        }
        self.begin(&server, &copy, order.image, onto)?;
        Ok(Ended::Clean)
    }

    /// Whether the node of a machine answers.
    pub fn answers(&self, server: &Server) -> bool {
        server.public.is_some_and(|at| self.nodes.boot(&server.node, at).is_some())
    }

    /// Before a store moves to a volume, as its master may have to go back to the image that it has.
    fn knows_volumes(&self, server: &Server) -> Result<()> {
        let node = server.node.as_str();
        let at = server.public.with_context(|| format!("{node} has no address"))?;
        let said =
            self.patiently(&format!("{node} says what it knows of data volumes"), CLOSED, || self.nodes.take(node, at));
        said.map(drop).with_context(|| {
            format!("{node} is to move its store to a data volume: without data-gb a roll gives it an image that knows of them")
        })
    }

    /// Goes on where a master was about to begin with its store; whether there was anything to go on with.
    ///
    /// # Errors
    /// It does not take its store.
    pub fn resume(&self, node: &str) -> Result<bool> {
        let (Some(server), Some((copy, Some(image)))) = (self.server_of(node)?, self.last_copy().read()?) else {
            return Ok(false);
        };
        if server.image != NO_IMAGE {
            return Ok(false);
        }
        let onto = match self.settings.node(node)?.data_gb {
            Some(_) if server.on_volume => Onto::Same,
            // It was on its way there.
            Some(_) if self.cloud.inventory()?.volume(node).is_some() => Onto::Volume,
            _ => Onto::Disk,
        };
        // Its store is on the volume, for whichever machine comes next.
        if onto == Onto::Same && !self.answers(&server) {
            return Ok(false);
        }
        self.begin(&server, &copy, &image, onto)?;
        Ok(true)
    }

    /// The data volume with a master's store on it.
    ///
    /// # Errors
    /// `cluster.toml` knows nothing of it, or the provider cannot be asked.
    pub fn store_volume(&self, node: &str) -> Result<Option<Volume>> {
        let known = self.cloud.inventory()?;
        let Some(volume) = known.volume(node).filter(|_| of(&known, node).all(|server| server.on_volume)) else {
            return Ok(None);
        };
        if !volumes::keep_data(self.settings, &known, node) {
            return input::bad(format!(
                "the data volume {} has the store of {node}, which has no data-gb in cluster.toml: write data-gb = {}",
                volume.id, volume.gb
            ));
        }
        Ok(Some(volume.clone()))
    }

    /// Makes a master anew that is lost, and has it begin with a copy, or go on with what is on its data volume. Where its
    /// machine is gone, another is made.
    ///
    /// # Errors
    /// It cannot be made, or does not take its store; the next attempt goes on.
    pub fn revive(&self, node: &str, image: &str, copy: Option<&[u8]>) -> Result<()> {
        let known = self.cloud.inventory()?;
        let has_volume = self.settings.node(node)?.data_gb.is_some() && of(&known, node).all(|server| server.on_volume);
        let (onto, copy) = match copy {
            Some(copy) => {
                // Of a roll that is given up.
                self.last_copy().forget()?;
                (if has_volume { Onto::Volume } else { Onto::Disk }, copy.to_vec())
            }
            // What a roll left is for a volume that it had not come to.
            None => (Onto::Same, self.last_copy().read()?.map(|(copy, _)| copy).unwrap_or_default()),
        };
        match of(&known, node).next() {
            Some(server) => {
                self.cloud.mark(server, NO_IMAGE)?;
                self.make_volume(node, onto)?;
                self.rebuild_in_place(server, image, onto)?;
            }
            None => self.make_master(&known, node, image, NO_IMAGE)?,
        }
        let server = self.client.poll(&format!("the machine of {node}"), EVERY, BEGUN, || {
            let found = self.cloud.inventory()?;
            Ok(of(&found, node).next().cloned())
        })?;
        self.begin(&server, &copy, image, onto)
    }

    /// The machine of a node, where there is one.
    ///
    /// # Errors
    /// The provider cannot be asked.
    pub fn server_of(&self, node: &str) -> Result<Option<Server>> {
        Ok(of(&self.cloud.inventory()?, node).next().cloned())
    }

    fn server(&self, node: &str) -> Result<Server> {
        let known = self.cloud.inventory()?;
        self.check_in(&known, &[node])?;
        match of(&known, node).next() {
            Some(server) => Ok(server.clone()),
            None => bail!(
                "the machine of {node} is gone, and its store with it: `kimg heal master` brings it back from a copy"
            ),
        }
    }

    /// Closes the master's store, and copies it here. What is not known to be closed is noted before as one whose image is
    /// not known, so that nobody takes it for a whole one.
    fn close(&self, server: &Server) -> Result<Vec<u8>> {
        let node = server.node.as_str();
        let at = server.public.with_context(|| format!("{node} has no address"))?;
        if server.image != NO_IMAGE {
            self.cloud.mark(server, NO_IMAGE)?;
        }
        let copied = self.patiently(&format!("{node} closes its store"), CLOSED, || {
            self.nodes.fence(node, at)?;
            self.nodes.snapshot(node, at)
        });
        let copied = copied.and_then(|copy| {
            self.last_copy().keep(&copy)?;
            Ok(copy)
        });
        copied.map_err(|error| {
            if error.is::<Interrupted>() || server.image == NO_IMAGE {
                return error;
            }
            let error = error.context(format!("the store of {node} could not be closed and copied"));
            match self.open_again(server) {
                Ok(()) => error,
                Err(also) => error.context(format!("{also:#}")),
            }
        })
    }

    /// Takes back what [`CloudMachines::close`] has done.
    fn open_again(&self, server: &Server) -> Result<()> {
        let at = server.public.with_context(|| format!("{} has no address", server.node))?;
        match self.nodes.unfence(&server.node, at) {
            // An image that knows nothing of it has not done it either.
            Err(error) if !error.is::<BadInput>() => {
                return Err(error.context(format!(
                    "the store of {} may be closed: `kimg roll` goes on with it, and `kimg roll --rollback` goes back",
                    server.node
                )));
            }
            _ => {}
        }
        self.cloud.mark(server, &server.image)
    }

    /// Whether one had to be made.
    fn make_volume(&self, node: &str, onto: Onto) -> Result<bool> {
        match self.settings.node(node)?.data_gb {
            Some(gb) if onto != Onto::Disk && self.cloud.inventory()?.volume(node).is_none() => {
                self.cloud.make_volume(node, gb).with_context(|| format!("making the data volume of {node}"))?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Removes one that was made a moment ago, and never attached.
    fn unmake_volume(&self, node: &str) -> Result<()> {
        let known = self.cloud.inventory()?;
        known.volume(node).map_or(Ok(()), |volume| self.cloud.delete(&volume.thing()))
    }

    /// The disk goes.
    fn rebuild_in_place(&self, server: &Server, image: &str, onto: Onto) -> Result<()> {
        let mut settings = self.settings.node(&server.node)?.clone();
        settings.data_gb = settings.data_gb.filter(|_| onto != Onto::Disk);
        let found = self.image(image)?;
        let known = self.cloud.inventory()?;
        let network = known.networks.first().context("the private network is gone; `kimg up` makes it")?;
        let firewall = known.firewalls.iter().find(|firewall| firewall.role == Role::Master);
        let firewall = firewall.context("the firewall of the masters is gone; `kimg up` makes it")?;
        let place = Place::Network { range: self.provider.network, masters: &[] };
        let user_data = user_data(self.settings, &settings, place, Begin::AwaitBackup, self.secrets)?;
        let order = Ordered {
            node: &server.node,
            role: Role::Master,
            size: &server.size,
            image_id: &found.id,
            image: NO_IMAGE,
            user_data: &user_data,
            network,
            firewall,
            on_volume: settings.data_gb.is_some(),
        };
        let asked = self.client.poll(&format!("rebuilding {}", server.node), EVERY, FREE, || {
            match self.cloud.rebuild_server(server, &order) {
                Err(error) if error.is::<Busy>() => Ok(None),
                other => other.map(Some),
            }
        });
        asked.with_context(|| format!("rebuilding the machine of {}", server.node))
    }

    /// Has a rebuilt master begin with the copy, and notes its image.
    fn begin(&self, server: &Server, copy: &[u8], image: &str, onto: Onto) -> Result<()> {
        let on_volume = self.begin_on(server, copy, image, onto, false)?;
        self.cloud.mark(&Server { on_volume: server.on_volume || on_volume, ..server.clone() }, image)?;
        self.last_copy().forget()
    }

    /// A master that has a store keeps it, and one whose store is closed does not begin: it is that of before, unless
    /// `or_closed` knows better. One that never answers has not begun. Says whether the store is on its data volume.
    fn begin_on(&self, server: &Server, copy: &[u8], image: &str, onto: Onto, or_closed: bool) -> Result<bool> {
        let (node, last) = (server.node.as_str(), self.last_copy());
        // Without a copy there is only what is on the volume.
        let onto = if copy.is_empty() { Onto::Same } else { onto };
        if onto != Onto::Disk {
            volumes::attach(self.cloud, self.client, node)?;
        }
        let kept = last.read()?.map(|(_, image)| image.is_some());
        let began = self.patiently(&format!("{node} begins with its store"), BEGUN, || {
            let known = self.cloud.inventory()?;
            let server = of(&known, node).next().with_context(|| format!("the machine of {node} is gone"))?;
            if server.state == State::Off {
                self.cloud.start(server)?;
            }
            let at: IpAddr = server.public.context("it has no address yet")?;
            self.nodes.boot(node, at).context("it does not answer yet")?;
            self.let_begin(server, at)?;
            match kept {
                Some(_) => last.begins(image)?,
                None => last.keep_begun(copy, image)?,
            }
            let began = self.tell(node, at, copy, onto);
            let surely_not = match &began {
                Ok(begun) => begun.is_none(),
                Err(error) => was_not_begun(error),
            };
            match kept {
                Some(false) if surely_not => removed(&last.note())?,
                None if surely_not => last.forget()?,
                _ => {}
            }
            match began? {
                Some(on_volume) => Ok(on_volume),
                None if or_closed => Ok(false),
                None => bail!("its store is closed: it is not the new one yet"),
            }
        });
        began.with_context(|| format!("{node} was rebuilt from image {image}, and has not taken its store"))
    }

    /// One whose image knows several masters begins nothing before it is told, and this one is the first: others that there
    /// shall be join it.
    fn let_begin(&self, server: &Server, at: IpAddr) -> Result<()> {
        match self.nodes.told(&server.node, at)? {
            Some(told) if told.masters.is_empty() => {
                let own = server.private.context("it has no address in the private network yet")?;
                self.nodes.tell(&server.node, at, &Masters { masters: vec![own], join: false })
            }
            _ => Ok(()),
        }
    }

    /// Tells a master what its store begins with; whether that is on its data volume, and none where it is closed.
    fn tell(&self, node: &str, at: IpAddr, copy: &[u8], onto: Onto) -> Result<Option<bool>> {
        if onto != Onto::Same && !self.nodes.begin(node, at, copy)? {
            return Ok(None);
        }
        if onto == Onto::Disk {
            return Ok(Some(false));
        }
        let Some(taken) = self.nodes.take(node, at)? else { return Ok(None) };
        match taken.store {
            true => Ok(Some(taken.on_volume)),
            false if copy.is_empty() => input::bad(format!(
                "the data volume of {node} holds no store: `kimg heal master --discard-disk` begins there with the newest backup"
            )),
            false => Ok(self.nodes.begin(node, at, copy)?.then_some(taken.on_volume)),
        }
    }

    /// Asks until it is done; what is wrong with the request itself is not asked again.
    fn patiently<T>(&self, what: &str, limit: Duration, ask: impl Fn() -> Result<T>) -> Result<T> {
        let mut last = None;
        let done = self.client.poll(what, EVERY, limit, || match ask() {
            Ok(done) => Ok(Some(done)),
            Err(error) if error.is::<BadInput>() || error.is::<Interrupted>() => Err(error),
            Err(error) => {
                last = Some(error);
                Ok(None)
            }
        });
        done.map_err(|error| match last {
            Some(last) if !error.is::<BadInput>() && !error.is::<Interrupted>() => last.context(format!("{error:#}")),
            _ => error,
        })
    }
}
