//! Host names among the API endpoints, resolved for the loopback balancer, which connects by address.

use crate::machine::{Shared, Wait};
use node_metadata::{Node, Role};
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

const RETRY: Duration = Duration::from_secs(5);

/// The node with addresses only. Workers wait until at least one endpoint has one.
pub(super) async fn resolve(machine: &Shared, node: &Node) -> Node {
    let mut resolved = node.clone();
    if node.role != Role::Worker || node.api_endpoints.iter().all(|endpoint| endpoint.parse::<SocketAddr>().is_ok()) {
        return resolved;
    }
    loop {
        let names = node.api_endpoints.clone();
        let (found, faults) = tokio::task::spawn_blocking(move || look_up(&names)).await.unwrap_or_default();
        if !found.is_empty() {
            for fault in faults {
                machine.warn(fault);
            }
            resolved.api_endpoints = found;
            return resolved;
        }
        let why = faults.join("; ");
        let hint = "check the names under api in the user-data and the DNS servers of the network, or give addresses";
        machine.waits("services", Wait { waits_for: "an address of the API", why: &why, hint });
        tokio::time::sleep(RETRY).await;
    }
}

fn look_up(endpoints: &[String]) -> (Vec<String>, Vec<String>) {
    let (mut found, mut faults) = (Vec::new(), Vec::new());
    for endpoint in endpoints {
        match endpoint.to_socket_addrs() {
            Ok(addresses) => found.extend(addresses.map(|address| address.to_string())),
            Err(error) => faults.push(format!("the API's name {endpoint} has no address: {error}")),
        }
    }
    (found, faults)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_stay_and_bad_names_are_told() {
        let (found, faults) = look_up(&["10.0.0.1:6443".to_owned(), "no.such.name.invalid:6443".to_owned()]);
        assert_eq!(found, ["10.0.0.1:6443"]);
        assert_eq!(faults.len(), 1);
    }
}
