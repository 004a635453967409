//! `kimg`'s S3 provider against s3rver: another project's multipart uploads, lists and removals. It looks at the key
//! but not at signatures of version 4; moto does, by AWS' own library.

use crate::moto::Moto;
use crate::served::{Served, free_port};
use crate::tools;
use anyhow::{Context, Result, ensure};
use indicatif::ProgressBar;
use kimg::image::manifest::FileSum;
use kimg::upload::s3::{Bucket, Store};
use kimg::upload::{Local, Provider, upload};
use kimg::web::Client;
use std::path::Path;
use std::process::{Command, Stdio};

/// The one user that s3rver knows; its secret is the same word.
const USER: &str = "S3RVER";

struct Server(Served);

impl Server {
    fn start(dir: &Path) -> Result<Server> {
        let port = free_port()?;
        let data = dir.join("data").display().to_string();
        let mut command = Command::new("node");
        command
            .arg(tools::s3rver()?)
            .args(["--directory", &data, "--address", "127.0.0.1", "--port", &port.to_string()])
            .args(["--configure-bucket", "images", "--silent"])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        Served::start(&mut command, "s3rver", port, None).map(Server)
    }

    fn store(&self, key: &str) -> Result<Store> {
        Ok(Store::new(self.bucket(key)?))
    }

    fn bucket(&self, key: &str) -> Result<Bucket> {
        bucket(&format!("http://127.0.0.1:{}", self.0.port), key, USER, "nodes/")
    }
}

fn bucket(url: &str, key: &str, secret: &str, prefix: &str) -> Result<Bucket> {
    let env = |name: &str| match name {
        "AWS_ACCESS_KEY_ID" => Some(key.to_string()),
        "AWS_SECRET_ACCESS_KEY" => Some(secret.to_string()),
        _ => None,
    };
    Bucket::open(&Client::new(None)?, &env, "images", prefix, Some(url), None)
}

/// An image of two and a half parts.
fn image(dir: &Path) -> Result<Local> {
    let path = dir.join("disk.raw.zst");
    let bytes: Vec<u8> = (0..(40u32 << 18)).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    std::fs::write(&path, &bytes)?;
    Ok(Local {
        name: "kimg-c-master-0123456789ab".into(),
        role: "master".into(),
        sum: FileSum::of(&path)?,
        path,
        disk_size: 1 << 30,
        disk_sha256: "0123456789ab".into(),
    })
}

/// Two and a half parts go there once, are found again, and are removed; a wrong key gets nowhere.
pub fn an_image_goes_there_once(dir: &Path) -> Result<()> {
    let server = Server::start(dir)?;
    let (image, bar) = (image(dir)?, ProgressBar::hidden());
    let error = upload(&server.store("nobody")?, &image, &bar).unwrap_err();
    let error = format!("{error:#}");
    ensure!(error.contains("InvalidAccessKeyId"), "{error}");

    let store = server.store(USER)?;
    let first = upload(&store, &image, &bar)?;
    ensure!(!first.reused && first.id == "nodes/kimg-c-master-0123456789ab.raw.zst", "{first:?}");
    ensure!(upload(&store, &image, &bar)?.reused, "the second time it is there");
    let listed = store.list()?;
    ensure!(listed.len() == 1 && listed[0].name == image.name, "{listed:?}");
    ensure!(store.leftovers()?.is_empty(), "nothing temporary stays");
    store.delete(&first.id)?;
    ensure!(store.list()?.is_empty(), "it was removed");
    kept_and_fetched(&server.bucket(USER)?, dir)
}

/// As backups are: put, listed with their sizes, fetched, removed.
fn kept_and_fetched(bucket: &Bucket, dir: &Path) -> Result<()> {
    let path = dir.join("1764192000-42.age");
    std::fs::write(&path, "sealed")?;
    let key = "backups/1764192000-42.age";
    bucket.keep(key, &path, &FileSum::of(&path)?.sha256)?;
    ensure!(bucket.sizes("backups/")? == [(key.to_string(), 6)], "{:?}", bucket.sizes("backups/")?);
    ensure!(bucket.get(key, 6)? == b"sealed", "another content");
    ensure!(bucket.get(key, 5).is_err(), "longer than it should be");
    bucket.remove(key)?;
    ensure!(bucket.sizes("backups/")?.is_empty(), "it was removed");
    Ok(())
}

/// Every call of S3 and EC2 is signed as AWS' own library signs it, and who signs with another secret gets nowhere.
pub fn a_wrong_secret_is_refused(dir: &Path) -> Result<()> {
    let Moto { url, key, secret, .. } = &Moto::start(dir)?;
    let (image, bar) = (image(dir)?, ProgressBar::hidden());
    // Without a folder: moto unpacks the slash in a query before it looks at the signature.
    let bucket = |secret: &str| bucket(url, key, secret, "");
    let wrong = format!("{}x", &secret[1..]);
    let error = upload(&Store::new(bucket(&wrong)?), &image, &bar).unwrap_err();
    let error = format!("{error:#}");
    ensure!(error.contains("SignatureDoesNotMatch") && !error.contains(&wrong), "{error}");
    let store = Store::new(bucket(secret)?);
    let first = upload(&store, &image, &bar)?;
    ensure!(store.list()?.len() == 1, "{:?}", store.list()?);
    let error = format!("{:#}", Store::new(bucket(&wrong)?).delete(&first.id).unwrap_err());
    ensure!(error.contains("SignatureDoesNotMatch"), "{error}");
    store.delete(&first.id)?;
    ensure!(store.list()?.is_empty(), "it was removed");

    // EC2's calls are forms. EBS' are answered by moto as AWS does not.
    let kimg = |words: &str, secret: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kimg"));
        command.args(words.split(' ')).current_dir(dir).env("HOME", dir);
        command.env("AWS_ACCESS_KEY_ID", key).env("AWS_SECRET_ACCESS_KEY", secret);
        command.env("AWS_ENDPOINT_URL_EC2", url).env("AWS_ENDPOINT_URL_EBS", url);
        command.output().context("running kimg")
    };
    kimg("init .", secret)?;
    let list = "image ls --at aws --region eu-north-1";
    let (right, refused) = (kimg(list, secret)?, kimg(list, &wrong)?);
    ensure!(right.status.success(), "{}", String::from_utf8_lossy(&right.stderr));
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(!refused.status.success() && said.contains("AuthFailure") && !said.contains(&wrong), "{said}");
    Ok(())
}
