//! Who asks at Google: a service account, by a token that its key opens (RFC 7523), and Google's checksum.

use super::PAGES;
use super::settings::{self, Environment};
use crate::input;
use crate::logs::line::harmless;
use crate::web::{Answer, Client, Refused, Request, escape, trust};
use anyhow::{Context, Result, anyhow, bail};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// What kimg does there: images and machines, and objects of a bucket.
const SCOPES: &str = "https://www.googleapis.com/auth/compute https://www.googleapis.com/auth/devstorage.read_write";
const HOUR: i64 = 3600;
const COMPUTE: &str = "https://compute.googleapis.com";
const EVERY: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(3600);

/// A service account.
pub struct Account {
    client: Client,
    email: String,
    key: RsaKeyPair,
    token_uri: String,
    /// The project that it belongs to.
    pub project: String,
    token: Mutex<Option<String>>,
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Account({})", self.email)
    }
}

impl Account {
    /// The account whose key is in the file that `GOOGLE_APPLICATION_CREDENTIALS` names.
    ///
    /// # Errors
    /// There is none, or others may read it.
    pub fn open(client: &Client, env: Environment<'_>) -> Result<Account> {
        let Some(file) = env("GOOGLE_APPLICATION_CREDENTIALS") else {
            let why = "GOOGLE_APPLICATION_CREDENTIALS is not set; it names a file with the key of a service account";
            return input::bad(why);
        };
        // A key that was in such a file, when somebody asks whether it still counts.
        if file.starts_with('{') {
            return Account::of(client, &file);
        }
        let text = settings::read_private(Path::new(&file))?;
        Account::of(client, &text).with_context(|| format!("reading {file}"))
    }

    /// The account of a key file's text.
    ///
    /// # Errors
    /// It is none.
    pub fn of(client: &Client, text: &str) -> Result<Account> {
        let file: Value = serde_json::from_str(text).map_err(|_| anyhow!("it is no JSON"))?;
        let field = |name: &str| -> Result<String> {
            let value = file[name].as_str().with_context(|| format!("it is no service account's key: no '{name}'"))?;
            Ok(value.to_string())
        };
        let token_uri = field("token_uri")?;
        if !trust::is_safe(&token_uri) {
            return input::bad(format!("its token_uri is {token_uri}; a key is used over https:// only"));
        }
        let pem = field("private_key")?;
        let base64: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        // No message of theirs: it could hold a part of the key.
        let der = STANDARD.decode(base64.trim()).map_err(|_| anyhow!("its private_key is no PEM"))?;
        let key = RsaKeyPair::from_pkcs8(&der).map_err(|_| anyhow!("its private_key is no RSA key in PKCS #8"))?;
        let (email, project) = (field("client_email")?, field("project_id")?);
        Ok(Account { client: client.clone(), email, key, token_uri, project, token: Mutex::new(None) })
    }

    /// The client below.
    pub fn client(&self) -> &Client {
        &self.client
    }

    fn held(&self) -> MutexGuard<'_, Option<String>> {
        self.token.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Sends a request, with a new token when the old one has run out.
    ///
    /// # Errors
    /// As [`Client::send`]; or the account gets no token.
    pub fn send(&self, client: &Client, request: Request) -> Result<Answer> {
        let known = self.held().clone();
        if let Some(token) = known {
            let answer = client.send(&request.clone().secret("authorization", format!("Bearer {token}")))?;
            if answer.status != 401 {
                return Ok(answer);
            }
        }
        let token = self.log_in(client)?;
        *self.held() = Some(token.clone());
        client.send(&request.secret("authorization", format!("Bearer {token}")))
    }

    /// All pages of a list, from `first` on, whose address has a query.
    ///
    /// # Errors
    /// As [`Account::send`]; or it lists without end.
    pub fn pages(&self, first: &str) -> Result<Vec<Value>> {
        let (mut all, mut url) = (Vec::new(), first.to_string());
        for _ in 0..PAGES {
            let page = self.send(&self.client, Request::get(&url).would(200, &json!({})))?.expect(&[200])?.json()?;
            let next = page["nextPageToken"].as_str().map(|token| format!("{first}&pageToken={}", escape(token, true)));
            all.push(page);
            match next {
                Some(next) => url = next,
                None => return Ok(all),
            }
        }
        bail!("{first} lists without end")
    }

    fn log_in(&self, client: &Client) -> Result<String> {
        let assertion = self.assertion(client.clock().now().as_second())?;
        let grant = "urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer";
        let body = format!("grant_type={grant}&assertion={assertion}");
        // Twice a token is no harm.
        let request = Request::post(&self.token_uri).bytes("application/x-www-form-urlencoded", body).repeatable(true);
        let request = request.hiding(false, true).would(200, &json!({"access_token": "TOKEN"}));
        let answer = client.send(&request)?;
        let answer = match answer.status {
            // OAuth says so of a key that does not count (RFC 6749, 5.2), for which all others have this status.
            400 => Err(Refused { status: 401, ..answer.refused() }.into()),
            _ => answer.expect(&[200]),
        };
        let answer = answer.with_context(|| format!("asking for a token of {}", self.email))?;
        Ok(answer.json()?["access_token"].as_str().context("the answer holds no token")?.to_string())
    }

    /// What the key says of itself, signed.
    fn assertion(&self, now: i64) -> Result<String> {
        let claims = json!({"iss": self.email, "scope": SCOPES, "aud": self.token_uri, "iat": now, "exp": now + HOUR});
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", part(json!({"alg": "RS256", "typ": "JWT"})), part(claims));
        let mut signature = vec![0; self.key.public().modulus_len()];
        self.key
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature)
            .map_err(|_| anyhow!("the key of {} does not sign", self.email))?;
        Ok(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// Compute Engine of a project.
#[derive(Debug)]
pub struct Compute {
    /// Who asks.
    pub account: Account,
    url: String,
}

impl Compute {
    /// The project of the key in `account`, or of `GOOGLE_CLOUD_PROJECT`.
    ///
    /// # Errors
    /// A variable names an address without TLS.
    pub fn new(env: Environment<'_>, account: Account) -> Result<Compute> {
        let project = env("GOOGLE_CLOUD_PROJECT").unwrap_or_else(|| account.project.clone());
        let url = format!("{}/compute/v1/projects/{}", endpoint(env, "COMPUTE", COMPUTE)?, escape(&project, true));
        Ok(Compute { account, url })
    }

    /// An address in the project.
    pub fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.url)
    }

    /// Waits for what Compute Engine does.
    ///
    /// # Errors
    /// It fails: [`Refused`] with the code and the message of each error.
    pub fn done(&self, client: &Client, operation: &Value, what: &str) -> Result<()> {
        let name = operation["name"].as_str().context("the answer names no operation")?;
        let of = |kind: &str| operation[kind].as_str().and_then(|url| url.rsplit('/').next());
        let scope = match (of("zone"), of("region")) {
            (Some(zone), _) => format!("zones/{}", escape(zone, true)),
            (None, Some(region)) => format!("regions/{}", escape(region, true)),
            (None, None) => "global".into(),
        };
        let url = self.url(&format!("{scope}/operations/{}", escape(name, true)));
        // It may be done already.
        let mut first = Some(operation.clone()).filter(|operation| operation["status"] == "DONE");
        client.poll(what, EVERY, LIMIT, || {
            let request = Request::get(&url).would(200, &json!({"status": "DONE"}));
            let found = match first.take() {
                Some(found) => found,
                None => self.account.send(client, request)?.expect(&[200])?.json()?,
            };
            if found["status"] != "DONE" {
                return Ok(None);
            }
            if found["error"].is_null() {
                return Ok(Some(()));
            }
            let part = |error: &Value, key: &str| error[key].as_str().unwrap_or_default().to_string();
            let errors = found["error"]["errors"].as_array().into_iter().flatten();
            let errors: Vec<String> =
                errors.map(|error| format!("{}: {}", part(error, "code"), part(error, "message"))).collect();
            let said = found["httpErrorStatusCode"].as_u64().and_then(|status| status.try_into().ok());
            // It has ended, and has not done it: a gateway's code would say that nobody knows.
            let status = said.filter(|status| *status < 500).unwrap_or(422);
            Err(Refused { what: what.into(), status, said: harmless(&errors.join("; ")) }.into())
        })
    }
}

/// Where one of Google's services is, by the name that gcloud has for it.
///
/// # Errors
/// The variable names an address without TLS.
pub fn endpoint(env: Environment<'_>, name: &str, default: &str) -> Result<String> {
    let variable = format!("CLOUDSDK_API_ENDPOINT_OVERRIDES_{name}");
    let url = env(&variable).unwrap_or_else(|| default.into());
    trust::check_address(&variable, &url, "a token")?;
    Ok(url.trim_end_matches('/').to_string())
}

/// CRC32C (RFC 3720, B.4) of a file as Cloud Storage says it: in base64, the first byte first.
pub fn crc32c(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut buffer = vec![0; 1 << 20];
    let mut sum = u32::MAX;
    loop {
        let n = file.read(&mut buffer).with_context(|| format!("reading {}", path.display()))?;
        if n == 0 {
            return Ok(encoded(!sum));
        }
        sum = buffer[..n].iter().fold(sum, |sum, byte| TABLE[usize::from(sum as u8 ^ byte)] ^ (sum >> 8));
    }
}

fn encoded(sum: u32) -> String {
    STANDARD.encode(sum.to_be_bytes())
}

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let (mut value, mut bit) = (n as u32, 0);
        while bit < 8 {
            value = if value & 1 == 1 { 0x82F6_3B78 ^ (value >> 1) } else { value >> 1 };
            bit += 1;
        }
        table[n] = value;
        n += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_sums_come_out() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (bytes, sum) in [(&b"123456789"[..], 0xE306_9283), (&[0; 32], 0x8A91_36AA), (&[0xFF; 32], 0x62A8_AB43)] {
            std::fs::write(file.path(), bytes).unwrap();
            assert_eq!(crc32c(file.path()).unwrap(), encoded(sum));
        }
    }
}
