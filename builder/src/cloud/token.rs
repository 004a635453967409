//! Another token of the provider's API in the place of one that leaked. Only the operator has it: no image and no node.

use super::open;
use crate::config::{Provider, ProviderName, Settings};
use crate::input;
use crate::upload::settings::{Environment, find, read_private};
use crate::web::{Client, Refused};
use anyhow::{Context, Result};
use std::collections::BTreeMap;

impl ProviderName {
    /// Where kimg reads the token: in one variable, or in several that belong together, the secret last.
    pub fn variables(self, env: Environment<'_>) -> &'static [&'static str] {
        match self {
            ProviderName::Hetzner => &["HCLOUD_TOKEN"],
            ProviderName::DigitalOcean => &["DIGITALOCEAN_TOKEN"],
            ProviderName::Linode => &["LINODE_TOKEN"],
            ProviderName::OpenStack => {
                let either = ["OS_APPLICATION_CREDENTIAL_ID", "OS_APPLICATION_CREDENTIAL_ID_FILE"];
                match either.into_iter().any(|name| env(name).is_some()) {
                    true => &["OS_APPLICATION_CREDENTIAL_ID", "OS_APPLICATION_CREDENTIAL_SECRET"],
                    false => &["OS_PASSWORD"],
                }
            }
            ProviderName::Vultr => &["VULTR_API_KEY"],
            ProviderName::Gcp => &["GOOGLE_APPLICATION_CREDENTIALS"],
            ProviderName::Aws => &["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"],
            ProviderName::Proxmox => &["PROXMOX_TOKEN_ID", "PROXMOX_TOKEN_SECRET"],
        }
    }
}

/// How many machines of the cluster the token of now sees; and where `old` is told, that it is another one which the
/// provider takes no more.
///
/// # Errors
/// The token of now does not do. Bad input: the old one counts still.
pub fn check(
    settings: &Settings,
    provider: &Provider,
    old: Option<&str>,
    client: &Client,
    env: Environment<'_>,
) -> Result<usize> {
    let variables = provider.name.variables(env);
    let variable = variables.join(" and ");
    let with = |env: Environment<'_>| {
        let cloud = open(settings, provider, client, env)?;
        // The first thing asked tells whether the token counts.
        cloud.offer()?;
        Ok::<_, anyhow::Error>(cloud.inventory()?.servers.len())
    };
    let seen = with(env).with_context(|| format!("with the token of {variable}"))?;
    let Some(old) = old else { return Ok(seen) };
    let parts: Vec<&str> = match variables {
        // All of it: Google's is a file of many lines.
        [_] => vec![old.trim()],
        _ => old.lines().map(str::trim).filter(|line| !line.is_empty()).collect(),
    };
    if parts.len() != variables.len() {
        return input::bad(format!("the old token has {} lines: the old value of {variable}", variables.len()));
    }
    let old: BTreeMap<&str, &str> = variables.iter().copied().zip(parts).collect();
    // The secret of another one is another, too.
    let same = |name: &&str| -> Result<bool> {
        let (Some(now), Some(old)) = (find(env, name)?, old.get(name)) else { return Ok(false) };
        // Google's variable names a file.
        let file = provider.name == ProviderName::Gcp && read_private(now.as_ref()).is_ok_and(|key| key == *old);
        Ok(file || now == *old)
    };
    if variables.last().map_or(Ok(false), same)? {
        return input::bad(format!("{variable} still has the old token; make another at the provider, and set that"));
    }
    // A session's token counts with its own key only: the old one would be refused in any case.
    let beside = |name: &str| if name.starts_with("AWS_SESSION_TOKEN") { None } else { env(name) };
    let by_old = |name: &str| old.get(name).map_or_else(|| beside(name), |value| Some((*value).to_owned()));
    match with(&by_old) {
        Ok(_) => input::bad("the old token still counts; remove it at the provider, and say this again"),
        Err(error) => match error.chain().find_map(|cause| Some(cause.downcast_ref::<Refused>()?.status)) {
            Some(401 | 403) => Ok(seen),
            _ => Err(error.context("whether the old token still counts is not known")),
        },
    }
}
