//! One VM alone, made straight from an image: for tests about firmware, buses, disks and power,
//! where a whole cluster would only be slower. The clusters of VMs are [`crate::Cluster`]'s.

use crate::cluster::run_in;
use crate::nbd::Server;
use crate::tpm::Tpm;
use crate::{tools, wait};
use anyhow::{Context, Result, bail};
use kimg::client::node::NodeClient;
use kimg::client::{Https, block_on, kube, tls};
use kimg::config::{self, NodeSettings, Settings};
use kimg::image::build::output_dir;
use kimg::image::output::Format;
use kimg::local::qemu::{self, Bus, Disk, Uefi, VmSpec};
use kimg::local::{Accel, accel, console, disk, qmp, state};
use kimg::pki::{Authority, Secrets, SecureBoot, issue, secrets};
use kimg::seed::{self, Begin, Place, token::BootstrapToken};
use node_api::{NodeStatus, path};
use node_metadata::Role;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// What starts a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS.
    Bios,
    /// OVMF.
    Uefi,
}

/// How a medium with the installer is put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drive {
    /// A CD drive.
    Cd,
    /// A USB stick.
    Usb,
}

/// The built images of a cluster and its keys: what machines are made from.
#[derive(Debug)]
pub struct Bench {
    settings: Settings,
    secrets: Secrets,
    accel: Accel,
}

impl Bench {
    /// Makes the folder with this `cluster.toml` and builds both images, from other programs than those beside
    /// `kimg` where `components` names their folder.
    ///
    /// # Errors
    /// `kimg build` failed; the error holds what it said.
    pub fn build(dir: &Path, cluster_toml: &str, components: Option<&Path>) -> Result<Bench> {
        std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        std::fs::write(dir.join(config::FILE_NAME), cluster_toml).context("writing cluster.toml")?;
        let mut arguments = vec!["build", "all", "--format", "raw"];
        if let Some(folder) = components {
            arguments.extend(["--components", folder.to_str().context("a folder's name that is not UTF-8")?]);
        }
        run_in(dir, tools::kimg(), &arguments, None)?.success().context("kimg build")?;
        let settings = config::load(dir)?;
        let secrets = Secrets::ensure(&settings.secrets_dir(), &settings.name)?;
        let image = output_dir(&settings, Role::Master).join("disk.raw");
        let accel = accel::choose(settings.local.accel.as_deref(), &image)?;
        Ok(Bench { settings, secrets, accel })
    }

    /// The raw image of a node.
    ///
    /// # Errors
    /// `cluster.toml` has no such node.
    pub fn image(&self, node: &str) -> Result<PathBuf> {
        Ok(output_dir(&self.settings, self.settings.node(node)?.entry.role).join("disk.raw"))
    }

    /// A node's image in this form; built when it is first asked for.
    ///
    /// # Errors
    /// `cluster.toml` has no such node, or `kimg build` failed.
    pub fn form(&self, node: &str, format: Format) -> Result<PathBuf> {
        let role = self.settings.node(node)?.entry.role;
        let formats = format!("raw,{}", format.name());
        run_in(&self.settings.dir, tools::kimg(), &["build", role.as_str(), "--format", &formats], None)?
            .success()
            .context("kimg build")?;
        Ok(self.image(node)?.with_file_name(format.file()))
    }

    /// The cluster's keys.
    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// The cluster's Secure Boot keys.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn secure_boot(&self) -> Result<SecureBoot> {
        SecureBoot::ensure(&self.secrets, &self.settings.name)
    }

    /// The kernel's command line of a node's image.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn command_line(&self, node: &str) -> Result<String> {
        let file = self.image(node)?.with_file_name("cmdline");
        std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))
    }

    /// Makes the machine `name`, a `node` with a fresh disk, for as long as `run` takes. Where that fails, its
    /// folder keeps what the node can still say.
    ///
    /// # Errors
    /// The machine cannot be made, or what `run` returned.
    pub fn with<T>(&self, name: &str, node: &str, run: impl FnOnce(&mut Machine<'_>) -> Result<T>) -> Result<T> {
        let mut machine = self.machine(name, node)?;
        let result = run(&mut machine);
        match result {
            Ok(value) => {
                machine.kill()?;
                machine.remove_disks()?;
                Ok(value)
            }
            Err(error) => {
                let dir = machine.dir.clone();
                machine.keep_what_it_says();
                Err(error.context(format!("machine {name} (console and logs: {})", dir.display())))
            }
        }
    }

    fn machine(&self, name: &str, node: &str) -> Result<Machine<'_>> {
        let dir = self.settings.dir.join("machines").join(name);
        if dir.exists() {
            std::fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
        }
        let node = self.settings.node(node)?;
        let own = dir.join(&node.entry.name);
        std::fs::create_dir_all(&own).with_context(|| format!("making {}", own.display()))?;
        let size = match node.entry.role {
            Role::Master => self.settings.local.master,
            Role::Worker => self.settings.local.worker,
        };
        let token = (node.entry.role == Role::Worker).then(BootstrapToken::random);
        let drive = seed::local_drive(&self.settings, node, Begin::Join(token.as_ref()), &self.secrets)?;
        secrets::write_private(&own.join("seed.img"), &drive)?;
        let (node_port, api_port) = (state::free_port(None)?, state::free_port(None)?);
        let mut machine = Machine {
            bench: self,
            node,
            spec: VmSpec {
                title: format!("kimg-tests-{name}"),
                node: node.entry.name.clone(),
                memory_mib: size.memory_mib,
                cpus: size.cpus,
                accel: self.accel,
                uefi: None,
                bus: Bus::default(),
                disk: Disk::File,
                earlier_disks: Vec::new(),
                macs: [0, 1].map(|n| seed::mac(&self.settings.name, &node.entry.name, n)),
                forwards: vec![(node_port, node_api::PORT), (api_port, 6443)],
            },
            dir,
            disk_mib: size.disk_mib,
            over_a_form: false,
            system: None,
            node_port,
            api_port,
            medium: Vec::new(),
            tpm: None,
            process: None,
            server: None,
            console_start: 0,
        };
        let image = self.image(&node.entry.name)?;
        machine.take_disk(&image)?;
        Ok(machine)
    }
}

/// A VM of a [`Bench`]. It ends with this value.
#[derive(Debug)]
pub struct Machine<'a> {
    bench: &'a Bench,
    node: &'a NodeSettings,
    spec: VmSpec,
    dir: PathBuf,
    disk_mib: u32,
    /// The disk is laid over an image in another form than raw.
    over_a_form: bool,
    /// What firmware says of the machine, where that is not the default.
    system: Option<String>,
    node_port: u16,
    api_port: u16,
    /// QEMU's arguments for the medium that is in.
    medium: Vec<String>,
    /// The TPM of the next or this start, and QEMU's arguments for it.
    tpm: Option<(Tpm, Vec<String>)>,
    process: Option<Child>,
    /// The disk's server, while it is not a file.
    server: Option<Server>,
    /// Where the console of this boot begins in the log.
    console_start: usize,
}

impl Machine<'_> {
    /// Firmware and bus from the next start on.
    ///
    /// # Errors
    /// There is no OVMF on this host.
    pub fn attach_by(&mut self, firmware: Firmware, bus: Bus) -> Result<()> {
        self.spec.uefi = match firmware {
            Firmware::Bios => None,
            Firmware::Uefi => Some(qemu::uefi_of(&self.dir, &self.spec.node)?),
        };
        self.spec.bus = bus;
        Ok(())
    }

    /// Firmware with Secure Boot from the next start on, and a copy of these variables. Where the copy is.
    ///
    /// # Errors
    /// The variables cannot be copied.
    pub fn attach_guarded(&mut self, code: &Path, variables: &Path) -> Result<PathBuf> {
        let own = Path::new(&self.spec.node).join("efi-variables.fd");
        let file = self.dir.join(&own);
        std::fs::copy(variables, &file).with_context(|| format!("copying {}", variables.display()))?;
        self.spec.uefi = Some(Uefi { code: code.to_owned(), variables: own, guarded: true });
        Ok(file)
    }

    /// Puts files into the disk's place, from the next start on: paths and contents.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn show_files(&mut self, files: &[(&str, &[u8])]) -> Result<()> {
        let folder = Path::new(&self.spec.node).join("files");
        for (name, bytes) in files {
            let file = self.dir.join(&folder).join(name);
            if let Some(parent) = file.parent() {
                std::fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
            }
            std::fs::write(&file, bytes).with_context(|| format!("writing {}", file.display()))?;
        }
        self.spec.disk = Disk::Folder(folder);
        Ok(())
    }

    /// Memory from the next start on.
    pub fn set_memory(&mut self, mib: u32) {
        self.spec.memory_mib = mib;
    }

    /// Its disk, while that is a file.
    pub fn disk(&self) -> PathBuf {
        self.dir.join(&self.spec.node).join("disk.raw")
    }

    /// Makes its disk a copy of another one, grown to the VM's size.
    ///
    /// # Errors
    /// It cannot be copied.
    pub fn take_disk(&mut self, from: &Path) -> Result<()> {
        disk::copy(from, &self.disk(), self.disk_mib, |_| ())
    }

    /// Makes its disk an image in a form that QEMU reads itself, by QEMU's name for it. What the VM writes goes
    /// beside it: not every form can be written to.
    ///
    /// # Errors
    /// qemu-img cannot lay the second file over it.
    pub fn take_form(&mut self, from: &Path, form: &str) -> Result<()> {
        let size = format!("{}M", self.disk_mib);
        let from = from.to_str().context("a path that is not UTF-8")?;
        let over = self.disk().with_extension("qcow2");
        let over = over.to_str().context("a path that is not UTF-8")?;
        let arguments = ["create", "-q", "-f", "qcow2", "-b", from, "-F", form, over, &size];
        run_in(&self.dir, "qemu-img".into(), &arguments, None)?.success().context("qemu-img create")?;
        self.over_a_form = true;
        Ok(())
    }

    /// Hardware addresses: of the card on the switch, of the one behind QEMU's NAT.
    pub fn macs(&self) -> [String; 2] {
        self.spec.macs.clone()
    }

    /// The folder in which its cables' sockets are.
    pub fn folder(&self) -> &Path {
        &self.dir
    }

    /// Pulls the cable of one of QEMU's network devices out, or plugs it in.
    ///
    /// # Errors
    /// QEMU does not do so.
    pub fn plug(&self, device: &str, up: bool) -> Result<()> {
        let link = serde_json::json!({"name": device, "up": up});
        qmp::execute(&self.dir.join(&self.spec.node), "qmp.sock", "set_link", Some(link)).map(drop)
    }

    /// Attaches a device to the running machine, as a provider attaches a volume.
    ///
    /// # Errors
    /// QEMU does not do so.
    pub fn attach(&self, device: serde_json::Value) -> Result<()> {
        qmp::execute(&self.dir.join(&self.spec.node), "qmp.sock", "device_add", Some(device)).map(drop)
    }

    /// User-data for it, with a token of its own.
    ///
    /// # Errors
    /// As [`seed::user_data`].
    pub fn user_data(&self) -> Result<String> {
        let token = (self.node.entry.role == Role::Worker).then(BootstrapToken::random);
        let begin = Begin::Join(token.as_ref());
        seed::user_data(&self.bench.settings, self.node, Place::Local, begin, &self.bench.secrets)
    }

    /// What tells it who it is, from the next start on: QEMU's words for SMBIOS type 1, the drive, and more arguments.
    ///
    /// # Errors
    /// The drive cannot be written.
    pub fn wake_by(&mut self, system: &str, drive: &[u8], arguments: &[String]) -> Result<()> {
        self.system = Some(system.to_owned());
        self.medium.extend_from_slice(arguments);
        secrets::write_private(&self.dir.join(&self.spec.node).join("seed.img"), drive)
    }

    /// Gives it user-data without the key that opens a master's secrets.
    ///
    /// # Errors
    /// The drive cannot be written, or there was no key in it.
    pub fn withhold_seal_key(&mut self) -> Result<()> {
        let file = self.dir.join(&self.spec.node).join("seed.img");
        let mut drive = std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        let at =
            drive.windows(KEY.len()).position(|part| part == KEY).context("there is no seal-key in the user-data")?;
        let line = drive[at..].iter_mut().take_while(|byte| **byte != b'\n');
        // A comment of the same length: the drive stays as it is otherwise.
        line.for_each(|byte| *byte = b'#');
        secrets::write_private(&file, &drive)
    }

    /// Gives a master that waits for it the key of its secrets, over its node API.
    ///
    /// # Errors
    /// It does not take it.
    pub fn unseal(&self, key: &str) -> Result<node_api::Done> {
        self.ask(|client| block_on(client.post(path::UNSEAL, Some(&serde_json::json!({ "key": key })))))
    }

    /// Makes its disk an empty one.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn empty_disk(&mut self) -> Result<()> {
        let made = std::fs::File::create(self.disk()).and_then(|file| file.set_len(u64::from(self.disk_mib) << 20));
        made.with_context(|| format!("making {}", self.disk().display()))
    }

    /// Puts a medium in, or takes it out, from the next start on; it is started before the disk.
    pub fn put_in(&mut self, medium: Option<(&Path, Drive)>) {
        self.medium.clear();
        let Some((file, drive)) = medium else { return };
        let mut add = |option: &str, value: String| self.medium.extend([option.to_owned(), value]);
        add("-drive", format!("if=none,id=medium,format=raw,readonly=on,file={}", file.display()));
        match drive {
            // The last port of the board's AHCI: disks begin at the first.
            Drive::Cd => add("-device", "ide-cd,drive=medium,bus=ide.5,bootindex=0".into()),
            Drive::Usb => {
                add("-device", "qemu-xhci".into());
                add("-device", "usb-storage,drive=medium,removable=on,bootindex=0".into());
            }
        }
    }

    /// Gives it a new TPM for one start.
    ///
    /// # Errors
    /// As [`Tpm::start`].
    pub fn give_tpm(&mut self) -> Result<()> {
        self.tpm = Some(Tpm::start(&self.dir, &self.spec.node)?);
        Ok(())
    }

    /// Its TPM.
    ///
    /// # Errors
    /// It was given none.
    pub fn tpm(&self) -> Result<&Tpm> {
        self.tpm.as_ref().map(|(tpm, _)| tpm).context("this machine has no TPM")
    }

    /// Attaches a copy of another disk, which the VM sees before its own. The copy's file.
    ///
    /// # Errors
    /// It cannot be copied.
    pub fn attach_earlier(&mut self, from: &Path) -> Result<PathBuf> {
        let name = Path::new(&self.spec.node).join(format!("earlier-{}.raw", self.spec.earlier_disks.len()));
        let file = self.dir.join(&name);
        disk::copy(from, &file, self.disk_mib, |_| ())?;
        self.spec.earlier_disks.push(name);
        Ok(file)
    }

    /// Puts the disk behind a block server whose plug can be pulled, from the next start on.
    ///
    /// # Errors
    /// The server cannot be started.
    pub fn serve_disk(&mut self) -> Result<()> {
        let socket = Path::new(&self.spec.node).join("disk.nbd");
        self.server = None;
        self.server = Some(Server::start(&self.disk(), &self.dir.join(&socket))?);
        self.spec.disk = Disk::Nbd(socket);
        Ok(())
    }

    /// The disk's server.
    ///
    /// # Errors
    /// The disk is a file.
    pub fn server(&self) -> Result<&Server> {
        self.server.as_ref().context("this machine's disk has no server")
    }

    /// Cuts the power: `pull` takes it off the disk first, then QEMU ends without a chance to do anything.
    ///
    /// # Errors
    /// The disk has no server, or what `pull` returned.
    pub fn pull_plug<T>(&mut self, pull: impl FnOnce(Server) -> Result<T>) -> Result<T> {
        let server = self.server.take().context("this machine's disk has no server")?;
        let outcome = pull(server)?;
        self.kill()?;
        Ok(outcome)
    }

    /// Switches the VM on.
    ///
    /// # Errors
    /// QEMU cannot be started.
    pub fn start(&mut self) -> Result<()> {
        if self.process.is_some() {
            bail!("{} runs already", self.spec.title);
        }
        self.console_start = self.whole_console().len();
        let log = self.dir.join(&self.spec.node).join("qemu.log");
        let out = std::fs::File::create(&log).with_context(|| format!("making {}", log.display()))?;
        let mut arguments = qemu::arguments(&self.spec);
        if self.over_a_form {
            let node = &self.spec.node;
            let disk = arguments.iter_mut().find(|a| a.contains("id=disk,format=raw")).context("there is no disk")?;
            let place = |extension| format!("file={node}/disk.{extension}");
            *disk = disk.replace("format=raw", "format=qcow2").replace(&place("raw"), &place("qcow2"));
        }
        if let Some(system) = &self.system {
            let smbios = arguments.iter_mut().find(|a| a.starts_with("type=1,")).context("there is no SMBIOS")?;
            *smbios = format!("type=1,{system}");
        }
        let process = Command::new(qemu::PROGRAM)
            .args(arguments)
            .args(&self.medium)
            .args(self.tpm.iter().flat_map(|(_, arguments)| arguments))
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(out.try_clone().context("sharing qemu.log")?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("running {}", qemu::PROGRAM))?;
        self.process = Some(process);
        Ok(())
    }

    /// Ends QEMU as it stands. One that does not run is no error.
    ///
    /// # Errors
    /// It cannot be ended.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill().context("ending QEMU")?;
            process.wait().context("waiting for QEMU's end")?;
        }
        Ok(())
    }

    /// Presses the power button and waits until the node has powered off.
    ///
    /// # Errors
    /// QEMU still runs after a while.
    pub fn power_off(&mut self) -> Result<()> {
        qmp::execute(&self.dir.join(&self.spec.node), "qmp.sock", "system_powerdown", None)?;
        wait::until("the machine to power off", wait::scale(30), || Ok(self.has_ended()?.then_some(())))?;
        self.process = None;
        Ok(())
    }

    fn has_ended(&mut self) -> Result<bool> {
        match &mut self.process {
            Some(process) => Ok(process.try_wait().context("looking after QEMU")?.is_some()),
            None => Ok(true),
        }
    }

    /// Waits until `ask` has an answer; not longer than QEMU runs.
    ///
    /// # Errors
    /// The time is over or QEMU has ended.
    pub fn until<T>(&mut self, what: &str, seconds: u64, mut ask: impl FnMut(&Self) -> Result<Option<T>>) -> Result<T> {
        wait::until(what, wait::scale(seconds), || {
            if self.has_ended()? {
                let log = self.dir.join(&self.spec.node).join("qemu.log");
                let said = std::fs::read_to_string(log).unwrap_or_default();
                return Ok(Some(Err(anyhow::anyhow!("QEMU ended while the test waited for {what}: {}", said.trim()))));
            }
            Ok(ask(self)?.map(Ok))
        })?
    }

    /// What the console has said since the last start, without control sequences.
    pub fn console(&self) -> String {
        self.whole_console().split_off(self.console_start)
    }

    fn console_file(&self) -> PathBuf {
        self.dir.join(&self.spec.node).join("console.log")
    }

    fn whole_console(&self) -> String {
        console::tail(&self.console_file(), u64::MAX)
    }

    fn ask<T>(&self, question: impl FnOnce(&NodeClient) -> Result<T>) -> Result<T> {
        let fingerprint = console::fingerprint(&self.console_file());
        let target = format!("127.0.0.1:{}", self.node_port);
        question(&NodeClient::new(&self.bench.secrets, &self.node.entry.name, target, fingerprint.as_deref())?)
    }

    /// Asks its node API.
    ///
    /// # Errors
    /// It does not answer.
    pub fn node<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.ask(|client| {
            block_on(async {
                let asked = client.get(path);
                tokio::time::timeout(PATIENCE, asked).await.context("the node API took too long")?
            })
        })
    }

    /// Tells its node API something, without a body.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub fn tell<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.ask(|client| block_on(client.post_bytes(path, Vec::new())))
    }

    /// Asks its node API for text.
    ///
    /// # Errors
    /// It does not answer.
    pub fn node_text(&self, path: &str) -> Result<String> {
        let mut text = Vec::new();
        self.ask(|client| {
            block_on(client.text(path, |piece| {
                text.extend_from_slice(piece);
                Ok(())
            }))
        })?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Waits until the node has come as far as its services, and (a master) runs; the status then.
    ///
    /// # Errors
    /// Not in time; the error ends with the console's last lines.
    pub fn booted(&mut self) -> Result<NodeStatus> {
        let master = self.node.entry.role == Role::Master;
        let waited = self.until("the node to boot", 60, |machine| {
            let status: NodeStatus = machine.node(path::STATUS)?;
            let there = if master { status.running } else { status.stage == "services" };
            if !there {
                bail!("stage {}, waits for {}: {}", status.stage, status.waits_for, status.why);
            }
            Ok(Some(status))
        });
        waited.with_context(|| format!("the console says:\n{}", self.last_lines()))
    }

    /// The last lines of its console.
    pub fn last_lines(&self) -> String {
        console::last_lines(&self.console_file(), 12).join("\n")
    }

    /// A client of its API server with the administrator's rights.
    ///
    /// # Errors
    /// The keys cannot be read.
    pub fn api(&self) -> Result<Https> {
        let ca = self.bench.secrets.read(&Authority::Cluster.certificate_file())?;
        let tls = tls::config(&ca, &issue::admin(&self.bench.secrets)?, None)?;
        Ok(Https::new(format!("127.0.0.1:{}", self.api_port), "127.0.0.1".into(), tls))
    }

    /// Waits until its API server is ready.
    ///
    /// # Errors
    /// Not in time; the error ends with the console's last lines.
    pub fn api_ready(&mut self) -> Result<Https> {
        let api = self.api()?;
        let waited = self.until("the API server", 60, |_| block_on(kube::ready(&api)).map(Some));
        waited.with_context(|| format!("the console says:\n{}", self.last_lines()))?;
        Ok(api)
    }

    fn keep_what_it_says(&mut self) {
        let mut all = vec![("kernel", path::DMESG.to_owned()), ("services", path::SERVICES.to_owned())];
        let services: Vec<node_api::Service> = self.node(path::SERVICES).unwrap_or_default();
        all.extend(services.iter().map(|s| (s.name.as_str(), format!("{}/{}", path::LOGS, s.name))));
        for (name, path) in all {
            // A machine that says nothing any more is often what the test has found.
            let said = self.node_text(&path).unwrap_or_else(|error| format!("{error:#}\n"));
            if let Err(error) = std::fs::write(self.dir.join(format!("{name}.log")), said) {
                eprintln!("the log of {name} could not be kept: {error}");
            }
        }
    }

    fn remove_disks(&mut self) -> Result<()> {
        self.server = None;
        let over = self.over_a_form.then(|| self.disk().with_extension("qcow2"));
        let files = self.spec.earlier_disks.iter().map(|d| self.dir.join(d)).chain([self.disk()]).chain(over);
        for file in files {
            std::fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
        }
        Ok(())
    }
}

/// What the user-data of a sealed master has, with its key behind it.
const KEY: &[u8] = b"seal-key: ";

/// How long one answer of a node API may take.
const PATIENCE: Duration = Duration::from_secs(15);

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("{}: {error:#}", self.spec.title);
        }
    }
}
