//! A client of the OCI distribution API: manifests, and blobs that are mounted, resumed and checked.

pub mod auth;
pub mod credentials;
mod upload;

#[cfg(test)]
mod tests;

pub use upload::Placed;

use super::model::{DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, INDEX, MANIFEST};
use super::reference::Reference;
use crate::cache::download::Store;
use crate::input;
use crate::web::{Answer, Client, Request, trust};
use anyhow::{Context, Result, bail};
use auth::Challenge;
use credentials::Credentials;
use indicatif::ProgressBar;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

/// A manifest of more bytes than this need not be taken (distribution specification).
const MANIFEST_LIMIT: usize = 4 << 20;

/// A registry.
#[derive(Debug)]
pub struct Registry {
    client: Client,
    authority: String,
    base: String,
    credentials: Option<Credentials>,
    /// Size of a chunk, bytes.
    chunk: u64,
    /// What the registry asked for last.
    challenge: Mutex<Option<Challenge>>,
    /// Answers to challenges, by what they are good for.
    passes: Mutex<BTreeMap<Vec<String>, String>>,
}

/// What is to be done, in the words of token servers.
#[derive(Debug, Clone)]
pub struct Scope(Vec<String>);

impl Scope {
    /// Reading.
    pub fn pull(repository: &str) -> Scope {
        Scope(vec![format!("repository:{repository}:pull")])
    }

    /// Reading what there is.
    pub fn catalog() -> Scope {
        Scope(vec!["registry:catalog:*".to_string()])
    }

    /// Writing.
    pub fn push(repository: &str) -> Scope {
        Scope(vec![format!("repository:{repository}:pull,push")])
    }

    /// Writing, and reading what another repository of the registry has.
    pub fn mount(repository: &str, from: &str) -> Scope {
        Scope(vec![format!("repository:{repository}:pull,push"), format!("repository:{from}:pull")])
    }
}

/// What a thread that panicked left is whole all the same: each change is one assignment.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

pub(super) fn no_credentials(authority: &str) -> String {
    format!(
        "{authority} wants to know who you are; set {}, {} and {}, or log in with `docker login`, `skopeo login` or `oras login`",
        credentials::REGISTRY,
        credentials::USERNAME,
        credentials::PASSWORD
    )
}

impl Registry {
    /// The registry of `authority` (`host[:port]`), over TLS unless `plain_http`.
    pub fn new(client: &Client, authority: &str, credentials: Option<Credentials>, plain_http: bool) -> Registry {
        let scheme = if plain_http { "http" } else { "https" };
        // Docker's registry has another name than its images.
        let host = if authority == "docker.io" { "registry-1.docker.io" } else { authority };
        Registry {
            client: client.clone(),
            authority: authority.into(),
            base: format!("{scheme}://{host}"),
            credentials,
            chunk: upload::CHUNK,
            challenge: Mutex::new(None),
            passes: Mutex::new(BTreeMap::new()),
        }
    }

    /// The same registry with chunks of another size.
    #[cfg(test)]
    fn with_chunks_of(mut self, size: u64) -> Registry {
        self.chunk = size;
        self
    }

    fn url(&self, path: &str) -> String {
        format!("{}/v2/{path}", self.base)
    }

    /// The pass for a scope, if the registry has asked for one.
    fn pass(&self, scope: &Scope) -> Result<Option<String>> {
        let Some(challenge) = held(&self.challenge).clone() else { return Ok(None) };
        if let Some(pass) = held(&self.passes).get(&scope.0) {
            return Ok(Some(pass.clone()));
        }
        let pass = auth::answer(&self.client, &self.authority, &challenge, &scope.0, self.credentials.as_ref())?;
        held(&self.passes).insert(scope.0.clone(), pass.clone());
        Ok(Some(pass))
    }

    /// The request with its pass; it goes to the registry itself only, never to where that points.
    fn with_pass(&self, scope: &Scope, request: Request) -> Result<Request> {
        if !request.url().starts_with(&format!("{}/", self.base)) {
            return Ok(request);
        }
        Ok(match self.pass(scope)? {
            Some(pass) => request.secret("authorization", pass),
            None => request,
        })
    }

    /// Takes note of a 401. True where the request is worth another try.
    fn learn(&self, scope: &Scope, answer: &Answer) -> Result<bool> {
        if answer.status != 401 {
            return Ok(false);
        }
        let challenges = answer.headers.get_all("www-authenticate").iter().filter_map(|h| h.to_str().ok());
        let Some(challenge) = challenges.filter_map(Challenge::parse).next() else { return Ok(false) };
        // Who sits between could name a token server of his own.
        if (challenge == Challenge::Basic || self.credentials.is_some()) && !trust::is_safe(&self.base) {
            bail!("{} asks for a password without TLS; kimg shows it none", self.authority);
        }
        *held(&self.challenge) = Some(challenge);
        // An old pass has run out.
        held(&self.passes).remove(&scope.0);
        Ok(true)
    }

    /// Sends a request, with the pass that the registry asks for.
    fn send(&self, scope: &Scope, request: Request) -> Result<Answer> {
        let answer = self.client.send(&self.with_pass(scope, request.clone())?)?;
        if self.learn(scope, &answer)? {
            return self.client.send(&self.with_pass(scope, request)?);
        }
        if answer.status == 401 && self.credentials.is_none() {
            return Err(anyhow::Error::new(answer.refused()).context(no_credentials(&self.authority)));
        }
        Ok(answer)
    }

    /// Opens a blob's bytes, with the pass that the registry asks for.
    fn open(&self, scope: &Scope, request: Request) -> Result<(Answer, Box<dyn std::io::Read>)> {
        let (answer, body) = self.client.open(&self.with_pass(scope, request.clone())?)?;
        if self.learn(scope, &answer)? {
            return self.client.open(&self.with_pass(scope, request)?);
        }
        Ok((answer, body))
    }

    /// Fetches the manifest or index that a name stands for; its sum is that of its bytes.
    ///
    /// # Errors
    /// It is not there, or is not what its digest says.
    pub fn manifest(&self, name: &Reference, target: &str) -> Result<(Descriptor, Vec<u8>)> {
        let url = self.url(&format!("{}/manifests/{target}", name.repository));
        let accept = [MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_INDEX].join(", ");
        let answer = self.send(&Scope::pull(&name.repository), Request::get(url).header("accept", accept))?;
        if answer.status == 404 {
            bail!("{} has no {target}", name.place());
        }
        let answer = answer.expect(&[200])?;
        let kind = answer.header("content-type").unwrap_or_default().split(';').next().unwrap_or_default().trim();
        let descriptor = Descriptor::of(kind, &answer.body);
        if !descriptor.is_manifest() && !descriptor.is_index() {
            bail!("{name} is of the type '{kind}', and kimg reads OCI's manifests and Docker's of version 2");
        }
        let said = if target.starts_with("sha256:") { Some(target) } else { answer.header("docker-content-digest") };
        if let Some(digest) = said.filter(|d| d.starts_with("sha256:") && **d != descriptor.digest) {
            bail!(
                "{} gave {} for {digest}; it or a proxy on the way changes what it holds",
                self.authority,
                descriptor.digest
            );
        }
        Ok((descriptor, answer.body))
    }

    /// The digest that a name stands for, if there is such a name.
    ///
    /// # Errors
    /// The registry cannot be asked.
    pub fn resolve(&self, name: &Reference, target: &str) -> Result<Option<String>> {
        let url = self.url(&format!("{}/manifests/{target}", name.repository));
        let accept = [MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_INDEX].join(", ");
        let request = Request::new(http::Method::HEAD, url).header("accept", accept);
        let answer = self.send(&Scope::pull(&name.repository), request)?;
        if answer.status == 404 {
            return Ok(None);
        }
        let answer = answer.expect(&[200])?;
        Ok(Some(answer.header("docker-content-digest").context("the registry names no digest")?.to_string()))
    }

    /// All names, without the registry's own: `REPOSITORY:TAG`.
    ///
    /// # Errors
    /// The registry cannot be asked, or does not tell.
    pub fn names(&self) -> Result<Vec<String>> {
        #[derive(serde::Deserialize)]
        struct Catalog {
            repositories: Vec<String>,
        }
        #[derive(serde::Deserialize)]
        struct Tags {
            tags: Vec<String>,
        }
        let catalog = self.send(&Scope::catalog(), Request::get(self.url("_catalog")))?.expect(&[200])?.json()?;
        let mut names = Vec::new();
        for repository in serde_json::from_value::<Catalog>(catalog).context("reading the catalog")?.repositories {
            let url = self.url(&format!("{repository}/tags/list"));
            let list = self.send(&Scope::pull(&repository), Request::get(url))?.expect(&[200])?.json()?;
            let tags = serde_json::from_value::<Tags>(list).context("reading a list of tags")?.tags;
            names.extend(tags.into_iter().map(|tag| format!("{repository}:{tag}")));
        }
        Ok(names)
    }

    /// Removes a name.
    ///
    /// # Errors
    /// It is not there, or the registry keeps it.
    pub fn remove(&self, name: &Reference) -> Result<()> {
        let url = self.url(&format!("{}/manifests/{}", name.repository, name.target()));
        let answer = self.send(&Scope::push(&name.repository), Request::delete(url))?;
        if answer.status == 404 {
            return input::bad(format!("{} has no {}", name.place(), name.target()));
        }
        answer.expect(&[202]).map(|_| ())
    }

    /// Fetches a blob into the store, resumed and checked.
    ///
    /// # Errors
    /// It cannot be had, or its sum is another.
    pub fn fetch(
        &self,
        name: &Reference,
        descriptor: &Descriptor,
        store: &Store,
        bar: &ProgressBar,
    ) -> Result<PathBuf> {
        let url = self.url(&format!("{}/blobs/{}", name.repository, descriptor.digest));
        let scope = Scope::pull(&name.repository);
        store.fetch_by(&url, descriptor.sha256()?, descriptor.size, bar, &|from| {
            let mut request = Request::get(&url);
            if from > 0 {
                request = request.header("range", format!("bytes={from}-"));
            }
            let (answer, body) = self.open(&scope, request)?;
            Ok((answer.status, body))
        })
    }

    /// Puts a manifest whose blobs are there, and looks whether the registry has it as it is.
    ///
    /// # Errors
    /// The registry refuses it, or holds something else afterwards.
    pub fn put_manifest(&self, name: &Reference, target: &str, descriptor: &Descriptor, bytes: Vec<u8>) -> Result<()> {
        if bytes.len() > MANIFEST_LIMIT {
            bail!("the manifest has {} bytes; registries need not take more than {MANIFEST_LIMIT}", bytes.len());
        }
        let url = self.url(&format!("{}/manifests/{target}", name.repository));
        let scope = Scope::push(&name.repository);
        self.send(&scope, Request::put(&url).bytes(&descriptor.media_type, bytes))?.expect(&[201])?;
        match self.resolve(name, target)? {
            Some(digest) if digest == descriptor.digest => Ok(()),
            held => bail!(
                "{} was pushed to {} as {target}, which now is {}; somebody else pushes the same name, or the registry changes manifests",
                descriptor.digest,
                name.place(),
                held.as_deref().unwrap_or("nothing")
            ),
        }
    }
}
