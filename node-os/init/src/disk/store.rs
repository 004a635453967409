//! A master's store on its data volume, which outlives the machine.
//!
//! The volume notes the system disk whose store it is, by that disk's machine id. A machine that finds another one's starts
//! with a closed store, and an operator says what it goes on with ([`crate::api`]): so no disk that somebody made anew takes
//! up a store by itself, and what was closed stays closed until its next owner is noted.

use anyhow::{Context, Result};
use node_sys::mount;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Where a master's data volume is mounted, in memory: there is none where this folder is not.
pub const VOLUME: &str = "/run/kimg/volume";
/// Where both engines' folders are for whom they serve.
const STATE: &str = "/var/lib/kimg";
const MACHINE_ID: &str = "/var/lib/kimg/machine-id";
/// The folders of both engines, and what is in them once they hold a store; etcd's is there a little before.
const ENGINES: [(&str, &str); 2] = [EMBEDDED, ETCD];
const EMBEDDED: (&str, &str) = ("store", "store.log");
const ETCD: (&str, &str) = ("etcd", "member");
/// A file in the store's folder with which its API server serves nobody.
pub const FENCED: &str = "fenced";
/// What a store is to begin with, while it is not whole, or nobody has noted whose store that will be.
pub const PART: &str = "begin.part";
/// The disk whose store the volume holds; not there before there is one.
const OWNER: &str = "owner";

/// A data volume, and the disk of this machine.
#[derive(Debug, Clone)]
pub struct StoreVolume {
    root: PathBuf,
    own: String,
}

impl StoreVolume {
    /// The one that is mounted.
    ///
    /// # Errors
    /// It is not known which disk this is.
    pub fn mounted() -> Result<Option<StoreVolume>> {
        let root = Path::new(VOLUME);
        if !root.exists() {
            return Ok(None);
        }
        let own = fs::read_to_string(MACHINE_ID).with_context(|| format!("cannot read {MACHINE_ID}"))?;
        Ok(Some(StoreVolume { root: root.to_path_buf(), own: own.trim().to_owned() }))
    }

    /// Shows both engines' folders where they are looked for, and closes a store that is another disk's; whether it is.
    /// `waits`: this disk's begins when somebody says what with.
    pub(super) fn show(&self, waits: bool) -> Result<bool> {
        let others = self.prepare(waits)?;
        for (folder, _) in ENGINES {
            let target = Path::new(STATE).join(folder);
            fs::create_dir_all(&target).with_context(|| format!("cannot make {}", target.display()))?;
            if let Err(error) = mount::bind(&self.root.join(folder), &target) {
                // Half of it must not be taken for what is on the disk.
                for (folder, _) in ENGINES {
                    drop(mount::unmount(&Path::new(STATE).join(folder), true));
                }
                return Err(error.into());
            }
        }
        Ok(others)
    }

    fn prepare(&self, waits: bool) -> Result<bool> {
        for (folder, _) in ENGINES {
            let path = self.root.join(folder);
            let made = DirBuilder::new().mode(0o700).recursive(true).create(&path);
            made.and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o700)))
                .with_context(|| format!("cannot make {}", path.display()))?;
        }
        match self.owner()? {
            None if !waits => self.note(&self.own)?,
            // Nothing makes one without noting whose it is.
            None if self.has(EMBEDDED) => self.note("unknown")?,
            _ => {}
        }
        let others = self.is_others()?;
        if others {
            write(&self.root.join("store"), FENCED, "")?;
        }
        Ok(others)
    }

    /// Whether there is a store, and it is another disk's.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn is_others(&self) -> Result<bool> {
        let others = self.owner()?.is_some_and(|owner| owner != self.own);
        Ok(others && ENGINES.into_iter().any(|engine| self.has(engine)))
    }

    /// Whether it was ever said what its store begins with, and there is something.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn has_store(&self) -> Result<bool> {
        let said = self.owner()?.is_some() && !self.root.join("store").join(PART).exists();
        Ok(self.has(EMBEDDED) || said && self.has(ETCD))
    }

    /// Notes that what is there, or what comes now, is this disk's store.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn own(&self) -> Result<()> {
        if self.owner()?.as_deref() == Some(&self.own) { Ok(()) } else { self.note(&self.own) }
    }

    /// Opens what was closed, for this disk. An end between the two leaves it another's, which the next boot closes again.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn take(&self) -> Result<()> {
        let store = self.root.join("store");
        match fs::remove_file(store.join(FENCED)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {FENCED} in {}", store.display()));
            }
            _ => sync(&store)?,
        }
        self.own()
    }

    fn owner(&self) -> Result<Option<String>> {
        let path = self.root.join(OWNER);
        match fs::read_to_string(&path) {
            Ok(owner) => Ok(Some(owner.trim().to_owned())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    fn note(&self, owner: &str) -> Result<()> {
        write(&self.root, OWNER, owner)
    }

    fn has(&self, (folder, holds): (&str, &str)) -> bool {
        self.root.join(folder).join(holds).exists()
    }
}

/// The store where the engines look for it: this disk's own while no volume is shown there.
pub fn on_disk() -> Option<PathBuf> {
    found(Path::new(STATE))
}

fn found(state: &Path) -> Option<PathBuf> {
    ENGINES.iter().map(|(folder, holds)| state.join(folder).join(holds)).find(|path| path.exists())
}

/// Whole and durable, or not there.
fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    let (path, part) = (folder.join(name), folder.join(format!("{name}.part")));
    let written = || {
        let mut file = File::create(&part)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&part, &path)
    };
    written().with_context(|| format!("cannot write {}", path.display()))?;
    sync(folder)
}

fn sync(folder: &Path) -> Result<()> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.with_context(|| format!("cannot make {} durable", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(root: &Path, own: &str) -> StoreVolume {
        StoreVolume { root: root.to_path_buf(), own: own.to_owned() }
    }

    #[test]
    fn a_store_serves_the_disk_that_began_it_and_another_only_when_that_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (of(dir.path(), "1"), of(dir.path(), "2"));
        let closed = || dir.path().join("store/fenced").exists();
        assert!(!first.prepare(true).unwrap() && !first.has_store().unwrap() && !closed());
        // etcd has its folder before anybody has said what it begins with.
        fs::create_dir(dir.path().join("etcd/member")).unwrap();
        assert!(!second.prepare(true).unwrap() && !second.has_store().unwrap() && !closed());
        first.own().unwrap();
        fs::write(dir.path().join("store/store.log"), "log").unwrap();
        assert!(!first.prepare(true).unwrap() && first.has_store().unwrap() && !closed());
        assert!(second.prepare(true).unwrap() && closed());
        assert!(second.is_others().unwrap() && second.has_store().unwrap());
        // Its own owner does not open it by a restart: it may be in the middle of a roll.
        assert!(!first.prepare(true).unwrap() && closed());
        second.take().unwrap();
        assert!(!second.is_others().unwrap() && !closed() && !second.prepare(true).unwrap());
        assert!(first.prepare(true).unwrap() && closed(), "the one before is a stranger now");
    }

    #[test]
    fn an_end_in_the_middle_of_taking_leaves_it_closed_at_the_next_boot() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (of(dir.path(), "1"), of(dir.path(), "2"));
        first.prepare(true).unwrap();
        first.own().unwrap();
        fs::write(dir.path().join("store/store.log"), "log").unwrap();
        assert!(second.prepare(true).unwrap());
        fs::remove_file(dir.path().join("store/fenced")).unwrap();
        assert!(second.prepare(true).unwrap() && dir.path().join("store/fenced").exists());
        // A store that nobody has noted is nobody's.
        fs::remove_file(dir.path().join("owner")).unwrap();
        assert!(first.prepare(true).unwrap() && first.is_others().unwrap() && first.has_store().unwrap());
    }

    #[test]
    fn an_end_before_a_store_has_begun_leaves_nothing_that_is_taken_for_one() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (of(dir.path(), "1"), of(dir.path(), "2"));
        first.prepare(true).unwrap();
        first.own().unwrap();
        // Whoever comes then begins there as on a blank one.
        assert!(!second.prepare(true).unwrap() && !second.has_store().unwrap());
        assert!(!dir.path().join("store/fenced").exists());
        second.own().unwrap();
        // etcd's folder says nothing while what it begins with has not been handed over.
        fs::create_dir(dir.path().join("etcd/member")).unwrap();
        fs::write(dir.path().join("store").join(PART), "").unwrap();
        assert!(!second.prepare(true).unwrap() && !second.has_store().unwrap());
        fs::remove_file(dir.path().join("store").join(PART)).unwrap();
        assert!(second.has_store().unwrap());
        assert!(first.prepare(true).unwrap() && dir.path().join("store/fenced").exists());
    }

    #[test]
    fn a_master_that_waits_for_nobody_has_the_store_that_it_makes() {
        let dir = tempfile::tempdir().unwrap();
        let first = of(dir.path(), "1");
        assert!(!first.prepare(false).unwrap() && !first.has_store().unwrap());
        fs::write(dir.path().join("store/store.log"), "log").unwrap();
        assert!(!first.prepare(false).unwrap() && first.has_store().unwrap());
        assert!(of(dir.path(), "2").prepare(false).unwrap());
    }

    #[test]
    fn a_store_of_either_engine_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("store")).unwrap();
        assert_eq!(found(dir.path()), None);
        fs::create_dir_all(dir.path().join("etcd/member")).unwrap();
        assert_eq!(found(dir.path()), Some(dir.path().join("etcd/member")));
        fs::write(dir.path().join("store/store.log"), "log").unwrap();
        assert_eq!(found(dir.path()), Some(dir.path().join("store/store.log")));
    }
}
