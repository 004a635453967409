//! The HTTP client of what leaves this machine: registries, providers, object stores.
//!
//! One policy for all: what may be repeated is repeated with growing pauses, a server that asks for patience gets
//! it, and a call whose answer was lost is never simply sent again where that could make a thing twice.

mod request;
mod retry;
pub mod trust;
mod watch;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;

pub use request::{Answer, Body, Refused, Request, escape, without_password};
pub use retry::{Clock, Interrupted, Steady, SystemClock};

use crate::logs::line::harmless;
use crate::pki::ClientCertificate;
use anyhow::{Context, Result, bail};
use http::Method;
use retry::{Pause, Verdict};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::io::{IsTerminal, Read};
use std::net::ToSocketAddrs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Connector, DefaultConnector, NextTimeout};
use watch::Watching;

/// How long a server may think before its answer begins: Glance sums a whole image first. A short answer is whole
/// after as long again.
const ANSWER_LIMIT: Duration = Duration::from_secs(600);
/// How long a connection may stand still, and how long a server may think of what is only read.
const STALL: Duration = Duration::from_secs(120);
/// A longer answer than this is no answer of an API.
const ANSWER_SIZE: u64 = 32 << 20;
/// How often a server may name another place.
const REDIRECTS: u32 = 10;

/// Where the calls of a dry run are written.
type Sink = Arc<dyn Fn(&str) + Send + Sync>;

/// An HTTP client. Clones share their connections.
#[derive(Clone)]
pub struct Client {
    agent: ureq::Agent,
    clock: Arc<dyn Clock>,
    dry: Option<Sink>,
    stall: Duration,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("dry", &self.dry.is_some()).finish_non_exhaustive()
    }
}

/// An answer whose body was sent again and again, and never came.
#[derive(Debug, thiserror::Error)]
#[error("{what}: the connection failed before the answer came, so whether it was done is not known")]
pub struct Lost {
    /// Method and address.
    pub what: String,
}

impl Client {
    /// A client that trusts what this machine trusts, and the authorities in the PEM file `ca`.
    ///
    /// # Errors
    /// `ca` cannot be read or holds no certificate.
    pub fn new(ca: Option<&Path>) -> Result<Client> {
        let tls = ureq::tls::TlsConfig::builder().root_certs(trust::roots(ca)?).build();
        let config = Client::config(tls, ureq::Proxy::try_from_env());
        let agent = ureq::Agent::with_parts(config, DefaultConnector::default().chain(Watching), Hosts::default());
        Ok(Client { agent, clock: Arc::new(SystemClock::default()), dry: None, stall: STALL })
    }

    /// The same client of one server, whatever the host in an address: it is found at `target` (`host:port`), proves that it
    /// is that host by a certificate of the authority `ca` (PEM), and is shown `certificate`.
    ///
    /// # Errors
    /// One of the certificates cannot be read.
    pub fn of_server(&self, ca: &str, certificate: &ClientCertificate, target: &str) -> Result<Client> {
        let authorities = CertificateDer::pem_slice_iter(ca.as_bytes())
            .map(|one| Ok(Certificate::from_der(&one?).to_owned()))
            .collect::<Result<Vec<_>, rustls::pki_types::pem::Error>>()
            .context("reading the authority")?;
        let chain = [Certificate::from_pem(certificate.certificate.as_bytes()).context("reading the certificate")?];
        let key = PrivateKey::from_pem(certificate.key.as_bytes()).context("reading the certificate's key")?;
        let tls = ureq::tls::TlsConfig::builder()
            .root_certs(RootCerts::Specific(Arc::new(authorities)))
            .client_cert(Some(ClientCert::new_with_certs(&chain, key)))
            .build();
        let config = Client::config(tls, None);
        let agent =
            ureq::Agent::with_parts(config, DefaultConnector::default().chain(Watching), At(target.to_string()));
        Ok(Client { agent, ..self.clone() })
    }

    fn config(tls: ureq::tls::TlsConfig, proxy: Option<ureq::Proxy>) -> ureq::config::Config {
        ureq::Agent::config_builder()
            .timeout_connect(Some(Duration::from_secs(20)))
            .http_status_as_error(false)
            // They are followed here: ureq would take most secrets along, to anybody.
            .max_redirects(0)
            .max_redirects_will_error(false)
            // A connection that a server is about to close would lose the next call.
            .max_idle_age(Duration::from_secs(3))
            .tls_config(tls)
            .proxy(proxy)
            .user_agent(concat!("kimg/", env!("CARGO_PKG_VERSION")))
            .build()
    }

    /// The same client that waits for less long at a connection that stands still.
    #[cfg(test)]
    fn with_stall(mut self, stall: Duration) -> Client {
        self.stall = stall;
        self
    }

    /// A client that Ctrl-C ends in order.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn interruptible(ca: Option<&Path>) -> Result<Client> {
        Ok(Client::new(ca)?.with_clock(Arc::new(SystemClock::watching()?)))
    }

    /// The same client that trusts the authorities in the PEM file `ca`, too.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn trusting(&self, ca: &Path) -> Result<Client> {
        Ok(Client { agent: Client::new(Some(ca))?.agent, ..self.clone() })
    }

    /// The same client by another clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Client {
        self.clock = clock;
        self
    }

    /// A client that sends nothing: it writes each call to `sink`, and answers what the call says it would be answered.
    #[must_use]
    pub fn dry(mut self, sink: impl Fn(&str) + Send + Sync + 'static) -> Client {
        self.dry = Some(Arc::new(sink));
        self
    }

    /// Whether calls are only written down.
    pub fn is_dry(&self) -> bool {
        self.dry.is_some()
    }

    /// Writes down, in a dry run, what would be done besides calls.
    pub fn tell(&self, what: &str) {
        if let Some(sink) = &self.dry {
            sink(what);
        }
    }

    /// The client for tidying up: an interrupt does not stop it.
    #[must_use]
    pub fn for_cleanup(&self) -> Client {
        Client { clock: self.clock.for_cleanup(), ..self.clone() }
    }

    /// The clock.
    pub fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// Sends a request and reads the whole answer, whatever its status.
    ///
    /// # Errors
    /// No answer in the end, [`Lost`] where the call may have been done, [`Interrupted`].
    pub fn send(&self, request: &Request) -> Result<Answer> {
        if let Some(sink) = &self.dry {
            return request.at(self.clock.now())?.pretend(&**sink);
        }
        self.persist(request, Some(ANSWER_LIMIT), |request, response| {
            let (head, body) = response.into_parts();
            // What a call has made is named in its answer: an interrupt is heeded behind it.
            let reading = if request.is_read() { self.clone() } else { self.for_cleanup() };
            // ureq's own limit counts what came, and that may be packed.
            let mut bytes = Vec::new();
            reading.watched(body).take(ANSWER_SIZE + 1).read_to_end(&mut bytes)?;
            if bytes.len() as u64 > ANSWER_SIZE {
                return Err(ureq::Error::BodyExceedsLimit(ANSWER_SIZE));
            }
            Ok(Answer::new(request, head.status.as_u16(), head.headers, bytes))
        })
    }

    /// Sends a request and hands out the answer's body unread. Only the answer's beginning is waited for
    /// and repeated; a body that breaks off is the reader's to notice.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub fn open(&self, request: &Request) -> Result<(Answer, Box<dyn Read>)> {
        if self.dry.is_some() {
            bail!("a dry run reads nothing from {}", request.shown());
        }
        self.persist(request, None, |request, response| {
            let (head, body) = response.into_parts();
            let reader = Box::new(Steady::new(self.watched(body))) as Box<dyn Read>;
            Ok((Answer::new(request, head.status.as_u16(), head.headers, Vec::new()), reader))
        })
    }

    /// A body that an interrupt ends.
    fn watched(&self, body: ureq::Body) -> impl Read + 'static {
        retry::Watched::new(body.into_with_config().limit(u64::MAX).reader(), self.clock.clone())
    }

    /// Tries until an answer counts or patience ends. `whole` is how long a body may take in all.
    fn persist<T>(
        &self,
        request: &Request,
        whole: Option<Duration>,
        read: impl Fn(&Request, http::Response<ureq::Body>) -> Result<T, ureq::Error>,
    ) -> Result<T> {
        let mut pause = Pause::new();
        loop {
            self.clock.check()?;
            let sent = request.at(self.clock.now())?;
            let verdict = match self.follow(&sent, whole)? {
                Ok(response) => {
                    match retry::judge(response.status().as_u16(), response.headers(), request, &*self.clock) {
                        Verdict::Counts => match read(&sent, response) {
                            Ok(read) => return Ok(read),
                            Err(error) => Verdict::of_broken(&error, request),
                        },
                        // Patience has an end, and then the last answer is the one to show.
                        verdict if pause.is_spent(&verdict) => {
                            return read(&sent, response)
                                .with_context(|| format!("reading the answer to {}", request.shown()));
                        }
                        verdict => verdict,
                    }
                }
                Err(error) => Verdict::of_failed(&error, request),
            };
            self.clock.check()?;
            match verdict {
                Verdict::Counts => {}
                Verdict::Lost(why) => {
                    return Err(anyhow::Error::new(Lost { what: request.shown() }).context(why));
                }
                Verdict::Final(why) => bail!("{}: {why}", request.shown()),
                again => {
                    if pause.is_spent(&again) {
                        bail!("{}: {} (tried {} times)", request.shown(), again.why(), pause.tried());
                    }
                    let time = pause.next(&again);
                    // In a pipe nobody waits for it.
                    if std::io::stderr().is_terminal() {
                        let (what, why, seconds) = (request.shown(), again.why(), time.as_secs());
                        eprintln!("{}", harmless(&format!("{what}: {why}; trying again in {seconds} s")));
                    }
                    tracing::debug!(call = %request.shown(), why = %again.why(), seconds = time.as_secs(), "trying again");
                    self.clock.sleep(time)?;
                }
            }
        }
    }

    /// One exchange, and those that it leads to: what is only read may be elsewhere. What is secret stays with the
    /// first, and the outer error is nothing that another try mends.
    fn follow(
        &self,
        request: &Request,
        whole: Option<Duration>,
    ) -> Result<Result<http::Response<ureq::Body>, ureq::Error>> {
        let mut place = None;
        for _ in 0..=REDIRECTS {
            let response = match self.once(place.as_ref().unwrap_or(request), whole)? {
                Ok(response) => response,
                failed => return Ok(failed),
            };
            match place.as_ref().unwrap_or(request).led_on(response.status(), response.headers())? {
                Some(next) => place = Some(next),
                None => return Ok(Ok(response)),
            }
        }
        bail!("{} leads from place to place, more than {REDIRECTS} times", request.shown())
    }

    /// One exchange; the outer error is a fault of the request itself.
    fn once(
        &self,
        request: &Request,
        whole: Option<Duration>,
    ) -> Result<Result<http::Response<ureq::Body>, ureq::Error>> {
        let head = request.head()?;
        let reads = request.is_read();
        Ok(match request.body() {
            // A PUT or POST of nothing still says that its length is zero.
            Body::None if matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH) => {
                self.run(head.body(&b""[..]), reads, whole)?
            }
            Body::None => self.run(head.body(ureq::SendBody::none()), reads, whole)?,
            Body::Bytes(bytes) => self.run(head.body(&bytes[..]), reads, whole)?,
            Body::File(part) => {
                let mut reader = retry::Watched::new(part.open()?, self.clock.clone());
                self.run(head.body(ureq::SendBody::from_reader(&mut reader)), reads, whole)?
            }
        })
    }

    fn run<S: ureq::AsSendBody>(
        &self,
        request: http::Result<http::Request<S>>,
        reads: bool,
        whole: Option<Duration>,
    ) -> Result<Result<http::Response<ureq::Body>, ureq::Error>> {
        // The time of a read is that of the thinking before an answer, too.
        let think = if reads { self.stall } else { ANSWER_LIMIT };
        let request = self
            .agent
            .configure_request(request.context("making a request")?)
            .timeout_recv_response(Some(think))
            .timeout_per_read(Some(think))
            .timeout_per_write(Some(self.stall))
            .timeout_recv_body(whole)
            .build();
        // What a call makes is named in its answer, which is waited for.
        Ok(watch::by(reads.then_some(&self.clock), || self.agent.run(request)))
    }

    /// Asks every `every` until there is a result, for at most `limit`; after a while more rarely, as providers count
    /// the questions: what takes ten minutes is seen within one.
    ///
    /// # Errors
    /// Those of `ask`, and that time is over, with `what` as what was waited for.
    pub fn poll<T>(
        &self,
        what: &str,
        every: Duration,
        limit: Duration,
        mut ask: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let start = self.clock.now();
        loop {
            if let Some(found) = ask()? {
                return Ok(found);
            }
            if self.dry.is_some() {
                bail!("the dry run does not know how {what} ends");
            }
            // Negative where the clock was set back: then it is waited that much longer.
            let waited = Duration::try_from(self.clock.now().duration_since(start)).unwrap_or(Duration::ZERO);
            if waited >= limit {
                bail!("{what}: not done after {} minutes", limit.as_secs() / 60);
            }
            self.clock.sleep(every.max(waited / 10).min(limit - waited))?;
        }
    }
}

/// Finds hosts as this machine does.
#[derive(Debug, Default)]
pub struct Hosts(DefaultResolver);

impl Resolver for Hosts {
    fn resolve(
        &self,
        uri: &http::Uri,
        config: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        self.0.resolve(uri, config, timeout).map_err(|error| match error {
            // Of a connection it would be another matter: nothing has been sent yet.
            ureq::Error::Io(error) => Unresolved::of(uri.host().unwrap_or_default(), &error),
            other => other,
        })
    }
}

/// Finds every host at one place.
#[derive(Debug)]
struct At(String);

impl Resolver for At {
    fn resolve(
        &self,
        _: &http::Uri,
        _: &ureq::config::Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let mut found = self.empty();
        let known = self.0.to_socket_addrs().map_err(|error| Unresolved::of(&self.0, &error))?;
        // An address more than ureq has room for is one too many.
        known.take(4).for_each(|address| found.push(address));
        if found.is_empty() { Err(ureq::Error::HostNotFound) } else { Ok(found) }
    }
}

/// A host whose address could not be found out.
#[derive(Debug, thiserror::Error)]
#[error("{said}")]
pub struct Unresolved {
    said: String,
    /// Whether another try may end otherwise: the name server did not answer, and did not say no.
    pub again: bool,
}

impl Unresolved {
    fn of(host: &str, error: &std::io::Error) -> ureq::Error {
        let text = error.to_string();
        let why = text.rsplit(": ").next().unwrap_or(&text);
        // glibc's words and musl's: the library does not hand on its number.
        let again = ["Temporary failure", "Try again"].iter().any(|temporary| why.starts_with(temporary));
        let advice = if again { "check" } else { "correct the name, or check" };
        let said = format!("no address of {host} is known ({why}); {advice} this machine's network and DNS");
        ureq::Error::Other(Box::new(Unresolved { said, again }))
    }

    /// Where an exchange failed because of it.
    pub fn in_error(error: &ureq::Error) -> Option<&Unresolved> {
        if let ureq::Error::Other(inner) = error { inner.downcast_ref() } else { None }
    }
}
