//! The command line; flags have upstream's names where upstream has the flag.

use std::path::PathBuf;

use clap::{ArgAction, Parser};

#[derive(Debug, Parser)]
#[command(name = "kube-controller-manager", about = "Runs the controllers of the cluster", next_line_help = true)]
pub struct Settings {
    /// How to reach the API server, and as whom.
    #[arg(long)]
    pub kubeconfig: PathBuf,
    /// Network, or networks of both families with a comma, of which nodes get their pod ranges.
    #[arg(long, value_delimiter = ',', default_value = "10.200.0.0/16")]
    pub cluster_cidr: Vec<String>,
    /// Prefix length of one node's range of IPv4 pod addresses.
    #[arg(long, alias = "node-cidr-mask-size-ipv4", default_value_t = 24)]
    pub node_cidr_mask_size: u8,
    /// Prefix length of one node's range of IPv6 pod addresses.
    #[arg(long, default_value_t = 64)]
    pub node_cidr_mask_size_ipv6: u8,
    /// Whether nodes get pod ranges.
    #[arg(long, num_args = 0..=1, default_value_t = true, default_missing_value = "true", action = ArgAction::Set)]
    pub allocate_node_cidrs: bool,
    /// Network of Service addresses; no node gets a range inside it.
    #[arg(long, value_delimiter = ',')]
    pub service_cluster_ip_range: Vec<String>,
    /// Certificate of the CA that signs certificate requests.
    #[arg(long)]
    pub cluster_signing_cert_file: Option<PathBuf>,
    /// Private key of that CA.
    #[arg(long)]
    pub cluster_signing_key_file: Option<PathBuf>,
    /// Longest life of a signed certificate, such as 8760h.
    #[arg(long, default_value = "8760h", value_parser = hours)]
    pub cluster_signing_duration: u64,
    /// CA bundle that every namespace's kube-root-ca.crt holds.
    #[arg(long)]
    pub root_ca_file: Option<PathBuf>,
    /// Key that signs the tokens of service-account-token Secrets.
    #[arg(long)]
    pub service_account_private_key_file: Option<PathBuf>,
    /// Folder of manifests that are applied to the cluster.
    #[arg(long)]
    pub addon_dir: Option<PathBuf>,
    /// Whether to take a Lease first, where there are several masters.
    #[arg(long, num_args = 0..=1, default_value_t = true, default_missing_value = "true", action = ArgAction::Set)]
    pub leader_elect: bool,
    /// A node that has been silent for this long is Unknown, in seconds (40s).
    #[arg(long, default_value = "40s", value_parser = seconds)]
    pub node_monitor_grace_period: u64,
    /// Port of health and metrics on 127.0.0.1.
    #[arg(long = "secure-port")]
    pub port: Option<u16>,
}

/// `8760h` as seconds.
fn hours(text: &str) -> Result<u64, String> {
    seconds(text)
}

fn seconds(text: &str) -> Result<u64, String> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = digits.parse().map_err(|_| format!("{text:?} is no duration such as 40s, 5m or 12h"))?;
    match unit {
        "" | "s" => Ok(number),
        "m" => Ok(number * 60),
        "h" | "h0m0s" => Ok(number * 3600),
        _ => Err(format!("{text:?} is no duration such as 40s, 5m or 12h")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_takes_two_or_three_lines_a_flag() {
        use clap::CommandFactory as _;
        let flags = Settings::command().get_arguments().count();
        let help = Settings::command().term_width(100).render_help().to_string();
        assert!(help.lines().count() <= 3 * flags + 8, "{help}");
    }

    #[test]
    fn flags_parse_in_both_forms() {
        let settings = Settings::try_parse_from([
            "kube-controller-manager",
            "--kubeconfig=/k",
            "--cluster-cidr=10.0.0.0/16",
            "--leader-elect=false",
            "--cluster-signing-duration",
            "24h",
        ])
        .unwrap();
        assert!(!settings.leader_elect);
        assert_eq!(settings.cluster_signing_duration, 86400);
        assert!(Settings::try_parse_from(["kube-controller-manager", "--no-such"]).is_err());
    }
}
