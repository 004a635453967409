//! Certificate requests: who gets a certificate without being asked about, the signing, and the tidying up.
//!
//! ```text
//! CSR ─► policy (pure) ─► Approved / Denied / left to a person ─► issue ─► certificate in status
//! the node's first request with that certificate ─► token's Secret deleted
//! ```

mod der;
mod issue;
mod policy;
mod request;
mod tokens;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use control_client::{Key, Queue};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::context::Context;
use crate::runner::{self, Outcome, Worked};
use issue::Issuer;
use policy::Verdict;
use request::Request;

/// A request whose Node or token may still appear is looked at again after this long.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
const TIDY: Duration = Duration::from_secs(600);
const HOUR: i64 = 3600;

pub fn start(context: &Arc<Context>) -> anyhow::Result<()> {
    let settings = &context.settings;
    let issuer = match (&settings.cluster_signing_cert_file, &settings.cluster_signing_key_file) {
        (Some(certificate), Some(key)) => {
            Some(Arc::new(Issuer::load(certificate, key, settings.cluster_signing_duration)?))
        }
        (None, None) => None,
        _ => anyhow::bail!("--cluster-signing-cert-file and --cluster-signing-key-file go together"),
    };
    let queue = Arc::new(Queue::<String>::default());
    context.caches.requests.subscribe({
        let queue = queue.clone();
        move |change| queue.add(change.object().metadata.name.clone().unwrap_or_default())
    });
    runner::every(TIDY, {
        let (queue, context) = (queue.clone(), context.clone());
        move || context.caches.requests.keys().into_iter().for_each(|key| queue.add(key.name))
    });
    // One worker: a token must not be used by two requests at the same time.
    runner::run("csr", &queue, 1, {
        let context = context.clone();
        move |name| {
            let (context, issuer) = (context.clone(), issuer.clone());
            async move { work(&context, issuer.as_deref(), &name).await }
        }
    });
    tokens::start(context);
    Ok(())
}

fn has(csr: &CertificateSigningRequest, kind: &str) -> bool {
    csr.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.type_ == kind && c.status == "True")
}

fn certificate(csr: &CertificateSigningRequest) -> Option<&ByteString> {
    csr.status.as_ref()?.certificate.as_ref().filter(|c| !c.0.is_empty())
}

async fn work(context: &Context, issuer: Option<&Issuer>, name: &str) -> Worked {
    let Some(csr) = context.caches.requests.named("", name) else { return Ok(Outcome::Done) };
    if is_over(&csr, Timestamp::now()) {
        context.caches.requests.delete(&csr).await?;
        return Ok(Outcome::Done);
    }
    tokens::delete_used(context, &csr).await?;
    if certificate(&csr).is_some() {
        return Ok(Outcome::Done);
    }
    if has(&csr, "Denied") || has(&csr, "Failed") {
        return Ok(Outcome::Done);
    }
    if !has(&csr, "Approved") {
        return decide(context, &csr).await;
    }
    let Some(issuer) = issuer.filter(|_| issue::is_ours(&csr.spec.signer_name)) else {
        return Ok(Outcome::Done);
    };
    sign(context, issuer, &csr).await?;
    Ok(Outcome::Done)
}

async fn decide(context: &Context, csr: &CertificateSigningRequest) -> Worked {
    if !policy::concerns(&csr.spec) {
        return Ok(Outcome::Done);
    }
    let request = match Request::parse(&csr.spec.request.0) {
        Ok(request) => request,
        Err(error) => {
            deny(context, csr, "Unreadable", &format!("{error:#}")).await?;
            return Ok(Outcome::Done);
        }
    };
    let observed = tokens::observe(context, csr, &request);
    match policy::judge(&csr.spec, &request, &observed, Timestamp::now()) {
        Verdict::LeaveToPeople => Ok(Outcome::Done),
        Verdict::Wait(reason) => {
            tracing::debug!("certificate request {} waits: {reason}", Key::of(csr));
            Ok(Outcome::After(LOOK_AGAIN))
        }
        Verdict::Deny(reason, message) => {
            deny(context, csr, reason, &message).await?;
            Ok(Outcome::Done)
        }
        Verdict::Approve(message) => {
            // The token is marked first: from here on it is good for this request alone.
            if let Some(token) = &observed.token {
                tokens::mark_used(context, token, csr).await?;
            }
            tracing::info!("certificate request {} approved: {message}", Key::of(csr));
            condition(context, csr, "Approved", "AutoApproved", message).await?;
            Ok(Outcome::Done)
        }
    }
}

async fn deny(context: &Context, csr: &CertificateSigningRequest, reason: &str, message: &str) -> anyhow::Result<()> {
    tracing::warn!("certificate request {} denied: {message}", Key::of(csr));
    condition(context, csr, "Denied", reason, message).await
}

async fn condition(
    context: &Context,
    csr: &CertificateSigningRequest,
    kind: &str,
    reason: &str,
    message: &str,
) -> anyhow::Result<()> {
    let mut decided = csr.clone();
    let now = Time(Timestamp::now());
    let status = decided.status.get_or_insert_default();
    status.conditions.get_or_insert_default().push(CertificateSigningRequestCondition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_update_time: Some(now.clone()),
        last_transition_time: Some(now),
    });
    let answer = context.client.replace_part("approval", &decided).await?;
    context.caches.requests.absorb(answer);
    Ok(())
}

async fn sign(context: &Context, issuer: &Issuer, csr: &CertificateSigningRequest) -> anyhow::Result<()> {
    let signed = Request::parse(&csr.spec.request.0)
        .and_then(|request| issuer.sign(&csr.spec, &request, Timestamp::now()).context("signing"));
    let mut answered = csr.clone();
    let status: &mut CertificateSigningRequestStatus = answered.status.get_or_insert_default();
    match signed {
        Ok(pem) => status.certificate = Some(ByteString(pem.into_bytes())),
        Err(error) => {
            tracing::warn!("certificate request {}: {error:#}", Key::of(csr));
            let now = Time(Timestamp::now());
            status.conditions.get_or_insert_default().push(CertificateSigningRequestCondition {
                type_: "Failed".to_owned(),
                status: "True".to_owned(),
                reason: Some("SignerValidationFailure".to_owned()),
                message: Some(format!("{error:#}")),
                last_update_time: Some(now.clone()),
                last_transition_time: Some(now),
            });
        }
    }
    context.caches.requests.replace_status(&answered).await?;
    Ok(())
}

/// Whether nobody needs the request any more: answered an hour ago, or never answered for a day.
fn is_over(csr: &CertificateSigningRequest, now: Timestamp) -> bool {
    let age = |t: Option<&Time>| t.map_or(0, |t| now.as_second() - t.0.as_second());
    let decided = csr.status.iter().flat_map(|s| s.conditions.iter().flatten()).next_back();
    let created = age(csr.metadata.creation_timestamp.as_ref());
    match decided {
        None => created > 24 * HOUR,
        Some(condition) => {
            let since = condition.last_update_time.as_ref().or(condition.last_transition_time.as_ref());
            // An approved one without a certificate may belong to another signer.
            let keep = if condition.type_ == "Approved" && certificate(csr).is_none() { 24 * HOUR } else { HOUR };
            age(since) > keep
        }
    }
}
