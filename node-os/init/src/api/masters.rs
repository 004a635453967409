//! Which masters share a store with this one, where a provider gives their addresses when their machines are made: the
//! operator tells it, and it is kept on STATE, for `kube-apiserver store member` and for the host firewall.

use super::server::{Body, Refusal, json};
use crate::boot::metadata::NODE_FILE;
use crate::services::table::ETCD_MASTERS;
use crate::{firewall, pki};
use anyhow::{Context, Result};
use http::{Response, StatusCode};
use node_api::{Done, Masters};
use node_metadata::Node;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// etcd's peers.
const PORT: u16 = firewall::ETCD_PORTS[1];

/// As `kube-apiserver store member` reads it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    /// Peer URLs of all masters' members.
    peers: Vec<String>,
    join: bool,
}

impl Kept {
    fn of(told: &Masters) -> Kept {
        let url = |address: &IpAddr| format!("https://{}", SocketAddr::new(*address, PORT));
        Kept { peers: told.masters.iter().map(url).collect(), join: told.join }
    }

    fn masters(&self) -> Masters {
        let address = |url: &String| Some(url.strip_prefix("https://")?.parse::<SocketAddr>().ok()?.ip());
        Masters { masters: self.peers.iter().filter_map(address).collect(), join: self.join }
    }
}

/// What was told; nothing where it was not yet.
fn read() -> Result<Masters> {
    let text = match std::fs::read(ETCD_MASTERS) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Masters::default()),
        text => text.with_context(|| format!("cannot read {ETCD_MASTERS}"))?,
    };
    let kept: Kept =
        serde_json::from_slice(&text).with_context(|| format!("{ETCD_MASTERS} is not what this program writes"))?;
    Ok(kept.masters())
}

/// Opens etcd to the masters that it was told of before this boot.
pub fn admit() -> Result<()> {
    firewall::admit_only(&read()?.masters.into_iter().collect())
}

pub(super) fn told() -> Result<Response<Body>, Refusal> {
    this()?;
    Ok(json(&read()?))
}

/// What is told replaces what was: a master that was made anew may have another address.
pub(super) async fn tell(told: Masters) -> Result<Response<Body>, Refusal> {
    check(&this()?, &told)?;
    let kept = serde_json::to_vec(&Kept::of(&told)).context("cannot write down the masters")?;
    // PID 1 has one thread, which must not wait for a disk.
    let written = tokio::task::spawn_blocking(move || {
        let path = Path::new(ETCD_MASTERS);
        pki::write(path, &kept, 0o644)?;
        let folder = path.parent().unwrap_or(Path::new("/"));
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .with_context(|| format!("cannot make {ETCD_MASTERS} durable"))
    });
    written.await.context("waiting for the disk")??;
    firewall::admit_only(&told.masters.iter().copied().collect())?;
    Ok(json(&Done { message: format!("this master knows {} of them", told.masters.len()) }))
}

/// This node, where it is one that is told.
fn this() -> Result<Node, Refusal> {
    let text = std::fs::read(NODE_FILE).with_context(|| format!("cannot read {NODE_FILE}"))?;
    let node: Node = serde_json::from_slice(&text).with_context(|| format!("{NODE_FILE} is not what init writes"))?;
    if node.await_masters {
        return Ok(node);
    }
    let why = "this node is told of no other masters: it is no master, or the only one, or its user-data or its image says \
               which they are";
    Err(Refusal(StatusCode::CONFLICT, why.into()))
}

fn check(node: &Node, told: &Masters) -> Result<(), Refusal> {
    let bad = |why: String| Err(Refusal(StatusCode::BAD_REQUEST, why));
    if let Some(none) = told.masters.iter().find(|it| it.is_loopback() || it.is_unspecified() || it.is_multicast()) {
        return bad(format!("{none} is the address of no master"));
    }
    match node.addresses.first() {
        Some(own) if told.masters.contains(own) => Ok(()),
        own => {
            let own = own.map_or("none".to_owned(), IpAddr::to_string);
            let among = told.masters.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
            bad(format!("this master's own address ({own}) is not among those of the masters ({among})"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(masters: &[&str]) -> Masters {
        Masters { masters: masters.iter().map(|address| address.parse().unwrap()).collect(), join: true }
    }

    #[test]
    fn what_is_kept_says_what_was_told() {
        let told = told(&["10.80.0.2", "fd00::3"]);
        let kept = Kept::of(&told);
        assert_eq!(kept.peers, ["https://10.80.0.2:2380", "https://[fd00::3]:2380"]);
        assert_eq!(kept.masters(), told);
    }

    #[test]
    fn only_a_list_with_this_master_in_it_is_taken() {
        let node = r#"{"name":"m","role":"master","addresses":["10.80.0.2"],"api-endpoints":[],"source":""}"#;
        let node: Node = serde_json::from_str(node).unwrap();
        assert!(check(&node, &told(&["10.80.0.3", "10.80.0.2"])).is_ok());
        for (list, why) in [
            (&["10.80.0.3"][..], "own address (10.80.0.2) is not among those of the masters (10.80.0.3)"),
            (&[], "is not among"),
            (&["10.80.0.2", "127.0.0.1"], "127.0.0.1 is the address of no master"),
        ] {
            let Err(Refusal(status, said)) = check(&node, &told(list)) else { panic!("{list:?} was taken") };
            assert!(status == StatusCode::BAD_REQUEST && said.contains(why), "{said}");
        }
    }
}
