//! What is sent, and what came back. Neither shows a secret when it is printed.

use crate::logs::line::harmless;
use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, Method, StatusCode};
use indicatif::ProgressBar;
use serde_json::Value;
use std::borrow::Cow;
use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;

/// A part of a file as a request's body, in a form where there is something around it; opened anew for each try.
#[derive(Debug, Clone)]
pub struct Part {
    path: PathBuf,
    offset: u64,
    length: u64,
    before: Vec<u8>,
    after: Vec<u8>,
    bar: ProgressBar,
}

impl Part {
    /// Opens it at its beginning; the bar counts from there again.
    pub(super) fn open(&self) -> Result<impl Read + 'static> {
        let mut file = File::open(&self.path).with_context(|| format!("opening {}", self.path.display()))?;
        file.seek(SeekFrom::Start(self.offset)).with_context(|| format!("reading {}", self.path.display()))?;
        self.bar.set_position(self.offset);
        let middle = self.bar.wrap_read(file.take(self.length));
        Ok(Cursor::new(self.before.clone()).chain(middle).chain(Cursor::new(self.after.clone())))
    }
}

/// A request's body.
#[derive(Debug, Clone)]
pub enum Body {
    /// None.
    None,
    /// From memory.
    Bytes(Vec<u8>),
    /// From a file.
    File(Part),
}

/// Signs a request as of a time.
type Sign = dyn Fn(Request, jiff::Timestamp) -> Result<Request> + Send + Sync;

/// What a dry run takes for the answer: status, headers, body.
type Would = (u16, Vec<(String, String)>, Vec<u8>);

/// A request.
#[derive(Clone)]
pub struct Request {
    method: Method,
    url: String,
    headers: Vec<(String, String)>,
    secrets: Vec<(String, String)>,
    body: Body,
    repeatable: bool,
    hide_query: bool,
    hide_body: bool,
    would: Option<Would>,
    sign: Option<Arc<Sign>>,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown())
    }
}

impl Request {
    /// A request that may be repeated unless it is a POST or a PATCH.
    pub fn new(method: Method, url: impl Into<String>) -> Request {
        let repeatable = method != Method::POST && method != Method::PATCH;
        Request {
            method,
            url: url.into(),
            headers: Vec::new(),
            secrets: Vec::new(),
            body: Body::None,
            repeatable,
            hide_query: false,
            hide_body: false,
            would: None,
            sign: None,
        }
    }

    /// Signs it for each try anew: a signature is good for minutes, and a server may want more patience.
    #[must_use]
    pub fn signed_by(
        mut self,
        sign: impl Fn(Request, jiff::Timestamp) -> Result<Request> + Send + Sync + 'static,
    ) -> Request {
        self.sign = Some(Arc::new(sign));
        self
    }

    /// As it is sent at this time.
    pub(super) fn at(&self, now: jiff::Timestamp) -> Result<Cow<'_, Request>> {
        Ok(match &self.sign {
            Some(sign) => Cow::Owned(sign(Request { sign: None, ..self.clone() }, now)?),
            None => Cow::Borrowed(self),
        })
    }

    /// GET.
    pub fn get(url: impl Into<String>) -> Request {
        Request::new(Method::GET, url)
    }

    /// POST.
    pub fn post(url: impl Into<String>) -> Request {
        Request::new(Method::POST, url)
    }

    /// PUT.
    pub fn put(url: impl Into<String>) -> Request {
        Request::new(Method::PUT, url)
    }

    /// PATCH.
    pub fn patch(url: impl Into<String>) -> Request {
        Request::new(Method::PATCH, url)
    }

    /// DELETE.
    pub fn delete(url: impl Into<String>) -> Request {
        Request::new(Method::DELETE, url)
    }

    /// Adds a header that may be shown.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Request {
        self.headers.push((name.to_ascii_lowercase(), value.into()));
        self
    }

    /// Adds a header that is never shown.
    #[must_use]
    pub fn secret(mut self, name: &str, value: impl Into<String>) -> Request {
        self.secrets.push((name.to_ascii_lowercase(), value.into()));
        self
    }

    /// A JSON body.
    #[must_use]
    pub fn json(self, value: &Value) -> Request {
        self.bytes("application/json", value.to_string())
    }

    /// A body from memory.
    #[must_use]
    pub fn bytes(mut self, kind: &str, bytes: impl Into<Vec<u8>>) -> Request {
        self.body = Body::Bytes(bytes.into());
        self.header("content-type", kind)
    }

    /// A body of `length` bytes of a file from `offset` on, counted on `bar`.
    #[must_use]
    pub fn file(
        mut self,
        kind: &str,
        path: impl Into<PathBuf>,
        offset: u64,
        length: u64,
        bar: &ProgressBar,
    ) -> Request {
        let (before, after) = (Vec::new(), Vec::new());
        self.body = Body::File(Part { path: path.into(), offset, length, before, after, bar: bar.clone() });
        self.header("content-type", kind).header("content-length", length.to_string())
    }

    /// A form (`multipart/form-data`, RFC 7578) with these fields and then the file `field`, called `name`, of `length`
    /// bytes, counted on `bar`.
    #[must_use]
    pub fn form(
        mut self,
        fields: &[(&str, &str)],
        (field, name): (&str, &str),
        path: impl Into<PathBuf>,
        length: u64,
        bar: &ProgressBar,
    ) -> Request {
        // No file holds it: it is chance.
        let border = format!("kimg{:032x}", rand::random::<u128>());
        let mut before = String::new();
        for (name, value) in fields {
            before
                .push_str(&format!("--{border}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"));
        }
        let disposition = format!("Content-Disposition: form-data; name=\"{field}\"; filename=\"{name}\"");
        before.push_str(&format!("--{border}\r\n{disposition}\r\nContent-Type: application/octet-stream\r\n\r\n"));
        let (before, after) = (before.into_bytes(), format!("\r\n--{border}--\r\n").into_bytes());
        let size = before.len() as u64 + length + after.len() as u64;
        self.body = Body::File(Part { path: path.into(), offset: 0, length, before, after, bar: bar.clone() });
        let kind = format!("multipart/form-data; boundary={border}");
        self.header("content-type", kind).header("content-length", size.to_string())
    }

    /// Whether sending it twice is as good as once.
    #[must_use]
    pub fn repeatable(mut self, yes: bool) -> Request {
        self.repeatable = yes;
        self
    }

    /// The query, or the body, holds a secret and is not shown.
    #[must_use]
    pub fn hiding(mut self, query: bool, body: bool) -> Request {
        self.hide_query = query;
        self.hide_body = body;
        self
    }

    /// What a dry run takes for the answer.
    #[must_use]
    pub fn would(mut self, status: u16, body: &Value) -> Request {
        self.would =
            Some((status, Vec::new(), if body.is_null() { Vec::new() } else { body.to_string().into_bytes() }));
        self
    }

    /// A header of what a dry run takes for the answer.
    #[must_use]
    pub fn would_header(mut self, name: &str, value: &str) -> Request {
        let answer = self.would.get_or_insert((200, Vec::new(), Vec::new()));
        answer.1.push((name.into(), value.into()));
        self
    }

    /// Method.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// Address.
    pub fn url(&self) -> &str {
        &self.url
    }

    #[cfg(test)]
    pub(crate) fn secret_of(&self, name: &str) -> Option<&str> {
        self.secrets.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn body(&self) -> &Body {
        &self.body
    }

    /// Whether it may be sent again after its answer was lost.
    pub fn is_repeatable(&self) -> bool {
        self.repeatable
    }

    /// Whether it only asks.
    pub(super) fn is_read(&self) -> bool {
        matches!(self.method, Method::GET | Method::HEAD)
    }

    /// The request to where an answer points, without secrets; none where it is the answer.
    ///
    /// # Errors
    /// It points from TLS to where there is none.
    pub(super) fn led_on(&self, status: StatusCode, headers: &HeaderMap) -> Result<Option<Request>> {
        let place = headers.get("location").and_then(|place| place.to_str().ok());
        let Some(place) = place.filter(|_| self.is_read() && matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308))
        else {
            return Ok(None);
        };
        let url = resolved(&self.url, place).with_context(|| format!("{} leads to no address", self.shown()))?;
        if self.url.starts_with("https:") && !url.starts_with("https:") {
            bail!("{} leads to a place without TLS", self.shown());
        }
        // An address that was given out may be a key itself.
        let next = Request { url, secrets: Vec::new(), hide_query: true, ..self.clone() };
        Ok(Some(next))
    }

    pub(super) fn head(&self) -> Result<http::request::Builder> {
        let mut head = http::Request::builder().method(self.method.clone()).uri(&self.url);
        for (name, value) in self.headers.iter().chain(&self.secrets) {
            let mut value = http::HeaderValue::from_str(value).map_err(|_| {
                anyhow::anyhow!("the header {name} of {} has a character that headers have not", self.shown())
            })?;
            value.set_sensitive(self.secrets.iter().any(|(secret, _)| secret == name));
            head = head.header(name, value);
        }
        Ok(head)
    }

    /// Method and address, for messages.
    pub fn shown(&self) -> String {
        let url = match self.url.split_once('?') {
            Some((path, _)) if self.hide_query => format!("{path}?…"),
            _ => self.url.clone(),
        };
        format!("{} {url}", self.method)
    }

    /// Writes the call down and gives the answer that it expects.
    pub(super) fn pretend(&self, sink: &(dyn Fn(&str) + Send + Sync)) -> Result<Answer> {
        let mut text = self.shown();
        for (name, value) in &self.headers {
            if name != "content-length" {
                text.push_str(&format!("\n  {name}: {value}"));
            }
        }
        for (name, _) in &self.secrets {
            text.push_str(&format!("\n  {name}: (secret)"));
        }
        match &self.body {
            Body::None => {}
            Body::Bytes(_) if self.hide_body => text.push_str("\n  (a body with secrets)"),
            Body::Bytes(bytes) => match std::str::from_utf8(bytes) {
                // A part of a disk may be all zeros, which are UTF-8.
                Ok(body) if !body.contains('\0') => text.push_str(&format!("\n  {body}")),
                _ => text.push_str(&format!("\n  ({} bytes)", bytes.len())),
            },
            Body::File(part) => {
                let around =
                    [&part.before, &part.after].map(|text| String::from_utf8_lossy(text).replace("\r\n", "\n  "));
                let file = format!("({} bytes of {} from {})", part.length, part.path.display(), part.offset);
                text.push_str(&format!("\n  {}{file}{}", around[0], around[1]));
            }
        }
        sink(&text);
        let Some((status, headers, body)) = &self.would else {
            bail!("a dry run cannot go on behind {}: its answer decides what comes next", self.shown());
        };
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(http::HeaderName::from_bytes(name.as_bytes())?, value.parse()?);
        }
        Ok(Answer::new(self, *status, map, body.clone()))
    }
}

/// What no message shows.
#[derive(Clone)]
struct Hidden(Vec<String>);

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

/// What a field of a body is called, in small letters and digits, that holds a secret: a part of it suffices.
const SECRET_FIELDS: [&str; 7] = ["assertion", "customdata", "pass", "secret", "token", "userdata", "value"];
/// A shorter word of a longer secret is no key.
const KEY: usize = 12;

impl Hidden {
    /// Secret headers, each also without the word that says of what kind it is: whoever sends them back may leave it out.
    /// And what is secret in a body or a query that is not shown, also as it is written in JSON and in a query, and word
    /// by word.
    fn of(request: &Request) -> Hidden {
        let mut parts = Vec::new();
        for (_, value) in &request.secrets {
            let key = value.rsplit([' ', '=', '/', ',']).find(|part| part.len() > 5).unwrap_or(value);
            let bare = value.split_once(' ').map_or(value.as_str(), |(_, bare)| bare);
            let pair = decoded(bare).filter(|_| value.starts_with("Basic "));
            let password = pair.as_deref().and_then(|pair| pair.split_once(':')).map(|(_, password)| password);
            parts.extend(
                [value.as_str(), bare, key].into_iter().chain(pair.as_deref()).chain(password).map(str::to_string),
            );
        }
        let mut found = Vec::new();
        if let (true, Body::Bytes(bytes)) = (request.hide_body, &request.body) {
            match serde_json::from_slice(bytes) {
                Ok(body) => secrets_in("", &body, &mut found),
                Err(_) => found.extend(secrets_of_form(&String::from_utf8_lossy(bytes))),
            }
        }
        if let Some((_, query)) = request.url.split_once('?').filter(|_| request.hide_query) {
            let values = query.split('&').filter_map(|pair| pair.split_once('=')).map(|(_, value)| value);
            found.extend(values.filter(|value| value.len() >= KEY).chain([query]).flat_map(both));
        }
        for secret in &found {
            // Also in a body that is a text in another.
            let in_json = |text: &str| {
                let quoted = serde_json::to_string(text).unwrap_or_default();
                quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default().to_string()
            };
            let once = in_json(secret);
            parts.extend([secret.clone(), escape(secret, true), in_json(&once), once]);
            for text in [Some(secret.clone()), decoded(secret)].into_iter().flatten() {
                let words: Vec<&str> = text.split_whitespace().map(|word| word.trim_matches(['"', '\''])).collect();
                parts.push(words.join(" "));
                parts.extend(words.iter().filter(|word| word.len() >= KEY).map(ToString::to_string));
            }
        }
        parts.retain(|part| !part.is_empty());
        // What holds another is hidden before that is.
        parts.sort_by_key(|part| std::cmp::Reverse(part.len()));
        parts.dedup();
        Hidden(parts)
    }

    fn hide(&self, text: &str) -> String {
        self.0.iter().fold(text.to_string(), |text, secret| text.replace(secret, "(secret)"))
    }
}

fn is_secret(field: &str) -> bool {
    let plain: String = field.chars().filter(char::is_ascii_alphanumeric).collect();
    SECRET_FIELDS.iter().any(|known| plain.to_ascii_lowercase().contains(known))
}

fn secrets_in(field: &str, value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) if is_secret(field) => found.push(text.clone()),
        Value::Array(list) => list.iter().for_each(|one| secrets_in(field, one, found)),
        Value::Object(fields) => fields.iter().for_each(|(field, one)| secrets_in(field, one, found)),
        _ => {}
    }
}

fn secrets_of_form(form: &str) -> impl Iterator<Item = String> {
    let pairs = form.split('&').filter_map(|pair| pair.split_once('='));
    // A tag shows to everybody whose a thing is.
    let is_tag = |field: &str| field.starts_with("TagSpecification.");
    pairs.filter(move |(field, _)| is_secret(field) && !is_tag(field)).flat_map(|(_, value)| both(value))
}

/// A value as it stands in a query, and without its percent signs.
fn both(value: &str) -> [String; 2] {
    let mut bytes = Vec::new();
    let mut rest = value.as_bytes();
    while let [first, after @ ..] = rest {
        let code = after.get(..2).filter(|_| *first == b'%').and_then(|code| hex::decode(code).ok());
        rest = if code.is_some() { &after[2..] } else { after };
        bytes.push(code.map_or(*first, |code| code[0]));
    }
    [value.to_string(), String::from_utf8_lossy(&bytes).into_owned()]
}

/// Base64 of a text.
fn decoded(text: &str) -> Option<String> {
    String::from_utf8(STANDARD.decode(text).ok()?).ok()
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    what: String,
    place: Option<String>,
    hidden: Hidden,
    /// Status.
    pub status: u16,
    /// Header fields.
    pub headers: HeaderMap,
    /// Body.
    pub body: Vec<u8>,
}

/// An address without the user and the password in it, for messages.
pub fn without_password(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://…@{host}{path}"),
        None => url.to_string(),
    }
}

/// A server said no.
#[derive(Debug, thiserror::Error)]
#[error("{what} was answered with HTTP {status}{}", behind_colon(.said))]
pub struct Refused {
    /// Method and address.
    pub what: String,
    /// Status.
    pub status: u16,
    /// The beginning of the body.
    pub said: String,
}

fn behind_colon(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(": {said}") }
}

impl Answer {
    pub(super) fn new(request: &Request, status: u16, headers: HeaderMap, body: Vec<u8>) -> Answer {
        let place = headers.get("location").and_then(|place| resolved(&request.url, place.to_str().ok()?));
        Answer { what: request.shown(), place, hidden: Hidden::of(request), status, headers, body }
    }

    /// The whole address that its `Location` stands for, which may be written as seen from that of the request.
    pub fn place(&self) -> Option<&str> {
        self.place.as_deref()
    }

    /// Whether the status begins with 2.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The answer if its status is one of these.
    ///
    /// # Errors
    /// [`Refused`] for every other status.
    pub fn expect(self, statuses: &[u16]) -> Result<Answer> {
        if statuses.contains(&self.status) { Ok(self) } else { Err(self.refused().into()) }
    }

    /// This answer as an error.
    pub fn refused(&self) -> Refused {
        let text = String::from_utf8_lossy(&self.body);
        let words: Vec<&str> = text.split_whitespace().collect();
        // Some servers, and what stands before them, show what they were asked.
        let said = harmless(&self.hidden.hide(&words.join(" ")).chars().take(400).collect::<String>());
        Refused { what: self.what.clone(), status: self.status, said }
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// The body is something else.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("the answer to {} is no JSON", self.what))
    }

    /// A header field.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }
}

/// Where a reference leads that stands in what `base` answered (RFC 3986; `..` is left to the server).
fn resolved(base: &str, reference: &str) -> Option<String> {
    let reference = reference.split('#').next().unwrap_or_default();
    let (scheme, rest) = base.split_once("://")?;
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if let Some((named, _)) = reference.split_once("://").filter(|(s, _)| s.chars().all(|c| c.is_ascii_alphabetic())) {
        let named = named.to_ascii_lowercase();
        let web = named == "http" || named == "https";
        return web.then(|| format!("{named}{}", &reference[named.len()..]));
    }
    if let Some(elsewhere) = reference.strip_prefix("//") {
        return Some(format!("{scheme}://{elsewhere}"));
    }
    if reference.starts_with('/') {
        return Some(format!("{scheme}://{authority}{reference}"));
    }
    if reference.starts_with('?') {
        return Some(format!("{scheme}://{authority}/{path}{reference}"));
    }
    let folder = path.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
    Some(format!("{scheme}://{authority}/{folder}{reference}"))
}

/// Percent-encodes all but unreserved characters, and `/` where `slash` says so (RFC 3986, as SigV4 wants it).
pub fn escape(text: &str, slash: bool) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            b'/' if !slash => out.push('/'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{resolved, without_password};

    #[test]
    fn a_message_shows_no_password() {
        for (url, shown) in [
            ("http://u:p@a.example/x", "http://…@a.example/x"),
            ("https://u@a.example", "https://…@a.example"),
            ("http://u:p@b@a.example:80?q=@", "http://…@a.example:80?q=@"),
            ("http://a.example/x@y", "http://a.example/x@y"),
            ("file:///a@b", "file:///a@b"),
        ] {
            assert_eq!(without_password(url), shown);
        }
    }

    #[test]
    fn references_lead_from_where_they_stand() {
        for (reference, place) in [
            ("https://b.example/y?k=1#z", Some("https://b.example/y?k=1")),
            ("HTTP://b.example", Some("http://b.example")),
            ("//b.example/y", Some("https://b.example/y")),
            ("/y?u=http://c", Some("https://a.example:1/y?u=http://c")),
            ("y", Some("https://a.example:1/v2/y")),
            ("?q", Some("https://a.example:1/v2/x?q")),
            ("ftp://b.example/y", None),
        ] {
            assert_eq!(resolved("https://a.example:1/v2/x?r", reference).as_deref(), place, "{reference}");
        }
    }
}
