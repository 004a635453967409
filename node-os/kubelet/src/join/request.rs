//! Certificate signing requests: made, sent, waited for.

use super::files::{Pair, write_atomically};
use super::{CLIENT, KUBELET_CLIENT, KUBELET_SERVING};
use crate::client::{code, explain};
use anyhow::Context;
use futures::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams, WatchEvent, WatchParams};
use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use sha2::{Digest, Sha256};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

/// How long a request is waited for in one go.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The credentials were not accepted.
    #[error("the API server does not accept this node's credentials")]
    Unauthorized,
    /// The request was denied.
    #[error("{0}")]
    Denied(String),
    /// Nobody answers.
    #[error("{0}")]
    Unreachable(String),
    /// Signing failed.
    #[error("the certificate was not signed: {0}")]
    Failed(String),
    /// Nobody has decided yet.
    #[error("the certificate request {0} is not approved yet; `kubectl get csr {0}` shows why")]
    Pending(String),
    /// The API refused the request.
    #[error("{0}")]
    Api(String),
    /// Something on this node.
    #[error("{0:#}")]
    Local(anyhow::Error),
}

/// What a certificate shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Who signs.
    pub signer: &'static str,
    /// CN.
    pub common_name: String,
    /// O.
    pub organization: Option<&'static str>,
    /// What it may be used for.
    pub usages: Vec<&'static str>,
    /// DNS name.
    pub dns: Option<String>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// Short name for the request's name.
    pub label: String,
}

impl Wish {
    /// The node's own client certificate.
    pub fn node_client(node: &str) -> Wish {
        Wish {
            signer: KUBELET_CLIENT,
            common_name: format!("system:node:{node}"),
            organization: Some("system:nodes"),
            usages: vec!["digital signature", "client auth"],
            dns: None,
            addresses: Vec::new(),
            label: node.to_string(),
        }
    }

    /// The kubelet's serving certificate.
    pub fn node_serving(node: &str, addresses: &[IpAddr]) -> Wish {
        Wish {
            signer: KUBELET_SERVING,
            usages: vec!["digital signature", "server auth"],
            dns: Some(node.to_string()),
            addresses: addresses.to_vec(),
            label: format!("{node}-serving"),
            ..Wish::node_client(node)
        }
    }

    /// A component's client certificate.
    pub fn component(component: &str, user: &str) -> Wish {
        Wish {
            signer: CLIENT,
            common_name: user.to_string(),
            organization: None,
            usages: vec!["digital signature", "client auth"],
            dns: None,
            addresses: Vec::new(),
            label: component.to_string(),
        }
    }
}

/// A client that shows a bootstrap token.
pub async fn client_with_token(server: &str, ca: &Path, token: &str) -> anyhow::Result<kube::Client> {
    let value = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "join",
        "clusters": [{"name": "join", "cluster": {"server": server, "certificate-authority": ca}}],
        "users": [{"name": "join", "user": {"token": token}}],
        "contexts": [{"name": "join", "context": {"cluster": "join", "user": "join"}}],
    });
    let kubeconfig = serde_json::from_value(value).context("credentials of the join")?;
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default())
        .await
        .context("credentials of the join")?;
    config.connect_timeout = Some(Duration::from_secs(5));
    config.read_timeout = Some(PATIENCE + Duration::from_secs(10));
    kube::Client::try_from(config).context("credentials of the join")
}

/// The key of the request under way: kept, so that a join that was interrupted asks for the same again.
fn key_of(pair: &Pair) -> Result<KeyPair, Error> {
    if let Ok(text) = std::fs::read_to_string(&pair.next_key)
        && let Ok(key) = KeyPair::from_pem(&text)
    {
        return Ok(key);
    }
    let key = KeyPair::generate().map_err(|e| Error::Local(e.into()))?;
    write_atomically(&pair.next_key, key.serialize_pem().as_bytes(), 0o600).map_err(Error::Local)?;
    Ok(key)
}

fn signing_request(wish: &Wish, key: &KeyPair) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(organization) = wish.organization {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    params.distinguished_name.push(DnType::CommonName, wish.common_name.as_str());
    if let Some(name) = &wish.dns {
        params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
    }
    params.subject_alt_names.extend(wish.addresses.iter().map(|ip| SanType::IpAddress(*ip)));
    params.serialize_request(key)?.pem()
}

/// Gets a certificate and puts it in place.
pub async fn obtain(client: &kube::Client, pair: &Pair, wish: &Wish) -> Result<(), Error> {
    let key = key_of(pair)?;
    let pem = signing_request(wish, &key).map_err(|e| Error::Local(e.into()))?;
    let digest = hex::encode(&Sha256::digest(key.public_key_raw())[..8]);
    let name =
        format!("kimg-{}-{digest}", wish.label.replace(|c: char| !c.is_ascii_alphanumeric(), "-").to_lowercase());
    let result = ask(client, &name, &pem, wish).await;
    match result {
        Ok(certificate) => pair.install(&certificate).map_err(Error::Local),
        Err(error) => {
            if matches!(error, Error::Denied(_) | Error::Failed(_)) {
                // A decided request stays decided: the next try asks anew.
                std::fs::remove_file(&pair.next_key).ok();
            }
            Err(error)
        }
    }
}

async fn ask(client: &kube::Client, name: &str, pem: &str, wish: &Wish) -> Result<Vec<u8>, Error> {
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let request = CertificateSigningRequest {
        metadata: ObjectMeta { name: Some(name.to_string()), ..Default::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(pem.as_bytes().to_vec()),
            signer_name: wish.signer.to_string(),
            usages: Some(wish.usages.iter().map(|u| u.to_string()).collect()),
            ..Default::default()
        },
        ..Default::default()
    };
    match api.create(&PostParams::default(), &request).await {
        Ok(_) => {}
        // A try before this one was cut short; its request is waited for.
        Err(error) if code(&error) == Some(409) => {}
        Err(error) => return Err(from_api(&error)),
    }
    wait_for(api, name.to_string()).await
}

fn from_api(error: &kube::Error) -> Error {
    match error {
        kube::Error::Api(status) if status.code == 401 => Error::Unauthorized,
        kube::Error::Api(_) => Error::Api(explain(error)),
        other => Error::Unreachable(explain(other)),
    }
}

async fn wait_for(api: Api<CertificateSigningRequest>, name: String) -> Result<Vec<u8>, Error> {
    let patience = tokio::time::Instant::now() + PATIENCE;
    let parameters = WatchParams::default().fields(&format!("metadata.name={name}")).timeout(PATIENCE.as_secs() as u32);
    let mut first_error = None;
    while tokio::time::Instant::now() < patience {
        let mut stream = match api.watch(&parameters, "0").await {
            Ok(stream) => stream.boxed(),
            Err(error) => {
                let error = from_api(&error);
                if matches!(error, Error::Unauthorized) || first_error.is_some() {
                    return Err(error);
                }
                first_error = Some(error);
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        loop {
            match tokio::time::timeout_at(patience, stream.next()).await {
                Err(_) => return Err(Error::Pending(name)),
                Ok(Some(Ok(WatchEvent::Added(csr) | WatchEvent::Modified(csr)))) => {
                    if let Some(result) = outcome(&csr) {
                        return result;
                    }
                }
                Ok(Some(Ok(WatchEvent::Deleted(_)))) => {
                    return Err(Error::Failed(format!("request {name} was deleted")));
                }
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(_)) | None) => break,
            }
        }
    }
    Err(Error::Pending(name))
}

/// The decision on a request, once there is one.
fn outcome(csr: &CertificateSigningRequest) -> Option<Result<Vec<u8>, Error>> {
    let status = csr.status.as_ref()?;
    for condition in status.conditions.iter().flatten() {
        let message = condition.message.clone().or_else(|| condition.reason.clone()).unwrap_or_default();
        match condition.type_.as_str() {
            "Denied" => return Some(Err(Error::Denied(message))),
            "Failed" => return Some(Err(Error::Failed(message))),
            _ => {}
        }
    }
    let certificate = status.certificate.as_ref().filter(|c| !c.0.is_empty())?;
    Some(Ok(certificate.0.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_are_read() {
        let csr = |status: &str| -> CertificateSigningRequest {
            let text = format!("{{metadata: {{name: a}}, spec: {{request: '', signerName: s}}, status: {status}}}");
            serde_yaml_ng::from_str(&text).unwrap()
        };
        assert!(outcome(&csr("{}")).is_none());
        assert!(outcome(&csr("{conditions: [{type: Approved, status: 'True'}]}")).is_none());
        let denied = outcome(&csr("{conditions: [{type: Denied, status: 'True', message: no}]}"));
        assert_eq!(denied.unwrap().unwrap_err().to_string(), "no");
        let signed = outcome(&csr("{conditions: [{type: Approved, status: 'True'}], certificate: YQ==}"));
        assert_eq!(signed.unwrap().unwrap(), b"a");
    }

    #[test]
    fn requests_name_what_they_ask_for() {
        let key = KeyPair::generate().unwrap();
        let wish = Wish::node_serving("w1", &["10.0.0.1".parse().unwrap()]);
        let pem = signing_request(&wish, &key).unwrap();
        let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let (_, csr) = <x509_parser::certification_request::X509CertificationRequest as x509_parser::prelude::FromDer<_>>::from_der(&block.contents).unwrap();
        let subject = csr.certification_request_info.subject.to_string();
        assert!(subject.contains("O=system:nodes") && subject.contains("CN=system:node:w1"), "{subject}");
        assert!(csr.requested_extensions().unwrap().count() > 0);
    }
}
