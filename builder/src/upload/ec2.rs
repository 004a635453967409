//! EC2's Query API: calls are forms, and answers XML.
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/Query-Requests.html>

use super::PAGES;
use super::s3::{credentials, elements, plain};
use super::settings::Environment;
use super::sigv4::{Signer, query};
use crate::cache::hash;
use crate::web::{Answer, Client, Refused, Request, trust};
use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

const VERSION: &str = "2016-11-15";

/// One of AWS' services in a region: where it is, and who signs.
///
/// # Errors
/// There are no credentials, or a variable names an address without TLS.
pub(super) fn service(env: Environment<'_>, region: &str, service: &'static str) -> Result<(String, Signer)> {
    let (key, secret, token) = credentials(env)?;
    // The name that AWS' own programs have for it.
    let variable = format!("AWS_ENDPOINT_URL_{}", service.to_ascii_uppercase());
    let url = env(&variable).unwrap_or_else(|| format!("https://{service}.{region}.amazonaws.com"));
    trust::check_address(&variable, &url, "a key")?;
    Ok((url.trim_end_matches('/').to_string(), Signer { key, secret, token, region: region.into(), service }))
}

/// EC2 in a region.
#[derive(Debug)]
pub struct Ec2 {
    url: String,
    signer: Signer,
}

impl Ec2 {
    /// The account of AWS' own variables or file.
    ///
    /// # Errors
    /// There are no credentials.
    pub fn new(env: Environment<'_>, region: &str) -> Result<Ec2> {
        let (url, signer) = service(env, region, "ec2")?;
        Ok(Ec2 { url, signer })
    }

    /// A call; one that may be sent twice, unless somebody says otherwise.
    pub fn request(&self, action: &str, pairs: &[(impl AsRef<str>, impl AsRef<str>)]) -> Request {
        let own = [("Action", action), ("Version", VERSION)].into_iter();
        let all: Vec<(&str, &str)> = own.chain(pairs.iter().map(|(k, v)| (k.as_ref(), v.as_ref()))).collect();
        let body = query(&all);
        let sum = hash::hex_of(body.as_bytes());
        let request = Request::post(format!("{}/", self.url)).bytes("application/x-www-form-urlencoded", body);
        self.signer.sign_each(request.repeatable(true), &[], &sum)
    }

    /// What an action answers, read.
    ///
    /// # Errors
    /// It refuses, or something else answers in its place.
    pub fn read(&self, action: &str, answer: Answer) -> Result<Value> {
        if answer.status != 200 {
            return Err(refused(&answer).into());
        }
        let text = String::from_utf8(answer.body).context("an answer is no text")?;
        let root = format!("{action}Response");
        // A proxy may answer in its place, and that is no empty list.
        match tree(&text).and_then(|mut all| all.as_object_mut()?.remove(&root)) {
            Some(read) => Ok(read),
            None => bail!(
                "{} answers {action} with no {root}, so what answers is not EC2; check the endpoint, and what proxy is used",
                self.url
            ),
        }
    }

    /// The entries of the list `set` that EC2 describes, page by page.
    ///
    /// # Errors
    /// It cannot be asked, or lists without end.
    pub fn described(
        &self,
        client: &Client,
        action: &str,
        pairs: &[(impl AsRef<str>, impl AsRef<str>)],
        set: &str,
    ) -> Result<Vec<Value>> {
        let (mut all, mut next) = (Vec::new(), None::<String>);
        for _ in 0..PAGES {
            let own = pairs.iter().map(|(k, v)| (k.as_ref(), v.as_ref()));
            let pairs: Vec<(&str, &str)> = own.chain(next.iter().map(|token| ("NextToken", token.as_str()))).collect();
            let would = Value::String(format!("<{action}Response/>"));
            let mut page = self.read(action, client.send(&self.request(action, &pairs).would(200, &would))?)?;
            if let Some(Value::Array(entries)) = page.get_mut(set).map(Value::take) {
                all.extend(entries);
            }
            next = page["nextToken"].as_str().filter(|token| !token.is_empty()).map(str::to_string);
            if next.is_none() {
                return Ok(all);
            }
        }
        bail!("EC2 lists without end")
    }
}

/// An answer as an error: its code and its message, where EC2 says them.
pub fn refused(answer: &Answer) -> Refused {
    let refused = answer.refused();
    let first = |name: &str| elements(&refused.said, name).into_iter().next();
    match first("Code").zip(first("Message")) {
        Some((code, message)) => Refused { said: format!("{code}: {message}"), ..refused },
        None => refused,
    }
}

/// An element that is being read: its name, those in it, and the text between them.
type Open = (String, Vec<(String, Value)>, String);

/// XML as EC2 writes it, whose attributes say nothing: a list is an element that holds nothing but `item`.
fn tree(xml: &str) -> Option<Value> {
    let mut open: Vec<Open> = vec![Open::default()];
    let mut rest = xml;
    while let Some((text, after)) = rest.split_once('<') {
        open.last_mut()?.2.push_str(text);
        let (tag, after) = after.split_once('>')?;
        rest = after;
        let name = tag.trim_matches('/').split_whitespace().next().unwrap_or_default().to_string();
        if tag.starts_with(['?', '!']) {
            continue;
        }
        if !tag.starts_with('/') {
            open.push((name.clone(), Vec::new(), String::new()));
        }
        if tag.starts_with('/') || tag.ends_with('/') {
            let (its, children, text) = open.pop().filter(|(its, ..)| *its == name)?;
            open.last_mut()?.1.push((its, value(children, &text)));
        }
    }
    let (_, children, _) = open.pop().filter(|_| open.is_empty())?;
    Some(Value::Object(children.into_iter().collect()))
}

fn value(children: Vec<(String, Value)>, text: &str) -> Value {
    if children.is_empty() {
        Value::String(plain(text))
    } else if children.iter().all(|(name, _)| name == "item") {
        children.into_iter().map(|(_, item)| item).collect()
    } else {
        Value::Object(Map::from_iter(children))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn answers_are_read() {
        let text = "<?xml version=\"1.0\"?>\n<R xmlns=\"http://x/\">\n <s>\n  <item><id>a&lt;b&amp;lt;</id><in/></item>\n\
                    <item><id>2</id><t><item><k>x</k></item></t></item></s><n></n></R>\n";
        let wanted = json!({"R": {"s": [{"id": "a<b&lt;", "in": ""}, {"id": "2", "t": [{"k": "x"}]}], "n": ""}});
        assert_eq!(tree(text), Some(wanted));
        for broken in ["<R>", "<R></S>", "</R>", "<R></R></R>", "<R><a></R></a>", "<R", "<R><"] {
            assert_eq!(tree(broken), None, "{broken}");
        }
        assert_eq!(tree("no XML"), Some(json!({})));
    }
}
