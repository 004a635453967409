//! Environment variables that tell of services, as links once did. Pure.

use k8s_openapi::api::core::v1::Service;

/// The variables for these services, in their order.
pub fn variables(services: &[Service]) -> Vec<(String, String)> {
    let mut list = Vec::new();
    for service in services {
        let Some(spec) = &service.spec else { continue };
        let Some(address) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else { continue };
        let Some(first) = spec.ports.as_deref().and_then(|p| p.first()) else { continue };
        let name = variable_name(service.metadata.name.as_deref().unwrap_or_default());
        let mut push = |key: String, value: String| list.push((key, value));
        push(format!("{name}_SERVICE_HOST"), address.into());
        push(format!("{name}_SERVICE_PORT"), first.port.to_string());
        for port in spec.ports.iter().flatten() {
            if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
                push(format!("{name}_SERVICE_PORT_{}", variable_name(port_name)), port.port.to_string());
            }
        }
        let host = if address.contains(':') { format!("[{address}]") } else { address.to_string() };
        for (index, port) in spec.ports.iter().flatten().enumerate() {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let lower = protocol.to_lowercase();
            let url = format!("{lower}://{host}:{}", port.port);
            if index == 0 {
                push(format!("{name}_PORT"), url.clone());
            }
            let prefix = format!("{name}_PORT_{}_{protocol}", port.port);
            push(prefix.clone(), url);
            push(format!("{prefix}_PROTO"), lower);
            push(format!("{prefix}_PORT"), port.port.to_string());
            push(format!("{prefix}_ADDR"), address.into());
        }
    }
    list
}

fn variable_name(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_links() {
        let service: Service = serde_yaml_ng::from_str(
            "{metadata: {name: my-web}, spec: {clusterIP: 10.32.0.9, ports: [{name: http-x, port: 80, protocol: TCP}]}}",
        )
        .unwrap();
        let headless: Service =
            serde_yaml_ng::from_str("{metadata: {name: h}, spec: {clusterIP: None, ports: [{port: 1}]}}").unwrap();
        let text: Vec<String> = variables(&[service, headless]).into_iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(
            text,
            [
                "MY_WEB_SERVICE_HOST=10.32.0.9",
                "MY_WEB_SERVICE_PORT=80",
                "MY_WEB_SERVICE_PORT_HTTP_X=80",
                "MY_WEB_PORT=tcp://10.32.0.9:80",
                "MY_WEB_PORT_80_TCP=tcp://10.32.0.9:80",
                "MY_WEB_PORT_80_TCP_PROTO=tcp",
                "MY_WEB_PORT_80_TCP_PORT=80",
                "MY_WEB_PORT_80_TCP_ADDR=10.32.0.9",
            ]
        );
    }
}
