//! `kimg pki` and `kimg kubeconfig`.

use super::write_out;
use crate::client::{Https, block_on};
use crate::cloud::token;
use crate::config::{NodeSettings, ProviderName, SecretsForm, Settings};
use crate::hint::{dir_flag, next, program, shown};
use crate::input::{self, BadInput};
use crate::local::state;
use crate::logs::line::harmless;
use crate::node::Target;
use crate::node::members::Masters;
use crate::oci::registry::credentials::environment;
use crate::pki::encryption::Keys;
use crate::pki::kubeconfig::{is_ours, kubeconfig as document, server_in, server_url};
use crate::pki::{
    Authority, Secrets, SecureBoot, Subject, accounts, encryption, issue, ls, revoke, rotate_node, seal, secrets,
    secure_boot, show, successor,
};
use crate::web::Client;
use anyhow::{Context, Result};
use node_metadata::Role;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use time::Duration;

#[derive(Debug, clap::Subcommand)]
pub(super) enum PkiCommand {
    /// Make the cluster's keys and authorities; what exists stays as it is
    Init,
    /// Show certificates: subject, names, dates, issuer
    Show(ShowArgs),
    /// List every certificate of nodes and operator, what ends first at the top; ends with 1 where one has expired or
    /// a node did not answer
    Ls(LsArgs),
    /// Issue a client certificate of the cluster's CA
    Issue(IssueArgs),
    /// Take client certificates of the API back, at once: those in files, or all that a user has
    Revoke(RevokeArgs),
    /// Put something new in the place of a certificate, token or key, and take the old one back
    Rotate(RotateArgs),
    /// Write what firmware has to learn to start this cluster's signed kernels
    SecureBoot(SecureBootArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct ShowArgs {
    /// PEM files or kubeconfigs [default: a table of the cluster's certificates]
    files: Vec<PathBuf>,
    /// All certificates of the cluster's secrets/ in full
    #[arg(long, conflicts_with = "files")]
    all: bool,
    /// As JSON, with the field names of cfssl-certinfo
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct LsArgs {
    /// What is called soon: less than so long is left, as 12h or 30d [default: a quarter of its life]
    #[arg(long, value_name = "SPAN", value_parser = crate::logs::line::span)]
    warn_below: Option<std::time::Duration>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct IssueArgs {
    /// User name (common name)
    user: String,
    /// Group (organisation); at most two
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// Days it is valid
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u16).range(1..=3650))]
    days: u16,
    /// Write a kubeconfig instead of certificate and key
    #[arg(long)]
    kubeconfig: bool,
    /// URL of the API server in the kubeconfig [default: as for `kimg kubeconfig`]
    #[arg(long, requires = "kubeconfig")]
    server: Option<String>,
    /// File to write (NAME.crt and NAME.key beside each other, or the kubeconfig)
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(super) struct RevokeArgs {
    /// PEM files or kubeconfigs with the certificates
    #[arg(required_unless_present_any = ["user", "node"])]
    files: Vec<PathBuf>,
    /// All certificates of this user that were issued until now
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// All certificates of this worker that were issued until now; it has to join anew
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// URL of the API server [default: as for `kimg kubeconfig`]
    #[arg(long)]
    server: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct RotateArgs {
    #[command(subcommand)]
    what: Rotate,
    /// URL of the API server [default: as for `kimg kubeconfig`]
    #[arg(long, global = true)]
    server: Option<String>,
}

#[derive(Debug, clap::Subcommand)]
enum Rotate {
    /// The administrator's certificate; takes effect at once
    Admin,
    /// The certificates of a worker, which runs on; those of before are taken back once all are new
    Node {
        /// Name of the worker
        node: String,
    },
    /// The cluster's own authority, by three new images of all nodes
    Ca {
        /// Have the new one sign, once all nodes trust it
        #[arg(long)]
        sign: bool,
        /// Take the old one out of trust, once it has signed nothing that is in use
        #[arg(long, conflicts_with = "sign")]
        finish: bool,
    },
    /// The token of the provider's API, which only this machine has: what to do, and whether it worked
    Provider {
        /// File with the token of before, mode 0600: looks whether the provider still takes it
        #[arg(long, value_name = "FILE")]
        old: Option<PathBuf>,
    },
    /// Bootstrap tokens: all that are out are removed, at once
    Bootstrap,
    /// The authority of etcd and its client, both on the master, by a new image of it
    Etcd,
    /// The authority of front proxies, by two new images of the master, or three of several masters
    FrontProxy {
        /// Have the new one sign, once all of several masters trust it
        #[arg(long)]
        sign: bool,
        /// Take the old one out of trust, once the master runs with the new one
        #[arg(long, conflicts_with = "sign")]
        finish: bool,
    },
    /// The authority of node APIs and the operator's certificate for them, by two new images of all nodes
    NodeApi {
        /// Take the old one out of trust, once all nodes run with the new one
        #[arg(long)]
        finish: bool,
    },
    /// The key of Secrets at rest, by two new images of the master, or three of several masters
    Encryption {
        /// Have the new key seal, once all of several masters know it
        #[arg(long)]
        seal: bool,
        /// Take the old key out of the image, once nothing is sealed by it any more
        #[arg(long, conflicts_with = "seal")]
        finish: bool,
    },
    /// The key of the sealed secrets in masters' images, by two new images of the master
    Seal {
        /// Take the old key out of user-data and images, once the master runs with an image of both
        #[arg(long)]
        finish: bool,
    },
    /// The key of service-account tokens, by two new images of the master, or three of several masters
    ServiceAccounts {
        /// Have the new key sign, once all of several masters take its tokens
        #[arg(long)]
        sign: bool,
        /// Take the old key out of trust, an hour after the master has run with the new one
        #[arg(long, conflicts_with = "sign")]
        finish: bool,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct SecureBootArgs {
    /// Folder for PK, KEK and db: NAME.auth (signed change), NAME.esl (list), NAME.cer (DER certificate)
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(super) struct KubeconfigArgs {
    /// URL of the API server [default: the running local master, else the first API name or address]
    #[arg(long)]
    server: Option<String>,
    /// Past RBAC (group system:masters), valid for four hours
    #[arg(long)]
    break_glass: bool,
    /// File to write [default: standard output, as for -]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) fn run(command: PkiCommand, settings: &dyn Fn() -> Result<Settings>) -> Result<ExitCode> {
    let done = match command {
        PkiCommand::Init => {
            let settings = settings()?;
            let dir = settings.secrets_dir();
            Secrets::ensure(&dir, &settings.name)?;
            println!("{}", dir.display());
            next(&format!("{} pki show{}", program(), dir_flag(&settings)));
            Ok(())
        }
        PkiCommand::Show(args) => show_certificates(&args, settings),
        PkiCommand::Ls(args) => return list_certificates(&args, &settings()?),
        PkiCommand::Issue(args) => issue_certificate(&args, &settings()?),
        PkiCommand::Revoke(args) => revoke_certificates(&args, &settings()?),
        PkiCommand::Rotate(args) => rotate(&args, &settings()?),
        PkiCommand::SecureBoot(args) => secure_boot_files(&args, &settings()?),
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// The certificates of nodes that answer, and of the operator: `secrets/` and the kubeconfig that `kimg up` writes.
fn list_certificates(args: &LsArgs, settings: &Settings) -> Result<ExitCode> {
    let judge = ls::Judge { now: jiff::Timestamp::now().as_second(), below: args.warn_below };
    let mut all = Vec::new();
    let kubeconfig = settings.dir.join("kubeconfig");
    for file in certificate_files(settings)?.into_iter().chain(kubeconfig.exists().then_some(kubeconfig)) {
        all.extend(show::read(&file)?.iter().map(|info| judge.of_file(&file, info)));
    }
    let mut whole = true;
    for (node, answer) in block_on(async { Ok(certificates_of_nodes(settings).await) })? {
        match answer {
            Ok(list) => all.extend(list.iter().map(|certificate| judge.of_node(&node, certificate))),
            Err(error) => {
                whole = false;
                eprintln!("kimg: {node}: {}", harmless(&format!("{error:#}")));
            }
        }
    }
    ls::sort(&mut all);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        write_out(ls::table(&all).as_bytes())?;
    }
    if let Some(warning) = ls::warning(&all) {
        eprintln!("kimg: {warning}");
    }
    let fine = whole && all.iter().all(|held| held.state != ls::State::Expired);
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn certificates_of_nodes(settings: &Settings) -> Vec<(String, Result<Vec<node_api::Certificate>>)> {
    let each = settings.nodes.iter().map(|node| async {
        let name = node.entry.name.clone();
        let target = Target { node: Some(name.clone()), ..Target::default() };
        let answer = match target.client(settings) {
            Ok(client) => client.get(node_api::path::CERTIFICATES).await,
            Err(error) => Err(error),
        };
        (name, answer)
    });
    futures::future::join_all(each).await
}

fn show_certificates(args: &ShowArgs, settings: &dyn Fn() -> Result<Settings>) -> Result<()> {
    let files = if args.files.is_empty() { certificate_files(&settings()?)? } else { args.files.clone() };
    let mut all = Vec::new();
    for file in files {
        all.extend(show::read(&file)?.into_iter().map(|info| (shown(&file), info)));
    }
    if args.json {
        let infos: Vec<&show::Info> = all.iter().map(|(_, info)| info).collect();
        let json = match infos.as_slice() {
            [one] => serde_json::to_string_pretty(one)?,
            many => serde_json::to_string_pretty(many)?,
        };
        println!("{json}");
    } else if args.files.is_empty() && !args.all {
        print!("{}", show::table(&all));
    } else {
        for (file, info) in &all {
            println!("{file}\n{}\n", show::text(info));
        }
    }
    Ok(())
}

fn certificate_files(settings: &Settings) -> Result<Vec<PathBuf>> {
    let dir = settings.secrets_dir();
    if !input::is_there(&dir)? {
        return input::bad(format!("there is no {} yet; make the keys with `kimg pki init`", dir.display()));
    }
    let entries =
        std::fs::read_dir(&dir).map_err(|error| BadInput(format!("{} cannot be read: {error}", dir.display())))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "crt"))
        .collect();
    files.sort();
    Ok(files)
}

fn issue_certificate(args: &IssueArgs, settings: &Settings) -> Result<()> {
    if args.groups.iter().any(|g| g == "system:masters") {
        return input::bad(
            "a certificate for system:masters passes every authorisation; `kimg kubeconfig --break-glass` makes one for four hours",
        );
    }
    let (certificate, key) = (args.output.with_extension("crt"), args.output.with_extension("key"));
    let files = if args.kubeconfig { vec![&args.output] } else { vec![&certificate, &key] };
    files.into_iter().try_for_each(|file| input::free_place(file))?;
    let secrets = Secrets::of_cluster(&settings.secrets_dir(), &settings.name)?;
    let subject = Subject { user: args.user.clone(), groups: args.groups.clone() };
    let client = issue::issue(&secrets, Authority::Cluster, &subject, Duration::days(args.days.into()))?;
    if args.kubeconfig {
        let ca = successor::bundle(&secrets, Authority::Cluster)?;
        let text = document(&settings.name, &server(settings, args.server.as_deref())?, &ca, &args.user, &client);
        secrets::write_private(&args.output, text.as_bytes())?;
        println!("{}", args.output.display());
        next(&format!("kubectl --kubeconfig {} auth whoami", args.output.display()));
        return Ok(());
    }
    secrets::write_private(&key, client.key.as_bytes())?;
    secrets::write_private(&certificate, client.certificate.as_bytes())?;
    println!("{}\n{}", certificate.display(), key.display());
    next(&format!("{} pki show {}", program(), certificate.display()));
    Ok(())
}

fn revoke_certificates(args: &RevokeArgs, settings: &Settings) -> Result<()> {
    let secrets = Secrets::of_cluster(&settings.secrets_dir(), &settings.name)?;
    let mut entries = revoke::Entries::default();
    for file in &args.files {
        entries = entries.and(revoke::Entries::file(file, &secrets)?);
    }
    let now = jiff::Timestamp::now();
    if let Some(user) = &args.user {
        if *user == Subject::admin().user {
            return input::bad(format!(
                "--user {user}: kimg itself goes by that user; `kimg pki rotate admin` does it"
            ));
        }
        if user.starts_with("system:") || user.starts_with("kimg:") {
            return input::bad(format!(
                "--user {user}: components of the cluster go by that user, and would be shut out; --node takes a worker's \
                 certificates back"
            ));
        }
        entries = entries.and(revoke::Entries::user(user, now, settings.certificate_life_s));
    }
    if let Some(name) = &args.node {
        if settings.node(name)?.entry.role != Role::Worker {
            return input::bad(format!(
                "--node {name}: a master holds the cluster's own keys, and taking its certificates back would stop the \
                 cluster and no thief; docs/how-to/leaked.md says what does"
            ));
        }
        entries = entries.and(revoke::Entries::user(&format!("system:node:{name}"), now, settings.certificate_life_s));
    }
    let api = state::api_client(settings, &secrets, args.server.as_deref())?;
    block_on(revoke::revoke(&api, &entries))?;
    entries.shown().for_each(|entry| println!("taken back: {}", harmless(&entry)));
    if let Some(name) = &args.node {
        next(&format!("kimg roll {name}{}", dir_flag(settings)));
    }
    Ok(())
}

/// A kubelet looks every few seconds whether it is asked, and the requests take some more; one that is away may come back.
const RENEWAL: std::time::Duration = std::time::Duration::from_secs(300);

fn rotate(args: &RotateArgs, settings: &Settings) -> Result<()> {
    let secrets = Secrets::of_cluster(&settings.secrets_dir(), &settings.name)?;
    let url = args.server.as_deref();
    let api = || state::api_client(settings, &secrets, url);
    match args.what {
        Rotate::Admin => {
            let connect = |client: &_| state::api_client_with(settings, &secrets, url, client);
            block_on(revoke::rotate_admin(&secrets, &settings.dir.join("kubeconfig"), connect))?;
            println!("{}", secrets.path("admin.crt").display());
            next(&format!("kimg kubeconfig{} -o FILE, for each kubeconfig elsewhere", dir_flag(settings)));
        }
        Rotate::Node { ref node } => {
            if settings.node(node)?.entry.role != Role::Worker {
                return input::bad(format!(
                    "{node} is a master and makes its certificates anew at each boot: `kimg node --node {node} reboot`"
                ));
            }
            let target = Target { node: Some(node.clone()), ..Target::default() };
            let client = target.client(settings)?;
            let look = || client.get(node_api::path::CERTIFICATES);
            for file in block_on(rotate_node::rotate(&secrets, node, &api()?, RENEWAL, look))? {
                println!("{file}");
            }
            next(&format!("kimg pki ls{}", dir_flag(settings)));
        }
        Rotate::Bootstrap => {
            for name in block_on(revoke::remove_tokens(&api()?))? {
                println!("{name}");
            }
            next("kimg seed NODE, for each machine that has not joined yet");
        }
        Rotate::Etcd if settings.provider.is_some() && settings.has_several_masters() => {
            return input::bad(
                "cluster.toml: nodes: members of etcd with different authorities do not speak with each other, and at a provider \
                 kimg cannot give all masters another image at once yet: etcd's authority stays there where there are several",
            );
        }
        Rotate::Etcd => {
            successor::replace(&secrets, Authority::Etcd, &settings.name)?;
            let dir = dir_flag(settings);
            println!("kimg build all{dir}");
            if settings.has_several_masters() {
                // Members with different authorities do not speak with each other.
                println!("kimg stop{dir}\nkimg start{dir}");
            } else {
                println!("kimg roll master{dir}");
            }
        }
        Rotate::FrontProxy { sign, finish } => return rotate_front_proxy(settings, &secrets, sign, finish),
        Rotate::NodeApi { finish } => return rotate_node_api(settings, &secrets, finish),
        Rotate::Encryption { seal, finish } => return rotate_encryption(settings, &secrets, url, seal, finish),
        Rotate::Ca { sign, finish } => return rotate_ca(settings, &secrets, sign, finish),
        Rotate::Provider { ref old } => return rotate_provider(settings, old.as_deref()),
        Rotate::Seal { finish } => return rotate_seal(settings, &secrets, finish),
        Rotate::ServiceAccounts { sign, finish } => return rotate_accounts(settings, &secrets, url, sign, finish),
    }
    Ok(())
}

fn rotate_provider(settings: &Settings, old: Option<&Path>) -> Result<()> {
    let Some(provider) = &settings.provider else {
        return input::bad(
            "cluster.toml has no [provider], so kimg has no token of one; one for uploads is made anew at the provider \
             (docs/uploads.md says where kimg reads it)",
        );
    };
    let (name, variables) = (provider.name.as_str(), provider.name.variables(&environment));
    let (variable, files) = (variables.join(" and "), variables.join("_FILE and "));
    let old = old.map(crate::upload::settings::read_private).transpose()?;
    // Google's names a file itself.
    let file = format!(" (or the file of {files}_FILE)");
    let file = if provider.name == ProviderName::Gcp { "" } else { &file };
    let seen = token::check(settings, provider, old.as_deref(), &Client::new(None)?, &environment)?;
    println!("the token of {variable} counts, and sees {seen} machines of {}", settings.name);
    match old {
        Some(_) => println!("{name} does not take the old one any more"),
        None => println!(
            "if this is the one that leaked: make another at {name}, and set {variable}{file}; no image and no node \
             holds it\nthen remove the old one at {name}, and look with `kimg pki rotate provider{} --old FILE`",
            dir_flag(settings)
        ),
    }
    Ok(())
}

fn rotate_encryption(
    settings: &Settings,
    secrets: &Secrets,
    url: Option<&str>,
    seal: bool,
    finish: bool,
) -> Result<()> {
    let dir = dir_flag(settings);
    let masters = || keys_of_masters(settings, secrets, url);
    let then = match (seal, finish) {
        (false, false) if !encryption::begin(secrets, settings.has_several_masters())? => {
            format!("kimg pki rotate encryption --seal{dir}")
        }
        (_, true) => {
            let kept = encryption::finish(secrets, masters)?;
            format!("{} opens backups of before", secrets.path(&kept).display())
        }
        (_, false) => {
            if seal {
                encryption::seal(secrets, masters)?;
            }
            format!("kimg pki rotate encryption --finish{dir}")
        }
    };
    println!("kimg build all{dir}\nkimg roll master{dir}\n{then}");
    Ok(())
}

/// What the API server of each master says of its keys of Secrets at rest.
fn keys_of_masters(settings: &Settings, secrets: &Secrets, url: Option<&str>) -> Result<Vec<(String, Keys)>> {
    let mut keys = Vec::new();
    for (name, api) in apis_of_masters(settings, secrets, url)? {
        let answer = block_on(Keys::ask(&api));
        let answer = answer.with_context(|| format!("{name}: it must be seen which keys its API server has"))?;
        keys.push((name, answer));
    }
    Ok(keys)
}

/// The API server of each master.
fn apis_of_masters(settings: &Settings, secrets: &Secrets, url: Option<&str>) -> Result<Vec<(String, Https)>> {
    let several = settings.has_several_masters();
    if several && url.is_some() {
        return input::bad("--server: there are several masters, and the API server of each is asked; leave it out");
    }
    let all = Masters::new(settings, secrets);
    let one = |master: &NodeSettings| {
        let name = master.entry.name.clone();
        let api = if several { all.api(&name) } else { state::api_client(settings, secrets, url) };
        let api = api.with_context(|| format!("{name}: its API server must be asked"))?;
        Ok((name, api))
    };
    settings.nodes_of(Role::Master).map(one).collect()
}

fn rotate_accounts(settings: &Settings, secrets: &Secrets, url: Option<&str>, sign: bool, finish: bool) -> Result<()> {
    let dir = dir_flag(settings);
    let finishes = format!("an hour later: kimg pki rotate service-accounts --finish{dir}");
    let then = match (sign, finish) {
        (false, false) => {
            if accounts::begun(secrets) {
                println!("two keys are in trust since an earlier run");
            }
            if accounts::begin(secrets, settings.has_several_masters())? {
                finishes
            } else {
                format!("kimg pki rotate service-accounts --sign{dir}")
            }
        }
        (true, _) => {
            block_on(accounts::sign(secrets, &apis_of_masters(settings, secrets, url)?))?;
            finishes
        }
        (_, true) => {
            let since = block_on(masters_since(settings))?;
            let now = jiff::Timestamp::now().as_second();
            block_on(accounts::finish(secrets, &apis_of_masters(settings, secrets, url)?, since, now))?;
            "from then on tokens of the old key are refused".into()
        }
    };
    println!("kimg build all{dir}\nkimg roll master{dir}\n{then}");
    Ok(())
}

fn rotate_seal(settings: &Settings, secrets: &Secrets, finish: bool) -> Result<()> {
    if settings.secrets == SecretsForm::Plain {
        return input::bad(
            "cluster.toml says secrets = \"plain\": the master's image carries its keys in clear, and nothing is sealed",
        );
    }
    let dir = dir_flag(settings);
    if !finish {
        seal::begin(secrets)?;
        println!("kimg build all{dir}\nkimg roll master{dir}\nkimg pki rotate seal --finish{dir}");
        return Ok(());
    }
    let masters = block_on(async {
        let mut all = Vec::new();
        for master in settings.nodes_of(Role::Master) {
            let name = master.entry.name.clone();
            let target = Target { node: Some(name.clone()), ..Target::default() };
            let status = target.client(settings)?.get(node_api::path::STATUS).await;
            all.push((name.clone(), status.with_context(|| format!("{name}: it must be seen which image it runs"))?));
        }
        Ok(all)
    })?;
    seal::finish(secrets, &masters)?;
    println!(
        "kimg build all{dir}\nkimg roll master{dir}\nremove the images of before wherever they are (`kimg image rm`): the \
         old key opens them"
    );
    Ok(())
}

fn rotate_ca(settings: &Settings, secrets: &Secrets, sign: bool, finish: bool) -> Result<()> {
    let dir = dir_flag(settings);
    let announced = "kimg pki rotate ca --sign";
    let signs = "kimg pki rotate ca --finish";
    let then = match (sign, finish) {
        (false, false) if successor::announce(secrets, Authority::Cluster, &settings.name)? => {
            format!("{announced}{dir}")
        }
        (false, false) => format!("{signs}{dir}"),
        (true, _) => {
            successor::sign(secrets, Authority::Cluster, &held_by(settings, |_| true)?)?;
            format!("{signs}{dir}")
        }
        (_, true) => {
            successor::finish(secrets, Authority::Cluster, &held_by(settings, |_| true)?)?;
            OLD_REFUSED.into()
        }
    };
    refresh_kubeconfig(settings, secrets)?;
    if sign {
        println!("kimg kubeconfig{dir} -o FILE, for each kubeconfig elsewhere");
    }
    println!("kimg build all{dir}\nkimg roll{dir}\n{then}");
    Ok(())
}

/// Gives the kubeconfig that `kimg up` wrote what is in trust now.
fn refresh_kubeconfig(settings: &Settings, secrets: &Secrets) -> Result<()> {
    let path = settings.dir.join("kubeconfig");
    if !path.is_file() {
        return Ok(());
    }
    let text = input::text(&path, input::SMALL)?;
    let Some(server) = server_in(&text) else { return Ok(()) };
    let (ca, client) = (successor::bundle(secrets, Authority::Cluster)?, issue::admin(secrets)?);
    let text = document(&settings.name, server, &ca, &Subject::admin().user, &client);
    secrets::write_private(&path, text.as_bytes())
}

/// The certificates on nodes, each of which must answer.
fn held_by(settings: &Settings, wanted: impl Fn(Role) -> bool) -> Result<Vec<(String, Vec<node_api::Certificate>)>> {
    let mut nodes = Vec::new();
    for (node, answer) in block_on(async { Ok(certificates_of_nodes(settings).await) })? {
        if settings.node(&node).is_ok_and(|found| wanted(found.entry.role)) {
            let certificates = answer.with_context(|| format!("{node}: it must be seen what it trusts"))?;
            nodes.push((node, certificates));
        }
    }
    Ok(nodes)
}

/// They are believed by API servers only.
fn rotate_front_proxy(settings: &Settings, secrets: &Secrets, sign: bool, finish: bool) -> Result<()> {
    let (dir, authority) = (dir_flag(settings), Authority::FrontProxy);
    let masters = || held_by(settings, |role| role == Role::Master);
    let then = match (sign, finish) {
        (false, false)
            if settings.has_several_masters() && successor::announce(secrets, authority, &settings.name)? =>
        {
            format!("kimg pki rotate front-proxy --sign{dir}")
        }
        (_, true) => {
            successor::finish(secrets, authority, &masters()?)?;
            OLD_REFUSED.into()
        }
        (_, false) => {
            if sign {
                successor::sign(secrets, authority, &masters()?)?;
            } else {
                successor::begin(secrets, authority, &settings.name)?;
            }
            format!("kimg pki rotate front-proxy --finish{dir}")
        }
    };
    println!("kimg build all{dir}\nkimg roll master{dir}\n{then}");
    Ok(())
}

fn rotate_node_api(settings: &Settings, secrets: &Secrets, finish: bool) -> Result<()> {
    let (dir, authority) = (dir_flag(settings), Authority::NodeApi);
    let then = if finish {
        successor::finish(secrets, authority, &held_by(settings, |_| true)?)?;
        OLD_REFUSED.to_owned()
    } else {
        successor::begin(secrets, authority, &settings.name)?;
        format!("kimg pki rotate node-api --finish{dir}")
    };
    println!("kimg build all{dir}\nkimg roll{dir}\n{then}");
    Ok(())
}

const OLD_REFUSED: &str = "from then on what the old one signed is refused";

/// When the last of the masters that run now booted.
async fn masters_since(settings: &Settings) -> Result<i64> {
    let mut last = None;
    for master in settings.nodes_of(Role::Master) {
        let target = Target { node: Some(master.entry.name.clone()), ..Target::default() };
        let status = target.client(settings)?.get::<node_api::NodeStatus>(node_api::path::STATUS).await;
        let status = status.with_context(|| format!("{}: it must be seen since when it runs", master.entry.name))?;
        let since = i64::try_from(status.now_unix_ms.saturating_sub(status.uptime_ms) / 1000)?;
        last = last.max(Some(since));
    }
    last.context("there is no master")
}

fn secure_boot_files(args: &SecureBootArgs, settings: &Settings) -> Result<()> {
    let secrets = Secrets::ensure(&settings.secrets_dir(), &settings.name)?;
    let keys = SecureBoot::ensure(&secrets, &settings.name)?;
    for name in secure_boot::write_enrolment(&keys, &args.output)? {
        println!("{}", args.output.join(name).display());
    }
    if !settings.secure_boot {
        eprintln!("cluster.toml does not have its kernels signed: add `secure-boot = true` under [image].");
    }
    next(&format!("kimg build all{}", dir_flag(settings)));
    Ok(())
}

pub(super) fn kubeconfig(args: &KubeconfigArgs, settings: &Settings) -> Result<()> {
    let output = args.output.as_deref().filter(|path| path.as_os_str() != "-");
    if let Some(path) = output {
        input::writable_place(path)?;
        if path.exists() && !is_ours(&input::text(path, input::SMALL)?) {
            return input::bad(format!(
                "{} is there, and is no kubeconfig as kimg writes it; name another file (`kubectl` merges those in \
                 KUBECONFIG=FILE:FILE)",
                path.display()
            ));
        }
    }
    let secrets = Secrets::of_cluster(&settings.secrets_dir(), &settings.name)?;
    let server = server(settings, args.server.as_deref())?;
    let (user, client) = if args.break_glass {
        let subject = Subject::break_glass();
        let client = issue::issue(&secrets, Authority::Cluster, &subject, issue::BREAK_GLASS_LIFE)?;
        (subject.user, client)
    } else {
        (Subject::admin().user, issue::admin(&secrets)?)
    };
    let ca = successor::bundle(&secrets, Authority::Cluster)?;
    let text = document(&settings.name, &server, &ca, &user, &client);
    match output {
        Some(path) => {
            secrets::write_private(path, text.as_bytes())?;
            println!("{}", path.display());
            next(&format!("kubectl --kubeconfig {} get nodes", path.display()));
        }
        None => print!("{text}"),
    }
    Ok(())
}

/// Where the API server is: as told, else the running local VM's port, else the first name or address.
fn server(settings: &Settings, told: Option<&str>) -> Result<String> {
    if let Some(url) = told {
        // It goes into a YAML file as it is.
        let fine = |c: char| c.is_ascii_alphanumeric() || "-._~:/[]%".contains(c);
        let rest = url.strip_prefix("https://").filter(|rest| rest.chars().all(fine) && !rest.starts_with([':', '/']));
        if rest.is_some_and(|rest| !rest.is_empty()) {
            return Ok(url.to_string());
        }
        return input::bad(format!("--server {}: write it as https://HOST:6443", url.escape_debug()));
    }
    if let Some(url) = crate::cloud::cluster::server(settings)? {
        return Ok(url);
    }
    if let Some(port) = crate::local::state::api_port(settings) {
        return Ok(server_url("127.0.0.1", port));
    }
    // The address of a local VM is of use on its own network only, so no cluster elsewhere has it.
    if settings.secrets == SecretsForm::Sealed
        && let Some(missing) = settings.api_missing()
    {
        return input::bad(missing);
    }
    let host = settings.api_host().context("cluster.toml names no address of the API; use --server")?;
    Ok(server_url(&host, 6443))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_one_address() {
        let text = "name = \"demo\"\nnodes = [{ name = \"m\", role = \"master\" }]\n";
        let path = Path::new("cluster.toml");
        let settings = crate::config::parse(path, text, Path::new("/nowhere")).expect("valid");
        for fine in ["https://a.example:6443", "https://[fd00::1]:6443", "https://a.example/k8s"] {
            assert_eq!(server(&settings, Some(fine)).expect("fine"), fine);
        }
        for bad in [
            "https://",
            "https://:6443",
            "https:///x",
            "http://a",
            "https://a\nusers: []",
            "https://a #b",
            "https://u@a",
        ] {
            let error = server(&settings, Some(bad)).expect_err(bad);
            assert!(error.is::<input::BadInput>() && !error.to_string().contains('\n'), "{error:#}");
        }
    }
}
