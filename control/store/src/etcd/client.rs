//! Calls to etcd: one HTTP/2 connection to one member at a time, and another member when
//! that one does not answer.
//!
//! Reads are tried again until they succeed or time is over.  A write is tried again only
//! when it certainly was not done: it never left, or the member said that it has no leader.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use super::wire::{self, Headed as _, MemberListRequest, MemberListResponse};
use crate::{Result, StoreError};

/// A member that takes longer to let us in is passed over.
const CONNECT: Duration = Duration::from_secs(2);
/// One try of a call; etcd itself gives up a proposal after about seven seconds.
const TRY: Duration = Duration::from_secs(4);
/// All tries of a call.
pub(crate) const WHOLE: Duration = Duration::from_secs(15);
/// Between tries.
const PAUSE: Duration = Duration::from_millis(100);
/// etcd refuses clients that ask more often than every five seconds.
const KEEP_ALIVE: Duration = Duration::from_secs(6);
const KEEP_ALIVE_ANSWER: Duration = Duration::from_secs(3);
/// A page of large objects, or the changes of a whole outage, come in one message.
const MAX_ANSWER: usize = 1 << 30;

/// Where etcd is, and who we are to it.
#[derive(Clone, Debug, Default)]
pub struct Members {
    /// `https://host:port` of each member; `http://` speaks without TLS.
    pub endpoints: Vec<String>,
    /// CA bundle that members' certificates are checked with.
    pub ca_file: Option<PathBuf>,
    /// Client certificate chain.
    pub cert_file: Option<PathBuf>,
    /// Key of the client certificate.
    pub key_file: Option<PathBuf>,
}

/// What etcd answered when it did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// etcd said no: asking again changes nothing.
    #[error("etcd says: {message}")]
    Refused { code: Code, message: String },
    /// No member answered in time.
    #[error("{0}")]
    Unavailable(String),
}

impl CallError {
    /// Whether the request has more bytes than etcd takes (`--max-request-bytes`), or than its gRPC
    /// server lets in, which is half a MiB more.
    pub(crate) fn is_too_large(&self) -> bool {
        match self {
            CallError::Refused { code: Code::InvalidArgument, message } => message.contains("request is too large"),
            CallError::Refused { code: Code::ResourceExhausted, message } => message.contains("larger than max"),
            _ => false,
        }
    }
}

impl From<CallError> for StoreError {
    fn from(error: CallError) -> StoreError {
        match error {
            CallError::Unavailable(what) => StoreError::Unavailable(what),
            refused => StoreError::Failed(refused.to_string()),
        }
    }
}

/// Whether a call may be done twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Again {
    Yes,
    /// Only when the first certainly was not done.
    No,
}

#[derive(Clone, Debug)]
pub(super) struct Target {
    text: String,
    tls: bool,
    pub(super) host: String,
    port: u16,
}

impl Target {
    pub(super) async fn reach(&self) -> std::io::Result<TcpStream> {
        TcpStream::connect((self.host.as_str(), self.port)).await
    }
}

/// No member could be reached: nothing was sent.
#[derive(Clone, Debug, thiserror::Error)]
#[error("no etcd member can be reached: {0}")]
struct NotConnected(String);

#[derive(Debug)]
struct Shared {
    targets: Vec<Target>,
    members: Members,
    /// The member to try first.
    at: AtomicUsize,
}

/// A handle to etcd; connects when first used, and again when need be.
#[derive(Debug)]
pub(crate) struct Client {
    shared: Arc<Shared>,
    channel: RwLock<(u64, Channel)>,
}

impl Client {
    /// Checks the settings; connects to nobody yet.
    pub(crate) fn new(members: &Members) -> Result<Client> {
        let targets: Vec<Target> = members.endpoints.iter().map(|e| target(e)).collect::<Result<_>>()?;
        if targets.is_empty() {
            return Err(StoreError::Settings("etcd: no endpoint is given (--etcd-servers)".into()));
        }
        if targets.iter().any(|t| t.tls) {
            tls(members)?;
        }
        let shared = Arc::new(Shared { targets, members: members.clone(), at: AtomicUsize::new(0) });
        let channel = channel(&shared);
        Ok(Client { shared, channel: RwLock::new((0, channel)) })
    }

    fn current(&self) -> (u64, Channel) {
        self.channel.read().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Leaves the member that `number` went to, unless somebody did already.
    fn leave(&self, number: u64) {
        let mut channel = self.channel.write().unwrap_or_else(|e| e.into_inner());
        if channel.0 == number {
            self.shared.at.fetch_add(1, Ordering::Relaxed);
            *channel = (number + 1, self::channel(&self.shared));
        }
    }

    /// A call with one answer.
    pub(crate) async fn call<Q, A>(&self, path: &'static str, request: Q, again: Again) -> Result<A, CallError>
    where
        Q: prost::Message + Clone + 'static,
        A: prost::Message + Default + 'static,
    {
        let deadline = Instant::now() + WHOLE;
        loop {
            let (number, channel) = self.current();
            let status = match tokio::time::timeout(TRY, unary(channel, path, request.clone())).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded(format!("no answer within {} seconds", TRY.as_secs())),
            };
            let fate = fate(&status);
            if fate == Fate::Refused {
                return Err(CallError::Refused { code: status.code(), message: status.message().into() });
            }
            self.leave(number);
            let may = again == Again::Yes || fate == Fate::NotDone;
            if !may || Instant::now() + PAUSE > deadline {
                return Err(CallError::Unavailable(self.sentence(&status)));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// A call to one member only, by its place in the list of endpoints, that may take this long.
    pub(crate) async fn call_member<Q, A>(
        &self,
        place: usize,
        path: &'static str,
        request: Q,
        within: Duration,
    ) -> Result<A, CallError>
    where
        Q: prost::Message + Clone + 'static,
        A: prost::Message + Default + 'static,
    {
        let targets = self.shared.targets.get(place).cloned().into_iter().collect();
        let shared = Shared { targets, members: self.shared.members.clone(), at: AtomicUsize::new(0) };
        match tokio::time::timeout(within, unary(channel(&Arc::new(shared)), path, request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(status)) => Err(CallError::Unavailable(self.sentence(&status))),
            Err(_) => Err(CallError::Unavailable(format!("no answer within {} seconds", within.as_secs()))),
        }
    }

    /// A handle to every member that has a vote, also where only the one beside this server was given; to those that were
    /// given, where nobody says who there is.
    pub(crate) async fn of_all_members(&self) -> Client {
        let mut targets = self.shared.targets.clone();
        if targets.len() == 1
            && let Ok(list) =
                self.call::<_, MemberListResponse>(wire::MEMBER_LIST, MemberListRequest::default(), Again::Yes).await
        {
            let asked = list.header().map(|header| header.member_id);
            let others = list.members.iter().filter(|member| !member.is_learner && Some(member.id) != asked);
            targets.extend(others.filter_map(|member| target(member.client_urls.last()?).ok()));
        }
        let shared = Arc::new(Shared { targets, members: self.shared.members.clone(), at: AtomicUsize::new(0) });
        let channel = channel(&shared);
        Client { shared, channel: RwLock::new((0, channel)) }
    }

    /// The endpoints, as they were given.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = &str> {
        self.shared.targets.iter().map(|t| t.text.as_str())
    }

    /// Opens a stream in both directions, at a member that has a leader; `leave` gives up
    /// that member.
    pub(crate) async fn stream<Q, A>(
        &self,
        path: &'static str,
        requests: impl futures::Stream<Item = Q> + Send + 'static,
    ) -> Result<(Connection, tonic::Streaming<A>), CallError>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let (number, channel) = self.current();
        let open = async {
            let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(MAX_ANSWER);
            grpc.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
            let mut request = tonic::Request::new(requests);
            // Else a member that lost its cluster keeps quiet for ever.
            request.metadata_mut().insert("hasleader", tonic::metadata::MetadataValue::from_static("true"));
            grpc.streaming(request, PathAndQuery::from_static(path), ProstCodec::<Q, A>::default()).await
        };
        match tokio::time::timeout(TRY, open).await {
            Ok(Ok(answer)) => Ok((Connection(number), answer.into_inner())),
            Ok(Err(status)) => {
                self.leave(number);
                Err(CallError::Unavailable(self.sentence(&status)))
            }
            Err(_) => {
                self.leave(number);
                Err(CallError::Unavailable(format!("no answer within {} seconds", TRY.as_secs())))
            }
        }
    }

    /// What happened; a member that speaks TLS only hangs up on whoever does not.
    fn sentence(&self, status: &Status) -> String {
        let hung_up = causes(status).next().is_some() && !causes(status).any(|c| c.is::<NotConnected>());
        match self.shared.targets.iter().find(|t| !t.tls).filter(|_| hung_up) {
            Some(plain) => {
                format!("{}; if {} speaks TLS, write https:// (--etcd-servers)", sentence(status), plain.text)
            }
            None => sentence(status),
        }
    }

    /// The stream's member does not do its work: go to another one.
    pub(crate) fn give_up(&self, connection: &Connection) {
        self.leave(connection.0);
    }
}

/// Which connection a stream runs on.
#[derive(Debug)]
pub(crate) struct Connection(u64);

async fn unary<Q, A>(channel: Channel, path: &'static str, request: Q) -> Result<A, Status>
where
    Q: prost::Message + 'static,
    A: prost::Message + Default + 'static,
{
    let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(MAX_ANSWER);
    grpc.ready().await.map_err(|e| Status::from_error(Box::new(e)))?;
    let codec = ProstCodec::<Q, A>::default();
    Ok(grpc.unary(tonic::Request::new(request), PathAndQuery::from_static(path), codec).await?.into_inner())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// etcd understood, and will say the same again.
    Refused,
    /// It was not done, and may be tried elsewhere.
    NotDone,
    /// It may have been done.
    Unknown,
}

fn fate(status: &Status) -> Fate {
    if causes(status).any(|c| c.is::<NotConnected>() || c.downcast_ref().is_some_and(hyper::Error::is_canceled)) {
        return Fate::NotDone;
    }
    match (status.code(), status.message()) {
        // Said before a proposal is made.
        (_, "etcdserver: no leader" | "etcdserver: too many requests" | "etcdserver: not capable") => Fate::NotDone,
        (Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal, _) => {
            Fate::Unknown
        }
        (_, text) if text.contains("timed out") || text.contains("leader changed") => Fate::Unknown,
        _ => Fate::Refused,
    }
}

fn causes<'a>(status: &'a Status) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(std::error::Error::source(status), |e| e.source())
}

/// The innermost cause says most.
fn sentence(status: &Status) -> String {
    match causes(status).find(|c| c.is::<NotConnected>()).or_else(|| causes(status).last()) {
        Some(cause) => cause.to_string(),
        None => format!("etcd says: {}", status.message()),
    }
}

pub(super) fn target(endpoint: &str) -> Result<Target> {
    let bad = |why: &str| {
        StoreError::Settings(format!(
            "etcd endpoint {endpoint:?}: {why}; write it as https://host:2379 (--etcd-servers)"
        ))
    };
    let uri: Uri = endpoint.parse().map_err(|_| bad("not a URL"))?;
    let tls = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(bad("neither https:// nor http://")),
    };
    let host = uri.host().ok_or_else(|| bad("no host"))?.trim_matches(['[', ']']).to_string();
    Ok(Target { text: endpoint.to_string(), tls, host, port: uri.port_u16().unwrap_or(2379) })
}

fn channel(shared: &Arc<Shared>) -> Channel {
    let shared = shared.clone();
    // The name is never resolved: the connector knows the members.
    Endpoint::from_static("http://etcd.invalid")
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_ANSWER)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(8 << 20)
        .connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let shared = shared.clone();
            async move { connect(&shared).await.map(TokioIo::new) }
        }))
}

pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Connects to the first member that lets us in.
async fn connect(shared: &Shared) -> Result<Box<dyn Stream>, NotConnected> {
    let first = shared.at.load(Ordering::Relaxed);
    let mut failures = Vec::new();
    for step in 0..shared.targets.len() {
        let target = &shared.targets[(first + step) % shared.targets.len()];
        match tokio::time::timeout(CONNECT, connect_to(target, &shared.members)).await {
            Ok(Ok(stream)) => {
                shared.at.store(first + step, Ordering::Relaxed);
                return Ok(stream);
            }
            Ok(Err(why)) => failures.push(format!("{}: {why}", target.text)),
            Err(_) => failures.push(format!("{}: no connection within {} seconds", target.text, CONNECT.as_secs())),
        }
    }
    Err(NotConnected(failures.join("; ")))
}

async fn connect_to(target: &Target, members: &Members) -> Result<Box<dyn Stream>, String> {
    let stream = target.reach().await.map_err(|e| e.to_string())?;
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    secure(target, stream, members, &[b"h2"]).await
}

/// Speaks TLS where the target does; certificates are read anew for each connection, so that renewed ones are taken.
pub(super) async fn secure(
    target: &Target,
    stream: TcpStream,
    members: &Members,
    protocols: &[&[u8]],
) -> Result<Box<dyn Stream>, String> {
    if !target.tls {
        return Ok(Box::new(stream));
    }
    let mut config = tls(members).map_err(|e| e.to_string())?;
    config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
    let name = ServerName::try_from(target.host.clone()).map_err(|e| e.to_string())?;
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    Ok(Box::new(stream.map_err(|e| e.to_string())?))
}

fn tls(members: &Members) -> Result<rustls::ClientConfig> {
    let bad = |path: &Path, e: &dyn std::fmt::Display| StoreError::Settings(format!("etcd: {}: {e}", path.display()));
    let mut roots = rustls::RootCertStore::empty();
    let Some(ca) = &members.ca_file else {
        return Err(StoreError::Settings("etcd: https endpoints need --etcd-cafile".into()));
    };
    for certificate in CertificateDer::pem_file_iter(ca).map_err(|e| bad(ca, &e))? {
        roots.add(certificate.map_err(|e| bad(ca, &e))?).map_err(|e| bad(ca, &e))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| StoreError::Settings(format!("etcd: TLS: {e}")))?
        .with_root_certificates(roots);
    let config = match (&members.cert_file, &members.key_file) {
        (Some(cert), Some(key)) => {
            let chain = CertificateDer::pem_file_iter(cert).map_err(|e| bad(cert, &e))?;
            let chain = chain.collect::<Result<Vec<_>, _>>().map_err(|e| bad(cert, &e))?;
            let private = PrivateKeyDer::from_pem_file(key).map_err(|e| bad(key, &e))?;
            builder.with_client_auth_cert(chain, private).map_err(|e| bad(cert, &e))?
        }
        (None, None) => builder.with_no_client_auth(),
        _ => return Err(StoreError::Settings("etcd: --etcd-certfile and --etcd-keyfile go together".into())),
    };
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_hangs_up_on_plain_http_may_speak_tls() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                // As a TLS server does: it reads, answers with an alert, and closes.
                drop(stream.read(&mut [0; 16]).await);
                drop(stream.write_all(&[0x15, 3, 1, 0, 2, 2, 0x46]).await);
            }
        });
        let client = Client::new(&Members { endpoints: vec![endpoint.clone()], ..Members::default() }).unwrap();
        let asked = client.call::<(), ()>("/etcdserverpb.KV/Range", (), Again::No).await;
        let said = asked.unwrap_err().to_string();
        assert!(said.contains(&format!("if {endpoint} speaks TLS, write https://")), "{said}");
    }

    #[test]
    fn endpoints_are_checked() {
        for bad in ["127.0.0.1:2379", "ftp://a", "", "https://"] {
            let members = Members { endpoints: vec![bad.into()], ..Members::default() };
            assert!(matches!(Client::new(&members), Err(StoreError::Settings(_))), "{bad}");
        }
        let found = target("https://[::1]:99").unwrap();
        assert_eq!((found.host.as_str(), found.port, found.tls), ("::1", 99, true));
        assert_eq!(target("http://a").unwrap().port, 2379);
        assert!(Client::new(&Members::default()).is_err());
        let no_ca = Members { endpoints: vec!["https://a".into()], ..Members::default() };
        assert!(Client::new(&no_ca).err().unwrap().to_string().contains("--etcd-cafile"));
    }
}
