//! What the disks hold: state that stays, a second disk that does no harm, a changed bit that is refused.

use crate::Test;
use anyhow::{Context, ensure};
use http::Method;
use kimg::client::{Https, block_on, kube};
use kimg::disk::gpt;
use kimg::seed::{self, Interface};
use node_api::{BootTimeline, Done, NodeStatus, Taken, path};
use qemu_tests::{Bench, Machine, Result};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

const MASTER: &str = "master-1";
const WORKER: &str = "worker-1";
const MARK: &str = "/api/v1/namespaces/default/configmaps";

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("boot::a_second_boot_keeps_the_state", false, second_boot),
        Test::new("boot::a_second_disk_with_the_same_image_does_no_harm", false, second_disk),
        Test::new("boot::a_flipped_bit_in_the_root_is_refused", false, flipped_bit),
        Test::new("boot::a_data_volume_is_waited_for_and_outlives_the_machine", false, data_volume),
        Test::new("boot::a_masters_store_on_a_data_volume_outlives_the_machine", false, store_on_volume),
        Test::new("boot::two_fresh_disks_with_the_same_image_become_one_node", true, two_fresh_disks),
        Test::new("boot::a_worker_keeps_its_key", true, worker_keeps_its_key),
    ]
}

/// A master's disk after a first boot and an orderly power-off, made by the first test that needs it.
struct Used {
    disk: PathBuf,
    /// The first boot.
    boot_id: String,
}

static USED: OnceLock<std::result::Result<Used, String>> = OnceLock::new();

fn used(bench: &Bench) -> Result<&'static Used> {
    let used = USED.get_or_init(|| make_used(bench).map_err(|e| format!("the first boot: {e:#}")));
    used.as_ref().map_err(|error| anyhow::anyhow!("{error}"))
}

fn make_used(bench: &Bench) -> Result<Used> {
    bench.with("first-boot", MASTER, |machine| {
        machine.start()?;
        let status = machine.booted()?;
        let mark = json!({"metadata": {"name": "mark"}, "data": {"boot": status.boot_id}});
        let answer = block_on(machine.api_ready()?.send(Method::POST, MARK, Some(&mark)))?;
        ensure!(answer.status.is_success(), "the mark was not taken: {answer:?}");
        machine.power_off()?;
        let disk = crate::root().join("boots/used-master.raw");
        std::fs::copy(machine.disk(), &disk).context("keeping the disk")?;
        Ok(Used { disk, boot_id: status.boot_id })
    })
}

/// The node has the state of its first boot, and did not make its STATE anew.
fn has_its_state(machine: &mut Machine<'_>, used: &Used) -> Result {
    let status = machine.booted()?;
    ensure!(status.boot_id != used.boot_id, "this is the first boot still");
    let boot = mark(&machine.api_ready()?)?;
    ensure!(boot == used.boot_id, "the mark says '{boot}', the first boot was {}", used.boot_id);
    let note = state_note(machine)?;
    ensure!(!note.contains("made"), "STATE was made again: {note}");
    Ok(())
}

fn mark(api: &Https) -> Result<String> {
    let answer = block_on(api.send(Method::GET, &format!("{MARK}/mark"), None))?;
    ensure!(answer.status.is_success(), "the mark is gone: {}", String::from_utf8_lossy(&answer.body));
    let object: Value = serde_json::from_slice(&answer.body).context("reading the mark")?;
    Ok(object["data"]["boot"].as_str().unwrap_or_default().to_owned())
}

/// What init did to STATE.
pub(crate) fn state_note(machine: &Machine<'_>) -> Result<String> {
    let timeline: BootTimeline = machine.node(path::BOOT)?;
    let step = timeline.steps.into_iter().find(|step| step.name == "state");
    Ok(step.context("the boot's timeline has no step 'state'")?.note)
}

fn second_boot(bench: &Bench) -> Result {
    let used = used(bench)?;
    bench.with("second-boot", MASTER, |machine| {
        machine.take_disk(&used.disk)?;
        machine.start()?;
        has_its_state(machine, used)
    })
}

fn second_disk(bench: &Bench) -> Result {
    let used = used(bench)?;
    bench.with("second-disk", MASTER, |machine| {
        machine.take_disk(&used.disk)?;
        let image = bench.image(MASTER)?;
        let other = machine.attach_earlier(&image)?;
        machine.start()?;
        has_its_state(machine, used)?;
        machine.power_off()?;
        ensure!(same(&image, &other)?, "the node wrote to the second disk");
        Ok(())
    })
}

/// Neither disk was used before: the node takes one of them whole, and stays with it.
fn two_fresh_disks(bench: &Bench) -> Result {
    bench.with("two-fresh-disks", MASTER, |machine| {
        let image = bench.image(MASTER)?;
        let other = machine.attach_earlier(&image)?;
        machine.start()?;
        let first = machine.booted()?;
        machine.power_off()?;
        let touched = [machine.disk(), other].map(|disk| same(&image, &disk).map(|same| !same));
        let touched: Vec<bool> = touched.into_iter().collect::<Result<_>>()?;
        ensure!(touched.iter().filter(|t| **t).count() == 1, "own disk, other disk were written to: {touched:?}");
        machine.start()?;
        let second = machine.booted()?;
        ensure!(first.boot_id != second.boot_id, "there was no second boot");
        let note = state_note(machine)?;
        ensure!(!note.contains("made"), "the second boot made another STATE: {note}");
        Ok(())
    })
}

/// The volume comes once the machine runs, as at providers, and is there from the start when the next machine has it.
fn data_volume(bench: &Bench) -> Result {
    bench.with("data-volume", WORKER, |machine| {
        let volume = machine.folder().join("volume.raw");
        File::create(&volume).and_then(|file| file.set_len(2 << 30)).context("making a volume")?;
        let [lan, nat] = machine.macs();
        let interfaces = [
            Interface { name: "lan".into(), mac: lan, address: Some("10.77.0.11/24".into()) },
            Interface { name: "nat".into(), mac: nat, address: None },
        ];
        let user_data = format!("{}  data-volume: 2\n", machine.user_data()?);
        let drive = seed::volume("boots", WORKER, &user_data, &seed::network_config(&interfaces))?;
        let disk = |id: &str, file: &Path| format!("if=none,id={id},format=raw,file={}", file.display());
        let mut devices = vec!["-device".to_owned(), "virtio-scsi-pci,id=volumes".to_owned()];
        devices.extend(["-drive".to_owned(), disk("volume", &volume)]);
        machine.wake_by("product=a machine", &drive, &devices)?;
        machine.start()?;
        machine.until("the node to wait for its data volume", 60, |machine| {
            let status: NodeStatus = machine.node(path::STATUS)?;
            Ok(status.why.contains("no disk is attached but its own").then_some(()))
        })?;
        machine.attach(json!({"driver": "scsi-hd", "bus": "volumes.0", "drive": "volume"}))?;
        machine.booted()?;
        ensure!(volume_note(machine)?.ends_with(" made"), "{}", volume_note(machine)?);
        machine.power_off()?;

        let image = bench.image(WORKER)?;
        machine.take_disk(&image)?;
        let blank = machine.folder().join("blank.raw");
        File::create(&blank).and_then(|file| file.set_len(2 << 30)).context("making a blank disk")?;
        let more = [
            ("-drive", disk("blank", &blank)),
            ("-device", "scsi-hd,bus=volumes.0,drive=blank".to_owned()),
            ("-device", "scsi-hd,bus=volumes.0,drive=volume".to_owned()),
        ];
        let more: Vec<String> = more.into_iter().flat_map(|(option, value)| [option.to_owned(), value]).collect();
        machine.wake_by("product=a machine", &drive, &more)?;
        machine.start()?;
        machine.booted()?;
        ensure!(state_note(machine)?.contains("made"), "the machine is not a new one");
        ensure!(volume_note(machine)?.ends_with(" found"), "{}", volume_note(machine)?);
        machine.power_off()?;
        let none = machine.folder().join("none.raw");
        File::create(&none).context("making a file")?;
        ensure!(same(&none, &blank)?, "the node wrote to the blank disk");
        Ok(())
    })
}

/// Made anew, a machine finds the store of the one before, serves nobody, and goes on with it when it is told to.
fn store_on_volume(bench: &Bench) -> Result {
    bench.with("store-volume", MASTER, |machine| {
        let volume = machine.folder().join("volume.raw");
        File::create(&volume).and_then(|file| file.set_len(2 << 30)).context("making a volume")?;
        let [lan, nat] = machine.macs();
        let interfaces = [
            Interface { name: "lan".into(), mac: lan, address: Some("10.77.0.10/24".into()) },
            Interface { name: "nat".into(), mac: nat, address: None },
        ];
        let user_data = format!("{}  data-volume: 2\n  await-backup: true\n", machine.user_data()?);
        let drive = seed::volume("boots", MASTER, &user_data, &seed::network_config(&interfaces))?;
        let devices = [
            "-device".to_owned(),
            "virtio-scsi-pci,id=volumes".to_owned(),
            "-drive".to_owned(),
            format!("if=none,id=volume,format=raw,file={}", volume.display()),
            "-device".to_owned(),
            "scsi-hd,bus=volumes.0,drive=volume".to_owned(),
        ];
        machine.wake_by("product=a machine", &drive, &devices)?;
        machine.start()?;
        let first: Taken =
            machine.until("the node to say what it has", 60, |machine| machine.tell(path::STORE_TAKE).map(Some))?;
        ensure!(first == Taken { store: false, on_volume: true }, "{first:?}");
        machine.tell::<Done>(path::STORE_BEGIN)?;
        let api = machine.api_ready()?;
        let answer = block_on(api.send(Method::POST, MARK, Some(&json!({"metadata": {"name": "mark"}}))))?;
        ensure!(answer.status.is_success(), "the mark was not taken: {answer:?}");
        // What is closed stays so over a boot of the same disk, and is told to nobody by a mistake.
        machine.tell::<Done>(path::STORE_FENCE)?;
        machine.power_off()?;
        machine.start()?;
        let refused =
            machine.until("the node to refuse", 60, |machine| match machine.tell::<Taken>(path::STORE_TAKE) {
                Err(error) if format!("{error:#}").contains("is closed") => Ok(Some(())),
                Err(error) => Err(error),
                Ok(taken) => anyhow::bail!("it went on: {taken:?}"),
            });
        refused?;
        machine.power_off()?;

        machine.take_disk(&bench.image(MASTER)?)?;
        machine.start()?;
        machine.until("the node to find its volume", 60, |machine| {
            Ok(volume_note(machine)?.contains("another disk's").then_some(()))
        })?;
        ensure!(block_on(kube::ready(&machine.api()?)).is_err(), "it serves a store that nobody gave it");
        let taken: Taken =
            machine.until("the node to take its store", 60, |machine| machine.tell(path::STORE_TAKE).map(Some))?;
        ensure!(taken == Taken { store: true, on_volume: true }, "{taken:?}");
        mark(&machine.api_ready()?)?;
        ensure!(state_note(machine)?.contains("made"), "the machine is not a new one");
        machine.power_off()?;
        machine.start()?;
        machine.booted()?;
        mark(&machine.api_ready()?)?;
        Ok(())
    })
}

fn volume_note(machine: &Machine<'_>) -> Result<String> {
    let timeline: BootTimeline = machine.node(path::BOOT)?;
    let step = timeline.steps.into_iter().find(|step| step.name == "data volume");
    Ok(step.context("the boot's timeline has no step 'data volume'")?.note)
}

fn worker_keeps_its_key(bench: &Bench) -> Result {
    bench.with("worker-key", WORKER, |machine| {
        let mut fingerprints = Vec::new();
        for boot in 0..2 {
            machine.start()?;
            fingerprints.push(machine.booted()?.fingerprint);
            let made = state_note(machine)?.contains("made");
            ensure!(made == (boot == 0), "boot {boot} made STATE: {made}");
            machine.power_off()?;
        }
        ensure!(fingerprints[0] == fingerprints[1], "the node API's key changed: {fingerprints:?}");
        Ok(())
    })
}

/// Whether `other` begins with the bytes of `image` and holds nothing behind them.
pub(crate) fn same(image: &Path, other: &Path) -> Result<bool> {
    let open = |path: &Path| File::open(path).with_context(|| format!("opening {}", path.display()));
    let (mut image, mut other) = (open(image)?, open(other)?);
    let (mut expected, mut found) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let length = read_full(&mut other, &mut found)?;
        if length == 0 {
            return Ok(true);
        }
        let known = read_full(&mut image, &mut expected[..length])?;
        expected[known..length].fill(0);
        if expected[..length] != found[..length] {
            return Ok(false);
        }
    }
}

fn read_full(file: &mut File, out: &mut [u8]) -> Result<usize> {
    let mut length = 0;
    while length < out.len() {
        match file.read(&mut out[length..]).context("reading a disk")? {
            0 => break,
            more => length += more,
        }
    }
    Ok(length)
}

/// A disk on which bits were flipped.
struct Damage {
    name: &'static str,
    partition: &'static str,
    /// One bit at this byte of the partition, and (where it is not 0) one again after each so many bytes.
    first: u64,
    step: u64,
    /// What the console says.
    said: &'static str,
}

const DAMAGES: [Damage; 3] = [
    Damage { name: "superblock", partition: "root", first: 40, step: 0, said: "the image is damaged, write it" },
    Damage {
        name: "hash-tree",
        partition: "verity",
        first: 4096 + 77,
        step: 0,
        said: "the image is damaged, write it",
    },
    // What is read when the root is mounted already: the kernel speaks, and halts.
    Damage { name: "files", partition: "root", first: 1 << 16, step: 1 << 16, said: "dm-verity device corrupted" },
];

fn flipped_bit(bench: &Bench) -> Result {
    for damage in DAMAGES {
        bench.with(&format!("flipped-{}", damage.name), MASTER, |machine| {
            flip(&machine.disk(), &damage)?;
            machine.start()?;
            refuses(machine, damage.said, 40)
        })?;
    }
    Ok(())
}

fn flip(disk: &Path, damage: &Damage) -> Result {
    let file = File::options().read(true).write(true).open(disk).context("opening the disk")?;
    let table = table_of(&file)?;
    let partition = table.partition(damage.partition).with_context(|| format!("no partition {}", damage.partition))?;
    let start = partition.first * gpt::SECTOR;
    let end = if damage.step == 0 { damage.first + 1 } else { end_of_files(&file, start)? };
    let mut offset = damage.first;
    while offset < end {
        let at = start + offset;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).context("reading a byte")?;
        file.write_all_at(&[byte[0] ^ 0b100], at).context("flipping a bit")?;
        offset += damage.step.max(1);
    }
    Ok(())
}

/// Bytes of a squashfs that hold the contents of files. Its inodes are behind them, of which the mount itself reads
/// one (`inode_table_start` of the superblock, Documentation/filesystems/squashfs.rst).
fn end_of_files(disk: &File, start: u64) -> Result<u64> {
    let mut inode_table = [0; 8];
    disk.read_exact_at(&mut inode_table, start + 64).context("reading the superblock")?;
    Ok(u64::from_le_bytes(inode_table))
}

/// The disk's partition table.
pub(crate) fn table_of(disk: &File) -> Result<gpt::Table> {
    let mut head = vec![0; 34 * gpt::SECTOR as usize];
    disk.read_exact_at(&mut head, 0).context("reading the partition table")?;
    gpt::Table::parse(&head)
}

/// The console says what is the matter, and nothing of the image runs.
pub(crate) fn refuses(machine: &mut Machine<'_>, sentence: &str, seconds: u64) -> Result {
    let said = machine.until(&format!("'{sentence}'"), seconds, |m| Ok(m.console().contains(sentence).then_some(())));
    said.with_context(|| format!("the console says:\n{}", machine.last_lines()))?;
    ensure!(machine.node::<NodeStatus>(path::STATUS).is_err(), "the node API answers");
    ensure!(!machine.console().contains("of cluster"), "it has booted all the same");
    Ok(())
}
