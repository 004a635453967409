//! What a platform says of a machine, and what the image and its owner say.

use super::tape::Tape;
use base64::Engine;
use node_metadata::merge::{merge, name_of};
use node_metadata::network_config::{self, NetworkPlan};
use node_metadata::sources::{self, Answer, Found, Platform, Request, SourceError};
use node_metadata::userdata::{self, UserData};
use node_metadata::{Cluster, Node, ReadAt, Role};
use std::cell::Cell;
use std::net::IpAddr;
use std::sync::LazyLock;

/// No user-data is longer, unpacked.
const MOST_USER_DATA: usize = 16 * 1024;
/// No plan has more interfaces.
const MOST_NICS: usize = 256;
/// A boot waits for each request.
const MOST_REQUESTS: u32 = 1000;

/// A machine whose every answer is the next piece of the input.
struct Machine<'a> {
    tape: Tape<'a>,
    requests: Cell<u32>,
}

impl Platform for Machine<'_> {
    fn dmi(&self, _name: &str) -> Option<String> {
        self.tape.text()
    }

    fn kernel_line(&self) -> String {
        self.tape.text().unwrap_or_default()
    }

    /// The target `drive` has these.
    fn devices(&self) -> Vec<(String, Box<dyn ReadAt>)> {
        Vec::new()
    }

    fn firmware_file(&self, _name: &str) -> Option<Vec<u8>> {
        self.tape.next().map(<[u8]>::to_vec)
    }

    fn guest_info(&self, _key: &str) -> Option<Vec<u8>> {
        self.tape.next().map(<[u8]>::to_vec)
    }

    /// The piece's first byte is the status.
    fn send(&self, request: &Request) -> Result<Answer, SourceError> {
        self.requests.set(self.requests.get() + 1);
        assert!(self.requests.get() <= MOST_REQUESTS, "request {} is {}", self.requests.get(), request.url);
        let absent = || SourceError::Absent("nobody is there".to_owned());
        let (first, body) = self.tape.next().and_then(<[u8]>::split_first).ok_or_else(absent)?;
        let status = match first % 8 {
            4 => 204,
            5 => 404,
            6 => 401,
            7 => return Err(absent()),
            _ => 200,
        };
        Ok(Answer { status, body: body.to_vec() })
    }
}

/// The first byte chooses the source.
pub(crate) fn sources(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    let all = sources::all();
    let Some(source) = all.get(usize::from(*first) % all.len()) else { return };
    let machine = Machine { tape: Tape::new(rest), requests: Cell::new(0) };
    if let Ok(Some(found)) = source.read(&machine) {
        assert_eq!(found.source, source.name());
        becomes_a_node(&found);
    }
    let _told = source.report_ready(&machine);
}

/// What was found is merged, whatever it is; what comes of it is read again by the node's components.
pub(super) fn becomes_a_node(found: &Found) {
    found.network.iter().for_each(is_in_order);
    let user = found.user_data.as_deref().and_then(|raw| userdata::parse(raw).ok()).unwrap_or_default();
    for cluster in CLUSTERS.iter() {
        merged(cluster, found, &user);
    }
}

fn merged(cluster: &Cluster, found: &Found, user: &UserData) {
    let own: [IpAddr; 2] = [[10, 77, 0, 11].into(), [0x2001, 0xdb8, 0, 0, 0, 0, 0, 5].into()];
    let Ok(merged) = merge(cluster, found, user, &own) else { return };
    let node = merged.node;
    assert_eq!(Ok(&node.name), name_of(found, user).as_ref(), "the name is known before");
    assert!(node.addresses.iter().all(|address| own.contains(address)), "{:?} are others'", node.addresses);
    let text = serde_json::to_vec(&node).expect("a node is JSON");
    assert_eq!(serde_json::from_slice::<Node>(&text).expect("and is read again"), node);
}

/// A name that a machine of this image may have.
fn named(cluster: &Cluster) -> Found {
    let name = if cluster.role == Role::Master { "m" } else { "w" };
    Found { hostname: Some(name.to_owned()), ..Found::default() }
}

static CLUSTERS: LazyLock<[Cluster; 2]> = LazyLock::new(|| {
    let worker: Cluster = serde_json::from_str(include_str!("../../objects/cluster.json")).expect("the sample is JSON");
    [Cluster { role: Role::Master, ..worker.clone() }, worker]
});

/// What is made of others stands behind them, and names can be given to interfaces.
fn is_in_order(plan: &NetworkPlan) {
    assert!(plan.nics.len() <= MOST_NICS, "{} interfaces", plan.nics.len());
    for (at, nic) in plan.nics.iter().enumerate() {
        for part in nic.kind.parts() {
            assert!(plan.nics[..at].iter().any(|other| other.id == part), "{} stands before {part}", nic.id);
        }
    }
    let _shown = serde_json::to_string(plan).expect("a plan is JSON");
}

pub(crate) fn user_data(data: &[u8]) {
    let Ok(text) = userdata::decode(data) else { return };
    assert!(text.len() <= MOST_USER_DATA, "{} bytes", text.len());
    let Ok(user) = userdata::parse(data) else { return };
    let _key = user.kimg.seal_key();
    let again = userdata::parse(base64::engine::general_purpose::STANDARD.encode(&text).as_bytes());
    let again = again.unwrap_or_else(|e| panic!("{text:?} is read, and as base64 is not: {e}"));
    assert_eq!(format!("{user:?}"), format!("{again:?}"));
    for cluster in CLUSTERS.iter() {
        merged(cluster, &named(cluster), &user);
    }
}

/// The first byte chooses who describes the network.
pub(crate) fn network_config(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    let plan = match first % 3 {
        0 => network_config::parse(rest),
        1 => network_config::openstack::parse(rest),
        _ => match std::str::from_utf8(rest).map(network_config::kernel_line::parse) {
            Ok(Ok(Some(plan))) => Ok(plan),
            _ => return,
        },
    };
    plan.iter().for_each(is_in_order);
}

/// `cluster.json` and `node.json`, as another version of kimg or a damaged disk may hold them; the first byte chooses.
pub(crate) fn documents(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    if first & 1 == 1 {
        let Ok(node) = serde_json::from_slice::<Node>(rest) else { return };
        let text = serde_json::to_vec(&node).expect("a node is JSON");
        return assert_eq!(serde_json::from_slice::<Node>(&text).expect("and is read again"), node);
    }
    let Ok(cluster) = serde_json::from_slice::<Cluster>(rest) else { return };
    let text = serde_json::to_vec(&cluster).expect("a cluster is JSON");
    assert_eq!(serde_json::from_slice::<Cluster>(&text).expect("and is read again"), cluster);
    merged(&cluster, &named(&cluster), &UserData::default());
}
