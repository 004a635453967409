//! QEMU's machine protocol, as far as it is needed: one command, its answer.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Runs a command on the QEMU whose socket is `NAME` in `dir`.
pub fn execute(dir: &Path, name: &str, command: &str, arguments: Option<Value>) -> Result<Value> {
    let mut stream = connect(dir, name)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut lines = BufReader::new(stream.try_clone().context("using QEMU's socket")?).lines();
    let greeting = read(&mut lines)?;
    if greeting.get("QMP").is_none() {
        bail!("{} does not speak QEMU's protocol", dir.join(name).display());
    }
    ask(&mut stream, &mut lines, &json!({"execute": "qmp_capabilities"}))?;
    let mut request = json!({"execute": command});
    if let Some(arguments) = arguments {
        request["arguments"] = arguments;
    }
    ask(&mut stream, &mut lines, &request)
}

/// A socket's path may be longer than the 108 bytes that an address takes; the folder's descriptor makes it short.
fn connect(dir: &Path, name: &str) -> Result<UnixStream> {
    let folder = std::fs::File::open(dir).with_context(|| format!("opening {}", dir.display()))?;
    UnixStream::connect(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()))
        .with_context(|| format!("connecting to {}", dir.join(name).display()))
}

fn ask(
    stream: &mut UnixStream,
    lines: &mut impl Iterator<Item = std::io::Result<String>>,
    request: &Value,
) -> Result<Value> {
    writeln!(stream, "{request}").context("asking QEMU")?;
    loop {
        let answer = read(lines)?;
        if let Some(value) = answer.get("return") {
            return Ok(value.clone());
        }
        if let Some(error) = answer.get("error") {
            bail!("QEMU refused: {}", error["desc"].as_str().unwrap_or("no reason given"));
        }
        // Anything else is an event.
    }
}

fn read(lines: &mut impl Iterator<Item = std::io::Result<String>>) -> Result<Value> {
    let line = lines.next().context("QEMU closed its socket")?.context("reading QEMU's answer")?;
    serde_json::from_str(&line).context("reading QEMU's answer")
}
