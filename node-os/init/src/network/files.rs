//! The files behind `/etc/{resolv.conf,hosts,hostname,machine-id}`: links into `/run/etc`.

use anyhow::{Context, Result};
use node_metadata::Node;
use std::fmt::Write;
use std::net::IpAddr;
use std::path::Path;

const FOLDER: &str = "/run/etc";
/// The resolver library looks at no more servers.
const MOST_SERVERS: usize = 3;

pub(super) fn write_resolv_conf(servers: &[IpAddr], search: &[String]) -> Result<()> {
    replace("resolv.conf", &resolv_conf(servers, search))
}

/// `hosts`, `hostname` and `machine-id` of a node that knows its name.
pub fn write_etc(node: &Node, machine_id: &str) -> Result<()> {
    replace("hosts", &hosts(node))?;
    replace("hostname", &format!("{}\n", node.name))?;
    replace("machine-id", &format!("{machine_id}\n"))
}

/// A reader sees the old file or the new one, whole.
fn replace(name: &str, text: &str) -> Result<()> {
    let path = Path::new(FOLDER).join(name);
    let new = Path::new(FOLDER).join(format!(".{name}.new"));
    std::fs::write(&new, text)
        .and_then(|()| std::fs::rename(&new, &path))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn resolv_conf(servers: &[IpAddr], search: &[String]) -> String {
    let mut text = String::new();
    // Writing to a String does not fail.
    for server in servers.iter().take(MOST_SERVERS) {
        let _ = writeln!(text, "nameserver {server}");
    }
    let clean: Vec<&str> =
        search.iter().map(String::as_str).filter(|domain| !domain.contains(char::is_whitespace)).collect();
    if !clean.is_empty() {
        let _ = writeln!(text, "search {}", clean.join(" "));
    }
    text
}

fn hosts(node: &Node) -> String {
    let mut text = String::from("127.0.0.1 localhost\n::1 localhost ip6-localhost\n");
    for address in &node.addresses {
        let _ = writeln!(text, "{address} {}", node.name);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_what_the_library_reads() {
        let servers: Vec<IpAddr> = (1..6).map(|last| IpAddr::from([9, 9, 9, last])).collect();
        assert_eq!(resolv_conf(&servers[..1], &["a.b".into(), "c d".into()]), "nameserver 9.9.9.1\nsearch a.b\n");
        assert_eq!(resolv_conf(&servers, &[]).lines().count(), 3);
    }
}
