//! Client of the node API.

use super::{Answer, Https, tls};
use crate::input;
use crate::pki::{Authority, Secrets, issue, successor};
use anyhow::{Context, Result};
use http::{Method, StatusCode};
use node_api::ApiError;
use serde::de::DeserializeOwned;
use std::io::Read;

/// The node answered, and not with what was asked for.
#[derive(Debug, thiserror::Error)]
#[error("node {node}: {said}")]
pub struct Refused {
    status: StatusCode,
    node: String,
    said: String,
}

impl Refused {
    /// Whether the node is not in a state for it.
    pub fn is_conflict(&self) -> bool {
        self.status == StatusCode::CONFLICT
    }

    /// Whether what was asked for has surely not been done: the node did not begin with it.
    pub fn was_not_begun(&self) -> bool {
        self.status.is_client_error()
    }
}

/// One node's API.
#[derive(Debug, Clone)]
pub struct NodeClient {
    https: Https,
    node: String,
}

impl NodeClient {
    /// The API of `node` at `target` (`host:port`). A node that has not joined shows a certificate of its
    /// own: `fingerprint` is then what its console says.
    pub fn new(secrets: &Secrets, node: &str, target: String, fingerprint: Option<&str>) -> Result<NodeClient> {
        let ca = successor::bundle(secrets, Authority::Cluster)?;
        let client = issue::node_operator(secrets)?;
        let tls = tls::config(&ca, &client, fingerprint)?;
        Ok(NodeClient { https: Https::new(target, node.to_string(), tls), node: node.to_string() })
    }

    /// GET of a JSON answer.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let answer = self.asked(self.https.send(Method::GET, path, None).await)?;
        self.json(&answer)
    }

    /// POST with a JSON answer.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: Option<&serde_json::Value>) -> Result<T> {
        let answer = self.asked(self.https.send(Method::POST, path, body).await)?;
        self.json(&answer)
    }

    /// POST of bytes with a JSON answer.
    pub async fn post_bytes<T: DeserializeOwned>(&self, path: &str, body: Vec<u8>) -> Result<T> {
        let answer = self.asked(self.https.post_bytes(path, body.into()).await)?;
        self.json(&answer)
    }

    /// The same with what is read meanwhile.
    pub async fn post_all<T: DeserializeOwned>(&self, path: &str, from: impl Read + Send + 'static) -> Result<T> {
        let answer = self.asked(self.https.post_all(path, from).await)?;
        self.json(&answer)
    }

    /// GET of text or bytes, piece by piece. What the sink refuses is returned as the sink said it: the node has
    /// answered.
    pub async fn text(&self, path: &str, mut sink: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut refused = None;
        let take = |bytes: &[u8]| {
            sink(bytes).map_err(|error| {
                refused = Some(error);
                anyhow::anyhow!("what the node sends is not taken")
            })
        };
        let answer = self.https.stream(path, take).await;
        match refused {
            Some(error) => Err(error),
            None => self.asked(answer).map(|_| ()),
        }
    }

    fn json<T: DeserializeOwned>(&self, answer: &Answer) -> Result<T> {
        serde_json::from_slice(&answer.body)
            .with_context(|| format!("reading the answer of node {}; its image may be of another version", self.node))
    }

    fn asked(&self, answer: Result<Answer>) -> Result<Answer> {
        let answer = answer.map_err(|error| self.explain(error))?;
        if answer.status.is_success() {
            return Ok(answer);
        }
        let message = serde_json::from_slice::<ApiError>(&answer.body).map_or_else(
            |_| format!("{} {}", answer.status, String::from_utf8_lossy(&answer.body)),
            |error| error.error,
        );
        // What was asked for is not there, or not as it must be: the node says what there is.
        if [StatusCode::NOT_FOUND, StatusCode::BAD_REQUEST].contains(&answer.status) {
            return input::bad(format!("node {}: {message}", self.node));
        }
        Err(Refused { status: answer.status, node: self.node.clone(), said: message }.into())
    }

    fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let text = format!("{error:#}");
        if text.contains("invalid peer certificate") {
            return error.context(format!(
                "node {} shows a certificate that this cluster's CA did not sign; a node that has not joined does so: \
                 compare the fingerprint on its console and give it with --fingerprint",
                self.node
            ));
        }
        error.context(format!("the node API of {} does not answer", self.node))
    }
}
