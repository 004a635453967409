//! How a blob gets to a registry: not at all when it is there, mounted from another repository, in one piece, or
//! in chunks that go on where a broken one ended.

use super::{Registry, Scope};
use crate::oci::content::Blob;
use crate::oci::model::Descriptor;
use crate::oci::reference::Reference;
use crate::web::{Answer, Lost, Request, escape};
use anyhow::{Context, Result, bail};
use http::Method;
use indicatif::ProgressBar;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// Registries' proxies refuse larger requests; a broken connection costs at most this much.
pub(super) const CHUNK: u64 = 16 << 20;
/// A registry that wants chunks of more than this gets smaller ones: they are held in memory.
const LARGEST_CHUNK: u64 = 256 << 20;
/// How often an upload may break without getting further.
const BREAKS: u32 = 5;

/// What became of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    /// It was there.
    There,
    /// Taken over from another repository of the registry.
    Mounted,
    /// Sent.
    Sent,
}

/// An upload at the registry.
struct Session {
    location: String,
    chunk: u64,
}

impl Registry {
    /// Makes sure that the repository has the blob. `from` are repositories of the same registry that may have it.
    ///
    /// # Errors
    /// The registry refuses it, or the connection fails again and again.
    pub fn put_blob(
        &self,
        name: &Reference,
        descriptor: &Descriptor,
        blob: &Blob,
        from: &[String],
        bar: &ProgressBar,
    ) -> Result<Placed> {
        let scope = Scope::push(&name.repository);
        if self.has(&scope, name, descriptor)? {
            bar.inc(descriptor.size);
            return Ok(Placed::There);
        }
        for repository in from.iter().filter(|r| **r != name.repository) {
            if self.mount(name, descriptor, repository) {
                bar.inc(descriptor.size);
                return Ok(Placed::Mounted);
            }
            self.client.clock().check()?;
        }
        let begin = bar.position();
        let mut breaks = 0;
        loop {
            bar.set_position(begin);
            let mut session = self.session(&self.start(&scope, name, "")?.expect(&[202])?)?;
            let sent = if descriptor.size <= session.chunk {
                self.in_one(&scope, &session, descriptor, blob, bar)
            } else {
                self.in_chunks(&scope, &mut session, descriptor, blob, bar)
            };
            match sent {
                Ok(true) => return Ok(Placed::Sent),
                Ok(false) => self.cancel(&scope, &session),
                Err(error) => {
                    self.cancel(&scope, &session);
                    return Err(error);
                }
            }
            if self.has(&scope, name, descriptor)? {
                return Ok(Placed::Sent);
            }
            breaks += 1;
            if breaks == BREAKS {
                bail!("sending {} to {} broke off {BREAKS} times", descriptor.digest, name.place());
            }
            self.client.clock().sleep(Duration::from_secs(1 << breaks))?;
        }
    }

    fn has(&self, scope: &Scope, name: &Reference, descriptor: &Descriptor) -> Result<bool> {
        let url = self.url(&format!("{}/blobs/{}", name.repository, descriptor.digest));
        let answer = self.send(scope, Request::new(Method::HEAD, url))?;
        match answer.status {
            200 => Ok(true),
            404 => Ok(false),
            _ => Err(answer.refused().into()),
        }
    }

    /// Whether the blob was taken over from `from`. That only saves time: where it fails, the blob is sent.
    fn mount(&self, name: &Reference, descriptor: &Descriptor, from: &str) -> bool {
        let scope = Scope::mount(&name.repository, from);
        let query = format!("?mount={}&from={}", escape(&descriptor.digest, true), escape(from, false));
        let answer = self.start(&scope, name, &query).and_then(|answer| answer.expect(&[201, 202]));
        match answer {
            Ok(answer) if answer.status == 201 => return true,
            // The registry has it not, or may not tell, and has begun an upload instead.
            Ok(answer) => {
                if let Ok(session) = self.session(&answer) {
                    self.cancel(&scope, &session);
                }
            }
            Err(error) => tracing::debug!(%error, from, "nothing was mounted"),
        }
        false
    }

    /// Twice begun is no harm: registries forget uploads that do not go on.
    fn start(&self, scope: &Scope, name: &Reference, query: &str) -> Result<Answer> {
        let url = self.url(&format!("{}/blobs/uploads/{query}", name.repository));
        self.send(scope, Request::post(url).repeatable(true))
    }

    fn session(&self, answer: &Answer) -> Result<Session> {
        let location = answer.place().context("the registry does not say where to upload to")?.to_string();
        if self.base.starts_with("https://") && !location.starts_with("https://") {
            bail!("{} names a place without TLS for the upload", self.base);
        }
        let least = answer.header("oci-chunk-min-length").and_then(|l| l.parse().ok()).unwrap_or(0);
        Ok(Session { location, chunk: self.chunk.max(least.min(LARGEST_CHUNK)) })
    }

    /// Gives up an upload. What a registry does not hear of, it forgets by itself.
    fn cancel(&self, scope: &Scope, session: &Session) {
        // An interrupt does not stop this, and is often why it is done.
        let request = self.with_pass(scope, Request::delete(&session.location).hiding(true, false));
        if let Err(error) = request.and_then(|request| self.client.for_cleanup().send(&request)) {
            tracing::debug!(%error, "an upload was not cancelled");
        }
    }

    fn last(session: &Session, descriptor: &Descriptor) -> Request {
        let mark = if session.location.contains('?') { '&' } else { '?' };
        let url = format!("{}{mark}digest={}", session.location, escape(&descriptor.digest, true));
        Request::put(url).hiding(true, false).repeatable(false)
    }

    /// False when it broke off.
    fn in_one(
        &self,
        scope: &Scope,
        session: &Session,
        descriptor: &Descriptor,
        blob: &Blob,
        bar: &ProgressBar,
    ) -> Result<bool> {
        let request = Self::last(session, descriptor);
        let answer = self.send(scope, part(request, blob, 0, descriptor.size)?);
        let Some(answer) = unless_broken(answer)? else { return Ok(false) };
        answer.expect(&[201])?;
        bar.inc(descriptor.size);
        Ok(true)
    }

    /// False when it has to begin anew.
    fn in_chunks(
        &self,
        scope: &Scope,
        session: &mut Session,
        descriptor: &Descriptor,
        blob: &Blob,
        bar: &ProgressBar,
    ) -> Result<bool> {
        let begin = bar.position();
        let (mut at, mut furthest, mut breaks) = (0, 0, 0);
        while at < descriptor.size {
            // Until it gets further than it ever was.
            breaks += 1;
            if breaks > BREAKS {
                return Ok(false);
            }
            let length = session.chunk.min(descriptor.size - at);
            let request = Request::new(Method::PATCH, &session.location)
                .hiding(true, false)
                .header("content-range", format!("{at}-{}", at + length - 1));
            let answer = unless_broken(self.send(scope, part(request, blob, at, length)?))?;
            let answer = match answer {
                Some(answer) if answer.status == 416 => None,
                Some(answer) => Some(answer.expect(&[202])?),
                None => None,
            };
            let have = match &answer {
                Some(answer) => received(answer).unwrap_or(at + length),
                None => {
                    self.client.clock().sleep(Duration::from_secs(breaks.into()))?;
                    let request = Request::get(&session.location).hiding(true, false);
                    let state = self.send(scope, request)?;
                    if state.status != 204 {
                        return Ok(false);
                    }
                    let have = received(&state).unwrap_or(0);
                    if state.header("location").is_some() {
                        session.location = self.session(&state)?.location;
                    }
                    have
                }
            };
            if let Some(answer) = &answer {
                session.location = self.session(answer)?.location;
            }
            if have > descriptor.size {
                bail!("the registry says that it has {have} of {} bytes", descriptor.size);
            }
            if have > furthest {
                (furthest, breaks) = (have, 0);
            }
            at = have;
            bar.set_position(begin + at);
        }
        let answer = self.send(scope, Self::last(session, descriptor));
        let Some(answer) = unless_broken(answer)? else { return Ok(false) };
        answer.expect(&[201])?;
        Ok(true)
    }
}

/// The answer, or none where the connection broke or the server stumbled.
fn unless_broken(answer: Result<Answer>) -> Result<Option<Answer>> {
    match answer {
        Ok(answer) if answer.status >= 500 => Ok(None),
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.chain().any(|e| e.is::<Lost>()) => Ok(None),
        Err(error) => Err(error),
    }
}

/// How many bytes the registry has, by `Range: 0-LAST`. It says `0-0` when it has none.
fn received(answer: &Answer) -> Option<u64> {
    let last: u64 = answer.header("range")?.trim_start_matches("bytes=").strip_prefix("0-")?.parse().ok()?;
    Some(if last == 0 { 0 } else { last.saturating_add(1) })
}

fn part(request: Request, blob: &Blob, at: u64, length: u64) -> Result<Request> {
    const KIND: &str = "application/octet-stream";
    Ok(match blob {
        Blob::Bytes(bytes) => {
            let (from, to) = (usize::try_from(at)?, usize::try_from(at + length)?);
            request.bytes(KIND, bytes.get(from..to).context("a blob is shorter than it was")?)
        }
        // In memory, so that a chunk is what it was when it was looked at, however often it is sent.
        Blob::Nameless(file, _) => {
            let mut bytes = vec![0; usize::try_from(length)?];
            file.read_exact_at(&mut bytes, at).context("reading a layer back")?;
            request.bytes(KIND, bytes)
        }
        Blob::File { path, offset, .. } => {
            let mut file = std::fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
            file.seek(SeekFrom::Start(offset + at)).with_context(|| format!("reading {}", path.display()))?;
            let mut bytes = vec![0; usize::try_from(length)?];
            file.read_exact(&mut bytes).with_context(|| format!("reading {}", path.display()))?;
            request.bytes(KIND, bytes)
        }
    })
}
