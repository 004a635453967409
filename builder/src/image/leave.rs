//! What may leave this machine: the gate before every upload and push, and the search for a cluster's keys.

use super::inspect;
use super::reader::Disk;
use crate::backup::age::Identity;
use crate::pki::Secrets;
use crate::pki::secrets::secret_number;
use aho_corasick::AhoCorasick;
use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use memchr::memmem;
use rsa::pkcs8::DecodePrivateKey;
use rsa::traits::PrivateKeyParts;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Why an image stays here.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} carries private keys in clear ({}): whoever reads it owns the cluster. Write secrets = \"sealed\" in cluster.toml and build it again",
    image.display(), files.join(", ")
)]
pub struct KeysInClear {
    /// The image.
    pub image: PathBuf,
    /// Files of CONFIG that hold a key.
    pub files: Vec<String>,
}

/// Lets a disk image pass that holds no private key in clear in its CONFIG. Every upload and push asks here first.
///
/// # Errors
/// [`KeysInClear`]; or the file is no disk image of kimg in a form that it writes, or is damaged.
pub fn may_leave(image: &Path) -> Result<()> {
    let mut disk = Disk::open(image)?;
    let (_, config) = inspect::config_of(&mut disk).with_context(|| format!("reading {}", image.display()))?;
    let in_clear = |(path, (_, content)): (&PathBuf, &(u32, Vec<u8>))| {
        // A key of ours lies below secrets/; a key of the operator's own may stand in any manifest.
        let found = path.starts_with("secrets") || names_a_key(content);
        found.then(|| path.display().to_string())
    };
    let files: Vec<String> = config.iter().filter_map(in_clear).collect();
    if files.is_empty() { Ok(()) } else { Err(KeysInClear { image: image.to_path_buf(), files }.into()) }
}

/// Whether a PEM key stands there: in clear, or in base64, as a Secret's `data` has it, wherever in a group of three
/// bytes it begins.
fn names_a_key(content: &[u8]) -> bool {
    const MARK: &[u8] = b"PRIVATE KEY-----";
    let encoded = (0..3).map(|shift| {
        let text = STANDARD.encode([&[0; 2][..shift], MARK].concat());
        // Only whole groups are the same whatever stands around them.
        let (from, to) = (if shift == 0 { 0 } else { 4 }, (shift + MARK.len()) / 3 * 4);
        text.as_bytes()[from..to].to_vec()
    });
    std::iter::once(MARK.to_vec()).chain(encoded).any(|mark| memmem::find(content, &mark).is_some())
}

/// Bytes of a line of PEM.
const PEM_LINE: usize = 48;

/// The forms in which a cluster's private keys could stand in a file.
pub struct Keys {
    /// All forms of all keys at once: one pass over an image, whatever their number.
    needles: AhoCorasick,
    /// The key that each form is of.
    names: Vec<String>,
}

impl Keys {
    /// Of all private keys in the operator's folder.
    ///
    /// # Errors
    /// The folder cannot be read, or holds no key.
    pub fn of(secrets: &Secrets) -> Result<Keys> {
        let (mut needles, mut names) = (Vec::new(), Vec::new());
        for name in secrets.private_keys()? {
            let text = secrets.read(&name)?;
            for needle in forms(&text).with_context(|| format!("reading the key {name}"))? {
                needles.push(needle);
                names.push(name.clone());
            }
        }
        anyhow::ensure!(!needles.is_empty(), "there is no private key to search for");
        Ok(Keys { needles: AhoCorasick::new(needles).context("the keys are too many to search for")?, names })
    }

    /// Names of the keys that stand anywhere in `reader`, in any of their forms.
    ///
    /// # Errors
    /// It cannot be read to its end.
    pub fn search(&self, mut reader: impl Read) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let mut window = vec![0; 1 << 20];
        let mut kept = 0;
        loop {
            let read = reader.read(&mut window[kept..]).context("searching for keys")?;
            if read == 0 {
                found.sort();
                found.dedup();
                return Ok(found);
            }
            let filled = kept + read;
            if window[..filled].iter().any(|byte| *byte != 0) {
                let matches = self.needles.find_overlapping_iter(&window[..filled]);
                found.extend(matches.map(|at| self.names[at.pattern()].clone()));
            }
            // What may be the begin of a key that goes on in the next read.
            kept = filled.min(self.needles.max_pattern_len() - 1);
            window.copy_within(filled - kept..filled, 0);
        }
    }
}

/// A key as bytes, in PKCS #8, as the lines of PEM, as base64 and as hex.
fn forms(text: &str) -> Result<Vec<Vec<u8>>> {
    let mut needles = Vec::new();
    let secrets = match text.split_once("-----BEGIN PRIVATE KEY-----") {
        Some((_, rest)) => {
            let body = rest.split("-----END").next().unwrap_or_default();
            let lines: Vec<&str> = body.split_whitespace().collect();
            let der = STANDARD.decode(lines.concat())?;
            let (secrets, private) = secrets_of(&der)?;
            let private = lines.iter().enumerate().filter(|(number, _)| private.contains(number));
            needles.extend(private.filter(|(_, line)| line.len() > 16).map(|(_, line)| line.as_bytes().to_vec()));
            needles.push(STANDARD.encode(&der).into_bytes());
            // A PEM file as a value of YAML or JSON, e.g. in a kubeconfig.
            needles.push(STANDARD.encode(text).into_bytes());
            needles.push(der);
            secrets
        }
        None if text.starts_with("AGE-SECRET-KEY-") => {
            needles.push(text.trim().as_bytes().to_vec());
            vec![Identity::parse(text)?.secret().to_vec()]
        }
        None => vec![STANDARD.decode(text.trim())?],
    };
    for secret in secrets {
        anyhow::ensure!(secret.len() >= 16, "it is too short to be a key");
        needles.push(STANDARD.encode(&secret).into_bytes());
        needles.push(hex::encode(&secret).into_bytes());
        needles.push(secret);
    }
    Ok(needles)
}

/// The secret numbers of a key, and the lines of its PEM that have something of them and are not the same for all keys.
fn secrets_of(der: &[u8]) -> Result<(Vec<Vec<u8>>, Range<usize>)> {
    if let Ok(key) = rsa::RsaPrivateKey::from_pkcs8_der(der) {
        let numbers = std::iter::once(key.d()).chain(key.primes());
        // The algorithm, the modulus of 256 bytes and the exponent, which stand in the certificate too.
        return Ok((numbers.map(|number| number.to_bytes_be()).collect(), 7..usize::MAX));
    }
    let number = secret_number(der)?;
    let begin = memmem::find(der, &number).context("it is no key in PKCS #8")?;
    // The first line names the algorithm. After the number comes the public half, which certificates have too.
    Ok((vec![number.to_vec()], 1..(begin + number.len()).div_ceil(PEM_LINE)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Settings};
    use crate::disk::{self, config_part};
    use crate::image::installer;
    use crate::image::output::Format;
    use crate::pki;
    use node_metadata::{BuildInfo, Role};

    fn settings(dir: &Path, first: &str) -> Settings {
        let text = format!("name = \"demo\"\n{first}nodes = [{{ name = \"m\", role = \"master\" }}]\n");
        config::parse(Path::new("cluster.toml"), &text, dir).unwrap()
    }

    /// A disk with the role's real CONFIG and a root of no meaning.
    fn image(settings: &Settings, role: Role, path: &Path) {
        let config = pki::config_partition(settings, role, BuildInfo::default()).unwrap();
        let root = settings.dir.join("root");
        std::fs::write(&root, vec![1; 8192]).unwrap();
        let parts = disk::Parts {
            boot_img: &[0; 512],
            esp_files: &[("/boot/vmlinuz", b"k")],
            root: &root,
            verity: &root,
            root_hash: [1; 32],
            config: &config_part::encode(&config).unwrap(),
        };
        disk::write(path, &parts, b"core").unwrap();
    }

    #[test]
    fn what_is_built_without_a_word_may_leave_and_holds_no_byte_of_a_key() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path(), "");
        let keys = Keys::of(&Secrets::ensure(&settings.secrets_dir(), "demo").unwrap()).unwrap();
        for role in [Role::Master, Role::Worker] {
            let raw = dir.path().join(format!("{role}.raw"));
            image(&settings, role, &raw);
            may_leave(&raw).unwrap();
            assert_eq!(keys.search(Disk::open(&raw).unwrap()).unwrap(), [""; 0], "{role}");
        }
    }

    #[test]
    fn keys_in_clear_stay_here_in_every_form_of_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path(), "secrets = \"plain\"\n");
        let keys = Keys::of(&Secrets::ensure(&settings.secrets_dir(), "demo").unwrap()).unwrap();
        let raw = dir.path().join("disk.raw");
        image(&settings, Role::Master, &raw);
        for format in [Format::Raw, Format::RawZst, Format::Qcow2, Format::Vhd, Format::Vhdx, Format::Vmdk] {
            let out = dir.path().join(format.file());
            if format != Format::Raw {
                format.write(&raw, &out).unwrap();
            }
            let error = may_leave(&out).unwrap_err();
            let why = error.downcast_ref::<KeysInClear>().unwrap_or_else(|| panic!("{format:?}: {error:#}"));
            assert!(why.files.contains(&"secrets/cluster-ca.key".to_string()), "{format:?}: {why}");
        }
        let medium = dir.path().join(Format::Iso.file());
        installer::tests::medium(&raw, &medium);
        assert!(may_leave(&medium).unwrap_err().is::<KeysInClear>());
        let found = keys.search(Disk::open(&raw).unwrap()).unwrap();
        assert!(found.contains(&"cluster-ca.key".to_string()), "{found:?}");
        assert!(found.contains(&"encryption.key".to_string()), "{found:?}");
        // A worker's image has none, in whatever mode.
        let worker = dir.path().join("worker.raw");
        image(&settings, Role::Worker, &worker);
        may_leave(&worker).unwrap();
    }

    #[test]
    fn a_key_in_a_manifest_stays_here_too() {
        let dir = tempfile::tempdir().unwrap();
        let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
        std::fs::write(
            dir.path().join("own.yaml"),
            format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: own}}\nstringData: {{key: {pem:?}}}\n"),
        )
        .unwrap();
        let settings = settings(dir.path(), "manifests = [\"own.yaml\"]\n");
        let raw = dir.path().join("disk.raw");
        image(&settings, Role::Master, &raw);
        assert!(may_leave(&raw).unwrap_err().is::<KeysInClear>());
    }

    #[test]
    fn what_is_no_image_does_not_pass() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("notes.txt");
        std::fs::write(&file, "some text").unwrap();
        assert!(may_leave(&file).is_err());
    }

    #[test]
    fn a_key_in_a_secrets_data_is_seen() {
        let pem = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49\n-----END PRIVATE KEY-----\n";
        for before in ["", "x", "xy", "xyz"] {
            let data = STANDARD.encode(format!("{before}{pem}"));
            let secret = format!("apiVersion: v1\nkind: Secret\ndata:\n  tls.key: {data}\n");
            assert!(names_a_key(secret.as_bytes()), "{before}");
        }
        let public = STANDARD.encode(pem.replace("PRIVATE", "PUBLIC"));
        assert!(!names_a_key(public.as_bytes()));
    }

    #[test]
    fn what_a_certificate_has_of_a_key_is_none() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let needles = AhoCorasick::new(forms(&pair.serialize_pem()).unwrap()).unwrap();
        let names = vec!["key".to_owned(); needles.patterns_len()];
        let keys = Keys { needles, names };
        let public = pair.public_key_raw();
        for shift in 0..3 {
            let text = STANDARD.encode([&vec![b'x'; shift][..], public].concat());
            assert_eq!(keys.search(text.as_bytes()).unwrap(), [""; 0], "{shift}");
        }
        assert_eq!(keys.search(pair.serialize_pem().lines().nth(2).unwrap().as_bytes()).unwrap(), ["key"]);
    }

    #[test]
    fn a_key_is_found_wherever_reads_cut_it() {
        let dir = tempfile::tempdir().unwrap();
        let secrets = Secrets::ensure(&dir.path().join("secrets"), "demo").unwrap();
        let secure_boot = pki::SecureBoot::ensure(&secrets, "demo").unwrap();
        let keys = Keys::of(&secrets).unwrap();
        for name in ["sa.key", "secure-boot-db.key"] {
            let pem = secrets.read(name).unwrap();
            for form in forms(&pem).unwrap() {
                for before in [0, (1 << 20) - 7, (1 << 20) - form.len() + 1] {
                    let mut bytes = vec![b'x'; before];
                    bytes.extend(&form);
                    bytes.resize(bytes.len() + 5000, b'y');
                    assert_eq!(keys.search(&bytes[..]).unwrap(), [name]);
                }
            }
        }
        // What everybody may read holds none of it.
        for file in secure_boot.enrolment().unwrap() {
            assert_eq!(keys.search(&file.bytes[..]).unwrap(), [""; 0], "{}", file.name);
        }
        assert_eq!(keys.search(&vec![b'x'; 3 << 20][..]).unwrap(), [""; 0]);
    }
}
