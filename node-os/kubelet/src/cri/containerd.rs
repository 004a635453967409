//! The little of containerd's own API that importing image archives takes:
//! write blobs into the content store under a lease, unpack layers, and name the image.

use super::client::unix_channel;
use std::collections::BTreeMap;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

/// The namespace that CRI uses.
const NAMESPACE: &str = "k8s.io";
/// The one that the node's `config.toml` gives CRI.
const SNAPSHOTTER: &str = "overlayfs";
/// Bytes of one write; containerd's limit of a message is 16 MiB, its default buffer 1 MiB.
const CHUNK: usize = 512 << 10;

/// `containerd.types.Descriptor`.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Descriptor {
    #[prost(string, tag = "1")]
    pub media_type: String,
    #[prost(string, tag = "2")]
    pub digest: String,
    #[prost(int64, tag = "3")]
    pub size: i64,
    #[prost(btree_map = "string, string", tag = "5")]
    pub annotations: BTreeMap<String, String>,
}

/// `containerd.services.images.v1.Image`.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct StoredImage {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub labels: BTreeMap<String, String>,
    #[prost(message, optional, tag = "3")]
    pub target: Option<Descriptor>,
}

#[derive(Clone, PartialEq, ::prost::Message)]
struct ImageEnvelope {
    #[prost(message, optional, tag = "1")]
    image: Option<StoredImage>,
}

#[derive(Clone, PartialEq, ::prost::Message)]
struct GetImage {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, ::prost::Message)]
struct CreateLease {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(btree_map = "string, string", tag = "3")]
    labels: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, ::prost::Message)]
struct DeleteLease {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(bool, tag = "2")]
    sync: bool,
}

#[derive(Clone, PartialEq, ::prost::Message)]
struct WriteRequest {
    /// 0 status, 1 write, 2 commit.
    #[prost(int32, tag = "1")]
    action: i32,
    #[prost(string, tag = "2")]
    r#ref: String,
    #[prost(int64, tag = "3")]
    total: i64,
    #[prost(string, tag = "4")]
    expected: String,
    #[prost(int64, tag = "5")]
    offset: i64,
    #[prost(bytes = "vec", tag = "6")]
    data: Vec<u8>,
    #[prost(btree_map = "string, string", tag = "7")]
    labels: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, ::prost::Message)]
struct WriteAnswer {
    #[prost(int64, tag = "4")]
    offset: i64,
}

/// `PrepareSnapshotRequest`; with another method `StatSnapshotRequest` or `RemoveSnapshotRequest`, which end at `key`.
#[derive(Clone, PartialEq, ::prost::Message)]
struct Snapshot {
    #[prost(string, tag = "1")]
    snapshotter: String,
    #[prost(string, tag = "2")]
    key: String,
    #[prost(string, tag = "3")]
    parent: String,
}

#[derive(Clone, PartialEq, ::prost::Message)]
struct CommitSnapshot {
    #[prost(string, tag = "1")]
    snapshotter: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    key: String,
}

/// `containerd.types.Mount`.
#[derive(Clone, PartialEq, ::prost::Message)]
struct Mount {
    #[prost(string, tag = "1")]
    r#type: String,
    #[prost(string, tag = "2")]
    source: String,
    #[prost(string, tag = "3")]
    target: String,
    #[prost(string, repeated, tag = "4")]
    options: Vec<String>,
}

#[derive(Clone, PartialEq, ::prost::Message)]
struct Mounts {
    #[prost(message, repeated, tag = "1")]
    mounts: Vec<Mount>,
}

#[derive(Clone, PartialEq, ::prost::Message)]
struct ApplyDiff {
    #[prost(message, optional, tag = "1")]
    diff: Option<Descriptor>,
    #[prost(message, repeated, tag = "2")]
    mounts: Vec<Mount>,
    #[prost(bool, tag = "4")]
    sync_fs: bool,
}

#[derive(Clone, PartialEq, ::prost::Message)]
struct Applied {
    #[prost(message, optional, tag = "1")]
    applied: Option<Descriptor>,
}

/// A client of containerd's own services.
#[derive(Clone, Debug)]
pub struct Containerd {
    channel: Channel,
}

impl Containerd {
    /// A client of the containerd that listens at `endpoint`.
    pub fn new(endpoint: &str) -> Self {
        Containerd { channel: unix_channel(endpoint) }
    }

    fn request<T>(message: T, lease: Option<&str>) -> Result<tonic::Request<T>, tonic::Status> {
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert("containerd-namespace", MetadataValue::from_static(NAMESPACE));
        if let Some(lease) = lease {
            let value = lease.parse().map_err(|_| tonic::Status::invalid_argument("lease name is not ASCII"))?;
            request.metadata_mut().insert("containerd-lease", value);
        }
        Ok(request)
    }

    async fn call<Q, A>(&self, path: &'static str, message: Q, lease: Option<&str>) -> Result<A, tonic::Status>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|e| tonic::Status::unavailable(crate::chain(&e)))?;
        let codec: ProstCodec<Q, A> = ProstCodec::default();
        let request = Self::request(message, lease)?;
        Ok(grpc.unary(request, PathAndQuery::from_static(path), codec).await?.into_inner())
    }

    /// The digest that an image name stands for, if it exists.
    pub async fn image_digest(&self, name: &str) -> Result<Option<String>, tonic::Status> {
        let request = GetImage { name: name.into() };
        match self.call::<_, ImageEnvelope>("/containerd.services.images.v1.Images/Get", request, None).await {
            Ok(answer) => Ok(answer.image.and_then(|i| i.target).map(|t| t.digest)),
            Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
            Err(status) => Err(status),
        }
    }

    /// Creates the image name or points it at the new target.
    pub async fn put_image(&self, image: StoredImage, lease: &str) -> Result<(), tonic::Status> {
        let envelope = ImageEnvelope { image: Some(image) };
        let created: Result<ImageEnvelope, _> =
            self.call("/containerd.services.images.v1.Images/Create", envelope.clone(), Some(lease)).await;
        match created {
            Ok(_) => Ok(()),
            Err(status) if status.code() == tonic::Code::AlreadyExists => {
                let _: ImageEnvelope =
                    self.call("/containerd.services.images.v1.Images/Update", envelope, Some(lease)).await?;
                Ok(())
            }
            Err(status) => Err(status),
        }
    }

    /// Holds what is written under it against containerd's garbage collector.
    pub async fn create_lease(&self, id: &str, expire: &str) -> Result<(), tonic::Status> {
        let labels = BTreeMap::from([("containerd.io/gc.expire".to_string(), expire.to_string())]);
        let request = CreateLease { id: id.into(), labels };
        match self.call::<_, ()>("/containerd.services.leases.v1.Leases/Create", request, None).await {
            Err(status) if status.code() == tonic::Code::AlreadyExists => Ok(()),
            other => other,
        }
    }

    /// Ends a lease.
    pub async fn delete_lease(&self, id: &str) -> Result<(), tonic::Status> {
        let request = DeleteLease { id: id.into(), sync: false };
        self.call::<_, ()>("/containerd.services.leases.v1.Leases/Delete", request, None).await
    }

    /// Unpacks a layer upon the layers of `parent` (empty: upon nothing), as the snapshot `chain`.
    ///
    /// containerd would do it when the first container asks, and without `sync_fs`: after a power cut the snapshot
    /// is then on record as whole, and its files are empty.
    pub async fn unpack(
        &self,
        layer: Descriptor,
        diff_id: &str,
        parent: &str,
        chain: &str,
        lease: &str,
    ) -> Result<(), tonic::Status> {
        let of = |key: &str, parent: &str| Snapshot {
            snapshotter: SNAPSHOTTER.into(),
            key: key.into(),
            parent: parent.into(),
        };
        match self.call::<_, ()>("/containerd.services.snapshots.v1.Snapshots/Stat", of(chain, ""), Some(lease)).await {
            Err(status) if status.code() == tonic::Code::NotFound => {}
            other => return other,
        }
        let key = format!("kimg-import-{chain}");
        // What an interrupted import left.
        match self.call::<_, ()>("/containerd.services.snapshots.v1.Snapshots/Remove", of(&key, ""), Some(lease)).await
        {
            Err(status) if status.code() == tonic::Code::NotFound => {}
            other => other?,
        }
        let Mounts { mounts } =
            self.call("/containerd.services.snapshots.v1.Snapshots/Prepare", of(&key, parent), Some(lease)).await?;
        let apply = ApplyDiff { diff: Some(layer), mounts, sync_fs: true };
        let Applied { applied } = self.call("/containerd.services.diff.v1.Diff/Apply", apply, Some(lease)).await?;
        let Some(Descriptor { digest: unpacked, .. }) = applied else {
            return Err(tonic::Status::data_loss("it does not say what a layer unpacks to"));
        };
        if unpacked != diff_id {
            return Err(tonic::Status::data_loss(format!("a layer unpacks to {unpacked}, and should to {diff_id}")));
        }
        let commit = CommitSnapshot { snapshotter: SNAPSHOTTER.into(), name: chain.into(), key };
        self.call("/containerd.services.snapshots.v1.Snapshots/Commit", commit, Some(lease)).await
    }

    /// Writes one blob; a blob that is there already is left as it is.
    pub async fn write_blob(
        &self,
        digest: &str,
        size: u64,
        reader: impl std::io::Read + Send + 'static,
        labels: BTreeMap<String, String>,
        lease: &str,
    ) -> Result<(), tonic::Status> {
        let (sender, receiver) = tokio::sync::mpsc::channel::<WriteRequest>(2);
        let first = WriteRequest {
            action: 0,
            r#ref: format!("kimg-import-{digest}"),
            total: size as i64,
            expected: digest.into(),
            ..Default::default()
        };
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|e| tonic::Status::unavailable(crate::chain(&e)))?;
        sender.send(first).await.map_err(|_| tonic::Status::internal("write stream closed"))?;
        let codec: ProstCodec<WriteRequest, WriteAnswer> = ProstCodec::default();
        let request = Self::request(tokio_stream::wrappers::ReceiverStream::new(receiver), Some(lease))?;
        let path = PathAndQuery::from_static("/containerd.services.content.v1.Content/Write");
        let mut answers = match grpc.streaming(request, path, codec).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return exists_is_fine(status),
        };
        // The answer to the status request says how much an interrupted import left behind.
        let start = match answers.message().await {
            Ok(Some(answer)) => answer.offset.max(0) as u64,
            Ok(None) => return Err(tonic::Status::aborted("containerd closed the write stream")),
            Err(status) => return exists_is_fine(status),
        };
        let feeder = tokio::task::spawn_blocking({
            let digest = digest.to_string();
            move || feed(reader, start, size, &digest, labels, &sender)
        });
        let mut result = Ok(());
        loop {
            match answers.message().await {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(status) => {
                    result = exists_is_fine(status);
                    break;
                }
            }
        }
        drop(answers);
        feeder.await.map_err(|e| tonic::Status::internal(e.to_string()))?.map_err(tonic::Status::data_loss)?;
        result
    }
}

fn exists_is_fine(status: tonic::Status) -> Result<(), tonic::Status> {
    if status.code() == tonic::Code::AlreadyExists { Ok(()) } else { Err(status) }
}

/// Sends a blob from `start` on in chunks; the last message commits. A closed channel ends it quietly:
/// the answer stream says why.
fn feed(
    mut reader: impl std::io::Read,
    start: u64,
    size: u64,
    digest: &str,
    labels: BTreeMap<String, String>,
    sender: &tokio::sync::mpsc::Sender<WriteRequest>,
) -> Result<(), String> {
    let skipped = std::io::copy(&mut (&mut reader).take(start), &mut std::io::sink()).map_err(|e| e.to_string())?;
    let mut offset = skipped;
    loop {
        let mut data = vec![0; CHUNK.min((size - offset) as usize)];
        reader.read_exact(&mut data).map_err(|e| format!("reading blob {digest}: {e}"))?;
        let length = data.len() as u64;
        let last = offset + length == size;
        let message = WriteRequest {
            action: if last { 2 } else { 1 },
            r#ref: format!("kimg-import-{digest}"),
            total: size as i64,
            expected: digest.into(),
            offset: offset as i64,
            data,
            labels: if last { labels.clone() } else { BTreeMap::new() },
        };
        if sender.blocking_send(message).is_err() || last {
            return Ok(());
        }
        offset += length;
    }
}

use std::io::Read as _;
