//! The root file system: squashfs by the locked mksquashfs, fed a tar, so that no staging folder, owner,
//! umask or time of the host gets near it.

use super::toolbox::{self, Toolbox};
use super::tree::Tree;
use anyhow::{Context, Result, anyhow};
use std::io;
use std::path::Path;
use std::process::Stdio;

/// zstd level and block size: the best that keeps a build of both images within its time.
const LEVEL: &str = "15";
const BLOCK: &str = "128K";

/// What waits between the threads may take this much. Left to itself, mksquashfs takes a quarter of the machine's memory
/// if the root is that large; the bytes are the same, and so is the time.
const MEMORY: &str = "64M";

/// What the result depends on besides the tree and the tool.
pub const PARAMETERS: &str = "zstd 15 128K";

/// Writes `tree` to `out`.
pub fn write(tools: &Toolbox, tree: &Tree, out: &Path) -> Result<()> {
    // mksquashfs appends to what is there.
    if out.exists() {
        std::fs::remove_file(out).with_context(|| format!("removing {}", out.display()))?;
    }
    let processors = std::thread::available_parallelism().map_or(2, usize::from).to_string();
    let mut command = tools.command("/usr/bin/mksquashfs")?;
    command
        .arg("-")
        .arg(out)
        .args(["-tar", "-noappend", "-no-progress", "-quiet", "-no-xattrs", "-reproducible"])
        .args(["-comp", "zstd", "-Xcompression-level", LEVEL, "-b", BLOCK])
        .args(["-mkfs-time", "0", "-all-time", "0", "-all-root", "-processors", &processors, "-mem", MEMORY])
        .args(["-root-mode", "0755", "-root-uid", "0", "-root-gid", "0", "-root-time", "0"])
        .args(["-default-mode", "0755", "-default-uid", "0", "-default-gid", "0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().context("starting mksquashfs")?;
    let stdin = child.stdin.take().context("mksquashfs has no input")?;
    let (fed, output) = std::thread::scope(|scope| {
        let feeder = scope.spawn(move || tree.write_tar(std::io::BufWriter::with_capacity(1 << 20, stdin)));
        let output = child.wait_with_output();
        (feeder.join().unwrap_or_else(|_| Err(anyhow!("the thread that packs the root stopped"))), output)
    });
    let output = output.context("waiting for mksquashfs")?;
    // Where it ended first, what it says is the reason.
    match fed.context("feeding mksquashfs") {
        Err(error) if !is_broken(&error) => Err(error),
        fed => toolbox::finish(&command, &output).and(fed),
    }
}

fn is_broken(error: &anyhow::Error) -> bool {
    let is_broken = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref().is_some_and(is_broken))
}
