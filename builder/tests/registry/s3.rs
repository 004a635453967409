//! `kimg`'s S3 provider against s3rver: another project's multipart uploads, lists and removals. It looks at the key
//! but not at signatures of version 4; those are tested by AWS' published examples.

use crate::served::{Served, free_port};
use crate::tools;
use anyhow::{Result, ensure};
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
        let env = |name: &str| match name {
            "AWS_ACCESS_KEY_ID" => Some(key.to_string()),
            "AWS_SECRET_ACCESS_KEY" => Some(USER.to_string()),
            _ => None,
        };
        let url = format!("http://127.0.0.1:{}", self.0.port);
        Bucket::open(&Client::new(None)?, &env, "images", "nodes/", Some(&url), None)
    }
}

/// Two and a half parts go there once, are found again, and are removed; a wrong key gets nowhere.
pub fn an_image_goes_there_once(dir: &Path) -> Result<()> {
    let server = Server::start(dir)?;
    let path = dir.join("disk.raw.zst");
    let bytes: Vec<u8> = (0..(40u32 << 18)).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    std::fs::write(&path, &bytes)?;
    let image = Local {
        name: "kimg-c-master-0123456789ab".into(),
        role: "master".into(),
        sum: FileSum::of(&path)?,
        path,
        disk_size: 1 << 30,
        disk_sha256: "0123456789ab".into(),
    };
    let bar = ProgressBar::hidden();
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
