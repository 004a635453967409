//! A disk written over ssh in a rescue system, by this machine's `ssh`.
//!
//! Nobody says beforehand which host key a rescue system will have. So kimg makes one, and gives it to the machine as
//! its user-data, which goes to the provider over TLS and is read by the machine alone. A first connection, to whoever
//! answers, carries no secret: it only starts a second sshd there, with that key, on its own standard input. The
//! connection through it is the one that counts, and its host key is checked. Who stands between cannot have that key:
//! it does not get into the machine, as its ssh would have to sign for the client.

use super::Local;
use crate::input;
use crate::web::{Client, Interrupted};
use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use rustix::process::{Pid, Signal, kill_process_group};
use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const EVERY: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(50);
/// By this name the machine is known, whatever its address.
const ALIAS: &str = "kimg-upload";

/// Who writes a machine's disk.
pub trait Writer: std::fmt::Debug {
    /// Writes it, and compares what is on it then.
    ///
    /// # Errors
    /// It is not there, or not who it should be.
    fn write(&self, address: IpAddr, keys: &Keys, client: &Client, image: &Local, bar: &ProgressBar) -> Result<()>;
}

/// A key for getting in, and one for being known.
#[derive(Debug)]
pub struct Keys {
    dir: tempfile::TempDir,
    /// The public key of who gets in.
    pub client: String,
    /// The machine's private key. Whoever reads it can pass for this machine, for as long as it is there.
    host: String,
    host_public: String,
}

impl Keys {
    /// New ones, in a folder that goes with them.
    ///
    /// # Errors
    /// There is no `ssh-keygen` here.
    pub fn new() -> Result<Keys> {
        let dir = tempfile::Builder::new().prefix("kimg-ssh-").tempdir().context("making a folder for keys")?;
        let make = |name: &str| -> Result<()> {
            let output = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", "kimg", "-f"])
                .arg(dir.path().join(name))
                .stdin(Stdio::null())
                .output();
            match output {
                Ok(output) if output.status.success() => Ok(()),
                Ok(output) => bail!("ssh-keygen: {}", String::from_utf8_lossy(&output.stderr).trim()),
                Err(_) => input::bad("ssh-keygen does not run; the package openssh-client brings it"),
            }
        };
        let read = |name: &str| input::text(&dir.path().join(name), input::SMALL);
        make("client")?;
        make("host")?;
        let (client, host, host_public) = (read("client.pub")?, read("host")?, read("host.pub")?);
        Ok(Keys { client: client.trim().into(), host, host_public: host_public.trim().into(), dir })
    }

    /// What the machine gets as its user-data.
    pub fn user_data(&self) -> &str {
        &self.host
    }
}

/// A rescue system and its ways.
#[derive(Debug, Clone)]
pub struct Rescue {
    /// Port of its own sshd.
    pub port: u16,
    /// Whom it lets in.
    pub user: String,
    /// Where it has sshd.
    pub sshd: String,
    /// Where it reads its user-data.
    pub user_data: String,
    /// The disk to write.
    pub disk: String,
    /// How long it may take until it lets in.
    pub boot: Duration,
}

impl Rescue {
    /// What is run behind the first connection.
    fn bootstrap(&self, keys: &Keys) -> String {
        format!(
            "set -eu; umask 077; d=$(mktemp -d); trap 'rm -rf $d' EXIT\n\
             curl --silent --show-error --fail --max-time 20 --output $d/host {}\n\
             echo '{}' > $d/authorized\n\
             {} -i -f /dev/null -h $d/host -o AuthorizedKeysFile=$d/authorized -o StrictModes=no -o UsePAM=no \
             -o PasswordAuthentication=no -o KbdInteractiveAuthentication=no\n",
            self.user_data, keys.client, self.sshd
        )
    }

    /// What is run behind the second one: the disk from standard input, and then its sum.
    fn script(&self, image: &Local) -> String {
        // What was there goes first, as far as the disk can: the snapshot is that much smaller. All of the image is
        // written, zeros as well, as a disk need not read as zeros where it was discarded. The sum is of what
        // the disk has, not of the memory before it.
        format!(
            "bash -c 'set -euo pipefail; disk={}; blkdiscard --force $disk 2>/dev/null || true; \
             zstd --decompress --stdout | dd of=$disk bs=4M iflag=fullblock conv=fsync,notrunc status=none; \
             dd of=$disk oflag=nocache conv=notrunc,fdatasync count=0 status=none; \
             head --bytes={} $disk | sha256sum'",
            self.disk, image.disk_size
        )
    }

    /// `ssh` as the machine's user, with nothing of the operator's own settings.
    fn ssh(&self, keys: &Keys, address: IpAddr, command: &str) -> Result<Command> {
        let write = |name: &str, text: &str| {
            let path = keys.dir.path().join(name);
            std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
        };
        write("known", &format!("{ALIAS} {}\n", keys.host_public))?;
        write("bootstrap", &self.bootstrap(keys))?;
        // In a file, and all paths from the keys' folder, so that no shell reads a name anew.
        let common = "ssh -F none -i client -o IdentitiesOnly=yes -o BatchMode=yes -o ConnectTimeout=15 \
                      -o ServerAliveInterval=15 -o ServerAliveCountMax=8 -o GlobalKnownHostsFile=/dev/null";
        let (user, port) = (&self.user, self.port);
        let proxy = format!(
            "exec {common} -o LogLevel=ERROR -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
             -p {port} -l {user} {address} \"$(cat bootstrap)\"\n"
        );
        write("proxy", &proxy)?;
        let mut words = common.split_whitespace();
        let mut ssh = Command::new(words.next().unwrap_or("ssh"));
        ssh.args(words)
            .args(["-o", "StrictHostKeyChecking=yes", "-o", "UserKnownHostsFile=known"])
            .args(["-o", &format!("HostKeyAlias={ALIAS}"), "-o", "ProxyCommand=sh proxy"])
            .args(["-l", user, ALIAS, command])
            .current_dir(keys.dir.path())
            // Ctrl-C is kimg's to act on.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(ssh)
    }

    /// Waits until it lets in, and is who it should be.
    fn wait(&self, address: IpAddr, keys: &Keys, client: &Client) -> Result<()> {
        let mut why = String::new();
        let waited = client.poll(&format!("the rescue system at {address}"), EVERY, self.boot, || {
            let said = run(self.ssh(keys, address, "true")?, None, client)?;
            if said.success {
                return Ok(Some(()));
            }
            if said.error.contains("Host key verification failed") {
                why.clear();
                bail!(
                    "{address} has not the host key that kimg gave the server: somebody else answers there. Nothing was sent"
                );
            }
            why = said.error;
            Ok(None)
        });
        waited.map_err(|error| if why.is_empty() { error } else { error.context(last_lines(&why)) })
    }
}

impl Writer for Rescue {
    fn write(&self, address: IpAddr, keys: &Keys, client: &Client, image: &Local, bar: &ProgressBar) -> Result<()> {
        self.wait(address, keys, client)?;
        let said = run(self.ssh(keys, address, &self.script(image))?, Some((&image.path, bar)), client)?;
        if !said.success {
            bail!("writing the disk in the rescue system: {}", last_lines(&said.error));
        }
        let Some(sum) = said.output.split_whitespace().next() else {
            bail!("the rescue system does not say what is on the server's disk now");
        };
        if sum != image.disk_sha256 {
            bail!("the server's disk has the SHA-256 {sum}, and {} was sent; it is damaged", image.disk_sha256);
        }
        Ok(())
    }
}

/// What came of a command.
struct Said {
    success: bool,
    output: String,
    error: String,
}

/// Runs a command with a file as its standard input, until it ends or the user interrupts.
fn run(mut command: Command, from: Option<(&Path, &ProgressBar)>, client: &Client) -> Result<Said> {
    let mut file = None;
    if let Some((path, bar)) = from {
        let opened = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        bar.set_position(0);
        file = Some(bar.wrap_read(opened));
        command.stdin(Stdio::piped());
    }
    let Ok(mut child) = command.spawn() else {
        return input::bad("ssh does not run; the package openssh-client brings it");
    };
    let (pipe, output, error) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        let (output, error) = (scope.spawn(|| text(output)), scope.spawn(|| text(error)));
        let feeder = match (file, pipe) {
            (Some(mut file), Some(mut pipe)) => Some(scope.spawn(move || std::io::copy(&mut file, &mut pipe))),
            _ => None,
        };
        let status = wait(&mut child, client)?;
        let ended = |_| anyhow::anyhow!("a thread beside ssh ended in a panic");
        let (output, error) = (output.join().map_err(ended)?, error.join().map_err(ended)?);
        match feeder.map(|thread| thread.join().map_err(ended)).transpose()? {
            // A command that ends early says why by itself.
            Some(Err(fault)) if fault.kind() != std::io::ErrorKind::BrokenPipe => {
                return Err(fault).context("reading the image that is sent");
            }
            _ => {}
        }
        Ok(Said { success: status.success(), output, error })
    })
}

fn wait(child: &mut Child, client: &Client) -> Result<std::process::ExitStatus> {
    loop {
        if let Some(status) = child.try_wait().context("waiting for ssh")? {
            return Ok(status);
        }
        if client.clock().check().is_err() {
            // With the ssh that it has for its way. They may have ended by themselves.
            if let Some(group) = Pid::from_raw(child.id().cast_signed()) {
                let _ = kill_process_group(group, Signal::KILL);
            }
            child.wait().context("waiting for ssh")?;
            return Err(Interrupted.into());
        }
        std::thread::sleep(LOOK);
    }
}

fn text(pipe: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        // What came until then is what there is to say.
        let _ = pipe.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(3)..].join("; ")
}
