//! etcd's members: who they are, and how they come, change and go.
//!
//! [`look`] asks one member at its peer port, where it answers from its own knowledge as soon as it runs, also while
//! there is no majority; [`Membership`] asks and changes by way of a majority.

use std::io::{ErrorKind, Read as _};
use std::path::Path;
use std::time::Duration;

use bytes::Buf as _;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use serde::Deserialize;

use super::client::{Again, Client, Members, secure, target};
use super::wire::{
    self, Headed as _, LogMetadata, LogRecord, MemberAddRequest, MemberChangeResponse, MemberListRequest,
    MemberListResponse, MemberRequest, MemberUpdateRequest, StatusRequest, StatusResponse,
};
use crate::{Result, StoreError};

/// A member that takes longer to say who is there is passed over.
const LOOK: Duration = Duration::from_secs(3);
/// A list of members is a few lines.
const LONGEST_LIST: usize = 1 << 20;
/// The records before which a log says whose it is.
const LOG_HEAD: u64 = 4096;
/// `metadataType` of etcd's log.
const METADATA: i64 = 1;

/// A member, as etcd lists it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Member {
    pub id: u64,
    /// Empty until it has started for the first time, but for those that begin a cluster together.
    #[serde(default)]
    pub name: String,
    #[serde(default, rename = "peerURLs")]
    pub peer_urls: Vec<String>,
    #[serde(default, rename = "clientURLs")]
    pub client_urls: Vec<String>,
    /// It has no vote yet.
    #[serde(default, rename = "isLearner")]
    pub learner: bool,
}

impl Member {
    /// Whether it has ever run.
    pub fn started(&self) -> bool {
        !self.client_urls.is_empty()
    }

    pub fn is_at(&self, peer_url: &str) -> bool {
        self.peer_urls.iter().any(|url| url == peer_url)
    }

    /// The host of its peer URL, which is its master's address.
    pub fn host(&self) -> String {
        self.peer_urls.first().and_then(|url| target(url).ok()).map(|found| found.host).unwrap_or_default()
    }
}

impl From<wire::Member> for Member {
    fn from(member: wire::Member) -> Member {
        let wire::Member { id, name, peer_urls, client_urls, is_learner } = member;
        Member { id, name, peer_urls, client_urls, learner: is_learner }
    }
}

/// What a member says of itself.
#[derive(Clone, Debug)]
pub struct MemberStatus {
    pub id: u64,
    /// 0: it knows none.
    pub leader: u64,
    pub learner: bool,
    pub bytes: u64,
    /// What keeps it from its work.
    pub errors: Vec<String>,
}

/// The members, asked and changed through those at these endpoints.
#[derive(Debug)]
pub struct Membership {
    client: Client,
}

impl Membership {
    /// Checks the settings; connects to nobody yet.
    pub fn new(members: &Members) -> Result<Membership> {
        Ok(Membership { client: Client::new(members)? })
    }

    /// Everybody, as a majority knows it.
    pub async fn list(&self) -> Result<Vec<Member>> {
        let request = MemberListRequest { linearizable: true };
        let answer: MemberListResponse = self.client.call(wire::MEMBER_LIST, request, Again::Yes).await?;
        Ok(answer.members.into_iter().map(Member::from).collect())
    }

    /// Adds one that has no vote until it is promoted.
    pub async fn add_learner(&self, peer_url: &str) -> Result<()> {
        let request = MemberAddRequest { peer_urls: vec![peer_url.into()], is_learner: true };
        self.change(wire::MEMBER_ADD, request).await
    }

    pub async fn remove(&self, id: u64) -> Result<()> {
        self.change(wire::MEMBER_REMOVE, MemberRequest { id }).await
    }

    /// Gives a learner its vote; etcd refuses while it has not caught up.
    pub async fn promote(&self, id: u64) -> Result<()> {
        self.change(wire::MEMBER_PROMOTE, MemberRequest { id }).await
    }

    /// Says where the others find it.
    pub async fn update(&self, id: u64, peer_url: &str) -> Result<()> {
        self.change(wire::MEMBER_UPDATE, MemberUpdateRequest { id, peer_urls: vec![peer_url.into()] }).await
    }

    async fn change<Q: prost::Message + Clone + 'static>(&self, path: &'static str, request: Q) -> Result<()> {
        self.client.call::<_, MemberChangeResponse>(path, request, Again::No).await?;
        Ok(())
    }

    /// What the first of the endpoints says of itself.
    pub async fn status(&self) -> Result<MemberStatus> {
        let answer: StatusResponse = self.client.call_member(0, wire::STATUS, StatusRequest {}, LOOK).await?;
        Ok(MemberStatus {
            id: answer.header().map_or(0, |header| header.member_id),
            leader: answer.leader,
            learner: answer.is_learner,
            bytes: answer.db_size.max(0) as u64,
            errors: answer.errors,
        })
    }
}

/// What was seen at a peer URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sight {
    /// A member runs there, and knows of these.
    Listed(Vec<Member>),
    /// The machine is there, and no etcd runs.
    Nobody,
    /// There is no telling.
    Silent(String),
}

/// Who runs at a peer URL.
pub async fn look(peer_url: &str, members: &Members) -> Sight {
    let looked = tokio::time::timeout(LOOK, ask(peer_url, members)).await;
    looked.unwrap_or_else(|_| Sight::Silent(format!("{peer_url}: no answer within {} seconds", LOOK.as_secs())))
}

async fn ask(peer_url: &str, members: &Members) -> Sight {
    let silent = |why: &dyn std::fmt::Display| Sight::Silent(format!("{peer_url}: {why}"));
    let target = match target(peer_url) {
        Ok(target) => target,
        Err(error) => return silent(&error),
    };
    let stream = match target.reach().await {
        Ok(stream) => stream,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Sight::Nobody,
        Err(error) => return silent(&error),
    };
    let stream = match secure(&target, stream, members, &[]).await {
        Ok(stream) => stream,
        Err(why) => return silent(&why),
    };
    match list_of(TokioIo::new(stream), &target.host).await {
        Ok(list) => Sight::Listed(list),
        Err(error) => silent(&error),
    }
}

async fn list_of(
    stream: impl hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
    host: &str,
) -> Result<Vec<Member>, Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    tokio::spawn(connection);
    let request = hyper::Request::get("/members").header("host", host).body(Empty::<bytes::Bytes>::new())?;
    let response = sender.send_request(request).await?;
    if !response.status().is_success() {
        return Err(format!("it answers {}", response.status()).into());
    }
    let body = Limited::new(response.into_body(), LONGEST_LIST).collect().await?.to_bytes();
    Ok(serde_json::from_slice(&body)?)
}

/// A member's data that lies on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EtcdData {
    /// Whose it is; none: its log does not say.
    pub member: Option<u64>,
}

/// What an etcd left in its folder: it counts as data from the moment that there is a log.
pub fn data_of(dir: &Path) -> Result<Option<EtcdData>> {
    let logs = dir.join("member/wal");
    let io = |path: &Path, why| StoreError::Io { what: format!("reading {}", path.display()), why };
    let entries = match std::fs::read_dir(&logs) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(&logs, error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| io(&logs, error))?.path();
        if path.extension().is_some_and(|ending| ending == "wal") {
            names.push(path);
        }
    }
    let Some(newest) = names.into_iter().max() else { return Ok(None) };
    let mut head = Vec::new();
    let read = std::fs::File::open(&newest).and_then(|file| file.take(LOG_HEAD).read_to_end(&mut head));
    read.map_err(|error| io(&newest, error))?;
    Ok(Some(EtcdData { member: owner(&head) }))
}

/// Frames of a length in 56 bits, what it is padded by in the top byte, and a record.
fn owner(mut log: &[u8]) -> Option<u64> {
    while log.len() >= 8 {
        let head = log.get_i64_le();
        let padding = if head < 0 { (head >> 56) & 7 } else { 0 };
        let length = usize::try_from(head & 0x00ff_ffff_ffff_ffff).ok()?;
        let record = LogRecord::decode(log.get(..length)?).ok()?;
        if record.kind == METADATA {
            return Some(LogMetadata::decode(record.data).ok()?.node_id);
        }
        log = log.get(length + padding as usize..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_says_whose_it_is() {
        // The first two records of a log that etcd 3.5.16 wrote.
        let log = hex(
            "0400000000000084 0804100000000000 1f00000000000081 080110ebfac19009 1a1508fbfa8ba392e69eebdd01108792 df84a9e986c27300",
        );
        assert_eq!(owner(&log), Some(15985099378392235387));
        for length in 0..log.len() - 1 {
            assert_eq!(owner(&log[..length]), None, "cut after {length} bytes");
        }
        assert_eq!(owner(&[0xff; 64]), None);
        assert_eq!(owner(&[0; 64]), None);
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> =
            text.bytes().filter(|b| *b != b' ').map(|b| (b as char).to_digit(16).unwrap() as u8).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    #[test]
    fn a_list_of_the_peer_port_is_read() {
        let list = r#"[{"id":443629905751424238,"peerURLs":["https://10.77.0.12:2380"],"name":"c","isLearner":true},
            {"id":15985099378392235387,"peerURLs":["https://[fd00::1]:2380"],"name":"a","clientURLs":["https://[fd00::1]:2379"]}]"#;
        let list: Vec<Member> = serde_json::from_str(list).unwrap();
        assert!(list[0].learner && !list[0].started() && list[0].is_at("https://10.77.0.12:2380"));
        assert!(!list[1].learner && list[1].started());
        assert_eq!((list[0].host(), list[1].host()), ("10.77.0.12".into(), "fd00::1".into()));
    }

    #[tokio::test]
    async fn nobody_is_told_from_somebody_who_keeps_quiet() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let nobody = Members::default();
        let looks = look(&url, &nobody);
        let hangs_up = async { drop(listener.accept().await.unwrap()) };
        assert!(matches!(tokio::join!(looks, hangs_up).0, Sight::Silent(why) if why.starts_with(&url)));
        drop(listener);
        assert_eq!(look(&url, &nobody).await, Sight::Nobody);
        assert!(matches!(look("nonsense", &nobody).await, Sight::Silent(_)));
    }
}
