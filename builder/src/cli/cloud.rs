//! `kimg up` at a provider, `kimg plan` and `kimg destroy`.

use crate::client::kube::NodeState;
use crate::cloud::cluster::{Api, Cluster};
use crate::cloud::images::{self, Image, Images, Uploads};
use crate::cloud::machines::{CloudMachines, NodeApi};
use crate::cloud::plan::{self, Plan, Situation};
use crate::cloud::up::{Done, Up};
use crate::cloud::{
    self, Cents, Cloud, Inventory, Offer, ROLES, Server, State, Thing, Volume, amount, destroy, volumes,
};
use crate::config::{NodeSettings, Provider, ProviderName, Settings};
use crate::hint::{dir_flag, next, program, shown};
use crate::image::build::output_dir;
use crate::image::manifest::Manifest;
use crate::image::output::Format;
use crate::input;
use crate::logs::line::harmless;
use crate::oci::registry::credentials::environment;
use crate::pki::Secrets;
use crate::progress::Progress;
use crate::table;
use crate::web::{Client, Interrupted};
use anyhow::{Context, Result, bail};
use node_metadata::Role;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

#[derive(Debug, clap::Args)]
pub(super) struct PlanArgs {
    /// As JSON; amounts are in hundredths
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct DestroyArgs {
    /// Do not ask: the cluster's name
    #[arg(long, value_name = "NAME")]
    yes: Option<String>,
    /// Remove data volumes and the uploaded images too; with --node, its data volume
    #[arg(long)]
    data: bool,
    /// Remove the machine of this node alone; `up` makes it anew where cluster.toml names it
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
}

/// A provider that was asked.
struct Asked<'a> {
    settings: &'a Settings,
    provider: &'a Provider,
    client: Client,
    cloud: Box<dyn Cloud>,
    offer: Offer,
}

impl<'a> Asked<'a> {
    fn new(settings: &'a Settings) -> Result<Asked<'a>> {
        let Some(provider) = &settings.provider else {
            return input::bad(
                "cluster.toml has no [provider], so the machines are VMs here: `kimg up`, `kimg status` and `kimg down` are for those",
            );
        };
        // Until the question is answered, Ctrl-C ends the command at once: nothing was begun.
        let client = Client::new(None)?;
        let cloud = cloud::open(settings, provider, &client, &environment)?;
        let offer = cloud.offer()?;
        Ok(Asked { settings, provider, client, cloud, offer })
    }

    /// From now on things are made or removed, and Ctrl-C ends the command in order.
    fn begin(&mut self) -> Result<()> {
        self.client = Client::interruptible(None)?;
        self.cloud = cloud::open(self.settings, self.provider, &self.client, &environment)?;
        Ok(())
    }

    fn machines<T>(&self, secrets: &Secrets, work: impl FnOnce(&mut CloudMachines<'_>) -> Result<T>) -> Result<T> {
        let images = Uploading { asked: self, progress: Progress::new() };
        work(&mut CloudMachines {
            settings: self.settings,
            provider: self.provider,
            secrets,
            offer: &self.offer,
            cloud: &*self.cloud,
            images: &images,
            nodes: &NodeApi(self.settings),
            client: &self.client,
        })
    }

    /// Has machines power off that go while their data volumes stay.
    fn power_off(&self, inventory: &Inventory, things: &[Thing]) -> Result<()> {
        let secrets = Secrets::open(&self.settings.secrets_dir());
        let tell = |node: &str| println!("powering off: {}", harmless(node));
        for node in self.machines(&secrets, |machines| destroy::power_off(machines, inventory, things, tell))? {
            println!(
                "{} did not power off: what its programs have not synced may be missing on its data volume",
                harmless(&node)
            );
        }
        Ok(())
    }

    fn plan(&self, inventory: &Inventory) -> Result<Plan> {
        let mut sums = BTreeMap::new();
        for role in ROLES {
            if let Some(sum) = built(self.settings, role)? {
                sums.insert(role, sum);
            }
        }
        let mut plan = plan::plan(&Situation {
            settings: self.settings,
            provider: self.provider,
            offer: &self.offer,
            inventory,
            rules: plan::rules(&*self.cloud),
            built: sums,
        });
        plan.refuse_skew(self.settings, &self.nodes(&plan, inventory)?);
        Ok(plan)
    }

    /// What the API server says of the nodes that are there, where machines are to be made beside them. Nothing where it
    /// does not answer: it lets no worker in then, either.
    fn nodes(&self, plan: &Plan, inventory: &Inventory) -> Result<Vec<NodeState>> {
        let masters: Vec<&str> = self.settings.nodes_of(Role::Master).map(|node| node.entry.name.as_str()).collect();
        let runs = |server: &&Server| server.state == State::Running && masters.contains(&server.node.as_str());
        let master = inventory.servers.iter().find(runs).and_then(|server| server.public);
        let (true, Some(at)) = (plan.makes_servers(), master) else { return Ok(Vec::new()) };
        let secrets = Secrets::of_cluster(&self.settings.secrets_dir(), &self.settings.name)?;
        let told = Api { settings: self.settings, secrets: &secrets }.nodes(at);
        Ok(told.inspect_err(|error| tracing::debug!("the nodes' levels are not known: {error:#}")).unwrap_or_default())
    }
}

/// The beginning of the SHA-256 of the image that is built here.
fn built(settings: &Settings, role: Role) -> Result<Option<String>> {
    let Some(manifest) = Manifest::known(&output_dir(settings, role))? else { return Ok(None) };
    Ok(manifest.files.get(Format::Raw.file()).and_then(|sum| sum.sha256.get(..12)).map(str::to_string))
}

pub(super) fn show_plan(args: &PlanArgs, settings: &Settings) -> Result<()> {
    let asked = Asked::new(settings)?;
    let plan = asked.plan(&asked.cloud.inventory()?)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&plan).context("writing JSON")?);
    } else {
        print!("{}", plan.shown());
        next(&format!("{} up{}", program(), dir_flag(settings)));
    }
    Ok(())
}

pub(super) fn up(yes: bool, components: Option<&Path>, settings: &Settings) -> Result<()> {
    make(yes, components, settings, None)
}

/// Whether what `up` would do is possible, and agreed to.
pub(super) fn agreed_to(settings: &Settings, yes: bool) -> Result<bool> {
    agreed(settings, yes, false)
}

/// The same of what makes masters beside those that there are.
pub(super) fn agreed_to_masters(settings: &Settings, yes: bool) -> Result<bool> {
    agreed(settings, yes, true)
}

fn agreed(settings: &Settings, yes: bool, masters: bool) -> Result<bool> {
    let asked = Asked::new(settings)?;
    let mut plan = asked.plan(&asked.cloud.inventory()?)?;
    if masters {
        plan.heals();
    }
    print!("{}", plan.shown());
    plan.check()?;
    if yes {
        return Ok(true);
    }
    match input::agreed("Go on?")? {
        Some(agreed) => Ok(agreed),
        None => input::bad("nobody is there to be asked: add --yes, or see `kimg plan`"),
    }
}

/// All machines anew, with a store for the master.
pub(super) fn restore(
    yes: bool,
    components: Option<&Path>,
    settings: &Settings,
    give: &dyn Fn(IpAddr) -> Result<()>,
) -> Result<()> {
    make(yes, components, settings, Some(give))
}

fn make(
    yes: bool,
    components: Option<&Path>,
    settings: &Settings,
    restore: Option<&dyn Fn(IpAddr) -> Result<()>>,
) -> Result<()> {
    let mut asked = Asked::new(settings)?;
    let inventory = asked.cloud.inventory()?;
    if restore.is_some() && !inventory.servers.is_empty() {
        let names: Vec<&str> = inventory.servers.iter().map(|server| server.node.as_str()).collect();
        let interrupted = if settings.has_several_masters() {
            "Where a restore was interrupted, `kimg destroy` and then this command begin it again"
        } else {
            "Where the master waits for a backup after a restore that was interrupted, `kimg store restore FILE` gives it one and \
             `kimg up` goes on"
        };
        return input::bad(format!(
            "the cluster is not lost: {} is at {}. {interrupted}; else `kimg up` starts what is there, and `kimg destroy` \
             removes it",
            names.join(", "),
            asked.provider.name.as_str()
        ));
    }
    let has_store = |node: &&NodeSettings| node.entry.role == Role::Master && node.data_gb.is_some();
    for master in settings.nodes.iter().filter(has_store).filter(|_| restore.is_some()) {
        let name = &master.entry.name;
        if let Some(volume) = inventory.volumes.iter().find(|volume| volume.node == *name) {
            return input::bad(format!(
                "the {} may have the store of {name}, which `kimg up` goes on with; to give that up, say `kimg destroy --node {name} \
                 --data` first",
                volumes::shown(volume, &asked.offer)
            ));
        }
    }
    let plan = asked.plan(&inventory)?;
    print!("{}", plan.shown());
    plan.check()?;
    if !plan.steps.is_empty() && !yes {
        match input::agreed("Go on?")? {
            Some(true) => {}
            Some(false) => return Ok(()),
            None => return input::bad("nobody is there to be asked: add --yes, or see `kimg plan`"),
        }
    }
    let progress = Progress::new();
    if plan.makes_servers() {
        super::image::ensure_images(settings, components, &progress)?;
    }
    let secrets = Secrets::ensure(&settings.secrets_dir(), &settings.name)?;
    asked.begin()?;
    let (client, provider) = (&asked.client, asked.provider);
    let images = Uploads { settings, provider, offer: &asked.offer, client, env: &environment, progress: &progress };
    let cluster = Api { settings, secrets: &secrets };
    let cloud = &*asked.cloud;
    let up = Up {
        settings,
        provider,
        secrets: &secrets,
        offer: &asked.offer,
        cloud,
        images: &images,
        cluster: &cluster,
        client,
        progress: &progress,
        restore,
    };
    let goes_on = match restore.is_some() && settings.has_several_masters() {
        true => format!("`{0} destroy{1}` and `{0} restore{1}` begin again", program(), dir_flag(settings)),
        false => format!("`{} up{}` goes on", program(), dir_flag(settings)),
    };
    let done = up.run().map_err(|error| match error.is::<Interrupted>() {
        true => error.context(format!("what was made stays, and {goes_on}")),
        false => error,
    })?;
    show_done(settings, &done);
    Ok(())
}

fn show_done(settings: &Settings, done: &Done) {
    let made =
        if done.made.is_empty() { "all were there".to_string() } else { format!("made {}", done.made.join(", ")) };
    println!("cluster {}: {} nodes Ready ({made})\n", settings.name, done.servers.len());
    let text = |address: Option<std::net::IpAddr>| address.map_or("-".to_string(), |address| address.to_string());
    let rows: Vec<Vec<String>> = done
        .servers
        .iter()
        .map(|one| vec![one.node.clone(), one.size.clone(), text(one.public), text(one.private), one.image.clone()])
        .collect();
    print!("{}", table::render(&["NODE", "TYPE", "PUBLIC", "PRIVATE", "IMAGE"], &rows));
    for line in records(settings, &done.servers) {
        println!("{line}");
    }
    println!("\nuse it:  kubectl --kubeconfig {} get nodes -o wide", shown(&done.kubeconfig));
    println!("end it:  {} destroy{}", program(), dir_flag(settings));
}

/// The DNS records to set, and what for.
fn records(settings: &Settings, servers: &[Server]) -> Vec<String> {
    let of = |role: Role| {
        let nodes: Vec<&str> = settings.nodes_of(role).map(|node| node.entry.name.as_str()).collect();
        let servers = servers.iter().filter(move |server| nodes.contains(&server.node.as_str()));
        servers.filter_map(|server| server.public).map(|address| format!("A {address}")).collect::<Vec<_>>()
    };
    let mut lines = Vec::new();
    let masters = of(Role::Master);
    if !masters.is_empty() {
        let all = masters.join(", ");
        lines.extend(settings.api.names.iter().map(|name| format!("DNS:     {name} {all} (the API)")));
    }
    let workers = of(Role::Worker);
    if !workers.is_empty() {
        lines.push(format!("DNS:     the names of what the cluster serves: {}", workers.join(", ")));
    }
    lines
}

/// Images for a roll: until one is to be uploaded, Ctrl-C ends the command at once.
struct Uploading<'a> {
    asked: &'a Asked<'a>,
    progress: Progress,
}

impl Uploading<'_> {
    fn by<'b>(&'b self, client: &'b Client) -> Uploads<'b> {
        let Asked { settings, provider, offer, .. } = self.asked;
        Uploads { settings, provider, offer, client, env: &environment, progress: &self.progress }
    }
}

impl Images for Uploading<'_> {
    fn ensure(&self, role: Role) -> Result<Image> {
        self.by(&Client::interruptible(None)?).ensure(role)
    }

    fn find(&self, sum: &str) -> Result<Option<Image>> {
        self.by(&self.asked.client).find(sum)
    }
}

/// What a roll needs of a provider: the machines, where the API servers are, and the DNS records as they are afterwards.
pub(super) fn roll<T>(
    settings: &Settings,
    secrets: &Secrets,
    work: impl FnOnce(&mut CloudMachines<'_>, &[IpAddr], &dyn Fn() -> Result<Vec<String>>) -> Result<T>,
) -> Result<T> {
    machines(settings, secrets, |machines| {
        let cloud = machines.cloud;
        let at = masters_at(settings, machines)?;
        work(machines, &at, &|| Ok(records(settings, &cloud.inventory()?.servers)))
    })
}

/// What the spares of a roll cost that are to be made.
pub(super) fn prices_of_spares(machines: &CloudMachines<'_>) -> Result<Vec<String>> {
    let CloudMachines { settings, provider, offer, cloud, .. } = *machines;
    if settings.spares().next().is_none() {
        return Ok(Vec::new());
    }
    let (inventory, rules) = (&cloud.inventory()?, plan::rules(cloud));
    let plan = plan::plan(&Situation { settings, provider, offer, inventory, rules, built: BTreeMap::new() });
    Ok(plan.prices_of_spares(settings))
}

/// Where the masters' machines are found.
fn masters_at(settings: &Settings, machines: &CloudMachines<'_>) -> Result<Vec<IpAddr>> {
    let (provider, cloud) = (machines.provider, machines.cloud);
    let known = cloud.inventory()?.servers;
    let names: Vec<&str> = settings.nodes_of(Role::Master).map(|master| master.entry.name.as_str()).collect();
    let at = |name: &&str| known.iter().find(|server| server.node == **name).and_then(|server| server.public);
    let found: Vec<IpAddr> = names.iter().filter_map(at).collect();
    if found.is_empty() {
        return input::bad(format!(
            "{} has no machine of {} with a public address; `kimg heal master` brings back a master that is gone, and \
             `kimg plan` shows what is there",
            provider.name.as_str(),
            names.join(" or ")
        ));
    }
    Ok(found)
}

/// The machines at the provider.
pub(super) fn machines<T>(
    settings: &Settings,
    secrets: &Secrets,
    work: impl FnOnce(&mut CloudMachines<'_>) -> Result<T>,
) -> Result<T> {
    Asked::new(settings)?.machines(secrets, work)
}

pub(super) fn destroy(args: &DestroyArgs, settings: &Settings) -> Result<()> {
    if let Some(name) = args.yes.as_ref().filter(|name| **name != settings.name) {
        return input::bad(format!("--yes {name}: the cluster is called {}", settings.name));
    }
    let mut asked = Asked::new(settings)?;
    let inventory = asked.cloud.inventory()?;
    if let Some(node) = &args.node {
        return destroy_node(asked, &inventory, node, args);
    }
    destroy::check(&inventory)?;
    for foreign in &inventory.foreign {
        println!("not touched: {}", harmless(&foreign.why));
    }
    if args.data && !inventory.foreign.is_empty() {
        return input::bad(
            "images do not tell two clusters of one name apart: leave --data away, and see `kimg image ls`",
        );
    }
    // Data volumes last, when no machine has them.
    let of = |found: &Inventory| {
        let volumes = if args.data { destroy::volumes(found) } else { Vec::new() };
        destroy::things(found).into_iter().chain(volumes).collect::<Vec<_>>()
    };
    let things = of(&inventory);
    let images = images::uploaded(settings, asked.provider, &asked.client, &environment).map(|(_, images)| images);
    let mut left = destroy::left(&inventory, &images, args.data);
    if !args.data {
        left.extend(stay(&inventory.volumes, &asked.offer, "destroy --data"));
    }
    // Where they stay, nobody needs the credentials of the bucket that they came from.
    let images = if args.data { images? } else { Vec::new() };
    let at = match asked.provider.name {
        // What is in another region is seen by nobody who asks this one.
        name @ (ProviderName::Aws | ProviderName::OpenStack) => {
            format!("{} in {}", name.as_str(), asked.provider.region)
        }
        name => name.as_str().to_string(),
    };
    if things.is_empty() && images.is_empty() {
        println!("cluster {}: nothing that can be removed is at {at}", settings.name);
        show_left(&left);
        return Ok(());
    }
    let costs = |thing: &Thing| ["server", "volume"].contains(&thing.kind);
    let price = |thing: &Thing| -> Option<Cents> {
        if thing.kind == "volume" {
            let volume = inventory.volumes.iter().find(|volume| volume.id == thing.id)?;
            return asked.offer.volume_price(volume.gb);
        }
        let server = inventory.servers.iter().find(|server| thing.kind == "server" && server.id == thing.id)?;
        asked.offer.price(&server.size)
    };
    let prices: Vec<Option<Cents>> = things.iter().filter(|thing| costs(thing)).map(price).collect();
    let and = if prices.iter().all(Option::is_some) { "" } else { ", and what has no known price" };
    let row = |thing: &Thing| {
        let price = match price(thing) {
            Some(price) => price.to_string(),
            None if costs(thing) => "?".into(),
            None => "-".into(),
        };
        vec![thing.kind.into(), thing.name.clone(), thing.id.clone(), price]
    };
    let mut rows: Vec<Vec<String>> = things.iter().map(row).collect();
    rows.extend(images.iter().map(|image| vec!["image".into(), image.name.clone(), image.id.clone(), "?".into()]));
    print!("{}", table::render(&["KIND", "NAME", "ID", "A MONTH"], &rows));
    let cost = match Cents::total(prices) {
        Some(total) => format!("{} a month{and}", amount(Some(total), &asked.offer.currency)),
        None => "what that costs is not known".into(),
    };
    let but = if args.data || inventory.volumes.is_empty() { "" } else { ", but for its data volumes, which stay" };
    println!("\n{cost}; with the machines goes all that the cluster holds{but}");
    agree(settings, args.yes.is_some())?;
    asked.begin()?;
    asked.power_off(&inventory, &things)?;
    let mut stay = Vec::new();
    if let Err(error) = destroy::destroy(&*asked.cloud, &asked.client, of, tell) {
        if error.is::<Interrupted>() {
            return Err(error);
        }
        stay.push(format!("{error:#}"));
    }
    if args.data {
        let (store, _) = images::uploaded(settings, asked.provider, &asked.client, &environment)?;
        for image in &images {
            match store.delete(&image.id) {
                Ok(()) => println!("removed: image {}", harmless(&image.name)),
                Err(error) => stay.push(format!("image {} ({}) stays: {error:#}", image.name, image.id)),
            }
        }
    }
    show_left(&left);
    if !stay.is_empty() {
        bail!("{}", stay.join("; "));
    }
    println!("nothing{} at {at} is the cluster's any more", if left.is_empty() { "" } else { " else" });
    Ok(())
}

/// A sentence for each data volume that stays.
fn stay(volumes: &[Volume], offer: &Offer, command: &str) -> Vec<String> {
    let line = |volume: &Volume| {
        format!("stays, and costs money: {}; `kimg {command}` removes it", volumes::shown(volume, offer))
    };
    volumes.iter().map(line).collect()
}

/// Tells which data volumes are of no node any more.
pub(super) fn show_left_volumes(settings: &Settings) -> Result<()> {
    let asked = Asked::new(settings)?;
    show_left(&volumes::left(settings, &asked.cloud.inventory()?, &asked.offer));
    Ok(())
}

fn show_left(left: &[String]) {
    for line in left {
        println!("{}", harmless(line));
    }
}

/// Has the cluster's name typed, unless it was given.
fn agree(settings: &Settings, yes: bool) -> Result<()> {
    if yes {
        return Ok(());
    }
    match input::typed(&format!("Type the cluster's name ({}) to go on:", settings.name))? {
        Some(name) if name == settings.name => Ok(()),
        Some(_) => input::bad("that is not its name; nothing was removed"),
        None => input::bad(format!("nobody is there to be asked: add --yes {}", settings.name)),
    }
}

fn tell(thing: &Thing) {
    println!("removed: {} {}", thing.kind, harmless(&thing.name));
}

fn destroy_node(mut asked: Asked<'_>, inventory: &Inventory, node: &str, args: &DestroyArgs) -> Result<()> {
    let settings = asked.settings;
    let of_node = |volume: &Thing| volume.name == node;
    let of_it: Vec<Thing> = destroy::volumes(inventory).into_iter().filter(of_node).collect();
    let is_there = inventory.servers.iter().any(|server| server.node == node);
    let things = match destroy::of_node(settings, inventory, node) {
        Ok(things) if !args.data => things,
        Ok(things) => things.into_iter().chain(of_it).collect(),
        // Its machine may have gone before.
        Err(_) if args.data && !of_it.is_empty() && !is_there => of_it,
        Err(error) => return Err(error),
    };
    let rows: Vec<Vec<String>> =
        things.iter().map(|one| vec![one.kind.into(), one.name.clone(), one.id.clone()]).collect();
    print!("{}", table::render(&["KIND", "NAME", "ID"], &rows));
    if is_there {
        println!("\nwith the machine goes all that is on its disk");
    }
    for volume in inventory.volumes.iter().filter(|volume| args.data && volume.node == node) {
        println!("and for good all that is on the {}", volumes::shown(volume, &asked.offer));
    }
    agree(settings, args.yes.is_some())?;
    asked.begin()?;
    asked.power_off(inventory, &things)?;
    // Those that were asked about, and none that came since.
    let still = |found: &Inventory| {
        let all = destroy::things(found).into_iter().chain(destroy::volumes(found));
        all.filter(|one| things.contains(one)).collect::<Vec<_>>()
    };
    destroy::destroy(&*asked.cloud, &asked.client, still, tell)?;
    if !args.data {
        let kept: Vec<Volume> = inventory.volumes.iter().filter(|volume| volume.node == node).cloned().collect();
        show_left(&stay(&kept, &asked.offer, &format!("destroy --node {node} --data")));
    }
    next(&format!("{} up{}", program(), dir_flag(settings)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::State;

    #[test]
    fn records_name_the_api_and_the_workers() {
        let text = "name = \"demo\"\nnodes = [{ name = \"m\", role = \"master\" }, { name = \"w\", role = \"worker\" }]\n\
                    [api]\nnames = [\"api.example\"]\n[provider]\nname = \"hetzner\"\nregion = \"nbg1\"\ntype = \"cx23\"\n";
        let settings = crate::config::parse(Path::new("c"), text, Path::new("/nowhere")).expect("valid");
        let server = |node: &str, public: &str| Server {
            id: "1".into(),
            node: node.into(),
            image: String::new(),
            size: "cx23".into(),
            region: "nbg1".into(),
            state: State::Running,
            public: public.parse().ok(),
            private: None,
            created: None,
            on_volume: false,
        };
        assert_eq!(
            records(&settings, &[server("m", "192.0.2.1"), server("w", "192.0.2.2")]),
            [
                "DNS:     api.example A 192.0.2.1 (the API)",
                "DNS:     the names of what the cluster serves: A 192.0.2.2"
            ]
        );
    }
}
