//! All components of a node in one executable, so that their text is linked once and shared in memory.
//! The program's name chooses the component; called by its own name, the first argument does.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

type Entry = fn(Vec<OsString>) -> ExitCode;

/// Names and entry points. `kimg` and `loopback` are the names under which container runtimes call the CNI plugin.
const COMPONENTS: &[(&str, Entry)] = &[
    ("init", node_init::main),
    ("master-pki", node_init::master_pki_main),
    ("modprobe", node_init::modprobe_main),
    ("kubelet", kubelet::main),
    ("join", kubelet::join_main),
    ("kube-proxy", kube_proxy::main),
    ("api-balancer", kube_proxy::balancer_main),
    ("overlay", overlay::main),
    ("cluster-dns", cluster_dns::main),
    ("backup", backup::main),
    ("cluster-registry", cluster_registry::main),
    ("log-shipper", log_shipper::main),
    ("kimg", cni::main),
    ("loopback", cni::main),
];

fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    if name_of(&args).as_deref() == Some("kimg-node") && args.len() > 1 {
        args.remove(0);
    }
    let name = name_of(&args).unwrap_or_default();
    match COMPONENTS.iter().find(|(known, _)| *known == name) {
        Some((_, entry)) => entry(args),
        None => unknown(&name),
    }
}

fn name_of(args: &[OsString]) -> Option<String> {
    Some(Path::new(args.first()?).file_name()?.to_string_lossy().into_owned())
}

fn unknown(name: &str) -> ExitCode {
    let known: Vec<&str> = COMPONENTS.iter().map(|(name, _)| *name).collect();
    eprintln!("'{name}' is no component of a node; there are: {}", known.join(", "));
    ExitCode::from(2)
}
