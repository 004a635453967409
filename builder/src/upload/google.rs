//! Who asks at Google: a service account, by a token that its key opens (RFC 7523), and Google's checksum.

use super::settings::{self, Environment};
use crate::input;
use crate::web::{Answer, Client, Request, trust};
use anyhow::{Context, Result, anyhow};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

/// What kimg does there: images, and objects of a bucket.
const SCOPES: &str = "https://www.googleapis.com/auth/compute https://www.googleapis.com/auth/devstorage.read_write";
const HOUR: i64 = 3600;

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

    fn log_in(&self, client: &Client) -> Result<String> {
        let assertion = self.assertion(client.clock().now().as_second())?;
        let grant = "urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer";
        let body = format!("grant_type={grant}&assertion={assertion}");
        // Twice a token is no harm.
        let request = Request::post(&self.token_uri).bytes("application/x-www-form-urlencoded", body).repeatable(true);
        let request = request.hiding(false, true).would(200, &json!({"access_token": "TOKEN"}));
        let answer =
            client.send(&request)?.expect(&[200]).with_context(|| format!("asking for a token of {}", self.email))?;
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
