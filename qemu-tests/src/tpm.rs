//! A TPM for one start of a machine (swtpm), and what firmware and boot loader measured with it: swtpm notes every
//! command that it gets.

use crate::{tools, wait};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

/// TPM2_CC_PCR_Extend, and SHA-256 among the algorithms (TPM 2.0 Library, part 2).
const EXTEND: [u8; 4] = [0, 0, 1, 0x82];
const SHA256: [u8; 2] = [0, 0x0b];
/// Bytes of the digests of SHA-1, SHA-256, SHA-384 and SHA-512.
const DIGESTS: [([u8; 2], usize); 4] = [([0, 4], 20), (SHA256, 32), ([0, 0x0c], 48), ([0, 0x0d], 64)];

/// The TPM. It ends with QEMU, or with this value.
#[derive(Debug)]
pub struct Tpm {
    process: Child,
    log: PathBuf,
}

impl Tpm {
    /// A new TPM behind the socket `NODE/tpm.sock` of the machine's folder `dir`, and QEMU's arguments for it.
    ///
    /// # Errors
    /// There is no swtpm on this machine, or it does not start.
    pub fn start(dir: &Path, node: &str) -> Result<(Tpm, Vec<String>)> {
        let (socket, log) = (format!("{node}/tpm.sock"), dir.join(node).join("tpm.log"));
        let state = dir.join(node).join("tpm");
        std::fs::create_dir_all(&state).with_context(|| format!("making {}", state.display()))?;
        let process = tools::swtpm()?
            .args(["socket", "--tpm2", "--terminate"])
            .args(["--tpmstate", &format!("dir={node}/tpm"), "--ctrl", &format!("type=unixio,path={socket}")])
            // The level from which commands are noted.
            .args(["--log", &format!("file={node}/tpm.log,level=20,truncate")])
            .current_dir(dir)
            .stdin(Stdio::null())
            .spawn()
            .context("starting swtpm")?;
        let tpm = Tpm { process, log };
        wait::until("swtpm's socket", Duration::from_secs(20), || Ok(dir.join(&socket).exists().then_some(())))?;
        let words = [
            ("-chardev", format!("socket,id=tpm,path={socket}")),
            ("-tpmdev", "emulator,id=tpm0,chardev=tpm".to_owned()),
            ("-device", "tpm-tis,tpmdev=tpm0".to_owned()),
        ];
        Ok((tpm, words.into_iter().flat_map(|(option, value)| [option.to_owned(), value]).collect()))
    }

    /// The registers (PCRs) that were extended, in order, and the SHA-256 digests that they were extended with.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn measured(&self) -> Result<Vec<(u8, String)>> {
        let text = std::fs::read(&self.log).with_context(|| format!("reading {}", self.log.display()))?;
        Ok(commands(&String::from_utf8_lossy(&text)).iter().filter_map(|command| extended(command)).collect())
    }
}

impl Drop for Tpm {
    fn drop(&mut self) {
        // One that has ended with QEMU is no fault.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What stands in hexadecimal digits below each line that names a read.
fn commands(log: &str) -> Vec<Vec<u8>> {
    let mut found: Vec<Vec<u8>> = Vec::new();
    let mut reading = false;
    for line in log.lines() {
        let bytes: Option<Vec<u8>> =
            line.split_whitespace().map(|word| u8::from_str_radix(word, 16).ok().filter(|_| word.len() == 2)).collect();
        match bytes {
            Some(bytes) if reading => found.last_mut().into_iter().for_each(|command| command.extend(&bytes)),
            Some(_) => {}
            None => {
                reading = line.contains("SWTPM_IO_Read");
                if reading {
                    found.push(Vec::new());
                }
            }
        }
    }
    found
}

/// Tag and size, the command, the register, what authorises, and a list of digests (part 3, TPM2_PCR_Extend).
fn extended(command: &[u8]) -> Option<(u8, String)> {
    if command.get(6..10)? != EXTEND {
        return None;
    }
    let number = |at: usize| Some(u32::from_be_bytes(command.get(at..at + 4)?.try_into().ok()?) as usize);
    let register = *command.get(13)?;
    let mut at = 18 + number(14)?;
    let count = number(at)?;
    at += 4;
    for _ in 0..count {
        let kind = command.get(at..at + 2)?;
        let (_, length) = DIGESTS.iter().find(|(known, _)| known == kind)?;
        let digest = command.get(at + 2..at + 2 + length)?;
        if kind == SHA256 {
            return Some((register, digest.iter().map(|byte| format!("{byte:02x}")).collect()));
        }
        at += 2 + length;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_read_out_of_the_log() {
        let digest = |byte: &str, count: usize| vec![byte; count].join(" ");
        let log = format!(
            " Ctrl Cmd: length 4\n 00 00 00 10\n SWTPM_IO_Read: length 87\n 80 02 00 00 00 57 00 00 01 82 00 00 00 0B 00 00\n \
             00 09 40 00 00 09 00 00 00 00 00\n 00 00 00 02 00 04 {} 00 0B\n {}\n SWTPM_IO_Write: length 4\n 80 02 00 00\n \
             SWTPM_IO_Read: length 12\n 80 01 00 00 00 0C 00 00 01 44 00 00\n",
            digest("11", 20),
            digest("AB", 32),
        );
        let found: Vec<_> = commands(&log).iter().filter_map(|command| extended(command)).collect();
        assert_eq!(commands(&log).len(), 2);
        assert_eq!(found, [(11, "ab".repeat(32))]);
    }
}
