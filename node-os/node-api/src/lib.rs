//! The node API's types and paths: what `kimg-node` serves on port 10270 and `kimg node …` asks for.
//!
//! Every answer is JSON of one of these types, except logs, kernel messages and the nftables dump,
//! which are plain text. Requests need a client certificate of the node-API CA.
//! A failure is answered with a 4xx or 5xx status and an [`ApiError`].

pub mod copy;
mod log_time;
pub mod release;
mod types;

pub use log_time::log_time;
pub use release::{Release, Versions};
pub use types::*;

/// The port of the node API, the same on every node.
pub const PORT: u16 = 10270;

/// Where a worker keeps its copies of the store.
pub const BACKUP_DIR: &str = "/var/lib/kimg/backups";

/// Where a master keeps who changed what; a second file beside it ends in `.1`.
pub const AUDIT_LOG: &str = "/var/log/kimg/audit.log";

/// Paths of the node API.
pub mod path {
    /// GET: [`crate::NodeStatus`].
    pub const STATUS: &str = "/v1/status";
    /// GET: list of [`crate::Service`].
    pub const SERVICES: &str = "/v1/services";
    /// GET, text: `/v1/logs/SERVICE?tail=N&follow=1`; the service `init` is PID 1 itself, `audit` on masters who
    /// changed what.
    pub const LOGS: &str = "/v1/logs";
    /// GET, text: kernel messages, `?follow=1`.
    pub const DMESG: &str = "/v1/dmesg";
    /// GET: [`crate::BootTimeline`].
    pub const BOOT: &str = "/v1/boot";
    /// GET: list of [`crate::Certificate`].
    pub const CERTIFICATES: &str = "/v1/certificates";
    /// GET: list of [`crate::Pod`].
    pub const PODS: &str = "/v1/pods";
    /// GET: list of [`crate::Container`].
    pub const CONTAINERS: &str = "/v1/containers";
    /// GET: list of [`crate::Image`].
    pub const IMAGES: &str = "/v1/images";
    /// GET: list of [`crate::Route`].
    pub const ROUTES: &str = "/v1/routes";
    /// GET: list of [`crate::Link`].
    pub const LINKS: &str = "/v1/links";
    /// GET: list of [`crate::Connection`].
    pub const CONNTRACK: &str = "/v1/conntrack";
    /// GET, text: the nftables rule set.
    pub const NFT: &str = "/v1/nft";
    /// GET: list of [`crate::Socket`].
    pub const SOCKETS: &str = "/v1/sockets";
    /// GET: list of [`crate::Disk`].
    pub const DISK: &str = "/v1/disk";
    /// GET: list of [`crate::Process`].
    pub const PROCESSES: &str = "/v1/processes";
    /// POST: answers [`crate::Done`], then the node restarts.
    pub const REBOOT: &str = "/v1/reboot";
    /// POST: answers [`crate::Done`], then the node powers off.
    pub const POWEROFF: &str = "/v1/poweroff";
    /// POST `/v1/services/SERVICE/restart`: answers [`crate::Done`].
    pub const RESTART_SUFFIX: &str = "/restart";
    /// POST, body `{"key": "BASE64"}`: opens the sealed secrets of a master that waits for its key.
    pub const UNSEAL: &str = "/v1/unseal";
    /// GET, bytes: a snapshot of this master's store, made while it runs.
    pub const STORE_SNAPSHOT: &str = "/v1/store/snapshot";
    /// GET: list of [`crate::Backup`] that this node keeps; `/v1/backups/NAME`: its bytes.
    pub const BACKUPS: &str = "/v1/backups";
    /// GET, text: what the integrity check of this master's store found.
    pub const STORE_CHECK: &str = "/v1/store/check";
    /// POST, body a snapshot: it takes the store's place; answers [`crate::Done`].
    pub const STORE_RESTORE: &str = "/v1/store/restore";
    /// POST, body a snapshot or nothing: what this master's store begins with, where it has none yet; answers [`crate::Done`].
    pub const STORE_BEGIN: &str = "/v1/store/begin";
    /// POST: this master goes on with the store that is there; one that came on a data volume from another disk is closed
    /// until then. Answers [`crate::Taken`]; 409 where it closed the store itself.
    pub const STORE_TAKE: &str = "/v1/store/take";
    /// POST: this master's store takes no more writes, also after it has started again, so that the next snapshot holds all
    /// that it ever acknowledged; answers [`crate::Done`].
    pub const STORE_FENCE: &str = "/v1/store/fence";
    /// POST: takes that back; answers [`crate::Done`].
    pub const STORE_UNFENCE: &str = "/v1/store/unfence";
    /// POST, body [`crate::Migrate`]: moves the store to the other engine; answers [`crate::Done`].
    pub const STORE_MIGRATE: &str = "/v1/store/migrate";
    /// GET: [`crate::StoreFormat`].
    pub const STORE_FORMAT: &str = "/v1/store/format";
    /// POST: raises the store's format to the newest that this master's image writes, for good; answers
    /// [`crate::StoreFormat`].
    pub const STORE_RAISE: &str = "/v1/store/raise";
    /// GET: [`crate::Masters`] as this master was told of them, none where it was not yet. POST, body the same: tells it;
    /// answers [`crate::Done`]. 409 where its user-data or its image says it, or there is one master.
    pub const STORE_MASTERS: &str = "/v1/store/masters";
    /// GET: list of [`crate::StoreMember`]; 409 where the store is embedded.
    pub const STORE_MEMBERS: &str = "/v1/store/members";
    /// POST, body [`crate::RemoveMember`]: takes a member out of the store, and answers as the list does; 404 where there is
    /// none of this name, 409 where the rest would be no healthy majority.
    pub const STORE_MEMBERS_REMOVE: &str = "/v1/store/members/remove";
    /// GET: list of [`crate::Volume`]: the local volumes on this node. GET `/v1/volumes/NAME`, bytes: a [`crate::copy`] of one.
    /// POST the same with a copy: it becomes that volume's folder; answers [`crate::Done`], 409 where the folder holds
    /// something else already.
    pub const VOLUMES: &str = "/v1/volumes";
    /// What begins so is asked of the cluster's registry on this master, by the OCI distribution specification.
    pub const REGISTRY: &str = "/v2/";
}
