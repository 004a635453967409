//! `kimg upload`, `kimg image ls|rm` and `kimg gc`.

use super::aws::Aws;
use super::digitalocean::DigitalOcean;
use super::gcp::Gcp;
use super::google::Account;
use super::hetzner::Hetzner;
use super::linode::Linode;
use super::openstack::OpenStack;
use super::proxmox::Proxmox;
use super::s3::{Bucket, Store};
use super::settings::Environment;
use super::vultr::Vultr;
use super::{Local, Provider, State, upload};
use crate::config::Settings;
use crate::image::build::output_dir;
use crate::image::cmd::mib;
use crate::input;
use crate::oci::registry::credentials::environment;
use crate::progress::Progress;
use crate::table;
use crate::web::Client;
use anyhow::{Result, bail};
use node_metadata::Role;
use std::path::PathBuf;

/// A provider that takes images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Name {
    /// Machine images of EC2; sent block by block.
    #[value(name = "aws", alias = "ec2")]
    Aws,
    /// Custom images; fetched from --bucket.
    #[value(name = "digitalocean")]
    DigitalOcean,
    /// Images of Compute Engine; made of an archive in --bucket.
    #[value(name = "gcp")]
    Gcp,
    /// Snapshots of Hetzner Cloud; a server is made to write each.
    #[value(name = "hetzner")]
    Hetzner,
    /// Private images, sent straight there.
    #[value(name = "linode")]
    Linode,
    /// Glance, by the variables OS_….
    #[value(name = "openstack")]
    OpenStack,
    /// Proxmox VE: a storage's content `import`.
    #[value(name = "proxmox")]
    Proxmox,
    /// An S3-compatible bucket.
    #[value(name = "s3")]
    S3,
    /// Snapshots; fetched from --bucket.
    #[value(name = "vultr")]
    Vultr,
}

/// Where at a provider.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct PlaceArgs {
    /// Region: of the images, or of the bucket for s3
    #[arg(long, value_name = "REGION")]
    region: Option<String>,
    /// Bucket: for the images with s3, else from which the provider fetches
    #[arg(long, value_name = "NAME")]
    bucket: Option<String>,
    /// How names in the bucket begin
    #[arg(long, value_name = "TEXT", default_value = "")]
    prefix: String,
    /// The bucket's server; default: AWS_ENDPOINT_URL_S3, else AWS' own
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// The bucket's region, where it is another than --region
    #[arg(long, value_name = "REGION")]
    bucket_region: Option<String>,
    /// Node of Proxmox
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Storage of Proxmox, with the content type 'import'
    #[arg(long, value_name = "NAME", default_value = "local")]
    storage: String,
    /// Type of Hetzner's server that writes the image: machines need at least its disk
    #[arg(long, value_name = "NAME", default_value = "cx23")]
    server_type: String,
    /// PEM file with authorities to trust besides this machine's
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    ca: Option<PathBuf>,
}

impl PlaceArgs {
    /// What is none anywhere is told before anything is asked; a dry run would ask nobody.
    fn check(&self) -> Result<()> {
        let names = [
            ("--region", &self.region),
            ("--bucket", &self.bucket),
            ("--bucket-region", &self.bucket_region),
            ("--node", &self.node),
        ];
        for (flag, name) in names.into_iter().filter_map(|(flag, name)| Some((flag, name.as_deref()?))) {
            if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
                return input::bad(format!("{flag}: '{name}' is no name; it has letters, digits, -, _ and . alone"));
            }
            // Of S3; Cloud Storage takes longer ones.
            if flag == "--bucket" && !(3..=222).contains(&name.len()) {
                return input::bad(format!("{flag}: '{name}' is no bucket's name, which has 3 characters or more"));
            }
        }
        let texts = [("--prefix", &self.prefix), ("--storage", &self.storage), ("--server-type", &self.server_type)];
        for (flag, text) in texts {
            // It would be shown as it is, and a terminal may obey it.
            if text.chars().any(char::is_control) {
                return input::bad(format!("{flag}: '{}' has a control character in it", text.escape_debug()));
            }
        }
        Ok(())
    }

    /// Where the machines of `[provider]` find their images.
    pub fn of_machines(
        region: &str,
        server_type: &str,
        bucket: Option<String>,
        endpoint: Option<String>,
        bucket_region: Option<String>,
    ) -> PlaceArgs {
        let (region, server_type) = (Some(region.to_string()), server_type.to_string());
        PlaceArgs { region, server_type, bucket, endpoint, bucket_region, ..PlaceArgs::default() }
    }

    /// The same at Proxmox.
    pub fn of_storage(node: &str, storage: &str) -> PlaceArgs {
        PlaceArgs { node: Some(node.to_string()), storage: storage.to_string(), ..PlaceArgs::default() }
    }
}

/// Opens a provider with the credentials of the environment.
///
/// # Errors
/// Something that it needs is not said.
pub fn open(name: Name, place: &PlaceArgs, client: &Client, env: Environment<'_>) -> Result<Box<dyn Provider>> {
    place.check()?;
    let bucket = |region: Option<&str>| -> Result<Bucket> {
        let Some(name) = &place.bucket else {
            let why =
                "--bucket is missing: the images' place with s3, and the shelf from which digitalocean and vultr fetch";
            return input::bad(why);
        };
        Bucket::open(client, env, name, &place.prefix, place.endpoint.as_deref(), region)
    };
    let own = place.bucket_region.as_deref();
    let region = |example: &str| match &place.region {
        Some(region) => Ok(region.as_str()),
        None => input::bad(format!("--region is missing, e.g. {example}")),
    };
    Ok(match name {
        Name::S3 => Box::new(Store::new(bucket(own.or(place.region.as_deref()))?)),
        Name::Aws => Box::new(Aws::new(client, env, place.region.as_deref())?),
        Name::DigitalOcean => Box::new(DigitalOcean::new(client, env, region("fra1")?, bucket(own)?)?),
        Name::Gcp => {
            let Some(bucket) = &place.bucket else {
                return input::bad(
                    "--bucket is missing: the bucket of Cloud Storage in which the archive stands for a time",
                );
            };
            Box::new(Gcp::new(env, Account::open(client, env)?, bucket)?)
        }
        Name::Hetzner => Box::new(Hetzner::new(client, env, place.region.as_deref(), &place.server_type)?),
        Name::Linode => Box::new(Linode::new(client, env, region("eu-central")?)?),
        Name::OpenStack => Box::new(OpenStack::new(client, env, place.region.as_deref())?),
        Name::Proxmox => {
            let Some(node) = &place.node else {
                return input::bad("--node is missing: the node of Proxmox whose storage it is, e.g. pve");
            };
            Box::new(Proxmox::new(client, env, node, &place.storage)?)
        }
        Name::Vultr => Box::new(Vultr::new(client, env, bucket(own)?)?),
    })
}

/// `kimg upload`
#[derive(Debug, clap::Args)]
pub struct UploadArgs {
    /// Which image: master, worker, or all for both
    role: String,
    /// The provider
    #[arg(long, aliases = ["at", "provider", "for"], value_name = "PROVIDER")]
    to: Name,
    #[command(flatten)]
    place: PlaceArgs,
    /// Print the calls and send none
    #[arg(long)]
    dry_run: bool,
}

/// Uploads an image, or both.
///
/// # Errors
/// It is not there afterwards.
pub fn run_upload(args: &UploadArgs, settings: &Settings) -> Result<()> {
    let roles: Vec<Role> =
        [Role::Master, Role::Worker].into_iter().filter(|r| args.role == "all" || args.role == r.as_str()).collect();
    if roles.is_empty() {
        return input::bad(format!("'{}' is no role; there are master and worker, and all stands for both", args.role));
    }
    let ca = args.place.ca.as_deref();
    let client =
        if args.dry_run { Client::new(ca)?.dry(|call| println!("{call}\n")) } else { Client::interruptible(ca)? };
    let format = open(args.to, &args.place, &client, &environment)?.format();
    // Whatever is wrong with one of them is said before the other is sent.
    let images = roles.iter().map(|role| Local::read(&output_dir(settings, *role), format));
    for image in images.collect::<Result<Vec<_>>>()? {
        let provider = open(args.to, &args.place, &client, &environment)?;
        let progress = Progress::new();
        let bar = progress.bytes(&image.name, image.sum.size);
        let done = upload(&*provider, &image, &bar);
        bar.finish_and_clear();
        let done = done?;
        if args.dry_run {
            println!("{}: {} would be sent; nothing was", image.name, mib(image.sum.size));
        } else if done.reused {
            println!("{}: was there as {}", image.name, done.id);
        } else {
            println!("{}: {} sent, is there as {}", image.name, mib(image.sum.size), done.id);
        }
    }
    if args.dry_run {
        println!("{}", unknown(args.place.bucket.as_deref()));
    }
    Ok(())
}

/// What a dry run, which asks nobody, leaves open.
fn unknown(bucket: Option<&str>) -> String {
    let bucket =
        bucket.map_or(String::new(), |bucket| format!(", whether there is a bucket {bucket} that they may write to"));
    format!("nobody was asked: whether the credentials count{bucket}, and what is there already, is not known")
}

/// `kimg image`
#[derive(Debug, clap::Subcommand)]
pub enum ImageCommand {
    /// List kimg's images at a provider
    Ls {
        /// The provider
        #[arg(long, aliases = ["to", "provider", "for"], value_name = "PROVIDER")]
        at: Name,
        #[command(flatten)]
        place: PlaceArgs,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove an image at a provider
    Rm {
        /// Its name or the provider's id for it
        image: String,
        /// The provider
        #[arg(long, aliases = ["to", "provider", "for"], value_name = "PROVIDER")]
        at: Name,
        #[command(flatten)]
        place: PlaceArgs,
    },
}

/// Lists or removes images.
///
/// # Errors
/// The provider refuses, or has no such image.
pub fn run_image(command: &ImageCommand) -> Result<()> {
    match command {
        ImageCommand::Ls { at, place, json } => {
            let images = open(*at, place, &Client::new(place.ca.as_deref())?, &environment)?.list()?;
            if *json {
                println!("{}", serde_json::to_string_pretty(&images)?);
                return Ok(());
            }
            let rows: Vec<Vec<String>> = images
                .into_iter()
                .map(|image| {
                    let state = match image.state {
                        State::Ready => "ready".to_string(),
                        State::Pending => "pending".to_string(),
                        State::Broken(why) => format!("broken: {why}"),
                    };
                    vec![image.name, image.id, image.created, state]
                })
                .collect();
            print!("{}", table::render(&["NAME", "ID", "CREATED", "STATE"], &rows));
        }
        ImageCommand::Rm { image, at, place } => {
            let provider = open(*at, place, &Client::new(place.ca.as_deref())?, &environment)?;
            let known = provider.list()?;
            let fitting: Vec<_> = known.iter().filter(|k| k.name == *image || k.id == *image).collect();
            match fitting[..] {
                [only] => provider.delete(&only.id)?,
                [] => {
                    return input::bad(format!(
                        "kimg has put no image {image} there; `kimg image ls` lists what it has"
                    ));
                }
                _ => return input::bad(format!("several images are called {image}; name the id of one")),
            }
            println!("{image}: removed");
        }
    }
    Ok(())
}

/// `kimg gc`
#[derive(Debug, clap::Args)]
pub struct GcArgs {
    /// The provider
    #[arg(long, aliases = ["to", "at", "for"], value_name = "PROVIDER")]
    provider: Name,
    #[command(flatten)]
    place: PlaceArgs,
    /// Only tell what would be removed
    #[arg(long)]
    dry_run: bool,
}

/// Removes what interrupted uploads left.
///
/// # Errors
/// Something stays.
pub fn run_gc(args: &GcArgs) -> Result<()> {
    let provider = open(args.provider, &args.place, &Client::new(args.place.ca.as_deref())?, &environment)?;
    let leftovers = provider.leftovers()?;
    let mut stay = Vec::new();
    for leftover in &leftovers {
        // One that is still in use keeps no other.
        if !args.dry_run
            && let Err(error) = provider.discard(leftover)
        {
            stay.push(format!("{} {}: {error:#}", leftover.kind, leftover.id));
            continue;
        }
        println!("{} {}", leftover.kind, leftover.id);
    }
    let gone = leftovers.len() - stay.len();
    println!("{gone} {}", if args.dry_run { "would be removed" } else { "removed" });
    if !stay.is_empty() {
        bail!("these stay: {}", stay.join("; "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dry_run_says_what_it_does_not_know() {
        assert!(unknown(Some("shelf")).contains("whether there is a bucket shelf"));
        assert!(!unknown(None).contains("bucket"));
    }

    /// Names and flags of one command are good for the others.
    #[test]
    fn a_provider_has_one_name() {
        #[derive(clap::Parser)]
        struct Upload {
            #[command(flatten)]
            args: UploadArgs,
        }
        use clap::Parser;
        for flag in ["--to", "--at", "--provider", "--for"] {
            for name in ["aws", "ec2"] {
                assert_eq!(
                    Upload::try_parse_from(["x", "all", flag, name]).unwrap().args.to,
                    Name::Aws,
                    "{flag} {name}"
                );
            }
        }
        for name in <Name as clap::ValueEnum>::value_variants() {
            let name = clap::ValueEnum::to_possible_value(name).unwrap();
            let taken = crate::seed::check_for(name.get_name(), "");
            assert_eq!(taken.is_ok(), name.get_name() != "s3", "{taken:?}");
        }
    }

    #[test]
    fn what_a_terminal_would_obey_is_no_name() {
        let place = |prefix: &str, storage: &str| PlaceArgs {
            prefix: prefix.into(),
            storage: storage.into(),
            ..PlaceArgs::default()
        };
        place("images/", "local").check().unwrap();
        for place in [place("\u{1b}[31m", "local"), place("a\nb", "local"), place("", "\r")] {
            let error = place.check().unwrap_err();
            assert!(error.is::<input::BadInput>() && !error.to_string().contains(char::is_control), "{error:?}");
        }
    }
}
