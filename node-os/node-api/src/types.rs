//! The JSON types. All times are milliseconds: `*_ms` since power-on (monotonic), `*_unix_ms` since 1970.

use serde::{Deserialize, Serialize};

/// A refusal or failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// One sentence: what went wrong and what to do.
    pub error: String,
}

/// A command was accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// What happens now, in one sentence.
    pub message: String,
}

/// What a master was told to go on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// There is a store, and it goes on with that.
    pub store: bool,
    /// The store is, or will be, on a data volume.
    pub on_volume: bool,
}

/// A copy of the store that a worker keeps, encrypted to the operator.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Backup {
    /// When it was taken.
    pub taken_unix_ms: u64,
    /// The store's revision.
    pub revision: u64,
    /// Its size.
    pub bytes: u64,
}

impl Backup {
    /// The name of its file: `SECONDS-REVISION.age`.
    pub fn name(&self) -> String {
        format!("{}-{}.age", self.taken_unix_ms / 1000, self.revision)
    }

    /// What a file's name says; None: it is no backup.
    pub fn of_file(name: &str, bytes: u64) -> Option<Backup> {
        let (seconds, revision) = name.strip_suffix(".age")?.split_once('-')?;
        let seconds: u64 = seconds.parse().ok()?;
        let backup = Backup { taken_unix_ms: seconds.checked_mul(1000)?, revision: revision.parse().ok()?, bytes };
        // One spelling only, so that a name is never a path.
        (backup.name() == name).then_some(backup)
    }
}

/// The node in one screen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Node name, empty until metadata told it.
    pub name: String,
    /// `master` or `worker`: the image's role.
    pub role: String,
    /// Cluster name.
    pub cluster: String,
    /// kimg version and root hash of the image.
    pub image: String,
    /// What the image's release reads and writes; none: it is of before releases stated that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub states: Option<crate::Release>,
    /// Addresses of this node.
    pub addresses: Vec<String>,
    /// Which data source was used.
    pub source: String,
    /// The stage the node is in: `metadata`, `network`, `state`, `secrets`, `clock`, `services`, `running`.
    pub stage: String,
    /// What it waits for, empty when it runs.
    pub waits_for: String,
    /// Why, e.g. the error in the user-data.
    pub why: String,
    /// What the operator can do.
    pub hint: String,
    /// Keys besides that of the user-data to which the image's secrets are sealed, by the beginning of their SHA-256.
    #[serde(default)]
    pub seals: Vec<String>,
    /// Warnings that do not stop the node, e.g. that no time server answered.
    pub warnings: Vec<String>,
    /// True when all services are ready.
    pub running: bool,
    /// SHA-256 of the node API's serving certificate, hex, as the console shows it.
    pub fingerprint: String,
    /// Kernel release.
    pub kernel: String,
    /// Changes at each boot.
    pub boot_id: String,
    /// Milliseconds since power-on.
    pub uptime_ms: u64,
    /// Wall clock of the node.
    pub now_unix_ms: u64,
    /// Memory in bytes: total and available.
    pub memory_total: u64,
    /// See `memory_total`.
    pub memory_available: u64,
}

/// What holds the API objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreEngine {
    /// One append-only log of the API server's own.
    Embedded,
    /// etcd on the same master, which only an image with `store = "etcd"` carries.
    Etcd,
}

/// What a store is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreFormat {
    /// The engine that has it.
    pub engine: StoreEngine,
    /// Its format.
    pub format: u32,
    /// The newest one that its master's image writes.
    pub newest: u32,
}

/// Where the store is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Migrate {
    /// The engine that has it from then on.
    pub to: StoreEngine,
}

/// A member of the store, where that is on etcd: one on each master.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreMember {
    /// etcd's number of it, hex.
    pub id: String,
    /// Its master's address; where there was only one master when it started, that one's name.
    pub name: String,
    /// Where the other members reach it.
    pub peer: String,
    /// It has no vote yet.
    pub learner: bool,
    /// It has ever run.
    pub started: bool,
    /// It answers, and knows a leader.
    pub healthy: bool,
    /// It leads.
    pub leader: bool,
}

/// The masters that share a store on etcd, where nobody knows their addresses before their machines are made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Masters {
    /// The address of each, by which the others reach it.
    pub masters: Vec<std::net::IpAddr>,
    /// Their store runs already: whoever has no data joins it, and begins none.
    pub join: bool,
}

/// Which member of the store is to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveMember {
    /// Its name, or its master's address.
    pub name: String,
}

/// The folder of a local volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// Bytes that it takes on the disk.
    pub bytes: u64,
    /// Nothing is in it.
    pub empty: bool,
    /// The sum of the copy that it was made from, hex, where it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_of: Option<String>,
}

/// What a service does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceState {
    /// Something that it needs is not ready yet.
    Waiting,
    /// The process runs and has not said READY yet.
    Starting,
    /// Serves.
    Ready,
    /// A one-time task that ended well.
    Done,
    /// Ended; will be started again after a pause.
    BackOff,
    /// Was asked to end and has not yet.
    Stopping,
    /// Ended and stays so.
    Stopped,
}

/// One supervised process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its name, also its log's name.
    pub name: String,
    /// What it does now.
    pub state: ServiceState,
    /// Its process, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// When it came into this state.
    pub since_ms: u64,
    /// How often it was started again.
    pub restarts: u32,
    /// What it says of itself (STATUS of the notification protocol).
    pub status: String,
    /// Why its last process ended, empty when none has.
    pub last_exit: String,
    /// Services that must be ready before it starts.
    pub needs: Vec<String>,
    /// Memory of its control group in bytes.
    pub memory: u64,
}

/// What happened when during boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootTimeline {
    /// Milliseconds since power-on of the kernel at which PID 1 of the initramfs started.
    pub init_ms: u64,
    /// Steps in order of their start.
    pub steps: Vec<BootStep>,
}

/// One step of a boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootStep {
    /// `stage1`, `mounts`, `firewall`, … or `service NAME`.
    pub name: String,
    /// Start.
    pub start_ms: u64,
    /// End, absent while it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_ms: Option<u64>,
    /// A remark, e.g. which data source answered.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// A certificate on the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// File it lies in.
    pub file: String,
    /// Subject.
    pub subject: String,
    /// Issuer.
    pub issuer: String,
    /// Names and addresses.
    pub sans: Vec<String>,
    /// Start of validity, RFC 3339.
    pub not_before: String,
    /// End of validity, RFC 3339.
    pub not_after: String,
    /// SHA-256 of its DER, hex; empty: the node's image does not say it.
    #[serde(default)]
    pub sha256: String,
    /// Identifier of the key that signed it, hex; empty: it does not say, or the node's image does not.
    #[serde(default)]
    pub authority_key_id: String,
}

/// A pod sandbox as the container runtime knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Sandbox id.
    pub id: String,
    /// Namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// Pod UID.
    pub uid: String,
    /// `ready` or `not-ready`.
    pub state: String,
    /// How often the sandbox was made anew.
    pub attempt: u32,
    /// Creation.
    pub created_unix_ms: u64,
}

/// A container as the container runtime knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Container id.
    pub id: String,
    /// Sandbox it belongs to.
    pub pod_id: String,
    /// Namespace/pod, from the labels.
    pub pod: String,
    /// Container name.
    pub name: String,
    /// Image it was asked to run.
    pub image: String,
    /// `created`, `running`, `exited` or `unknown`.
    pub state: String,
    /// How often it was started again.
    pub attempt: u32,
    /// Creation.
    pub created_unix_ms: u64,
}

/// A container image on the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Image id.
    pub id: String,
    /// Tags.
    pub tags: Vec<String>,
    /// Digests.
    pub digests: Vec<String>,
    /// Bytes.
    pub size: u64,
}

/// A route.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// CIDR, or `default`.
    pub destination: String,
    /// Next hop, empty when the destination is on the link; `unreachable` where the route says so.
    pub gateway: String,
    /// Interface.
    pub device: String,
    /// Preferred source address.
    pub source: String,
    /// Metric.
    pub metric: u32,
    /// `boot`, `kernel`, `static`, `dhcp`, …
    pub protocol: String,
    /// Table.
    pub table: u32,
}

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// `up`, `down`, `unknown`, …
    pub state: String,
    /// Hardware address.
    pub mac: String,
    /// MTU.
    pub mtu: u32,
    /// `veth`, `bridge`, `vxlan`, …; empty for hardware.
    pub kind: String,
    /// CIDR addresses.
    pub addresses: Vec<String>,
    /// Bridge it belongs to.
    pub master: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
}

/// A tracked connection: its original and its reply direction.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// `tcp`, `udp`, `icmp` or the number.
    pub protocol: String,
    /// State of a TCP connection, else empty.
    pub state: String,
    /// Source of the original direction, `address:port`.
    pub source: String,
    /// Destination of the original direction.
    pub destination: String,
    /// Source of replies: who really answers.
    pub reply_source: String,
    /// Destination of replies.
    pub reply_destination: String,
    /// Mark.
    pub mark: u32,
    /// Seconds until it is forgotten.
    pub timeout_s: u32,
}

/// A socket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    /// `tcp`, `tcp6`, `udp`, `udp6`.
    pub protocol: String,
    /// `LISTEN`, `ESTABLISHED`, …
    pub state: String,
    /// Local end, `address:port`.
    pub local: String,
    /// Remote end.
    pub remote: String,
    /// Process that has it open, `name/pid`, where known.
    pub process: String,
}

/// A mounted file system or block device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Device, e.g. `/dev/vda6`.
    pub device: String,
    /// Where it is mounted, empty when it is not.
    pub mount: String,
    /// File system.
    pub kind: String,
    /// Bytes of the file system, or of the device.
    pub size: u64,
    /// Bytes used.
    pub used: u64,
    /// Bytes an unprivileged user can still write.
    pub available: u64,
    /// Inodes: total and free.
    pub inodes: u64,
    /// See `inodes`.
    pub inodes_free: u64,
    /// Mounted read-only.
    pub read_only: bool,
}

/// A process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Parent.
    pub parent: u32,
    /// Command line.
    pub command: String,
    /// Proportional set size in KiB.
    pub pss_kib: u64,
    /// Resident set in KiB.
    pub rss_kib: u64,
    /// Control group.
    pub cgroup: String,
    /// CPU time used, milliseconds.
    pub cpu_ms: u64,
}

/// The body of [`crate::path::UNSEAL`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unseal {
    /// The key, 32 bytes in base64.
    pub key: String,
}

#[cfg(test)]
mod tests {
    use super::Backup;

    #[test]
    fn only_names_of_backups_are_read() {
        let backup = Backup { taken_unix_ms: 1_764_192_000_000, revision: 42, bytes: 7 };
        assert_eq!(backup.name(), "1764192000-42.age");
        assert_eq!(Backup::of_file("1764192000-42.age", 7), Some(backup));
        for bad in
            ["", "1-2", "+1-2.age", "01-2.age", "../1-2.age", "1-2.age.part", "99999999999999999999-1.age", "1-.age"]
        {
            assert_eq!(Backup::of_file(bad, 1), None, "{bad}");
        }
    }
}
