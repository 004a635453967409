//! Kubeconfig files, with everything inside: they can be moved and need no other file.

use super::issue::ClientCertificate;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// A kubeconfig with one cluster, one user, one context.
pub fn kubeconfig(cluster: &str, server: &str, ca: &str, user: &str, client: &ClientCertificate) -> String {
    format!(
        "apiVersion: v1\n\
         kind: Config\n\
         clusters:\n\
         - name: {cluster}\n\
         \x20 cluster:\n\
         \x20   server: {server}\n\
         \x20   certificate-authority-data: {ca}\n\
         users:\n\
         - name: {user}\n\
         \x20 user:\n\
         \x20   client-certificate-data: {certificate}\n\
         \x20   client-key-data: {key}\n\
         contexts:\n\
         - name: {cluster}\n\
         \x20 context:\n\
         \x20   cluster: {cluster}\n\
         \x20   user: {user}\n\
         current-context: {cluster}\n",
        ca = STANDARD.encode(ca),
        certificate = STANDARD.encode(&client.certificate),
        key = STANDARD.encode(&client.key),
    )
}

/// Whether a file is one that [`kubeconfig`] wrote, of whatever cluster and user, and nothing was added to it.
pub fn is_ours(text: &str) -> bool {
    let shape = |text: &str| -> Vec<String> {
        text.lines().map(|line| line.split_once(':').map_or(line, |(key, _)| key).to_owned()).collect()
    };
    let nobody = ClientCertificate { certificate: String::new(), key: String::new() };
    shape(text) == shape(&kubeconfig("", "", "", "", &nobody))
}

/// The server that a kubeconfig names.
pub fn server_in(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.trim().strip_prefix("server: ")).map(|url| url.trim_matches('"'))
}

/// `https://HOST:PORT`, with brackets around an IPv6 address.
pub fn server_url(host: &str, port: u16) -> String {
    if host.contains(':') { format!("https://[{host}]:{port}") } else { format!("https://{host}:{port}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_added_to_a_kubeconfig_is_not_ours() {
        let client = ClientCertificate { certificate: "c".into(), key: "k".into() };
        let text = kubeconfig("demo", "https://192.0.2.1:6443", "ca", "kimg:admin", &client);
        assert!(is_ours(&text));
        assert!(!is_ours(&text.replace("users:\n", "- name: another\n  cluster: {}\nusers:\n")));
        assert!(!is_ours("name = \"demo\"\n") && !is_ours(""));
    }
}
