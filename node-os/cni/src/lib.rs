//! The CNI plugin (CNI specification 1.1): a veth pair for a pod, routed, without a bridge.
//!
//! ```text
//!  pod: eth0 ADDRESS/32 ── default via 169.254.1.1 (fixed hardware address)
//!   │ veth
//!  host: podHASH ── route ADDRESS/32 on it
//! ```
//!
//! Every packet of a pod passes the host's routing and netfilter, also between pods of one node.
//! Called as `loopback` it is the plugin that container runtimes use to set `lo` up.
//! All state lies in `/run`, and is gone after a reboot like the pods themselves.

mod addresses;
pub mod config;
mod hostports;
mod veth;

use config::{Failure, Request};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::io::Read;
use std::process::ExitCode;

/// Where addresses are noted, one file an address.
const STATE_DIR: &str = "/run/cni/kimg";
/// A configuration is some hundred bytes; more than this is no configuration.
const MAX_INPUT: u64 = 1 << 20;

/// Entry point: reads the environment and standard input as the specification says,
/// answers on standard output.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let loopback = args.first().is_some_and(|a| a.to_string_lossy().ends_with("loopback"));
    let mut input = Vec::new();
    let read = std::io::stdin().take(MAX_INPUT).read_to_end(&mut input);
    let result = match read {
        Ok(_) => answer(loopback, &input),
        Err(error) => Err(Failure::new(config::code::IO, "reading the configuration", error)),
    };
    let (text, code) = match result {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(value)) => (value, ExitCode::SUCCESS),
        Err(failure) => (failure.to_json(&version_of(&input)), ExitCode::FAILURE),
    };
    write_answer(&text);
    code
}

#[allow(clippy::print_stdout, reason = "the answer on standard output is the plugin's interface")]
fn write_answer(value: &Value) {
    println!("{value}");
}

fn version_of(input: &[u8]) -> String {
    let value: Value = serde_json::from_slice(input).unwrap_or_default();
    value.get("cniVersion").and_then(Value::as_str).unwrap_or("1.0.0").to_owned()
}

fn answer(loopback: bool, input: &[u8]) -> Result<Option<Value>, Failure> {
    let command = config::variable("CNI_COMMAND")?;
    if command == "VERSION" {
        let supported = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
        return Ok(Some(json!({"cniVersion": "1.1.0", "supportedVersions": supported})));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::new(config::code::IO, "starting", e))?;
    runtime.block_on(async {
        if loopback {
            return loopback_answer(&command, input).await;
        }
        let request = Request::parse(&command, input)?;
        match command.as_str() {
            "ADD" => add(&request).await.map(Some),
            "DEL" => delete(&request.container, &request.interface).await.map(|()| None),
            "CHECK" => check(&request).await.map(|()| None),
            "GC" => collect(&request).await.map(|()| None),
            "STATUS" => addresses::usable(&request.pod_cidr).map(|()| None),
            other => Err(Failure::new(config::code::UNSUPPORTED, "CNI_COMMAND", format!("'{other}' is not known"))),
        }
    })
}

async fn loopback_answer(command: &str, input: &[u8]) -> Result<Option<Value>, Failure> {
    if command != "ADD" {
        return Ok(None);
    }
    let netns = config::variable("CNI_NETNS")?;
    veth::loopback_up(netns.clone()).await?;
    let value: Value = serde_json::from_slice(input).unwrap_or_default();
    if let Some(previous) = value.get("prevResult") {
        return Ok(Some(previous.clone()));
    }
    Ok(Some(json!({
        "cniVersion": version_of(input),
        "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": netns}],
        "ips": [{"interface": 0, "address": "127.0.0.1/8"}]
    })))
}

async fn add(request: &Request) -> Result<Value, Failure> {
    let netns = request.netns.clone().ok_or_else(|| Failure::missing("CNI_NETNS"))?;
    let address = addresses::reserve(&request.pod_cidr, &request.owner(), &request.port_mappings)?;
    let pair = veth::Pair::of(&request.container, &request.interface);
    let made = async {
        let mac = veth::connect(&pair, netns.clone(), request, address).await?;
        hostports::open(address, &request.port_mappings)?;
        Ok::<_, Failure>(mac)
    };
    let mac = match made.await {
        Ok(mac) => mac,
        Err(failure) => {
            // Nothing half-made stays; the first failure is the one to tell.
            if let Err(second) = delete(&request.container, &request.interface).await {
                tracing::warn!("cleaning up after a failure: {}", second.message());
            }
            return Err(failure);
        }
    };
    Ok(json!({
        "cniVersion": request.version,
        "interfaces": [
            {"name": pair.host, "mac": veth::HOST_MAC_TEXT},
            {"name": request.interface, "mac": mac, "sandbox": netns}
        ],
        "ips": [{"interface": 1, "address": format!("{address}/32"), "gateway": veth::GATEWAY}],
        "routes": [{"dst": "0.0.0.0/0", "gw": veth::GATEWAY}],
        "dns": {}
    }))
}

async fn delete(container: &str, interface: &str) -> Result<(), Failure> {
    let owner = config::owner(container, interface);
    for record in addresses::of_owner(&owner)? {
        hostports::close(&record.port_mappings)?;
        veth::disconnect(&veth::Pair::of(container, interface)).await?;
        addresses::release(&record)?;
    }
    // Also where no address was noted (an ADD that was cut off).
    veth::disconnect(&veth::Pair::of(container, interface)).await
}

async fn check(request: &Request) -> Result<(), Failure> {
    let known = !addresses::of_owner(&request.owner())?.is_empty();
    if known && veth::exists(&veth::Pair::of(&request.container, &request.interface)).await? {
        return Ok(());
    }
    Err(Failure::new(
        config::code::UNKNOWN_CONTAINER,
        "CHECK",
        format!("container {} has no network here", request.container),
    ))
}

/// Releases everything that is not among the attachments that the runtime still knows.
async fn collect(request: &Request) -> Result<(), Failure> {
    for record in addresses::all()? {
        let Some((container, interface)) = record.owner.split_once(' ') else { continue };
        if !request.valid_owners.contains(&record.owner) {
            delete(container, interface).await?;
        }
    }
    Ok(())
}
