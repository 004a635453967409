//! Asking a metadata server: one base URL and the headers that each request has.

use super::platform::{Answer, Method, Platform, Request, SourceError};
use serde::de::DeserializeOwned;

/// A server at one base URL (without a slash at its end).
pub(super) struct Service<'a> {
    platform: &'a dyn Platform,
    base: String,
    headers: Vec<(&'static str, String)>,
    low_port: bool,
}

impl<'a> Service<'a> {
    pub(super) fn new(platform: &'a dyn Platform, base: &str) -> Service<'a> {
        Service { platform, base: base.to_owned(), headers: Vec::new(), low_port: false }
    }

    /// The first of the addresses of a server at which somebody is.
    pub(super) fn first<T>(
        platform: &'a dyn Platform,
        bases: &[&str],
        open: impl Fn(Service<'a>) -> Result<T, SourceError>,
    ) -> Result<T, SourceError> {
        let mut absent = Vec::new();
        for base in bases {
            match open(Service::new(platform, base)) {
                Err(SourceError::Absent(why)) => absent.push(why),
                outcome => return outcome,
            }
        }
        Err(SourceError::Absent(absent.join("; ")))
    }

    pub(super) fn with_header(mut self, name: &'static str, value: &str) -> Service<'a> {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub(super) fn with_low_port(mut self) -> Service<'a> {
        self.low_port = true;
        self
    }

    /// The body, `None` when there is no such thing.
    pub(super) fn get(&self, path: &str) -> Result<Option<Vec<u8>>, SourceError> {
        let answer = self.send(Method::Get, path, &[])?;
        match answer.status {
            200 => Ok(Some(answer.body)),
            204 | 404 => Ok(None),
            status => Err(SourceError::Refused { url: self.url(path), status }),
        }
    }

    /// One line of text; an empty one is none.
    pub(super) fn text(&self, path: &str) -> Result<Option<String>, SourceError> {
        let Some(body) = self.get(path)? else { return Ok(None) };
        let text = self.utf8(path, body)?.trim().to_owned();
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    /// A JSON document.
    pub(super) fn json<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, SourceError> {
        let Some(body) = self.get(path)? else { return Ok(None) };
        serde_json::from_slice(&body).map(Some).map_err(|error| self.wrong(path, &error))
    }

    /// The JSON document without which there is no metadata at all: a server without it is another one.
    pub(super) fn root_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, SourceError> {
        self.json(path)?.ok_or_else(|| self.no_such(path))
    }

    /// The line without which there is no metadata at all.
    pub(super) fn root_text(&self, path: &str) -> Result<String, SourceError> {
        self.text(path)?.ok_or_else(|| self.no_such(path))
    }

    pub(super) fn yaml<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, SourceError> {
        let Some(body) = self.get(path)? else { return Ok(None) };
        let text = self.utf8(path, body)?;
        if text.trim().is_empty() {
            return Ok(None);
        }
        serde_yaml_ng::from_str(&text).map(Some).map_err(|error| self.wrong(path, &error))
    }

    /// One request with a header of its own: tokens are asked for so.
    pub(super) fn send_with(
        &self,
        method: Method,
        path: &str,
        header: (&'static str, &str),
    ) -> Result<Answer, SourceError> {
        let mut headers = self.headers.clone();
        headers.push((header.0, header.1.to_owned()));
        self.platform.send(&Request { method, url: self.url(path), headers, body: Vec::new(), low_port: self.low_port })
    }

    pub(super) fn send(&self, method: Method, path: &str, body: &[u8]) -> Result<Answer, SourceError> {
        let (url, headers) = (self.url(path), self.headers.clone());
        self.platform.send(&Request { method, url, headers, body: body.to_vec(), low_port: self.low_port })
    }

    /// What the server says to `path` is of no use.
    pub(super) fn wrong(&self, path: &str, why: &dyn std::fmt::Display) -> SourceError {
        SourceError::Unusable(format!("{} is unreadable: {why}", self.url(path)))
    }

    fn no_such(&self, path: &str) -> SourceError {
        SourceError::Absent(format!("the metadata server has no {}", self.url(path)))
    }

    fn utf8(&self, path: &str, body: Vec<u8>) -> Result<String, SourceError> {
        String::from_utf8(body).map_err(|_| self.wrong(path, &"it is not UTF-8"))
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }
}

/// The network that a source describes is wrong.
pub(super) fn network_error(error: crate::network_config::NetworkConfigError) -> SourceError {
    SourceError::Unusable(error.to_string())
}
