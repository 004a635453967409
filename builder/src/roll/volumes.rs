//! Local volumes on their way from one machine to the next: the nodes that give and take them, and the copies that lie on
//! this machine meanwhile.

use crate::cache::private_dir;
use crate::client::block_on;
use crate::config::Settings;
use crate::input::{self, BadInput};
use crate::node::Target;
use anyhow::{Context, Result, bail};
use node_api::copy::Checked;
use node_api::{Done, Volume, path};
use std::fs::File;
use std::io::{BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a node may take to look at its volumes, each file of them.
const LOOK: Duration = Duration::from_secs(60);
/// How long nothing may come of a copy; and, once all of it is sent, until the node has it on its disk.
const SILENCE: Duration = Duration::from_secs(60);
const LAID: Duration = Duration::from_secs(600);
/// What is done meanwhile is done so often.
const BEAT: Duration = Duration::from_secs(30);
const LEVEL: i32 = 3;
/// Two looks at a copy's progress are this far apart at least.
const LEAST: Duration = Duration::from_millis(10);

/// The nodes of a cluster, as they give and take local volumes.
pub trait Volumes {
    /// The volumes on a node.
    ///
    /// # Errors
    /// Bad input: its image cannot copy volumes. Or it does not answer.
    fn list(&self, node: &str) -> Result<Vec<Volume>>;

    /// Writes a copy of a volume, which may be cut off. `meanwhile` is called now and then.
    ///
    /// # Errors
    /// The node does not answer, or cannot.
    fn fetch(&self, node: &str, volume: &str, to: &mut (dyn Write + Send), meanwhile: &dyn Fn()) -> Result<()>;

    /// Has a node make a volume from a copy. Twice is as good as once.
    ///
    /// # Errors
    /// The node does not answer, or refuses: something else is there.
    fn give(&self, node: &str, volume: &str, copy: Box<dyn Read + Send>, meanwhile: &dyn Fn()) -> Result<()>;
}

/// Nodes that are asked by their own API.
#[derive(Debug)]
pub struct NodeVolumes<'a>(pub &'a Settings);

impl NodeVolumes<'_> {
    fn client(&self, node: &str) -> Result<crate::client::node::NodeClient> {
        Target { node: Some(node.to_owned()), ..Target::default() }.client(self.0)
    }
}

impl Volumes for NodeVolumes<'_> {
    fn list(&self, node: &str) -> Result<Vec<Volume>> {
        let client = self.client(node)?;
        let asked =
            async { tokio::time::timeout(LOOK, client.get(path::VOLUMES)).await.context("it does not answer")? };
        block_on(asked).map_err(|error| match error.is::<BadInput>() {
            true => error.context(format!("the image that {node} runs is of a kimg that cannot copy volumes")),
            false => error.context(format!("asking {node} for its local volumes")),
        })
    }

    fn fetch(&self, node: &str, volume: &str, to: &mut (dyn Write + Send), meanwhile: &dyn Fn()) -> Result<()> {
        let client = self.client(node)?;
        beside(meanwhile, || {
            let moved = Moved::default();
            let write = |piece: &[u8]| {
                moved.note();
                to.write_all(piece).context("writing the copy")
            };
            block_on(moved.lively(SILENCE, client.text(&format!("{}/{volume}", path::VOLUMES), write)))
        })
    }

    fn give(&self, node: &str, volume: &str, copy: Box<dyn Read + Send>, meanwhile: &dyn Fn()) -> Result<()> {
        let client = self.client(node)?;
        let moved = Moved::default();
        let copy = Moving { copy, moved: moved.clone() };
        beside(meanwhile, || {
            let path = format!("{}/{volume}", path::VOLUMES);
            block_on(moved.lively(LAID, client.post_all::<Done>(&path, copy))).map(drop)
        })
    }
}

/// When something of a copy was sent or came last: a node that is cut off says nothing, not even that.
#[derive(Debug, Clone)]
struct Moved(Arc<Mutex<Instant>>);

impl Default for Moved {
    fn default() -> Moved {
        Moved(Arc::new(Mutex::new(Instant::now())))
    }
}

impl Moved {
    fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn silent(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Waits for what is under way for as long as it moves.
    async fn lively<T>(&self, limit: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut work = std::pin::pin!(work);
        loop {
            match tokio::time::timeout(limit.saturating_sub(self.silent()).max(LEAST), &mut work).await {
                Ok(done) => return done,
                Err(_) if self.silent() < limit => {}
                Err(_) => bail!("the node has been silent for {} s", limit.as_secs()),
            }
        }
    }
}

/// A copy that is sent, and says so.
struct Moving {
    copy: Box<dyn Read + Send>,
    moved: Moved,
}

impl Read for Moving {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        self.moved.note();
        self.copy.read(to)
    }
}

/// Works in another thread, for as long as it takes.
fn beside(meanwhile: &dyn Fn(), work: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    std::thread::scope(|scope| {
        let working = scope.spawn(work);
        let mut waited = Duration::ZERO;
        while !working.is_finished() {
            let pause = Duration::from_millis(100);
            std::thread::sleep(pause);
            waited += pause;
            if waited >= BEAT {
                waited = Duration::ZERO;
                meanwhile();
            }
        }
        working.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The copies on this machine: `run/kept_volumes/NODE/VOLUME.tar.zst`, readable to their owner alone.
#[derive(Debug)]
pub struct Copies(PathBuf);

impl Copies {
    /// In a cluster's `run/`; no node is called so, whose folder that would be.
    pub fn of(run_dir: &Path) -> Copies {
        Copies(run_dir.join("kept_volumes"))
    }

    /// Where the copies of a node are.
    pub fn dir(&self, node: &str) -> PathBuf {
        self.0.join(node)
    }

    /// Where the copy of a volume is.
    pub fn path(&self, node: &str, volume: &str) -> PathBuf {
        self.dir(node).join(format!("{volume}.tar.zst"))
    }

    /// Keeps what `fetch` writes, whole and read back, or not at all. In the place of what was there.
    ///
    /// # Errors
    /// It cannot be fetched or written, or was cut off.
    pub fn keep(
        &self,
        node: &str,
        volume: &str,
        fetch: impl FnOnce(&mut (dyn Write + Send)) -> Result<()>,
    ) -> Result<()> {
        let dir = self.dir(node);
        private_dir(&self.0)?;
        private_dir(&dir)?;
        let (whole, part) = (self.path(node, volume), dir.join(format!("{volume}.part")));
        let writing = || format!("writing {}", part.display());
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&part);
        let mut packed =
            zstd::Encoder::new(BufWriter::new(file.with_context(writing)?), LEVEL).with_context(writing)?;
        fetch(&mut packed)?;
        let file = packed.finish().and_then(|file| file.into_inner().map_err(std::io::IntoInnerError::into_error));
        file.and_then(|file| file.sync_all()).with_context(writing)?;
        read(&part)?;
        std::fs::rename(&part, &whole).with_context(|| format!("naming {}", whole.display()))?;
        File::open(&dir).and_then(|dir| dir.sync_all()).with_context(|| format!("writing {}", dir.display()))
    }

    /// The sum of a copy, which is read through for it; none where it is not here.
    ///
    /// # Errors
    /// It is damaged, or cannot be read.
    pub fn sum(&self, node: &str, volume: &str) -> Result<Option<String>> {
        let path = self.path(node, volume);
        if input::is_there(&path)? { read(&path).map(Some) } else { Ok(None) }
    }

    /// A copy, to be read.
    ///
    /// # Errors
    /// It cannot be.
    pub fn open(&self, node: &str, volume: &str) -> Result<Box<dyn Read + Send>> {
        let path = self.path(node, volume);
        let opened = File::open(&path).and_then(zstd::Decoder::new);
        Ok(Box::new(opened.with_context(|| format!("reading {}", path.display()))?))
    }

    /// Removes the copies of a node, which nobody waits for any more.
    ///
    /// # Errors
    /// They cannot be removed.
    pub fn forget(&self, node: &str) -> Result<()> {
        let dir = self.dir(node);
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", dir.display()));
            }
            _ => {}
        }
        // That of other nodes may be there.
        let _ = std::fs::remove_dir(&self.0);
        Ok(())
    }

    /// Bytes that may be written there.
    ///
    /// # Errors
    /// The disk cannot be looked at.
    pub fn room(&self) -> Result<u64> {
        let dir = self.0.parent().context("the copies lie in a folder")?;
        let disk = rustix::fs::statvfs(dir).with_context(|| format!("looking at {}", dir.display()))?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }
}

fn read(path: &Path) -> Result<String> {
    let opened = File::open(path).and_then(zstd::Decoder::new);
    opened.and_then(|copy| Checked::new(copy).finish()).with_context(|| format!("reading {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use node_api::copy::Summed;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_node_that_says_nothing_more_is_given_up() {
        let limit = Duration::from_millis(200);
        let moved = Moved::default();
        let hangs = block_on(moved.lively(limit, std::future::pending::<Result<()>>()));
        assert!(hangs.expect_err("given up").to_string().contains("silent"));
        // What is slow, and moves, takes as long as it takes.
        let moved = Moved::default();
        let slow = async {
            for _ in 0..10 {
                tokio::time::sleep(limit / 4).await;
                moved.note();
            }
            Ok(())
        };
        block_on(moved.lively(limit, slow)).expect("all of it");
    }

    #[test]
    fn a_copy_is_kept_whole_or_not_at_all() {
        let dir = tempfile::tempdir().expect("dir");
        let copies = Copies::of(dir.path());
        let write = |bytes: &[u8], to: &mut (dyn Write + Send)| {
            let mut summed = Summed::new(to);
            summed.write_all(bytes)?;
            summed.finish().map(drop).context("writing")
        };
        assert_eq!(copies.sum("w1", "v").expect("asked"), None);
        let cut = copies.keep("w1", "v", |to| to.write_all(b"cut off").context("writing"));
        assert!(format!("{:#}", cut.expect_err("cut off")).contains("cut off or damaged"));
        assert!(copies.keep("w1", "v", |_| anyhow::bail!("no answer")).is_err());
        assert_eq!(copies.sum("w1", "v").expect("asked"), None);
        copies.keep("w1", "v", |to| write(b"one", to)).expect("kept");
        let one = copies.sum("w1", "v").expect("read").expect("there");
        let path = copies.path("w1", "v");
        assert_eq!(std::fs::metadata(&path).expect("file").permissions().mode() & 0o777, 0o600);
        // What cannot be had again does not take its place.
        assert!(copies.keep("w1", "v", |_| anyhow::bail!("no answer")).is_err());
        assert_eq!(copies.sum("w1", "v").expect("read"), Some(one));
        std::fs::write(&path, b"damaged").expect("written");
        assert!(copies.sum("w1", "v").is_err());
        copies.forget("w1").expect("removed");
        copies.forget("w1").expect("removed");
        assert!(!dir.path().join("kept_volumes").exists());
    }
}
