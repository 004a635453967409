//! Requests for typed objects, with errors that say which object they were about.

use std::fmt;
use std::path::Path;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::Request;
use kube::core::params::{DeleteParams, GetParams, ListParams, Patch, PatchParams, PostParams};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::connect;

/// What the typed objects of the API have in common.
pub trait Object:
    kube::Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned + Serialize + Send + Sync + 'static
{
}

impl<K> Object for K where
    K: kube::Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned + Serialize + Send + Sync + 'static
{
}

/// A request that did not succeed: what was asked for, and the answer.
#[derive(Debug)]
pub struct Failure {
    what: String,
    source: Box<kube::Error>,
}

impl Failure {
    fn of(what: String) -> impl FnOnce(kube::Error) -> Self {
        move |source| Self { what, source: Box::new(source) }
    }

    /// HTTP code of the answer, 0 where there was none.
    pub fn code(&self) -> u16 {
        match &*self.source {
            kube::Error::Api(status) => status.code,
            _ => 0,
        }
    }

    pub fn reason(&self) -> &str {
        match &*self.source {
            kube::Error::Api(status) => &status.reason,
            _ => "",
        }
    }

    /// The server's own message, without what was asked.
    pub fn message(&self) -> String {
        match &*self.source {
            kube::Error::Api(status) => status.message.clone(),
            other => other.to_string(),
        }
    }

    pub fn is_not_found(&self) -> bool {
        self.code() == 404
    }

    pub fn is_conflict(&self) -> bool {
        self.code() == 409 && !self.already_exists()
    }

    pub fn already_exists(&self) -> bool {
        self.reason() == "AlreadyExists"
    }

    /// The namespace is being deleted: creating in it will never succeed.
    pub fn namespace_ends(&self) -> bool {
        match &*self.source {
            kube::Error::Api(status) => {
                status.code == 403
                    && (status.message.contains("because it is being terminated")
                        || status
                            .details
                            .as_ref()
                            .is_some_and(|d| d.causes.iter().any(|c| c.reason == "NamespaceTerminating")))
            }
            _ => false,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.message())
    }
}

impl std::error::Error for Failure {}

/// The API server, asked for typed objects.
#[derive(Clone)]
pub struct Client {
    kube: kube::Client,
    manager: &'static str,
}

fn name_of<K: Object>(object: &K) -> &str {
    object.meta().name.as_deref().unwrap_or_default()
}

fn full_name(meta: &ObjectMeta) -> String {
    let name = meta.name.as_deref().or(meta.generate_name.as_deref()).unwrap_or_default();
    match &meta.namespace {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

fn path<K: Object>(namespace: Option<&str>) -> Request {
    Request::new(K::url_path(&(), namespace.filter(|n| !n.is_empty())))
}

impl Client {
    pub fn new(kube: kube::Client, manager: &'static str) -> Self {
        Self { kube, manager }
    }

    /// The client of the program `name`, as the kubeconfig says; connects at the first request.
    ///
    /// # Errors
    /// The kubeconfig, or a file that it names, cannot be read.
    pub fn connect(kubeconfig: &Path, name: &'static str) -> anyhow::Result<Self> {
        let agent = format!("{name}/v{}", env!("CARGO_PKG_VERSION"));
        Ok(Self::new(connect::client(kubeconfig, &agent)?, name))
    }

    /// For what the typed calls here do not cover.
    pub fn raw(&self) -> &kube::Client {
        &self.kube
    }

    fn post(&self) -> PostParams {
        PostParams { dry_run: false, field_manager: Some(self.manager.to_owned()) }
    }

    async fn send<T: DeserializeOwned>(
        &self,
        what: String,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<T, Failure> {
        let result = match request {
            Ok(request) => self.kube.request::<T>(request).await,
            Err(error) => Err(kube::Error::BuildRequest(error)),
        };
        result.map_err(Failure::of(what))
    }

    pub async fn get<K: Object>(&self, namespace: Option<&str>, name: &str) -> Result<K, Failure> {
        let what = format!("getting {} {}/{name}", K::kind(&()), namespace.unwrap_or_default());
        self.send(what, path::<K>(namespace).get(name, &GetParams::default())).await
    }

    pub async fn list<K: Object>(&self, namespace: Option<&str>, params: &ListParams) -> Result<Vec<K>, Failure> {
        let what = format!("listing {}", K::plural(&()));
        let list: crate::watch::Page<K> = self.send(what, path::<K>(namespace).list(params)).await?;
        Ok(list.items)
    }

    pub async fn create<K: Object>(&self, object: &K) -> Result<K, Failure> {
        let what = format!("creating {} {}", K::kind(&()), full_name(object.meta()));
        let body = body(object).map_err(Failure::of(what.clone()))?;
        self.send(what, path::<K>(object.meta().namespace.as_deref()).create(&self.post(), body)).await
    }

    pub async fn replace<K: Object>(&self, object: &K) -> Result<K, Failure> {
        let what = format!("updating {} {}", K::kind(&()), full_name(object.meta()));
        let body = body(object).map_err(Failure::of(what.clone()))?;
        let request = path::<K>(object.meta().namespace.as_deref()).replace(name_of(object), &self.post(), body);
        self.send(what, request).await
    }

    /// Writes a sub-resource of the object with the object itself as its body.
    pub async fn replace_part<K: Object>(&self, part: &str, object: &K) -> Result<K, Failure> {
        let what = format!("updating {part} of {} {}", K::kind(&()), full_name(object.meta()));
        let body = body(object).map_err(Failure::of(what.clone()))?;
        let request = path::<K>(object.meta().namespace.as_deref()).replace_subresource(
            part,
            name_of(object),
            &self.post(),
            body,
        );
        self.send(what, request).await
    }

    /// Posts to a sub-resource, such as `binding`.
    pub async fn create_part<K: Object, B: Serialize, T: DeserializeOwned>(
        &self,
        part: &str,
        namespace: &str,
        name: &str,
        object: &B,
    ) -> Result<T, Failure> {
        let what = format!("creating {part} of {} {namespace}/{name}", K::kind(&()));
        let body = body(object).map_err(Failure::of(what.clone()))?;
        let request = path::<K>(Some(namespace)).create_subresource(part, name, &self.post(), body);
        self.send(what, request).await
    }

    /// A JSON merge patch on the object, or on one of its sub-resources.
    pub async fn merge<K: Object>(
        &self,
        part: Option<&str>,
        namespace: Option<&str>,
        name: &str,
        patch: &serde_json::Value,
    ) -> Result<K, Failure> {
        self.patch(part, namespace, name, &Patch::Merge(patch)).await
    }

    /// A strategic merge patch: lists with keys are merged by their keys.
    pub async fn strategic<K: Object>(
        &self,
        part: Option<&str>,
        namespace: Option<&str>,
        name: &str,
        patch: &serde_json::Value,
    ) -> Result<K, Failure> {
        self.patch(part, namespace, name, &Patch::Strategic(patch)).await
    }

    async fn patch<K: Object>(
        &self,
        part: Option<&str>,
        namespace: Option<&str>,
        name: &str,
        patch: &Patch<&serde_json::Value>,
    ) -> Result<K, Failure> {
        let what = format!(
            "patching {}{} {}/{name}",
            part.map(|p| format!("{p} of ")).unwrap_or_default(),
            K::kind(&()),
            namespace.unwrap_or_default()
        );
        let params = PatchParams { field_manager: Some(self.manager.to_owned()), ..PatchParams::default() };
        let path = path::<K>(namespace);
        let request = match part {
            None => path.patch(name, &params, patch),
            Some(part) => path.patch_subresource(part, name, &params, patch),
        };
        self.send(what, request).await
    }

    /// Deletes; answers with the object where it stays for a while (grace, finalizers).
    pub async fn delete<K: Object>(
        &self,
        namespace: Option<&str>,
        name: &str,
        params: &DeleteParams,
    ) -> Result<Option<K>, Failure> {
        let what = format!("deleting {} {}/{name}", K::kind(&()), namespace.unwrap_or_default());
        let request = path::<K>(namespace)
            .delete(name, params)
            .map_err(kube::Error::BuildRequest)
            .map_err(Failure::of(what.clone()))?;
        let answer = self.kube.request_status::<serde_json::Value>(request).await.map_err(Failure::of(what))?;
        let remains = answer.left().filter(|v| v["metadata"]["deletionTimestamp"].is_string());
        // An answer that is no object of this kind says nothing; the watch will.
        Ok(remains.and_then(|value| serde_json::from_value(value).ok()))
    }

    /// Any request, for kinds known only at run time.
    pub async fn json(
        &self,
        method: http::Method,
        path: &str,
        content_type: &str,
        body: Vec<u8>,
    ) -> Result<serde_json::Value, Failure> {
        let what = format!("{method} {path}");
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::CONTENT_TYPE, content_type)
            .header(http::header::ACCEPT, "application/json")
            .body(body)
            .map_err(|e| Failure { what: what.clone(), source: Box::new(kube::Error::HttpError(e)) })?;
        self.kube.request::<serde_json::Value>(request).await.map_err(Failure::of(what))
    }
}

fn body<B: Serialize>(object: &B) -> Result<Vec<u8>, kube::Error> {
    serde_json::to_vec(object).map_err(kube::Error::SerdeError)
}
