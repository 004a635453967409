//! A disk written over ssh, by a real sshd on loopback that plays the rescue system: whoever has not the key that kimg
//! gave the server gets nothing.

use crate::served::{Served, free_port};
use crate::tools::Tool;
use anyhow::{Context, Result, ensure};
use indicatif::ProgressBar;
use kimg::image::manifest::FileSum;
use kimg::image::output::Format;
use kimg::upload::Local;
use kimg::upload::rescue::{Keys, Rescue, Writer};
use kimg::web::{Client, Clock, Interrupted};
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The right key, a wrong one and none, a damaged image, a disk that cannot be written, and Ctrl-C.
pub fn a_disk_is_written_by_who_has_the_key(dir: &Path) -> Result<()> {
    let (keys, others) = (Keys::new()?, Keys::new()?);
    let sshd = self::sshd(dir, &keys.client)?;
    let disk = dir.join("disk");
    let rescue = |user_data: &str| -> Result<Rescue> {
        Ok(Rescue {
            port: sshd.port,
            user: user()?,
            sshd: Tool::Sshd.find()?.display().to_string(),
            user_data: serve(user_data.to_string())?,
            disk: disk.display().to_string(),
            boot: Duration::from_secs(120),
        })
    };
    let (right, wrong) = (rescue(keys.user_data())?, rescue(others.user_data())?);
    let (client, bar) = (Client::new(None)?, ProgressBar::hidden());
    let image = image(dir)?;

    let error = wrong.write(HERE, &keys, &client, &image, &bar).unwrap_err().to_string();
    ensure!(error.contains("has not the host key"), "{error}");
    ensure!(!disk.exists(), "the image went to a stranger");

    // A server whose user-data cannot be read from there.
    let port = free_port()?;
    let (user_data, boot) = (format!("http://127.0.0.1:{port}/"), Duration::from_secs(3));
    let silent = Rescue { user_data, boot, ..right.clone() };
    let error = format!("{:#}", silent.write(HERE, &keys, &client, &image, &bar).unwrap_err());
    ensure!(error.contains("curl") && error.contains("not done"), "{error}");
    ensure!(!disk.exists(), "the image went to a server that shows no key");

    // The disk is larger, and something was on it.
    std::fs::write(&disk, vec![7; image.disk_size as usize + 4096])?;
    right.write(HERE, &keys, &client, &image, &bar)?;
    let written = std::fs::read(&disk)?;
    let (begin, rest) = written.split_at(image.disk_size as usize);
    ensure!(begin == std::fs::read(dir.join("raw"))? && rest == [7; 4096], "what is on the disk");

    let damaged = Local { disk_sha256: "00".repeat(32), ..image.clone() };
    let error = right.write(HERE, &keys, &client, &damaged, &bar).unwrap_err().to_string();
    ensure!(error.contains("it is damaged"), "{error}");
    std::fs::write(dir.join("cut"), &std::fs::read(&image.path)?[..100_000])?;
    let cut = Local { path: dir.join("cut"), ..image.clone() };
    let error = right.write(HERE, &keys, &client, &cut, &bar).unwrap_err().to_string();
    ensure!(error.contains("writing the disk") && error.contains("premature end"), "{error}");
    let nowhere = Rescue { disk: dir.join("no/disk").display().to_string(), ..right.clone() };
    let error = nowhere.write(HERE, &keys, &client, &image, &bar).unwrap_err().to_string();
    ensure!(error.contains("writing the disk") && error.contains("No such file"), "{error}");

    // Opening a pipe waits for whoever reads it, and nobody does.
    let pipe = dir.join("pipe");
    ensure!(Command::new("mkfifo").arg(&pipe).status()?.success(), "mkfifo");
    let stuck = Rescue { disk: pipe.display().to_string(), ..right };
    let watch = Watch::default();
    let asked = watch.0.clone();
    let client = client.with_clock(Arc::new(watch));
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(5));
        asked.store(true, Relaxed);
    });
    let start = Instant::now();
    let error = stuck.write(HERE, &keys, &client, &image, &bar).unwrap_err();
    ensure!(error.is::<Interrupted>() && start.elapsed() < Duration::from_secs(60), "{error:#}");
    Ok(())
}

fn image(dir: &Path) -> Result<Local> {
    let (raw, path) = (dir.join("raw"), dir.join("disk.raw.zst"));
    let noise = |n: u32| u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(n % 61).to_le_bytes();
    let mut bytes: Vec<u8> = (0..1 << 19).flat_map(noise).collect();
    bytes[1 << 20..2 << 20].fill(0);
    std::fs::write(&raw, &bytes)?;
    Format::RawZst.write(&raw, &path)?;
    let disk = FileSum::of(&raw)?;
    Ok(Local {
        name: "kimg-c-worker-0123456789ab".into(),
        role: "worker".into(),
        sum: FileSum::of(&path)?,
        path,
        disk_size: disk.size,
        disk_sha256: disk.sha256,
    })
}

/// A clock by which the user interrupts.
#[derive(Default)]
struct Watch(Arc<AtomicBool>);

impl Clock for Watch {
    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::now()
    }

    fn sleep(&self, time: Duration) -> Result<()> {
        std::thread::sleep(time);
        self.check()
    }

    fn check(&self) -> Result<()> {
        if self.0.load(Relaxed) { Err(Interrupted.into()) } else { Ok(()) }
    }

    fn for_cleanup(&self) -> Arc<dyn Clock> {
        Arc::new(Watch::default())
    }
}

/// A metadata server that says one thing; its address.
fn serve(what: String) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}/hetzner/v1/userdata", listener.local_addr()?);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
            if lines.by_ref().take_while(|line| !line.is_empty()).count() > 0 {
                let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", what.len());
                // Who does not wait for it fails by himself.
                let _ = stream.write_all(format!("{head}{what}").as_bytes());
            }
        }
    });
    Ok(url)
}

fn user() -> Result<String> {
    Ok(crate::said(Command::new("id").arg("-un"))?.trim().to_string())
}

/// The rescue system's own sshd, with a host key that nobody knows.
fn sshd(dir: &Path, client: &str) -> Result<Served> {
    let at = |name: &str| dir.join(name).display().to_string();
    let port = free_port()?;
    crate::said(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &at("own")]))?;
    std::fs::write(at("authorized"), client)?;
    let libraries = Tool::Sshd.library_path()?;
    let config = format!(
        "ListenAddress 127.0.0.1\nPort {port}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
             PidFile none\nSetEnv LD_LIBRARY_PATH={}\n",
        at("own"),
        at("authorized"),
        libraries.to_string_lossy(),
    );
    std::fs::write(at("sshd_config"), config)?;
    let program = Tool::Sshd.find()?;
    let serve = format!("exec {} -D -e -f {}", program.display(), at("sshd_config"));
    let mut command = if rustix::process::getuid().is_root() {
        // As root it wants a user of its own and a folder, which the package makes; here only it sees them.
        let users = std::fs::read_to_string("/etc/passwd").context("reading the users")?;
        std::fs::write(at("passwd"), format!("{users}sshd:x:64222:65534::/run/sshd:/usr/sbin/nologin\n"))?;
        let mut command = Command::new("unshare");
        let set_up = format!(
            "mount --bind {} /etc/passwd; mount -t tmpfs tmpfs /run; mkdir -m 755 /run/sshd; {serve}",
            at("passwd")
        );
        command.args(["--mount", "sh", "-euc", &set_up]);
        command
    } else {
        let mut command = Command::new("sh");
        command.args(["-euc", &serve]);
        command
    };
    let log = std::fs::File::create(at("sshd.log"))?;
    command.env("LD_LIBRARY_PATH", &libraries).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    Served::start(&mut command, "sshd", port, Some(Path::new(&at("sshd.log"))))
}
