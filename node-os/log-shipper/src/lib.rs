//! Sends a node's logs away: services', the kernel's, and on masters the audit log, as syslog messages over TLS.
//!
//! What waits for a target that is away are the logs themselves, which are bounded; a place in each is all that is kept
//! besides. A batch counts as sent when the other machine has acknowledged its bytes, and is sent again otherwise: at
//! least once. No writer of a log ever waits for this.

mod cursor;
mod folder;
mod message;
mod privileges;
mod target;

use anyhow::{Context, Result};
use backon::BackoffBuilder;
use clap::Parser;
use folder::Cursors;
use message::{Sender, Writer};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use target::{Connection, Target};
use tokio::time::Instant;

/// How often the logs are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Between two tries to reach the target.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];
/// Read of one log at a time; a line that is longer goes in parts anyway.
const PIECE: usize = 64 << 10;
const CURSORS: &str = "cursors.json";

/// Sends a node's logs away.
#[derive(Debug, Parser)]
#[command(name = "log-shipper", version)]
struct Flags {
    /// Host name or address of the target, which its certificate says.
    #[arg(long)]
    host: String,
    /// Its port.
    #[arg(long)]
    port: u16,
    /// Authorities of which one has signed its certificate.
    #[arg(long)]
    ca_file: PathBuf,
    /// Name of this node.
    #[arg(long)]
    node_name: String,
    /// Name of the cluster.
    #[arg(long)]
    cluster: String,
    /// Where logs are.
    #[arg(long, default_value = "/var/log/kimg")]
    logs: PathBuf,
    /// Where it is kept how far they were sent.
    #[arg(long, default_value = "/var/lib/log-shipper")]
    dir: PathBuf,
}

/// Entry point of the component.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let flags: Flags = match node_client::flags(args) {
        Ok(flags) => flags,
        Err(code) => return code,
    };
    // Before there is a second thread. A user of the node reads nothing of kimg's own folders.
    let authorities = std::fs::read(&flags.ca_file).with_context(|| format!("reading {}", flags.ca_file.display()));
    let dropped = privileges::drop_to_reader(&flags.logs, &flags.dir);
    node_client::run("log-shipper", async {
        dropped?;
        Shipper::new(&flags, &authorities?)?.run().await
    })
}

/// What is sent next.
struct Batch {
    bytes: Vec<u8>,
    /// Where the cursors are once it has arrived.
    after: Cursors,
    /// The times of the last lines.
    last: BTreeMap<String, i64>,
    lines: u64,
}

struct Shipper {
    target: Target,
    sender: Sender,
    logs: PathBuf,
    path: PathBuf,
    cursors: Cursors,
    last: BTreeMap<String, i64>,
    sent: u64,
    dropped: u64,
    /// Why nothing is sent, while nothing is.
    fault: Option<String>,
    /// Why the places are not kept, while they are not.
    unkept: Option<String>,
    status: String,
}

impl Shipper {
    fn new(flags: &Flags, authorities: &[u8]) -> Result<Shipper> {
        let path = flags.dir.join(CURSORS);
        Ok(Shipper {
            target: Target::new(&flags.host, flags.port, authorities)
                .with_context(|| flags.ca_file.display().to_string())?,
            sender: Sender { node: flags.node_name.clone(), cluster: flags.cluster.clone() },
            logs: flags.logs.clone(),
            cursors: folder::load(&path),
            path,
            last: BTreeMap::new(),
            sent: 0,
            dropped: 0,
            fault: None,
            unkept: None,
            status: String::new(),
        })
    }

    async fn run(&mut self) -> Result<()> {
        node_sys::notify::ready();
        let mut pauses = pauses();
        loop {
            let asked = self.target.clone();
            // The logs are looked at while it is away, so that what goes unsent is counted.
            let connected = self.looking_on(async move { asked.connect().await }).await?;
            let lost = match connected {
                Ok(mut connection) => {
                    let before = self.sent;
                    let lost = self.ship(&mut connection).await?;
                    // Whoever takes a connection and nothing more is as good as away.
                    if self.sent > before {
                        pauses = self::pauses();
                    }
                    lost
                }
                Err(error) => error,
            };
            self.away(&lost);
            let pause = pauses.next().unwrap_or(PAUSES[1]);
            self.looking_on(tokio::time::sleep(pause)).await?;
        }
    }

    /// Sends what there is and what comes; gives why it cannot go on.
    async fn ship(&mut self, connection: &mut Connection) -> Result<anyhow::Error> {
        loop {
            self.look()?;
            let batch = self.batch()?;
            if batch.after == self.cursors {
                tokio::select! {
                    why = connection.ended() => return Ok(why),
                    () = tokio::time::sleep(LOOK) => continue,
                }
            }
            if let Err(error) = connection.send(&batch.bytes).await {
                return Ok(error);
            }
            self.cursors = batch.after;
            self.last = batch.last;
            self.sent += batch.lines;
            self.store();
            if self.fault.take().is_some() || self.sent == batch.lines {
                tracing::info!("logs go to {}", self.target);
            }
            self.say();
        }
    }

    /// Waits for something, and looks at the logs meanwhile.
    async fn looking_on<T>(&mut self, done: impl Future<Output = T>) -> Result<T> {
        let mut done = std::pin::pin!(done);
        let mut ticks = tokio::time::interval_at(Instant::now() + LOOK, LOOK);
        loop {
            tokio::select! {
                done = &mut done => return Ok(done),
                _ = ticks.tick() => self.look()?,
            }
        }
    }

    /// Takes in what has come, and what has gone before it was sent.
    fn look(&mut self) -> Result<()> {
        let mut changed = false;
        for name in folder::names(&self.logs)? {
            let files = folder::look(&self.logs, &name);
            let cursor = self.cursors.entry(name).or_default();
            let before = cursor.files.len();
            self.dropped += cursor.look(&files);
            changed |= before != cursor.files.len();
        }
        if changed {
            self.store();
        }
        self.say();
        Ok(())
    }

    /// Keeps the places for the next start. A full disk is no reason to send nothing, or to send all again.
    fn store(&mut self) {
        let unkept = folder::store(&self.path, &self.cursors).err().map(|error| format!("{error:#}"));
        if let Some(why) = unkept.as_ref().filter(|why| self.unkept.as_ref() != Some(why)) {
            tracing::warn!("what is sent now may be sent again after a restart: {why}");
        }
        self.unkept = unkept;
    }

    /// What comes next of each log.
    fn batch(&self) -> Result<Batch> {
        let mut batch = Batch { bytes: Vec::new(), after: self.cursors.clone(), last: self.last.clone(), lines: 0 };
        for (name, cursor) in &mut batch.after {
            let mut writer = Writer::new(&self.sender, name, batch.last.get(name).copied());
            if cursor.gap > 0 {
                let told = format!(
                    "{}  WARN {} bytes of this log are missing here: {} did not take them before they had to go",
                    jiff::Timestamp::now(),
                    cursor.gap,
                    self.target
                );
                writer.line(told.as_bytes(), &mut batch.bytes);
                (cursor.gap, batch.lines) = (0, batch.lines + 1);
            }
            let bytes = folder::read(&self.logs, name, cursor, PIECE)?;
            let length = cursor::whole_lines(&bytes, PIECE);
            let lines = bytes.get(..length).unwrap_or_default();
            for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                writer.line(line, &mut batch.bytes);
                batch.lines += 1;
            }
            cursor.advance(length as u64);
            if let Some(last) = writer.last() {
                batch.last.insert(name.clone(), last);
            }
        }
        Ok(batch)
    }

    fn away(&mut self, why: &anyhow::Error) {
        let why = format!("{why:#}");
        if self.fault.as_ref() != Some(&why) {
            tracing::warn!("{} does not take logs, which wait on the disk: {why}", self.target);
            self.fault = Some(why);
        }
        self.say();
    }

    /// Says how it stands, when that is news.
    fn say(&mut self) {
        let waiting: u64 = self.cursors.values().map(cursor::Cursor::waiting).sum();
        let counted = format!("{} lines sent, {} bytes dropped", self.sent, self.dropped);
        let status = match &self.fault {
            None => format!("{}: {counted}", self.target),
            Some(why) => format!("{} does not take logs: {why}; {waiting} bytes wait, {counted}", self.target),
        };
        if status != self.status {
            node_sys::notify::status(&status);
            self.status = status;
        }
    }
}

fn pauses() -> backon::ExponentialBackoff {
    let [first, most] = PAUSES;
    backon::ExponentialBuilder::default()
        .with_min_delay(first)
        .with_max_delay(most)
        .with_jitter()
        .without_max_times()
        .build()
}
