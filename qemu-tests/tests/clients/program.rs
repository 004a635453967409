//! Running one check of a client program. A line "restart" on its standard output has the server restarted:
//! the first time in order, then by killing it.

use anyhow::{Context, ensure};
use qemu_tests::Result;
use qemu_tests::apiserver::{Apiserver, End};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The longest that a check may take, with slack for a machine with other work.
const LIMIT: Duration = Duration::from_secs(60);

pub fn run(command: &[String], check: &str, server: &mut Apiserver) -> Result {
    let (program, arguments) = command.split_first().context("no program")?;
    let mut child = Command::new(program)
        .args(arguments)
        .arg(check)
        .env("KUBECONFIG", server.kubeconfig())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {program}"))?;
    let mut input = child.stdin.take().context("no standard input")?;
    let output = child.stdout.take().context("no standard output")?;
    let mut errors = child.stderr.take().context("no standard error")?;
    // Its output is read by a thread of its own, so that a program that hangs is ended.
    let (lines, heard) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(std::result::Result::ok) {
            if lines.send(line).is_err() {
                return;
            }
        }
    });
    let complaints = std::thread::spawn(move || {
        let mut text = Vec::new();
        let read = errors.read_to_end(&mut text);
        (read, String::from_utf8_lossy(&text).into_owned())
    });
    let start = Instant::now();
    let mut how = End::InOrder;
    let mut late = false;
    loop {
        match heard.recv_timeout(LIMIT.saturating_sub(start.elapsed())) {
            Ok(line) if line == "restart" => {
                server.restart(how)?;
                how = End::Killed;
                input.write_all(b"restarted\n").context("answering the program")?;
            }
            Ok(line) => eprintln!("{check}: {line}"),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                late = true;
                child.kill().context("ending the program")?;
                break;
            }
        }
    }
    let status = child.wait().context("waiting for the program")?;
    let (_, complaint) = complaints.join().map_err(|_| anyhow::anyhow!("reading the program's errors"))?;
    ensure!(!late, "it was not done after {} s; it said: {}", LIMIT.as_secs(), complaint.trim());
    ensure!(status.success(), "{} ({status})", complaint.trim());
    Ok(())
}
