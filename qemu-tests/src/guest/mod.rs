//! A machine beside the cluster's own: a VM with the cluster's worker image on a spare place of the switch.
//! As at a provider, a metadata server at 169.254.169.254 tells it who it is; the test
//! writes what that server says, at any time, and may say in the firmware which provider it is.

mod dump;
mod leash;

use self::leash::Leash;
use crate::{Cluster, Output};
use anyhow::{Context, Result, bail, ensure};
use kimg::local::qemu::{self, Bus, Disk, VmSpec};
use kimg::local::state::State;
use kimg::local::{Accel, console, disk, process::Process, qmp, state, switch};
use kimg::seed::{self, Interface};
use node_metadata::Role;
use node_metadata::sources::WIRE_SERVER;
use std::cell::Cell;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

const DISK_MIB: u32 = 2048;
const MEMORY_MIB: u32 = 512;
const SERVER: &str = include_str!("server.sh");
/// Folder of the metadata server, in the machine's.
const DOCUMENTS: &str = "documents";
/// What was on the cable to the metadata server, in the machine's folder.
const DUMP: &str = "nat.pcap";
/// Folder of Azure's server for agents, among the documents.
const WIRE: &str = "wire";

/// Whose machine it is: what its firmware says.
#[derive(Debug, Clone, Copy)]
pub struct Platform<'a> {
    /// QEMU's words for SMBIOS type 1.
    pub system: &'a str,
    /// The chassis' asset tag, which some providers have instead.
    pub chassis: Option<&'a str>,
    /// Where its metadata server is; DHCP gives the card beside it an address of the same /24.
    pub server: Ipv4Addr,
    /// Whether Azure's server for agents is there too, whose documents lie in `wire/`.
    pub wire_server: bool,
    /// Whether the card beside it leads to the world, by this machine's network.
    pub routed: bool,
    /// What is on the cable to the switch.
    pub lan: Lan,
}

/// What is on a machine's cable to the cluster's switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lan {
    /// Nobody but the cluster.
    Plain,
    /// A DHCP server, too, which has this address to give.
    Dhcp(Ipv4Addr),
    /// All there is, with the metadata server: the machine has one card, whose hardware address begins with these bytes.
    Only([u8; 2]),
}

impl<'a> Platform<'a> {
    /// One that its system's strings tell.
    pub fn new(system: &'a str) -> Platform<'a> {
        let server = Ipv4Addr::new(169, 254, 169, 254);
        Platform { system, chassis: None, server, wire_server: false, routed: true, lan: Lan::Plain }
    }

    /// The network in which its servers are, as QEMU takes it: its own servers are within.
    fn network(&self) -> String {
        if self.wire_server {
            // The least that holds both.
            return "168.0.0.0/7".to_owned();
        }
        let [a, b, c, _] = self.server.octets();
        format!("{a}.{b}.{c}.0/24")
    }

    /// The address that DHCP gives the card beside its server: QEMU's choice.
    pub fn lease(&self) -> Ipv4Addr {
        let [a, b, c, _] = self.server.octets();
        if self.wire_server { Ipv4Addr::new(168, 0, 2, 15) } else { Ipv4Addr::new(a, b, c, 15) }
    }
}

/// The machine; ends when dropped.
#[derive(Debug)]
pub struct Guest {
    qemu: Child,
    /// Its folder in `run/`.
    dir: PathBuf,
    /// Where its metadata server is.
    server: Ipv4Addr,
    /// Port on 127.0.0.1 that leads to its node API.
    node_port: u16,
    /// How long the console was when the server last said something new.
    heard: Cell<usize>,
    /// Where it has one, it lives as long as the machine.
    _leash: Option<Leash>,
}

impl Guest {
    /// Boots it from a fresh disk on this spare place. The server says `user_data`, and that its interface on the
    /// switch has this address.
    ///
    /// # Errors
    /// There is no image or no such place, or QEMU does not start.
    pub fn boot(cluster: &Cluster, spare: u8, address: Ipv4Addr, user_data: &str) -> Result<Guest> {
        let settings = kimg::config::load(&cluster.dir)?;
        let prefix = settings.local.network.prefix_len();
        let [lan, nat] = Guest::macs(cluster, spare)?;
        let interfaces = [
            Interface { name: "lan".into(), mac: lan, address: Some(format!("{address}/{prefix}")) },
            Interface { name: "nat".into(), mac: nat, address: None },
        ];
        let documents = [
            ("network-config", seed::network_config(&interfaces)),
            ("meta-data", "instance-id: guest\n".to_owned()),
            ("user-data", user_data.to_owned()),
        ];
        let platform = Platform::new("serial=ds=nocloud;s=http://169.254.169.254/latest/");
        Guest::boot_as(cluster, spare, platform, &documents)
    }

    /// Hardware addresses of its interface on the switch and of the one on which the metadata server is.
    ///
    /// # Errors
    /// The cluster's settings cannot be read.
    pub fn macs(cluster: &Cluster, spare: u8) -> Result<[String; 2]> {
        let settings = kimg::config::load(&cluster.dir)?;
        let name = switch::spare(spare);
        Ok([seed::mac(&settings.name, &name, 0), seed::mac(&settings.name, &name, 1)])
    }

    /// Boots a platform's machine with these documents on its metadata server, each by its path or by the last part
    /// of it.
    ///
    /// # Errors
    /// As [`Guest::boot`].
    pub fn boot_as(
        cluster: &Cluster,
        spare: u8,
        platform: Platform<'_>,
        documents: &[(&str, String)],
    ) -> Result<Guest> {
        let settings = kimg::config::load(&cluster.dir)?;
        let run = settings.run_dir();
        let name = switch::spare(spare);
        let dir = run.join(&name);
        end_leftover(&dir)?;
        let folder = dir.join(DOCUMENTS);
        for stale in [&folder, &dir.join("console.log")] {
            // What is not there is no fault; what cannot be removed shows when it is written.
            let _ = if stale.is_dir() { std::fs::remove_dir_all(stale) } else { std::fs::remove_file(stale) };
        }
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let image = kimg::image::build::output_dir(&settings, Role::Worker).join("disk.raw");
        disk::copy(&image, &dir.join("disk.raw"), DISK_MIB, |_| ())?;
        // A drive without a label: nothing is to be found there.
        std::fs::write(dir.join("seed.img"), vec![0; 1 << 20]).context("making an empty drive")?;
        std::fs::write(dir.join("server.sh"), SERVER).context("writing the metadata server")?;
        for (path, text) in documents {
            let file = folder.join(path.trim_start_matches('/'));
            let parent = file.parent().context("a document's path")?;
            std::fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
            std::fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
        }

        let macs = Guest::macs(cluster, spare)?;
        let node_port = state::free_port(None)?;
        let accel = if State::load(&run)?.accel == "kvm" { Accel::Kvm } else { Accel::Tcg };
        let spec = VmSpec {
            title: title(&settings.name, &name),
            node: name.clone(),
            memory_mib: MEMORY_MIB,
            cpus: 1,
            accel,
            uefi: None,
            bus: Bus::default(),
            disk: Disk::default(),
            earlier_disks: Vec::new(),
            macs,
            forwards: vec![(node_port, 10270)],
        };
        let log = std::fs::File::create(dir.join("qemu.log")).context("making qemu.log")?;
        let leash = (platform.lan != Lan::Plain).then(|| Leash::start(&run, &name)).transpose()?;
        let qemu = Command::new(qemu::PROGRAM)
            .args(with_metadata_server(qemu::arguments(&spec), &name, platform)?)
            .current_dir(&run)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("sharing qemu.log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", qemu::PROGRAM))?;
        Ok(Guest { qemu, dir, server: platform.server, node_port, heard: Cell::new(0), _leash: leash })
    }

    /// From now on the server says this.
    ///
    /// # Errors
    /// The document cannot be written.
    pub fn tell(&self, user_data: &[u8]) -> Result<()> {
        self.heard.set(self.console()?.len());
        let (fresh, place) = (self.dir.join("fresh"), self.dir.join(DOCUMENTS).join("user-data"));
        std::fs::write(&fresh, user_data).and_then(|()| std::fs::rename(&fresh, &place)).context("writing user-data")
    }

    /// Everything that its console has said.
    ///
    /// # Errors
    /// QEMU has ended, or the file cannot be read.
    pub fn console(&self) -> Result<Vec<u8>> {
        ensure!(
            std::path::Path::new(&format!("/proc/{}", self.qemu.id())).exists(),
            "QEMU has ended: {}",
            std::fs::read_to_string(self.dir.join("qemu.log")).unwrap_or_default()
        );
        let path = self.dir.join("console.log");
        match std::fs::read(&path) {
            Ok(bytes) => Ok(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// What its console has said since the server said something new.
    ///
    /// # Errors
    /// As [`Guest::console`].
    pub fn news(&self) -> Result<String> {
        let all = self.console()?;
        Ok(String::from_utf8_lossy(all.get(self.heard.get()..).unwrap_or_default()).into_owned())
    }

    /// `kimg node …` about it, with the fingerprint that its console shows.
    ///
    /// # Errors
    /// Its console shows none yet, or `kimg` cannot be started.
    pub fn node(&self, cluster: &Cluster, name: &str, command: &[&str]) -> Result<Output> {
        let fingerprint =
            console::fingerprint(&self.dir.join("console.log")).context("the console shows no fingerprint yet")?;
        let address = format!("127.0.0.1:{}", self.node_port);
        let mut args = vec!["node", "--node", name, "--address", &address, "--fingerprint", &fingerprint];
        args.extend(command);
        cluster.kimg(&args)
    }

    /// Waits until the console and the node API say this sentence, or a part of it.
    ///
    /// # Errors
    /// They do not in time; the error holds what they say.
    pub fn says(&self, cluster: &Cluster, name: &str, sentence: &str) -> Result<()> {
        crate::wait::until(&format!("console and node API to say '{sentence}'"), crate::wait::scale(25), || {
            let console = self.news()?;
            let status = self.node(cluster, name, &["status"])?.success()?;
            let services = self.node(cluster, name, &["services"])?.success()?;
            if console.contains(sentence) && (status.contains(sentence) || services.contains(sentence)) {
                return Ok(Some(()));
            }
            let screen = console.lines().rev().take(14).collect::<Vec<_>>();
            let screen: Vec<&str> = screen.into_iter().rev().collect();
            bail!("console:\n{}\nnode API:\n{status}\n{services}", screen.join("\n"))
        })
    }

    /// The paths that its metadata server was asked for so far.
    pub fn requests(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.join(DOCUMENTS).join("requests")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// What Azure's server for agents was asked for, and what was sent along with all that.
    pub fn reports(&self) -> (Vec<String>, String) {
        let read = |name| std::fs::read_to_string(self.dir.join(DOCUMENTS).join(WIRE).join(name)).unwrap_or_default();
        (read("requests").lines().map(str::to_owned).collect(), read("posted"))
    }

    /// The addresses from which its metadata server was asked, each once, the first first.
    ///
    /// # Errors
    /// What was on the cable cannot be read.
    pub fn asked_from(&self) -> Result<Vec<Ipv4Addr>> {
        let file = self.dir.join(DUMP);
        let bytes = std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        Ok(dump::connections_to(self.server, 80, &bytes))
    }

    /// Pulls the cable to its metadata server out, or plugs it in.
    ///
    /// # Errors
    /// QEMU does not do so.
    pub fn plug(&self, up: bool) -> Result<()> {
        let link = serde_json::json!({"name": "nat", "up": up});
        crate::wait::until("QEMU to take commands", crate::wait::scale(10), || {
            qmp::execute(&self.dir, "qmp.sock", "set_link", Some(link.clone())).map(|_| Some(()))
        })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // One that has ended by itself is no fault here.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        let _ = std::fs::remove_file(self.dir.join("disk.raw"));
    }
}

fn title(cluster: &str, name: &str) -> String {
    format!("kimg-{cluster}-{name}")
}

/// The user network becomes the one in which the metadata address lies; the firmware says where to ask, or who made
/// the machine.
fn with_metadata_server(mut arguments: Vec<String>, name: &str, platform: Platform<'_>) -> Result<Vec<String>> {
    change(&mut arguments, "serial=ds=nocloud", platform.system)?;
    let serve =
        |address: Ipv4Addr, folder: &str| format!("guestfwd=tcp:{address}:80-cmd:/bin/sh {name}/server.sh {folder}");
    let mut servers = serve(platform.server, DOCUMENTS);
    if platform.wire_server {
        servers = format!("{servers},{}", serve(WIRE_SERVER, &format!("{DOCUMENTS}/{WIRE}")));
    }
    let restrict = if platform.routed { "off" } else { "on" };
    let net = format!("user,id=nat,restrict={restrict},net={},{servers}", platform.network());
    change(&mut arguments, "user,id=nat", &net)?;
    let dump = format!("filter-dump,id=dump,netdev=nat,maxlen=128,file={name}/{DUMP}");
    arguments.extend(["-object".to_owned(), dump]);
    let beside = match platform.lan {
        Lan::Plain => None,
        Lan::Dhcp(address) => {
            let [a, b, c, _] = address.octets();
            let own = format!("net={a}.{b}.{c}.0/24,host={a}.{b}.{c}.250,dns={a}.{b}.{c}.251,dhcpstart={address}");
            arguments.extend(["-netdev".to_owned(), format!("user,id=dhcp,{own}")]);
            Some("dhcp")
        }
        Lan::Only([first, second]) => {
            let mac = format!("netdev=lan,romfile=,mac={first:02x}:{second:02x}");
            change(&mut arguments, "netdev=lan,romfile=,mac=52:54", &mac)?;
            let card = arguments.iter().position(|a| a.contains("netdev=nat,")).context("there is no second card")?;
            // With its `-device`.
            arguments.drain(card - 1..=card);
            Some("nat")
        }
    };
    if let Some(beside) = beside {
        let cable = |local: &str, remote: &str| {
            format!("local.type=unix,local.path={name}.{local},remote.type=unix,remote.path={name}.{remote}")
        };
        change(&mut arguments, &cable("vm", "sw"), &cable("card", "leash-card"))?;
        let user = format!("dgram,id=user,{}", cable("user", "leash-user"));
        for netdev in [&user, "hubport,hubid=1,id=a,netdev=user", &format!("hubport,hubid=1,id=b,netdev={beside}")] {
            arguments.extend(["-netdev".to_owned(), netdev.to_owned()]);
        }
    }
    if let Some(tag) = platform.chassis {
        arguments.extend(["-smbios".to_owned(), format!("type=3,asset={tag}")]);
    }
    Ok(arguments)
}

fn change(arguments: &mut [String], old: &str, new: &str) -> Result<()> {
    let found = arguments.iter_mut().find(|argument| argument.contains(old));
    let found = found.with_context(|| format!("QEMU's arguments do not hold {old}"))?;
    *found = found.replace(old, new);
    Ok(())
}

/// Ends the machine of a test run that was itself ended before it could.
fn end_leftover(dir: &std::path::Path) -> Result<()> {
    if let Ok(text) = std::fs::read_to_string(dir.join("pid"))
        && let Some(process) = text.trim().parse().ok().and_then(Process::find)
    {
        let line = std::fs::read_to_string(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
        if line.contains(&format!("{}/console.log", dir.file_name().unwrap_or_default().to_string_lossy()))
            && std::fs::read_link(format!("/proc/{}/cwd", process.pid)).is_ok_and(|cwd| dir.parent() == Some(&cwd))
        {
            process.end(std::time::Duration::from_secs(2))?;
        }
    }
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    }
}
