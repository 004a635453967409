//! The images that machines are made of, at the provider.

use super::{Offer, aws};
use crate::config::{Provider, ProviderName, Settings};
use crate::image::build::output_dir;
use crate::progress::Progress;
use crate::upload::cmd::{self, Name, PlaceArgs};
use crate::upload::settings::Environment;
use crate::upload::{self, Local, PREFIX, Remote, State};
use crate::web::Client;
use anyhow::{Context, Result};
use node_metadata::Role;

/// An image that machines can be made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The provider's name for it.
    pub id: String,
    /// The beginning of its SHA-256.
    pub sum: String,
}

/// Where images come from.
pub trait Images {
    /// The image of a role; it is there afterwards.
    ///
    /// # Errors
    /// It cannot be brought there.
    fn ensure(&self, role: Role) -> Result<Image>;

    /// The image whose SHA-256 begins so, where it is there.
    ///
    /// # Errors
    /// The provider cannot be asked.
    fn find(&self, sum: &str) -> Result<Option<Image>>;
}

/// The images that are built here, uploaded where they are not there yet.
pub struct Uploads<'a> {
    /// The cluster.
    pub settings: &'a Settings,
    /// Its `[provider]`.
    pub provider: &'a Provider,
    /// What can be had.
    pub offer: &'a Offer,
    /// The way there.
    pub client: &'a Client,
    /// Where credentials stand.
    pub env: Environment<'a>,
    /// Where the bytes are shown.
    pub progress: &'a Progress,
}

impl Images for Uploads<'_> {
    fn ensure(&self, role: Role) -> Result<Image> {
        let place = place(self.provider, &self.smallest(role));
        let provider = cmd::open(name(self.provider), &place, self.client, self.env)?;
        let image = Local::read(&output_dir(self.settings, role), provider.format())?;
        let bar = self.progress.bytes(&image.name, image.sum.size);
        let done = upload::upload(&*provider, &image, &bar);
        bar.finish_and_clear();
        let done = done.with_context(|| format!("uploading the {role} image"))?;
        let said = if done.reused { "is there" } else { "is uploaded" };
        self.progress.line(&format!("{} {said} as {}", image.name, done.id));
        Ok(Image { id: done.id, sum: sum_of(&self.settings.name, &image.name).unwrap_or_default().into() })
    }

    fn find(&self, sum: &str) -> Result<Option<Image>> {
        let (_, images) = uploaded(self.settings, self.provider, self.client, self.env)?;
        let of = |image: &Remote| sum_of(&self.settings.name, &image.name) == Some(sum) && image.state == State::Ready;
        Ok(images.into_iter().find(of).map(|image| Image { id: image.id, sum: sum.into() }))
    }
}

impl Uploads<'_> {
    /// The type with the smallest disk that the role's machines have: an image of Hetzner's wants the disk of the machine
    /// that wrote it.
    pub(super) fn smallest(&self, role: Role) -> String {
        let types = self.settings.nodes_of(role).filter_map(|node| self.provider.types.get(&node.entry.name));
        let disk = |size: &&String| self.offer.sizes.get(*size).map_or(u64::MAX, |size| size.disk_gb);
        types.min_by_key(disk).cloned().unwrap_or_default()
    }
}

fn name(provider: &Provider) -> Name {
    match provider.name {
        ProviderName::Hetzner => Name::Hetzner,
        ProviderName::DigitalOcean => Name::DigitalOcean,
        ProviderName::Linode => Name::Linode,
        ProviderName::OpenStack => Name::OpenStack,
        ProviderName::Vultr => Name::Vultr,
        ProviderName::Gcp => Name::Gcp,
        ProviderName::Aws => Name::Aws,
        ProviderName::Proxmox => Name::Proxmox,
    }
}

fn place(provider: &Provider, server_type: &str) -> PlaceArgs {
    if let Some(own) = &provider.proxmox {
        return PlaceArgs::of_storage(&provider.region, &own.image_storage);
    }
    let region = match provider.name {
        // Images are a region's.
        ProviderName::Aws => aws::region_of(&provider.region),
        _ => &provider.region,
    };
    PlaceArgs::of_machines(
        region,
        server_type,
        provider.bucket.clone(),
        provider.endpoint.clone(),
        provider.bucket_region.clone(),
    )
}

/// The cluster's images at its provider, and the provider to remove them with.
///
/// # Errors
/// The provider cannot be asked.
pub fn uploaded(
    settings: &Settings,
    provider: &Provider,
    client: &Client,
    env: Environment<'_>,
) -> Result<(Box<dyn upload::Provider>, Vec<Remote>)> {
    let opened = cmd::open(name(provider), &place(provider, ""), client, env)?;
    let mut images = opened.list()?;
    images.retain(|image| sum_of(&settings.name, &image.name).is_some());
    Ok((opened, images))
}

/// The sum in the name of an image of this cluster; of another one, whose name may begin alike, there is none.
pub fn sum_of<'a>(cluster: &str, image: &'a str) -> Option<&'a str> {
    let (role, sum) = image.strip_prefix(PREFIX)?.strip_prefix(cluster)?.strip_prefix('-')?.split_once('-')?;
    let known = ["master", "worker"].contains(&role);
    (known && sum.len() == 12 && sum.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_clusters_images_are_not_ours() {
        assert_eq!(sum_of("a", "kimg-a-master-0123456789ab"), Some("0123456789ab"));
        for other in
            ["kimg-a-b-master-0123456789ab", "kimg-a-master-0123", "kimg-ab-master-0123456789ab", "a", "kimg-a"]
        {
            assert_eq!(sum_of("a", other), None, "{other}");
        }
    }
}
