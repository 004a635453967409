//! Another token of the provider's API in the place of one that leaked. Only the operator has it: no image and no node.

use super::open;
use crate::config::{Provider, ProviderName, Settings};
use crate::input;
use crate::upload::settings::{Environment, find, read_private};
use crate::web::{Client, Refused};
use anyhow::{Context, Result};

impl ProviderName {
    /// Where kimg reads the token.
    pub fn variable(self) -> &'static str {
        match self {
            ProviderName::Hetzner => "HCLOUD_TOKEN",
            ProviderName::DigitalOcean => "DIGITALOCEAN_TOKEN",
            ProviderName::Linode => "LINODE_TOKEN",
            ProviderName::Vultr => "VULTR_API_KEY",
            ProviderName::Gcp => "GOOGLE_APPLICATION_CREDENTIALS",
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
    let variable = provider.name.variable();
    let with = |env: Environment<'_>| {
        let cloud = open(settings, provider, client, env)?;
        // The first thing asked tells whether the token counts.
        cloud.offer()?;
        Ok::<_, anyhow::Error>(cloud.inventory()?.servers.len())
    };
    let seen = with(env).with_context(|| format!("with the token of {variable}"))?;
    let Some(old) = old else { return Ok(seen) };
    // Google's variable names a file.
    let file =
        |now: &String| provider.name == ProviderName::Gcp && read_private(now.as_ref()).is_ok_and(|key| key == old);
    if find(env, variable)?.is_some_and(|now| now == old || file(&now)) {
        return input::bad(format!("{variable} still has the old token; make another at the provider, and set that"));
    }
    let by_old = |name: &str| if name == variable { Some(old.to_owned()) } else { env(name) };
    match with(&by_old) {
        Ok(_) => input::bad("the old token still counts; remove it at the provider, and say this again"),
        Err(error) => match error.chain().find_map(|cause| Some(cause.downcast_ref::<Refused>()?.status)) {
            Some(401 | 403) => Ok(seen),
            _ => Err(error.context("whether the old token still counts is not known")),
        },
    }
}
