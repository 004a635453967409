//! UEFI Secure Boot with the cluster's own keys: what firmware starts, and what it refuses.
//!
//! The machines have OVMF's build with Secure Boot, whose variables the running system cannot reach (SMM). Its keys
//! are put in by virt-firmware, so that each machine begins enrolled; one test has the firmware itself take the files
//! that `kimg pki secure-boot` writes.

use crate::Test;
use crate::disks::{refuses, table_of};
use anyhow::{Context, bail, ensure};
use kimg::cache::hash;
use kimg::disk::gpt::{Guid, SECTOR};
use kimg::pki::secure_boot::write_enrolment;
use node_api::path;
use qemu_tests::cluster::run_in;
use qemu_tests::{Bench, Machine, Result, tools};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

const MASTER: &str = "master-1";
const WORKER: &str = "worker-1";
/// What OVMF says when a program's signature does not hold.
const REFUSED: &str = "Access Denied";

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("boot::secure_boot_signatures_hold_before_sbverify", false, sbverify),
        Test::new("boot::secure_boot_refuses_an_unsigned_kernel", false, unsigned_kernel),
        Test::new("boot::secure_boot_starts_the_signed_image", true, signed_image),
        Test::new("boot::secure_boot_with_a_tpm_measures_what_was_built", true, measured),
        Test::new("boot::secure_boot_refuses_an_unsigned_kernel_with_a_tpm_too", true, unsigned_with_tpm),
        Test::new("boot::secure_boot_refuses_another_command_line", true, altered_command_line),
        Test::new("boot::secure_boot_does_not_start_this_root_by_an_older_signed_kernel", true, older_kernel),
        Test::new("boot::secure_boot_keys_are_taken_by_the_firmware", true, enrolment),
    ]
}

/// Firmware with Secure Boot, and its variables without keys.
fn firmware() -> Result<(PathBuf, PathBuf)> {
    let known = [
        ("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
        ("/usr/share/edk2/ovmf/OVMF_CODE.secboot.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
        ("/usr/share/edk2/x64/OVMF_CODE.secboot.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ];
    known
        .iter()
        .map(|(code, variables)| (PathBuf::from(code), PathBuf::from(variables)))
        .find(|(code, variables)| code.exists() && variables.exists())
        .ok_or_else(|| crate::Skipped("there is no OVMF with Secure Boot on this machine".into()).into())
}

fn skipped(error: anyhow::Error) -> anyhow::Error {
    crate::Skipped(format!("{error:#}")).into()
}

/// Firmware, and variables with the cluster's keys in them: Secure Boot is on.
pub(crate) fn enrolled(bench: &Bench) -> Result<(PathBuf, PathBuf)> {
    static ENROLLED: OnceLock<PathBuf> = OnceLock::new();
    let (code, empty) = firmware()?;
    if let Some(variables) = ENROLLED.get() {
        return Ok((code, variables.clone()));
    }
    let program = tools::virt_fw_vars().map_err(skipped)?;
    let dir = crate::root().join("boots/keys");
    write_enrolment(&bench.secure_boot()?, &dir)?;
    let variables = dir.join("efi-variables.fd");
    let (from, to) = (empty.display().to_string(), variables.display().to_string());
    // Whose certificate it is, the firmware only stores.
    let owner = "00000000-0000-0000-0000-000000000000";
    let mut arguments = vec!["--input", &from, "--output", &to, "--secure-boot"];
    for (option, file) in [("--set-pk", "PK.cer"), ("--add-kek", "KEK.cer"), ("--add-db", "db.cer")] {
        arguments.extend([option, owner, file]);
    }
    run_in(&dir, program, &arguments, None)?.success().context("virt-fw-vars")?;
    Ok((code, ENROLLED.get_or_init(|| variables).clone()))
}

/// Starts a machine with Secure Boot after `change` was made to its disk.
fn with_secure_boot(
    bench: &Bench,
    name: &str,
    change: impl FnOnce(&Path) -> Result,
    judge: impl FnOnce(&mut Machine<'_>) -> Result,
) -> Result {
    let (code, variables) = enrolled(bench)?;
    bench.with(name, MASTER, |machine| {
        machine.attach_guarded(&code, &variables)?;
        change(&machine.disk())?;
        machine.start()?;
        judge(machine)
    })
}

fn signed_image(bench: &Bench) -> Result {
    with_secure_boot(bench, "secure-signed", |_| Ok(()), boots_with_secure_boot)
}

/// The node runs, and its kernel knows that it was verified.
fn boots_with_secure_boot(machine: &mut Machine<'_>) -> Result {
    machine.booted()?;
    let log = machine.node_text(path::DMESG)?;
    for said in ["Secure boot enabled", "Kernel is locked down from EFI Secure Boot"] {
        ensure!(log.contains(said), "the kernel does not say '{said}'");
    }
    ensure!(!log.contains("module verification failed"), "a kernel module is not signed");
    Ok(())
}

fn unsigned_kernel(bench: &Bench) -> Result {
    let change = |disk: &Path| {
        let mut kernel = Kernel::find(disk)?;
        let entry = kernel.certificate_entry();
        kernel.bytes[entry..entry + 8].fill(0);
        kernel.put(disk)
    };
    with_secure_boot(bench, "secure-unsigned", change, firmware_refuses)
}

/// Firmware with a TPM goes another way to a kernel: it measures first.
fn unsigned_with_tpm(bench: &Bench) -> Result {
    tools::swtpm().map_err(skipped)?;
    let (code, variables) = enrolled(bench)?;
    bench.with("secure-unsigned-tpm", MASTER, |machine| {
        machine.attach_guarded(&code, &variables)?;
        let disk = machine.disk();
        let mut kernel = Kernel::find(&disk)?;
        let entry = kernel.certificate_entry();
        kernel.bytes[entry..entry + 8].fill(0);
        kernel.put(&disk)?;
        machine.give_tpm()?;
        machine.start()?;
        firmware_refuses(machine)?;
        // That it was asked is what is not to be taken for granted: it looks the same without one.
        ensure!(registers(machine)?.contains(&SECURE_BOOT_STATE), "the firmware did not use the TPM");
        Ok(())
    })
}

/// What firmware knows of Secure Boot is measured here, and the parts of a unified kernel image by systemd's stub there
/// (<https://uapi-group.org/specifications/specs/linux_tpm_pcr_registry/>).
const SECURE_BOOT_STATE: u8 = 7;
const KERNEL_PARTS: u8 = 11;

fn registers(machine: &Machine<'_>) -> Result<Vec<u8>> {
    Ok(machine.tpm()?.measured()?.into_iter().map(|(register, _)| register).collect())
}

/// The signed image starts as without a TPM, and what was measured of it can be told from the files that were built.
fn measured(bench: &Bench) -> Result {
    tools::swtpm().map_err(skipped)?;
    let (code, variables) = enrolled(bench)?;
    bench.with("secure-measured", MASTER, |machine| {
        machine.attach_guarded(&code, &variables)?;
        machine.give_tpm()?;
        machine.start()?;
        boots_with_secure_boot(machine)?;
        let log = machine.node_text(path::DMESG)?;
        ensure!(log.contains("TPMEventLog="), "the kernel was not told of the firmware's log");
        let found = machine.tpm()?.measured()?;
        ensure!(found.iter().any(|(register, _)| *register == SECURE_BOOT_STATE), "nothing of Secure Boot: {found:?}");
        let parts: Vec<&str> = found.iter().filter(|(r, _)| *r == KERNEL_PARTS).map(|(_, d)| d.as_str()).collect();
        for (section, file) in [(".linux", "vmlinuz"), (".initrd", "initrd"), (".cmdline", "cmdline")] {
            let content = bench.image(MASTER)?.with_file_name(file);
            let content = std::fs::read(&content).with_context(|| format!("reading {}", content.display()))?;
            // A section's name with its end, then its content.
            let name = format!("{section}\0");
            let wanted = [hash::hex_of(name.as_bytes()), hash::hex_of(&content)];
            ensure!(parts.windows(2).any(|pair| pair == wanted), "{section} {wanted:?} is not among {parts:?}");
        }
        Ok(())
    })
}

fn altered_command_line(bench: &Bench) -> Result {
    let line = bench.command_line(MASTER)?;
    let change = |disk: &Path| {
        let mut kernel = Kernel::find(disk)?;
        let at = kernel.position(line.as_bytes()).context("the kernel has no command line")?;
        let last = at + line.len() - 1;
        // Another digit of the last word, `panic=30`, or whatever stands there.
        kernel.bytes[last] ^= 1;
        kernel.put(disk)
    };
    with_secure_boot(bench, "secure-command-line", change, firmware_refuses)
}

pub(crate) fn firmware_refuses(machine: &mut Machine<'_>) -> Result {
    refuses(machine, REFUSED, 40)?;
    ensure!(!machine.console().contains("Linux version"), "the kernel was started");
    Ok(())
}

/// A kernel that the cluster has signed for another root: first as an attacker would put it there, then with the
/// root's partitions under the names that it looks for.
fn older_kernel(bench: &Bench) -> Result {
    let other = bench.image(WORKER)?;
    let give_kernel = |disk: &Path| {
        let kernel = Kernel::find(&other)?;
        let mut own = Kernel::find(disk)?;
        ensure!(own.bytes.len() == kernel.bytes.len(), "the two kernels have different lengths");
        own.bytes = kernel.bytes;
        own.put(disk)
    };
    with_secure_boot(bench, "secure-other-root", give_kernel, |machine| {
        // Stage 1 looks for it for a minute.
        refuses(machine, "no disk carries the root with hash", 90)
    })?;
    let rename = |disk: &Path| {
        give_kernel(disk)?;
        let from = table_of(&File::open(&other).context("opening the other image")?)?;
        let file = File::options().read(true).write(true).open(disk).context("opening the disk")?;
        let mut table = table_of(&file)?;
        for partition in &mut table.partitions {
            let id: Option<Guid> = from.partition(&partition.name).map(|p| p.id);
            partition.id = id.with_context(|| format!("the other image has no partition {}", partition.name))?;
        }
        let mut boot = vec![0; 440];
        file.read_exact_at(&mut boot, 0).context("reading the boot sector")?;
        file.write_all_at(&table.head(&boot), 0).context("writing the partition table")
    };
    with_secure_boot(bench, "secure-renamed-root", rename, |machine| {
        refuses(machine, "the image is damaged, write it", 40)
    })
}

/// systemd's boot loader gives the files of `kimg pki secure-boot` to a firmware without keys. From then on that
/// firmware starts the image, and not the loader, which is not signed.
fn enrolment(bench: &Bench) -> Result {
    let (code, empty) = firmware()?;
    let loader = tools::systemd_boot().map_err(skipped)?;
    let loader = std::fs::read(&loader).with_context(|| format!("reading {}", loader.display()))?;
    let variables = crate::root().join("boots/taken-variables.fd");
    let keys = bench.secure_boot()?.enrolment()?;
    let places: Vec<String> = keys.iter().map(|file| format!("loader/keys/auto/{}", file.name)).collect();
    bench.with("secure-enrolment", MASTER, |machine| {
        let own = machine.attach_guarded(&code, &empty)?;
        let mut files: Vec<(&str, &[u8])> =
            vec![("EFI/BOOT/BOOTX64.EFI", &loader), ("loader/loader.conf", b"timeout 0\nsecure-boot-enroll force\n")];
        files.extend(places.iter().zip(&keys).map(|(place, file)| (place.as_str(), file.bytes.as_slice())));
        machine.show_files(&files)?;
        machine.start()?;
        firmware_refuses(machine)?;
        machine.kill()?;
        std::fs::copy(&own, &variables).context("keeping the firmware's variables")?;
        Ok(())
    })?;
    bench.with("secure-enrolled", MASTER, |machine| {
        machine.attach_guarded(&code, &variables)?;
        machine.start()?;
        boots_with_secure_boot(machine)
    })
}

fn sbverify(bench: &Bench) -> Result {
    tools::sbverify().map_err(skipped)?;
    let kernel = Kernel::find(&bench.image(MASTER)?)?;
    let holds = |bytes: &[u8], certificate: &str| -> Result<bool> {
        let file = crate::root().join("boots/kernel.efi");
        std::fs::write(&file, bytes).context("writing the kernel")?;
        let output = tools::sbverify()?
            .arg("--cert")
            .arg(bench.secrets().path(certificate))
            .arg(&file)
            .output()
            .context("starting sbverify")?;
        let said = [output.stdout, output.stderr].map(|s| String::from_utf8_lossy(&s).into_owned()).concat();
        match output.status.success() {
            true if said.contains("Signature verification OK") => Ok(true),
            false if said.contains("Signature verification failed") => Ok(false),
            _ => bail!("sbverify says: {said}"),
        }
    };
    ensure!(holds(&kernel.bytes, "secure-boot-db.crt")?, "the signature does not hold");
    ensure!(!holds(&kernel.bytes, "secure-boot-pk.crt")?, "it holds for another certificate too");
    let line = bench.command_line(MASTER)?;
    let mut other = kernel.bytes.clone();
    other[kernel.position(line.as_bytes()).context("the kernel has no command line")?] ^= 1;
    ensure!(!holds(&other, "secure-boot-db.crt")?, "it holds for another command line too");
    Ok(())
}

/// The signed kernel on a disk: one stretch of bytes, as the builder writes files.
struct Kernel {
    /// Where on the disk.
    at: u64,
    bytes: Vec<u8>,
}

impl Kernel {
    fn find(disk: &Path) -> Result<Kernel> {
        let file = File::open(disk).with_context(|| format!("opening {}", disk.display()))?;
        let table = table_of(&file)?;
        let esp = table.partition("esp").context("there is no partition esp")?;
        let start = esp.first * SECTOR;
        let mut bytes = vec![0; usize::try_from(esp.sectors * SECTOR)?];
        file.read_exact_at(&mut bytes, start).context("reading the EFI partition")?;
        // The bare kernel is an EFI program too, but has no command line.
        let is_ours = |at: &usize| {
            let head = &bytes[*at..bytes.len().min(at + 4096)];
            head.starts_with(b"MZ") && head.windows(8).any(|name| name == b".cmdline")
        };
        let at = (0..bytes.len()).step_by(512).find(is_ours).context("there is no kernel on the EFI partition")?;
        let mut kernel = Kernel { at: start + at as u64, bytes: bytes.split_off(at) };
        let entry = kernel.certificate_entry();
        let (signature, length) = (kernel.word(entry), kernel.word(entry + 4));
        ensure!(length > 0, "the kernel is not signed");
        kernel.bytes.truncate(signature + length);
        Ok(kernel)
    }

    fn put(&self, disk: &Path) -> Result {
        let file = File::options().write(true).open(disk).context("opening the disk")?;
        file.write_all_at(&self.bytes, self.at).context("changing the kernel")
    }

    fn word(&self, at: usize) -> usize {
        let bytes = self.bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
        bytes.map_or(0, u32::from_le_bytes) as usize
    }

    /// Where the headers say where the signature is.
    fn certificate_entry(&self) -> usize {
        self.word(0x3c) + 24 + 144
    }

    fn position(&self, what: &[u8]) -> Option<usize> {
        self.bytes.windows(what.len()).position(|window| window == what)
    }
}
