//! AWS Signature Version 4, as S3 and its kin check it.

use crate::cache::hash;
use crate::web::{Request, escape};
use anyhow::{Context, Result};
use ring::hmac;

/// The body of a request that has none.
pub const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Who signs, and for what.
#[derive(Clone)]
pub struct Signer {
    /// Access key.
    pub key: String,
    /// Secret key.
    pub secret: String,
    /// Token of a session.
    pub token: Option<String>,
    /// Region.
    pub region: String,
    /// `s3`, `ebs`, …
    pub service: &'static str,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("region", &self.region).field("service", &self.service).finish_non_exhaustive()
    }
}

impl Signer {
    /// The request with its signature; `headers` are signed along with host, date and the sum of the body.
    ///
    /// # Errors
    /// The request's address is none.
    pub fn sign(
        &self,
        mut request: Request,
        headers: &[(&str, &str)],
        body_sha256: &str,
        now: jiff::Timestamp,
    ) -> Result<Request> {
        let date = now.strftime("%Y%m%dT%H%M%SZ").to_string();
        let url: http::Uri = request.url().parse().with_context(|| format!("reading {}", request.shown()))?;
        let host = url.authority().context("an address has a host")?.to_string();
        let mut signed: Vec<(String, String)> =
            headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_string())).collect();
        signed.push(("x-amz-content-sha256".into(), body_sha256.into()));
        signed.push(("x-amz-date".into(), date.clone()));
        for (name, value) in &signed {
            request = request.header(name, value.clone());
        }
        if let Some(token) = &self.token {
            request = request.secret("x-amz-security-token", token.clone());
            signed.push(("x-amz-security-token".into(), token.clone()));
        }
        signed.push(("host".into(), host));
        signed.sort();
        let names: Vec<&str> = signed.iter().map(|(name, _)| name.as_str()).collect();
        let names = names.join(";");
        let mut canonical = format!("{}\n{}\n{}\n", request.method(), url.path(), canonical_query(url.query()));
        for (name, value) in &signed {
            canonical.push_str(&format!("{name}:{value}\n"));
        }
        canonical.push_str(&format!("\n{names}\n{body_sha256}"));
        let scope = format!("{}/{}/{}/aws4_request", &date[..8], self.region, self.service);
        let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hash::hex_of(canonical.as_bytes()));
        let signature = hex::encode(keyed(&self.signing_key(&date[..8]), &text));
        Ok(request.secret(
            "authorization",
            format!("AWS4-HMAC-SHA256 Credential={}/{scope},SignedHeaders={names},Signature={signature}", self.key),
        ))
    }

    /// The request signed for each try anew; `headers` and `body_sha256` as for [`Signer::sign`].
    #[must_use]
    pub fn sign_each(&self, request: Request, headers: &[(&str, &str)], body_sha256: &str) -> Request {
        let headers: Vec<(String, String)> = headers.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let (signer, sum) = (self.clone(), body_sha256.to_string());
        request.signed_by(move |request, now| {
            let headers: Vec<(&str, &str)> = headers.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            signer.sign(request, &headers, &sum, now)
        })
    }

    fn signing_key(&self, day: &str) -> Vec<u8> {
        let start = format!("AWS4{}", self.secret).into_bytes();
        [day, &self.region, self.service, "aws4_request"].iter().fold(start, |key, word| keyed(&key, word))
    }
}

fn keyed(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}

/// The query sorted, each parameter with its `=`. It is escaped already.
fn canonical_query(query: Option<&str>) -> String {
    let mut pairs: Vec<String> = query
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| if pair.contains('=') { pair.to_string() } else { format!("{pair}=") })
        .collect();
    pairs.sort();
    pairs.join("&")
}

/// A query of these parameters.
pub fn query(pairs: &[(&str, &str)]) -> String {
    let pairs: Vec<String> = pairs.iter().map(|(k, v)| format!("{}={}", escape(k, true), escape(v, true))).collect();
    pairs.join("&")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::fake::{Reply, Server, Virtual};

    /// The examples of AWS' "Signature Calculations for the Authorization Header", 2013-05-24.
    fn signature(request: Request, headers: &[(&str, &str)], body: &str) -> String {
        let signer = Signer {
            key: "AKIAIOSFODNN7EXAMPLE".into(),
            secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
            token: None,
            region: "us-east-1".into(),
            service: "s3",
        };
        let now: jiff::Timestamp = "2013-05-24T00:00:00Z".parse().unwrap();
        let signed = signer.sign(request, headers, body, now).unwrap();
        signed.secret_of("authorization").unwrap().rsplit_once("Signature=").unwrap().1.to_string()
    }

    #[test]
    fn the_published_examples_come_out() {
        let at = |path: &str| format!("https://examplebucket.s3.amazonaws.com{path}");
        assert_eq!(
            signature(Request::get(at("/test.txt")), &[("Range", "bytes=0-9")], EMPTY),
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
        assert_eq!(
            signature(Request::get(at("/?lifecycle")), &[], EMPTY),
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"
        );
        assert_eq!(
            signature(Request::get(at("/?max-keys=2&prefix=J")), &[], EMPTY),
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
        );
    }

    #[test]
    fn a_signed_request_is_sent_as_it_was_signed() {
        let server = Server::start(|_| Reply::new(200));
        let signer = Signer {
            key: "k".into(),
            secret: "s".into(),
            token: Some("session".into()),
            region: "r".into(),
            service: "s3",
        };
        let clock = Virtual::new();
        let request = Request::put(format!("{}/b/k?partNumber=1", server.url())).bytes("text/plain", "x");
        let signed = signer.sign(request, &[], &hash::hex_of(b"x"), clock.client().clock().now()).unwrap();
        clock.client().send(&signed).unwrap();
        let call = &server.calls()[0];
        assert_eq!(call.header("x-amz-security-token"), "session");
        assert!(call.header("authorization").contains("host;x-amz-content-sha256;x-amz-date;x-amz-security-token"));
        assert_eq!(call.header("host"), server.authority());
    }
}
