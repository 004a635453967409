//! Command line flags, under upstream's names where upstream has the flag.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Parser;

/// Settings of the API server.
#[derive(Clone, Debug, Parser)]
#[command(name = "kube-apiserver", version = crate::GIT_VERSION, about = "The Kubernetes API server", next_line_help = true)]
pub struct Config {
    /// Address to listen on.
    #[arg(long, default_value = "0.0.0.0")]
    pub bind_address: IpAddr,
    /// Port to serve HTTPS on; 0 takes a free one.
    #[arg(long, default_value_t = 6443)]
    pub secure_port: u16,
    /// Address that other members reach this server at; goes into the `kubernetes` EndpointSlice.
    #[arg(long)]
    pub advertise_address: Option<IpAddr>,
    /// Range that Services get their cluster addresses from.
    #[arg(long, default_value = "10.32.0.0/24")]
    pub service_cluster_ip_range: String,
    /// Ports that NodePort Services get, first and last.
    #[arg(long, default_value = "30000-32767")]
    pub service_node_port_range: String,
    /// CA bundle that client certificates are checked with.
    #[arg(long)]
    pub client_ca_file: Option<PathBuf>,
    /// Serving certificate chain (PEM).
    #[arg(long)]
    pub tls_cert_file: PathBuf,
    /// Key of the serving certificate (PEM).
    #[arg(long)]
    pub tls_private_key_file: PathBuf,
    /// Client certificate shown to kubelets.
    #[arg(long)]
    pub kubelet_client_certificate: Option<PathBuf>,
    /// Key of the client certificate shown to kubelets.
    #[arg(long)]
    pub kubelet_client_key: Option<PathBuf>,
    /// CA bundle that kubelets' serving certificates are checked with.
    #[arg(long)]
    pub kubelet_certificate_authority: Option<PathBuf>,
    /// Keys that service-account tokens are checked with (PEM, public or private); may repeat.
    #[arg(long)]
    pub service_account_key_file: Vec<PathBuf>,
    /// Key that service-account tokens are signed with.
    #[arg(long)]
    pub service_account_signing_key_file: Option<PathBuf>,
    /// Issuer named in service-account tokens; the first one signs, all are accepted.
    #[arg(long, default_value = "https://kubernetes.default.svc.cluster.local")]
    pub service_account_issuer: Vec<String>,
    /// Audiences that a token must name one of; the issuer by default.
    #[arg(long, value_delimiter = ',')]
    pub api_audiences: Vec<String>,
    /// CA bundle that front proxies' client certificates are checked with.
    #[arg(long)]
    pub requestheader_client_ca_file: Option<PathBuf>,
    /// Common names a front proxy may have; any when empty.
    #[arg(long, value_delimiter = ',')]
    pub requestheader_allowed_names: Vec<String>,
    /// Client certificate shown to aggregated API servers and webhooks.
    #[arg(long)]
    pub proxy_client_cert_file: Option<PathBuf>,
    /// Key of the client certificate shown to aggregated API servers.
    #[arg(long)]
    pub proxy_client_key_file: Option<PathBuf>,
    /// Directory of the embedded store.
    #[arg(long, default_value = "/var/lib/kimg/store")]
    pub store_dir: PathBuf,
    /// File with the key (32 bytes, raw or base64) that Secrets are encrypted with at rest, where
    /// the provider configuration does not say otherwise; or with several in base64, one a line: the first one seals, all
    /// open.
    #[arg(long)]
    pub encryption_key_file: Option<PathBuf>,
    /// EncryptionConfiguration (apiserver.config.k8s.io/v1): what is encrypted at rest, with which keys.
    #[arg(long)]
    pub encryption_provider_config: Option<PathBuf>,
    /// Whether the file of --encryption-provider-config is read again when it changes.
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub encryption_provider_config_automatic_reload: bool,
    #[command(flatten)]
    pub etcd: crate::storage::EtcdFlags,
    /// Unix socket for snapshots and integrity checks of the store, open to root and to the same user; none without it.
    #[arg(long)]
    pub store_socket: Option<PathBuf>,
    /// Where there is no store yet, wait until a snapshot to be restored is there (`restore.pending` in its directory)
    /// and the server is started anew, instead of making an empty one.
    #[arg(long, default_value_t = false)]
    pub await_restore: bool,
    /// Public key (age1…) that backups of the store are encrypted to; without it none are given out.
    #[arg(long)]
    pub backup_recipient_file: Option<PathBuf>,
    /// File to write audit records to, one JSON object a line; none without it.
    #[arg(long)]
    pub audit_log_path: Option<PathBuf>,
    /// MiB of audit records after which a file is put aside as PATH.1, in place of the one before.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub audit_log_maxsize: u64,
    /// Whether requests without credentials are let in as system:anonymous.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub anonymous_auth: bool,
    /// How long Events are kept (1h0m0s).
    #[arg(long, default_value = "1h0m0s", value_parser = crate::storage::duration)]
    pub event_ttl: std::time::Duration,
    /// Read requests served at one time.
    #[arg(long, default_value_t = 400)]
    pub max_requests_inflight: usize,
    /// Writing requests served at one time.
    #[arg(long, default_value_t = 200)]
    pub max_mutating_requests_inflight: usize,
    /// Log filter, as RUST_LOG has it.
    #[arg(long, default_value = "info")]
    pub log_level: String,
}
