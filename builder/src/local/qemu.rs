//! QEMU's command line for a VM, and starting it in the background.

use super::accel::Accel;
use super::console;
use super::process::{self, Process};
use crate::cache;
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The emulator.
pub const PROGRAM: &str = "qemu-system-x86_64";

/// A VM to start. All paths are relative to the folder that QEMU runs in.
#[derive(Debug, Clone)]
pub struct VmSpec {
    /// Cluster and node, for the process list.
    pub title: String,
    /// Node name: folder of its files.
    pub node: String,
    /// Memory, MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub cpus: u32,
    /// How instructions are run.
    pub accel: Accel,
    /// UEFI firmware instead of BIOS.
    pub uefi: Option<Uefi>,
    /// How disk and seed are attached.
    pub bus: Bus,
    /// Where the disk's bytes are.
    pub disk: Disk,
    /// More raw disks, which the VM sees before its own.
    pub earlier_disks: Vec<PathBuf>,
    /// Hardware addresses: switch, user network.
    pub macs: [String; 2],
    /// `(port on 127.0.0.1, port in the VM)`.
    pub forwards: Vec<(u16, u16)>,
}

/// UEFI firmware.
#[derive(Debug, Clone)]
pub struct Uefi {
    /// The firmware itself.
    pub code: PathBuf,
    /// The VM's own copy of the variables.
    pub variables: PathBuf,
    /// The firmware keeps the variables from the running system, as Secure Boot needs it.
    pub guarded: bool,
}

/// The bus that disks are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Bus {
    /// virtio-blk, as DigitalOcean and Vultr have it.
    #[default]
    VirtioBlk,
    /// virtio-scsi, as Hetzner and Linode have it.
    VirtioScsi,
    /// NVMe, as AWS has it.
    Nvme,
    /// SATA by AHCI.
    Sata,
}

impl Bus {
    /// What the bus itself takes; q35 has SATA on board.
    fn controller(self) -> Option<&'static str> {
        (self == Bus::VirtioScsi).then_some("virtio-scsi-pci,id=scsi")
    }

    /// The device of the drive `id`, which is disk number `index` on this bus.
    fn device(self, id: &str, index: usize) -> String {
        match self {
            Bus::VirtioBlk => format!("virtio-blk-pci,drive={id}"),
            Bus::VirtioScsi => format!("scsi-hd,drive={id},bus=scsi.0,scsi-id={index}"),
            Bus::Nvme => format!("nvme,drive={id},serial={id}"),
            Bus::Sata => format!("ide-hd,drive={id},bus=ide.{index}"),
        }
    }
}

/// Where a disk's bytes are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Disk {
    /// In `NODE/disk.raw`.
    #[default]
    File,
    /// Behind the NBD server at this unix socket, export `disk`.
    Nbd(PathBuf),
    /// The files of this folder, as a FAT file system.
    Folder(PathBuf),
}

/// QEMU's arguments.
pub fn arguments(vm: &VmSpec) -> Vec<String> {
    let node = &vm.node;
    let mut args: Vec<String> = Vec::new();
    let mut add = |option: &str, value: String| {
        args.push(option.to_string());
        args.push(value);
    };
    add("-name", vm.title.clone());
    let guarded = vm.uefi.as_ref().is_some_and(|uefi| uefi.guarded);
    add("-machine", if guarded { "q35,smm=on" } else { "q35" }.to_string());
    match vm.accel {
        Accel::Kvm => {
            add("-accel", "kvm".into());
            add("-cpu", "host".into());
        }
        // Half of the memory of each QEMU would otherwise be translated code.
        Accel::Tcg => {
            add("-accel", "tcg,tb-size=256".into());
            add("-cpu", "Nehalem,+rdrand".into());
        }
    }
    add("-smp", vm.cpus.to_string());
    add("-m", vm.memory_mib.to_string());
    if let Some(uefi) = &vm.uefi {
        add("-drive", format!("if=pflash,format=raw,readonly=on,file={}", uefi.code.display()));
        add("-drive", format!("if=pflash,format=raw,file={}", uefi.variables.display()));
    }
    if guarded {
        add("-global", "driver=cfi.pflash01,property=secure,value=on".into());
    }
    for (option, value) in disks(vm) {
        add(option, value);
    }
    add("-smbios", "type=1,serial=ds=nocloud".into());
    add("-netdev", format!("dgram,id=lan,local.type=unix,local.path={node}.vm,remote.type=unix,remote.path={node}.sw"));
    add("-device", format!("virtio-net-pci,netdev=lan,romfile=,mac={}", vm.macs[0]));
    let forwards: String =
        vm.forwards.iter().map(|(host, guest)| format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}")).collect();
    add("-netdev", format!("user,id=nat{forwards}"));
    add("-device", format!("virtio-net-pci,netdev=nat,romfile=,mac={}", vm.macs[1]));
    add("-object", "rng-random,id=rng,filename=/dev/urandom".into());
    add("-device", "virtio-rng-pci,rng=rng".into());
    add("-chardev", format!("file,id=console,append=on,path={node}/console.log"));
    add("-serial", "chardev:console".into());
    add("-qmp", format!("unix:{node}/qmp.sock,server=on,wait=off"));
    add("-pidfile", format!("{node}/pid"));
    add("-display", "none".into());
    for flag in ["-nodefaults", "-no-user-config"] {
        args.push(flag.to_string());
    }
    args
}

/// The disks in the order in which the VM sees them, on one bus, so that no other disk driver is needed.
fn disks(vm: &VmSpec) -> Vec<(&'static str, String)> {
    let (node, bus) = (&vm.node, vm.bus);
    let mut out: Vec<_> = bus.controller().map(|c| ("-device", c.to_string())).into_iter().collect();
    for (index, path) in vm.earlier_disks.iter().enumerate() {
        out.push(("-drive", format!("if=none,id=other{index},format=raw,file={}", path.display())));
        out.push(("-device", bus.device(&format!("other{index}"), index)));
    }
    let own = vm.earlier_disks.len();
    let place = match &vm.disk {
        Disk::File => format!("file={node}/disk.raw"),
        Disk::Folder(folder) => format!("file=fat:rw:{}", folder.display()),
        Disk::Nbd(socket) => {
            format!("file.driver=nbd,file.server.type=unix,file.server.path={},file.export=disk", socket.display())
        }
    };
    out.push(("-drive", format!("if=none,id=disk,format=raw,cache=writeback,discard=unmap,{place}")));
    // 0 is for a medium that is put in besides.
    out.push(("-device", format!("{},bootindex=1", bus.device("disk", own))));
    // A SATA disk cannot be read-only, but its file can: what the VM would write goes nowhere.
    let guard = if bus == Bus::Sata { "snapshot=on" } else { "readonly=on" };
    out.push(("-drive", format!("if=none,id=seed,format=raw,{guard},file={node}/seed.img")));
    out.push(("-device", bus.device("seed", own + 1)));
    out
}

/// Starts a VM in the background. `known` is told of the process before anything else: it outlives this one, whenever
/// that ends.
pub fn start(run_dir: &Path, vm: &VmSpec, known: impl FnOnce(Process) -> Result<()>) -> Result<()> {
    for stale in ["pid", "qmp.sock"] {
        let path = run_dir.join(&vm.node).join(stale);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", path.display()));
            }
            _ => {}
        }
    }
    let log = run_dir.join(&vm.node).join("qemu.log");
    let out = cache::open_private(&log)?;
    out.set_len(0).with_context(|| format!("emptying {}", log.display()))?;
    let errors = out.try_clone().context("sharing qemu.log")?;
    console::begin(&run_dir.join(&vm.node).join("console.log"))?;
    // Not QEMU's own -daemonize: that leaves the folder which the sockets' short paths are relative to.
    let mut command = Command::new(std::env::current_exe().context("finding kimg itself")?);
    command.arg("launch").arg("--").arg(PROGRAM).args(arguments(vm)).current_dir(run_dir).stdout(out).stderr(errors);
    // A VM that nobody knows of would hold its disk, and be a second one beside the next.
    let pid = process::start(&mut command, known)?;
    let pid_file = run_dir.join(&vm.node).join("pid");
    let end = Instant::now() + START_LIMIT;
    loop {
        let Some(process) = Process::find(pid) else {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            return Err(ended(format!("QEMU did not start {}: {}", vm.node, said.trim())));
        };
        // QEMU writes it once everything that it was given is open.
        if pid_file.exists() {
            return Ok(());
        }
        if Instant::now() > end {
            process.end(Duration::from_secs(1))?;
            bail!("QEMU of {} did not start within {} s; see {}", vm.node, START_LIMIT.as_secs(), log.display());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// QEMU found one of the ports on 127.0.0.1 in use.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct PortTaken(String);

fn ended(said: String) -> anyhow::Error {
    if said.contains("Could not set up host forwarding rule") { PortTaken(said).into() } else { anyhow::anyhow!(said) }
}

/// How long QEMU may take to open what it is given.
const START_LIMIT: Duration = Duration::from_secs(20);

/// Leaves the terminal's session and becomes another program: Ctrl-C does not reach it any more.
pub fn launch(command: &[OsString]) -> Result<()> {
    let (program, args) = command.split_first().context("there is no program to launch")?;
    rustix::process::setsid().context("leaving the terminal's session")?;
    process::await_leave()?;
    let error = Command::new(program).args(args).stdin(Stdio::null()).exec();
    match error.kind() {
        std::io::ErrorKind::NotFound => {
            bail!("{} is not installed; `kimg doctor` prints the command that brings it", program.to_string_lossy())
        }
        _ => Err(error).with_context(|| format!("running {}", program.to_string_lossy())),
    }
}

/// OVMF's firmware and its empty variables, where distributions put them.
pub fn uefi_firmware() -> Result<(PathBuf, PathBuf)> {
    let known = [
        ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
        ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
        ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
        ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ];
    known
        .iter()
        .map(|(code, variables)| (PathBuf::from(code), PathBuf::from(variables)))
        .find(|(code, variables)| code.exists() && variables.exists())
        .context("there is no UEFI firmware (OVMF) on this machine; `kimg doctor` prints the command that brings it")
}

/// The firmware, and this VM's own copy of its variables: made where there is none.
pub fn uefi_of(run_dir: &Path, node: &str) -> Result<Uefi> {
    let (code, variables) = uefi_firmware()?;
    let own = Path::new(node).join("efi-variables.fd");
    if !run_dir.join(&own).exists() {
        std::fs::copy(&variables, run_dir.join(&own)).with_context(|| format!("copying {}", variables.display()))?;
    }
    Ok(Uefi { code, variables: own, guarded: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(accel: Accel) -> VmSpec {
        VmSpec {
            title: "kimg-demo-m".into(),
            node: "m".into(),
            memory_mib: 512,
            cpus: 1,
            accel,
            uefi: None,
            bus: Bus::VirtioBlk,
            disk: Disk::File,
            earlier_disks: Vec::new(),
            macs: ["52:54:00:00:00:01".into(), "52:54:00:00:00:02".into()],
            forwards: vec![(40001, 6443), (40002, 10270)],
        }
    }

    #[test]
    fn the_command_line_says_what_the_vm_is() {
        let line = arguments(&vm(Accel::Tcg)).join(" ");
        for part in [
            "-accel tcg,tb-size=256 -cpu Nehalem,+rdrand -smp 1 -m 512",
            "-smbios type=1,serial=ds=nocloud",
            "local.path=m.vm,remote.type=unix,remote.path=m.sw",
            "-netdev user,id=nat,hostfwd=tcp:127.0.0.1:40001-:6443,hostfwd=tcp:127.0.0.1:40002-:10270",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
        assert!(arguments(&vm(Accel::Kvm)).join(" ").contains("-accel kvm -cpu host"));
    }

    #[test]
    fn a_port_that_was_taken_is_known_by_what_qemu_says() {
        let said =
            "qemu-system-x86_64: -netdev user,id=nat: Could not set up host forwarding rule 'tcp:127.0.0.1:1-:2'";
        assert!(ended(said.into()).is::<PortTaken>());
        assert!(!ended("qemu-system-x86_64: Failed to get \"write\" lock".into()).is::<PortTaken>());
    }

    #[test]
    fn all_disks_are_on_the_vms_bus() {
        let cases = [
            (Bus::VirtioBlk, "-device virtio-blk-pci,drive=other0", "-device virtio-blk-pci,drive=disk,bootindex=1"),
            (
                Bus::VirtioScsi,
                "-device virtio-scsi-pci,id=scsi",
                "-device scsi-hd,drive=disk,bus=scsi.0,scsi-id=1,bootindex=1",
            ),
            (Bus::Nvme, "-device nvme,drive=seed,serial=seed", "-device nvme,drive=disk,serial=disk,bootindex=1"),
            (Bus::Sata, "snapshot=on,file=m/seed.img", "-device ide-hd,drive=disk,bus=ide.1,bootindex=1"),
        ];
        for (bus, one, other) in cases {
            let spec = VmSpec { bus, earlier_disks: vec!["second.raw".into()], ..vm(Accel::Tcg) };
            let line = arguments(&spec).join(" ");
            for part in [one, other] {
                assert!(line.contains(part), "{part} in {line}");
            }
            assert_eq!(line.contains("virtio-blk-pci"), bus == Bus::VirtioBlk, "{line}");
        }
        let uefi = Uefi { code: "code.fd".into(), variables: "m/own.fd".into(), guarded: true };
        let line = arguments(&VmSpec { uefi: Some(uefi), ..vm(Accel::Tcg) }).join(" ");
        for part in ["-machine q35,smm=on", "readonly=on,file=code.fd", "driver=cfi.pflash01,property=secure,value=on"]
        {
            assert!(line.contains(part), "{part} in {line}");
        }
        let served = VmSpec { disk: Disk::Nbd("m.nbd".into()), ..vm(Accel::Tcg) };
        assert!(arguments(&served).join(" ").contains("file.server.path=m.nbd,file.export=disk"));
    }
}
