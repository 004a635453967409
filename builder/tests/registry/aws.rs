//! Machines at AWS against moto: another project's EC2, which knows no roots that are replaced.

use crate::moto::Moto;
use anyhow::{Context, Result, bail, ensure};
use kimg::cloud::plan::{self, Situation};
use kimg::cloud::{Order, ROLES, Server, Volume, destroy, open};
use kimg::config;
use kimg::machines::NO_IMAGE;
use kimg::pki::Secrets;
use kimg::web::Client;
use std::collections::BTreeMap;
use std::path::Path;

const CLUSTER: &str = "name = \"demo\"\n[provider]\nname = \"aws\"\nregion = \"eu-west-1a\"\ntype = \"t3.small\"\n\
                       [[nodes]]\nname = \"m\"\nrole = \"master\"\n[[nodes]]\nname = \"w\"\nrole = \"worker\"\ndata-gb = 20\n";
/// An image that moto has.
const IMAGE: &str = "ami-12c6146b";
const SUM: &str = "0123456789ab";

pub fn machines_come_and_go(dir: &Path) -> Result<()> {
    let moto = Moto::start(dir)?;
    let settings = config::parse(Path::new("cluster.toml"), CLUSTER, dir)?;
    let provider = settings.provider.as_ref().context("a provider")?;
    Secrets::ensure(&settings.secrets_dir(), "demo")?;
    let client = Client::new(None)?;
    let env = |name: &str| match name {
        "AWS_ACCESS_KEY_ID" => Some(moto.key.clone()),
        "AWS_SECRET_ACCESS_KEY" => Some(moto.secret.clone()),
        "AWS_ENDPOINT_URL_EC2" => Some(moto.url.clone()),
        _ => None,
    };
    let cloud = open(&settings, provider, &client, &env)?;
    let offer = cloud.offer()?;
    ensure!(offer.sizes.get("t3.small").is_some_and(|size| size.available), "{:?}", offer.sizes.len());

    let network = cloud.make_network()?;
    ensure!(cloud.make_network()?.id == network.id, "it is made once");
    for (role, node) in ROLES.into_iter().zip(["m", "w"]) {
        let firewall = cloud.make_firewall(role)?;
        ensure!(cloud.make_firewall(role)?.id == firewall.id, "it is made once");
        let (size, image_id, image, user_data) = ("t3.small", IMAGE, SUM, "#cloud-config");
        let order = Order {
            node,
            role,
            size,
            image_id,
            image,
            user_data,
            network: &network,
            firewall: &firewall,
            on_volume: node == "w",
        };
        cloud.make_server(&order)?;
        cloud.make_server(&order)?;
    }
    cloud.make_volume("w", 20)?;
    let volume = || -> Result<(Volume, Server)> {
        let found = cloud.inventory()?;
        let [volume] = &found.volumes[..] else { bail!("{:?}", found.volumes) };
        ensure!(found.rest.iter().all(|thing| thing.kind != "disk"), "{:?}", found.rest);
        Ok((volume.clone(), found.servers.into_iter().find(|server| server.node == "w").context("a worker")?))
    };
    let (free, worker) = volume()?;
    ensure!((free.gb, free.region.as_str(), &free.server) == (20, "eu-west-1a", &None) && worker.on_volume, "{free:?}");
    cloud.attach(&free, &worker)?;
    ensure!(volume()?.0.server.as_ref() == Some(&worker.id), "{:?}", volume()?);
    cloud.detach(&volume()?.0)?;
    ensure!(volume()?.0 == free, "{:?}", volume()?);
    cloud.attach(&free, &worker)?;
    let planned = || -> Result<_> {
        let (inventory, rules, built) = (cloud.inventory()?, plan::rules(&*cloud), BTreeMap::new());
        let plan = plan::plan(&Situation {
            settings: &settings,
            provider,
            offer: &offer,
            inventory: &inventory,
            rules,
            built,
        });
        ensure!(plan.steps.is_empty() && plan.refusals.is_empty(), "{plan:?}");
        Ok((plan.drift, inventory.servers))
    };
    let (drift, servers) = planned()?;
    ensure!(drift.is_empty() && servers.len() == 2, "{drift:?} {servers:?}");
    let addressed = |range: ipnet::Ipv4Net| {
        let inside = |at| matches!(at, Some(std::net::IpAddr::V4(at)) if range.contains(&at));
        servers.iter().all(|server| server.public.is_some() && inside(server.private))
    };
    ensure!(addressed(provider.network), "{servers:?}");

    let master = servers.iter().find(|server| server.node == "m").context("a master")?;
    cloud.mark(master, NO_IMAGE)?;
    let (drift, _) = planned()?;
    ensure!(drift.len() == 1 && drift[0].contains("is being made anew"), "{drift:?}");
    cloud.mark(master, SUM)?;
    ensure!(planned()?.0.is_empty(), "it is noted again");

    // AWS does so when the machine goes; moto shows it at the machine that is gone for ever, and refuses its end.
    cloud.detach(&volume()?.0)?;
    destroy::destroy(&*cloud, &client, destroy::things, |_| ())?;
    let left = cloud.inventory()?;
    ensure!(destroy::things(&left).is_empty() && left.volumes == [free], "{left:?}");
    destroy::destroy(&*cloud, &client, destroy::volumes, |_| ())?;
    ensure!(cloud.inventory()?.volumes.is_empty(), "it is gone");
    Ok(())
}
