//! Name resolution of a pod: resolver settings, host name, hosts file. Pure.

use crate::cri::DnsConfig;
use crate::pods::spec;
use k8s_openapi::api::core::v1::Pod;
use std::net::IpAddr;

/// Resolver settings of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolver {
    /// nameserver lines.
    pub servers: Vec<String>,
    /// search words.
    pub searches: Vec<String>,
    /// options words.
    pub options: Vec<String>,
}

/// Reads a resolv.conf.
pub fn parse_resolv_conf(text: &str) -> Resolver {
    let mut resolver = Resolver::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => resolver.servers.extend(words.next().map(String::from)),
            Some("search" | "domain") => {
                resolver.searches =
                    words.map(|w| if w == "." { w } else { w.trim_end_matches('.') }.to_string()).collect();
            }
            Some("options") => resolver.options = words.map(String::from).collect(),
            _ => {}
        }
    }
    resolver
}

/// Most name servers and search words that a pod gets.
const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;

/// The pod's resolver settings.
pub fn config(pod: &Pod, host: &Resolver, cluster_dns: &[IpAddr], domain: &str) -> DnsConfig {
    let policy = spec::of(pod).dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = match policy {
        "ClusterFirst" => !spec::host_network(pod) && !cluster_dns.is_empty(),
        "ClusterFirstWithHostNet" => !cluster_dns.is_empty(),
        _ => false,
    };
    let mut result = if policy == "None" {
        Resolver::default()
    } else if cluster {
        let namespace = spec::namespace(pod);
        let mut searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_string()];
        searches.extend(host.searches.iter().filter(|s| *s != ".").cloned());
        Resolver {
            servers: cluster_dns.iter().map(IpAddr::to_string).collect(),
            searches,
            options: vec!["ndots:5".into()],
        }
    } else {
        host.clone()
    };
    if let Some(own) = &spec::of(pod).dns_config {
        result.servers.extend(own.nameservers.iter().flatten().cloned());
        result.searches.extend(own.searches.iter().flatten().cloned());
        for option in own.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            let same = |word: &String| word.split(':').next() == Some(name);
            result.options.retain(|word| !same(word));
            let value = option.value.as_deref().filter(|v| !v.is_empty());
            result.options.push(value.map_or(name.clone(), |v| format!("{name}:{v}")));
        }
    }
    dedup(&mut result.servers);
    dedup(&mut result.searches);
    result.servers.truncate(MAX_SERVERS);
    result.searches.truncate(MAX_SEARCHES);
    DnsConfig { servers: result.servers, searches: result.searches, options: result.options }
}

fn dedup(list: &mut Vec<String>) {
    let mut seen = std::collections::BTreeSet::new();
    list.retain(|item| seen.insert(item.clone()));
}

/// Host name and, with a subdomain, the domain below it.
pub fn hostname(pod: &Pod, domain: &str) -> (String, String) {
    let spec_ = spec::of(pod);
    if let Some(name) = spec_.hostname_override.as_deref().filter(|n| !n.is_empty()) {
        return (name.to_string(), String::new());
    }
    let name = spec_.hostname.as_deref().filter(|n| !n.is_empty()).unwrap_or(spec::name(pod));
    let name = name.get(..63).unwrap_or(name).trim_end_matches(['-', '.']).to_string();
    let below = match spec_.subdomain.as_deref() {
        Some(subdomain) if !subdomain.is_empty() => {
            format!("{subdomain}.{}.svc.{domain}", spec::namespace(pod))
        }
        _ => String::new(),
    };
    (name, below)
}

/// What the sandbox's host name is; with the node's network it has the node's, and none is set.
pub fn sandbox_hostname(pod: &Pod, domain: &str) -> String {
    if spec::host_network(pod) {
        return String::new();
    }
    let (name, below) = hostname(pod, domain);
    let full = if below.is_empty() { name.clone() } else { format!("{name}.{below}") };
    if spec::of(pod).set_host_name_as_fqdn() && full.len() <= 64 { full } else { name }
}

trait Fqdn {
    fn set_host_name_as_fqdn(&self) -> bool;
}

impl Fqdn for k8s_openapi::api::core::v1::PodSpec {
    fn set_host_name_as_fqdn(&self) -> bool {
        self.set_hostname_as_fqdn.unwrap_or(false)
    }
}

/// The content of the pod's hosts file.
pub fn hosts_file(pod: &Pod, pod_ips: &[IpAddr], domain: &str, node_hosts: &str) -> String {
    let mut text = if spec::host_network(pod) {
        format!("# Kubernetes-managed hosts file (host network).\n{node_hosts}")
    } else {
        let mut text = String::from(
            "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
        );
        let (name, below) = hostname(pod, domain);
        for ip in pod_ips {
            let names = if below.is_empty() { name.clone() } else { format!("{name}.{below}\t{name}") };
            text.push_str(&format!("{ip}\t{names}\n"));
        }
        text
    };
    let aliases: Vec<_> = spec::of(pod).host_aliases.iter().flatten().collect();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let names = alias.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join("\t");
            text.push_str(&format!("{}\t{names}\n", alias.ip));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: &str) -> Pod {
        serde_yaml_ng::from_str(&format!("{{metadata: {{name: p, namespace: n}}, spec: {spec}}}")).unwrap()
    }

    #[test]
    fn policies() {
        let host = parse_resolv_conf("nameserver 1.1.1.1 # x\nsearch example.org.\noptions rotate\n");
        let dns = ["10.32.0.10".parse().unwrap()];
        for (spec, servers, searches, options) in [
            (
                "{containers: []}",
                "10.32.0.10",
                "n.svc.cluster.local svc.cluster.local cluster.local example.org",
                "ndots:5",
            ),
            ("{hostNetwork: true, containers: []}", "1.1.1.1", "example.org", "rotate"),
            ("{dnsPolicy: Default, containers: []}", "1.1.1.1", "example.org", "rotate"),
            (
                "{dnsPolicy: None, dnsConfig: {nameservers: [9.9.9.9], searches: [a], options: [{name: ndots, value: '2'}]}, containers: []}",
                "9.9.9.9",
                "a",
                "ndots:2",
            ),
            (
                "{dnsConfig: {options: [{name: ndots, value: '2'}, {name: edns0}]}, containers: []}",
                "10.32.0.10",
                "n.svc.cluster.local svc.cluster.local cluster.local example.org",
                "ndots:2 edns0",
            ),
        ] {
            let config = config(&pod(spec), &host, &dns, "cluster.local");
            assert_eq!(config.servers.join(" "), servers, "{spec}");
            assert_eq!(config.searches.join(" "), searches, "{spec}");
            assert_eq!(config.options.join(" "), options, "{spec}");
        }
    }

    #[test]
    fn hosts_name_the_pod_and_its_aliases() {
        let pod = pod("{hostname: h, subdomain: s, hostAliases: [{ip: 1.2.3.4, hostnames: [a, b]}], containers: []}");
        let text = hosts_file(&pod, &["10.200.0.5".parse().unwrap()], "cluster.local", "");
        assert!(text.contains("10.200.0.5\th.s.n.svc.cluster.local\th\n"), "{text}");
        assert!(text.ends_with("# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"), "{text}");
    }
}
