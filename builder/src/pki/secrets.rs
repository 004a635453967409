//! The `secrets/` folder: files appear whole or not at all, with mode 0600, and are never overwritten by `ensure`.

use super::accounts;
use super::authority::Authority;
use crate::backup::age::Identity;
use crate::cache;
use crate::input;
use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use node_metadata::SealKey;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Begin of the names of files that are not yet whole.
const TEMPORARY: &str = ".new-";
/// Keys of 32 bytes in base64, without a public half.
const SYMMETRIC: [&str; 2] = ["encryption.key", "seal.key"];
const LEFTOVER_AGE: std::time::Duration = std::time::Duration::from_secs(60);

/// The operator's secrets of one cluster.
#[derive(Debug, Clone)]
pub struct Secrets {
    dir: PathBuf,
}

impl Secrets {
    /// The folder as it is; nothing is made.
    pub fn open(dir: &Path) -> Secrets {
        Secrets { dir: dir.to_path_buf() }
    }

    /// Those of a cluster that has some: for what would be useless with new authorities, which no image knows.
    ///
    /// # Errors
    /// Bad input: there are none, as in a clone of a cluster's folder.
    pub fn of_cluster(dir: &Path, cluster: &str) -> Result<Secrets> {
        if !input::is_there(&dir.join(Authority::Cluster.key_file()))? {
            return input::bad(format!(
                "{0} does not hold this cluster's secrets; copy them there (they are in no version control), or make new \
                 ones, for new images, with `kimg pki init`",
                dir.display()
            ));
        }
        Secrets::ensure(dir, cluster)
    }

    /// Makes whatever is missing of a cluster's keys and authorities, until there are all; what exists stays as it is.
    ///
    /// # Errors
    /// Bad input: something is damaged, no pair, or was there and is no more.
    pub fn ensure(dir: &Path, cluster: &str) -> Result<Secrets> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("making {}", dir.display()))?;
        let mode = std::fs::metadata(dir)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return input::bad(format!(
                "{} can be entered by others (mode {mode:o}); it holds the cluster's private keys: run `chmod 700 {}`",
                dir.display(),
                dir.display()
            ));
        }
        let secrets = Secrets::open(dir);
        // Of a folder that may not be entered nothing else would be found either.
        input::is_there(&secrets.path("backup.pub"))?;
        let _lock = secrets.lock()?;
        secrets.remove_leftovers()?;
        secrets.check_whole()?;
        accounts::resume(&secrets)?;
        for authority in Authority::ALL {
            authority.ensure(&secrets, cluster)?;
        }
        secrets.ensure_key_pair("sa")?;
        secrets.ensure_key_pair("signing")?;
        for name in SYMMETRIC {
            if !secrets.path(name).exists() {
                let text = format!("{}\n", STANDARD.encode(rand::random::<[u8; 32]>()));
                secrets.write(name, text.as_bytes())?;
            }
            if !STANDARD.decode(secrets.read(name)?.trim()).is_ok_and(|key| key.len() == 32) {
                return secrets.damaged(name, "key of 32 bytes");
            }
        }
        secrets.ensure_backup_key()?;
        Ok(secrets)
    }

    /// Path of a file in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Reads a file as text.
    pub fn read(&self, name: &str) -> Result<String> {
        input::text(&self.path(name), input::SMALL)
            .or_else(|error| input::bad(format!("{error} (the cluster's secrets; restore them from your backup)")))
    }

    /// Writes a file, replacing an older one in one step.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        write_private(&self.path(name), bytes)
    }

    /// Removes a file that may be gone.
    pub fn remove(&self, name: &str) -> Result<()> {
        match std::fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", self.path(name).display()))
            }
            _ => Ok(()),
        }
    }

    /// A file, and behind it the one that it has followed, while that is in trust.
    pub(super) fn with_former(&self, name: &str, former: &str) -> Result<String> {
        let mut text = self.read(name)?;
        if self.path(former).exists() {
            text.push_str(&self.read(former)?);
        }
        Ok(text)
    }

    /// Whether `former` is in trust beside what has followed it; while `next` is there, a run that was to put that in its
    /// place has not ended.
    pub(super) fn has_former(&self, former: &str, next: &str) -> bool {
        self.path(former).exists() && !self.path(next).exists()
    }

    /// Reads a private key.
    pub fn key(&self, name: &str) -> Result<KeyPair> {
        KeyPair::from_pem(&self.read(name)?).or_else(|_| self.damaged(name, "private key"))
    }

    /// File names of all private keys in the folder, issued ones included, sorted.
    pub fn private_keys(&self) -> Result<Vec<String>> {
        let entries = std::fs::read_dir(&self.dir).with_context(|| format!("reading {}", self.dir.display()))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.with_context(|| format!("reading {}", self.dir.display()))?;
            names.extend(entry.file_name().into_string().ok().filter(|name| name.ends_with(".key")));
        }
        names.sort();
        Ok(names)
    }

    /// The key that masters' secrets are sealed to, as user-data has it.
    pub fn seal_key(&self) -> Result<SealKey> {
        self.seal_key_of("seal.key")
    }

    pub(super) fn seal_key_of(&self, name: &str) -> Result<SealKey> {
        SealKey::from_base64(&self.read(name)?).or_else(|_| self.damaged(name, "seal key"))
    }

    /// The key that opens backups of the store.
    pub fn backup_key(&self) -> Result<Identity> {
        Identity::parse(&self.read("backup.key")?).or_else(|_| self.damaged("backup.key", "key of age"))
    }

    /// Fails: a file that kimg once wrote is not what it was. What a parser says of it stays away from logs.
    pub fn damaged<T>(&self, name: &str, what: &str) -> Result<T> {
        let path = self.path(name);
        input::bad(format!(
            "{} holds no readable {what}; restore the cluster's secrets from your backup",
            path.display()
        ))
    }

    /// The secret number of the key that images are signed with (P-256, 32 bytes).
    pub fn signing_key(&self) -> Result<[u8; 32]> {
        let der = self.key("signing.key")?.serialize_der();
        secret_number(&der).with_context(|| format!("reading {}", self.path("signing.key").display()))
    }

    fn ensure_key_pair(&self, name: &str) -> Result<()> {
        let (private, public) = (format!("{name}.key"), format!("{name}.pub"));
        if !self.path(&private).exists() {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).with_context(|| format!("making {private}"))?;
            self.write(&private, key.serialize_pem().as_bytes())?;
        }
        if !self.path(&public).exists() {
            let text = self.key(&private)?.public_key_pem();
            self.write(&public, text.as_bytes())?;
        }
        if self.read(&public)?.trim() != self.key(&private)?.public_key_pem().trim() {
            return self.no_pair(&public, &private);
        }
        Ok(())
    }

    /// Fails: two files that kimg once wrote together are not what they were.
    pub(super) fn no_pair<T>(&self, public: &str, private: &str) -> Result<T> {
        let [public, private] = [public, private].map(|name| self.path(name).display().to_string());
        input::bad(format!("{public} does not belong to {private}; restore the cluster's secrets from your backup"))
    }

    /// A set that was whole once and lacks something has lost it: another one in its place would not go with the images,
    /// certificates and stored Secrets that are there.
    fn check_whole(&self) -> Result<()> {
        // Written last.
        if !self.path("backup.pub").exists() {
            return Ok(());
        }
        let pairs = Authority::ALL.iter().flat_map(|authority| [authority.key_file(), authority.certificate_file()]);
        let others = ["sa.key", "signing.key", "backup.key"].into_iter().chain(SYMMETRIC).map(String::from);
        match pairs.chain(others).find(|name| !self.path(name).exists()) {
            None => Ok(()),
            Some(name) if name == "backup.key" => input::bad(format!(
                "{} is missing, and {} is there; restore it from your backup of the cluster's secrets (or, if it is lost, \
                 remove the .pub: older backups of the store cannot be read any more then)",
                self.path(&name).display(),
                self.path("backup.pub").display()
            )),
            Some(name) => input::bad(format!(
                "{} is missing; restore it from your backup of the cluster's secrets (another one would not go with what \
                 the cluster has)",
                self.path(&name).display()
            )),
        }
    }

    /// The key that backups of the store are encrypted to, and its public half, which masters get.
    fn ensure_backup_key(&self) -> Result<()> {
        let (private, public) = (self.path("backup.key"), self.path("backup.pub"));
        if !private.exists() {
            self.write("backup.key", format!("{}\n", Identity::generate().to_text()?).as_bytes())?;
        }
        let recipient = self.backup_key()?.recipient()?;
        if !public.exists() {
            self.write("backup.pub", format!("{recipient}\n").as_bytes())?;
        } else if self.read("backup.pub")?.trim() != recipient {
            return self.no_pair("backup.pub", "backup.key");
        }
        Ok(())
    }

    /// Removes what an interrupted run has left; a file that is being written now is young.
    fn remove_leftovers(&self) -> Result<()> {
        let entries = std::fs::read_dir(&self.dir).with_context(|| format!("reading {}", self.dir.display()))?;
        for entry in entries.flatten() {
            let old = entry
                .metadata()
                .and_then(|m| m.modified())
                .is_ok_and(|t| t.elapsed().is_ok_and(|age| age > LEFTOVER_AGE));
            if old && entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
                std::fs::remove_file(entry.path()).with_context(|| format!("removing {}", entry.path().display()))?;
            }
        }
        Ok(())
    }

    /// Two runs at a time must not each make a key; the lock ends with the returned file.
    pub(super) fn lock(&self) -> Result<std::fs::File> {
        let path = self.path(".lock");
        let file = cache::open_private(&path)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
            .with_context(|| format!("locking {}", path.display()))?;
        Ok(file)
    }
}

/// The secret number in a P-256 key in PKCS #8 (RFC 5915: version 1, then 32 bytes).
pub fn secret_number(der: &[u8]) -> Result<[u8; 32]> {
    let head = [2, 1, 1, 4, 32];
    let at = der.windows(head.len()).position(|part| part == head).context("it is no P-256 key in PKCS #8")?;
    let number = der.get(at + head.len()..).and_then(|rest| rest.first_chunk()).context("it is cut short")?;
    Ok(*number)
}

/// Writes a file of mode 0600 so that it is there whole or not at all.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(TEMPORARY)
        .tempfile_in(dir)
        .with_context(|| format!("making a file in {}", dir.display()))?;
    file.write_all(bytes)
        .and_then(|()| file.as_file().sync_all())
        .with_context(|| format!("writing {}", path.display()))?;
    file.persist(path).with_context(|| format!("writing {}", path.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_or_damaged_is_told_and_nothing_is_made_in_its_place() {
        let dir = tempfile::tempdir().expect("dir");
        let folder = dir.path().join("secrets");
        let secrets = Secrets::ensure(&folder, "demo").expect("secrets");
        let other = Secrets::ensure(&dir.path().join("other"), "demo").expect("secrets");
        for name in ["cluster-ca.key", "etcd-ca.crt", "sa.key", "sa.pub", "signing.key", "encryption.key", "seal.key"] {
            let whole = secrets.read(name).expect("read");
            // The public half of a pair comes back from the private one.
            if name != "sa.pub" {
                std::fs::remove_file(secrets.path(name)).expect("removed");
                let error = Secrets::ensure(&folder, "demo").expect_err(name).to_string();
                assert!(error.contains(&format!("{name} is missing")), "{error}");
                assert!(!secrets.path(name).exists(), "another {name} was made");
            }
            secrets.write(name, b"junk\n").expect("written");
            assert!(Secrets::ensure(&folder, "demo").expect_err(name).is::<input::BadInput>());
            if !SYMMETRIC.contains(&name) {
                secrets.write(name, other.read(name).expect("read").as_bytes()).expect("written");
                let error = Secrets::ensure(&folder, "demo").expect_err(name);
                assert!(error.is::<input::BadInput>() && error.to_string().contains("does not belong to"), "{error}");
            }
            secrets.write(name, whole.as_bytes()).expect("written");
            Secrets::ensure(&folder, "demo").expect("whole again");
        }
    }

    #[test]
    fn a_backup_key_that_is_lost_or_another_is_told() {
        let dir = tempfile::tempdir().expect("dir");
        let secrets = Secrets::ensure(&dir.path().join("secrets"), "demo").expect("secrets");
        let key = secrets.read("backup.key").expect("key");
        Secrets::ensure(&dir.path().join("secrets"), "demo").expect("the same again");
        assert_eq!(secrets.read("backup.key").expect("key"), key);
        std::fs::remove_file(secrets.path("backup.key")).expect("removed");
        let error = Secrets::ensure(&dir.path().join("secrets"), "demo").expect_err("lost");
        assert!(error.is::<input::BadInput>() && error.to_string().contains("backup.key is missing"), "{error}");
        assert!(!secrets.path("backup.key").exists(), "another one was made");
        let other = Identity::generate().to_text().expect("text");
        secrets.write("backup.key", other.as_bytes()).expect("written");
        let error = Secrets::ensure(&dir.path().join("secrets"), "demo").expect_err("another");
        assert!(error.is::<input::BadInput>() && error.to_string().contains("does not belong to"), "{error}");
    }
}
