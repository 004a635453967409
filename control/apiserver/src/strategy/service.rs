//! Services: cluster addresses and node ports, and the fields that follow from the type.

use std::net::IpAddr;

use futures::future::BoxFuture;
use serde_json::{Value, json};

use super::alloc::{self, AllocError, Allocator, Claim};
use super::fields::{self, items_at, str_at};
use super::{Context, Reserved, Strategy};
use crate::error::{ApiError, Cause, Result};
use crate::registry::store_error;

/// Strategy of services.
#[derive(Debug)]
pub struct Service;

fn allocator<'a>(ctx: &Context<'a>) -> &'a Allocator {
    &ctx.state.admission.services
}

fn owner(service: &Value) -> String {
    format!("{}/{}", fields::namespace(service), fields::name(service))
}

/// Who claims numbers: this very object, not one of the same name.
fn claimant(service: &Value) -> String {
    format!("{}/{}", owner(service), api::meta::uid(service))
}

impl Strategy for Service {
    fn prepare_for_create(&self, ctx: Context<'_>, new: &mut Value) -> Result<()> {
        new["status"] = json!({"loadBalancer": {}});
        self.allocate(ctx, new)
    }

    fn prepare_for_update(&self, ctx: Context<'_>, new: &mut Value, old: &Value) -> Result<()> {
        fields::copy(new, old, &["status"]);
        keep_allocated(new, old);
        self.allocate(ctx, new)
    }

    fn reserves(&self) -> bool {
        true
    }

    fn reserve<'a>(
        &'a self,
        ctx: Context<'a>,
        new: &'a Value,
        old: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<Reserved>> {
        Box::pin(async move {
            let mut reserved = Reserved::new();
            if !allocator(&ctx).is_shared() {
                return Ok(reserved);
            }
            let (store, claimant) = (ctx.state.registry.store(), claimant(new));
            for key in alloc::claims(new, old) {
                let error = match alloc::claim(store.as_ref(), &key, &claimant).await {
                    Ok(Claim::New(revision)) => {
                        reserved.push((key, revision));
                        continue;
                    }
                    Ok(Claim::Renewed) => continue,
                    Ok(Claim::Taken) => {
                        allocator(&ctx).pass_over(&key);
                        let detail = "an address or port was given to another service; please try again";
                        let error = ApiError::conflict("", "services", fields::name(new), detail);
                        error.with_cause(super::TAKEN, key.as_str(), "")
                    }
                    Err(error) => store_error(error),
                };
                super::give_back(store.as_ref(), reserved).await;
                return Err(error);
            }
            // The claims hold it from now on.
            allocator(&ctx).release(&owner(new), None);
            Ok(reserved)
        })
    }

    fn after_delete<'a>(&'a self, ctx: Context<'a>, old: &'a Value) -> BoxFuture<'a, ()> {
        Box::pin(give_up(ctx, old, None))
    }

    fn after_update<'a>(&'a self, ctx: Context<'a>, new: &'a Value, old: &'a Value) -> BoxFuture<'a, ()> {
        Box::pin(give_up(ctx, old, Some(new)))
    }

    fn abandoned(&self, ctx: Context<'_>, new: &Value, old: Option<&Value>) {
        allocator(&ctx).release(&owner(new), old);
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }
}

/// Gives back what `old` had and the object has no more.
async fn give_up(ctx: Context<'_>, old: &Value, new: Option<&Value>) {
    let given_up = alloc::claims(old, new);
    if given_up.is_empty() {
        return;
    }
    allocator(&ctx).release(&owner(old), new);
    if !allocator(&ctx).is_shared() {
        return;
    }
    let store = ctx.state.registry.store();
    for key in given_up {
        if let Err(error) = alloc::unclaim(store.as_ref(), &key, &claimant(old)).await {
            tracing::warn!("{key} is given out again only when its time is over: {error}");
        }
    }
}

impl Service {
    /// Reserves what the service lacks; on failure nothing more is held than its old object uses.
    fn allocate(&self, ctx: Context<'_>, new: &mut Value) -> Result<()> {
        complete(new);
        let done = addresses(ctx, new).and_then(|()| node_ports(ctx, new));
        if done.is_err() {
            let old =
                ctx.state.registry.get("", "services", fields::namespace(new), fields::name(new)).map(|o| o.value());
            allocator(&ctx).release(&owner(new), old.as_ref());
        }
        done
    }
}

/// Defaults that depend on other fields.
fn complete(new: &mut Value) {
    for port in fields::items_mut(new, &["spec", "ports"]) {
        if port["targetPort"].is_null() || port["targetPort"] == json!(0) || port["targetPort"] == json!("") {
            port["targetPort"] = port["port"].clone();
        }
        if port["protocol"].is_null() {
            port["protocol"] = json!("TCP");
        }
    }
    let kind = match str_at(new, "/spec/type") {
        "" => "ClusterIP".to_string(),
        other => other.to_string(),
    };
    let Some(spec) = fields::map_mut(new, "spec") else { return };
    spec.insert("type".into(), json!(kind));
    let mut default = |key: &str, value: Value| {
        if spec.get(key).is_none_or(Value::is_null) {
            spec.insert(key.into(), value);
        }
    };
    default("sessionAffinity", json!("None"));
    if kind != "ExternalName" {
        default("internalTrafficPolicy", json!("Cluster"));
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        default("externalTrafficPolicy", json!("Cluster"));
    }
    if kind == "LoadBalancer" {
        default("allocateLoadBalancerNodePorts", json!(true));
    }
    if spec.get("sessionAffinity") == Some(&json!("ClientIP"))
        && spec.get("sessionAffinityConfig").is_none_or(Value::is_null)
    {
        spec.insert("sessionAffinityConfig".into(), json!({"clientIP": {"timeoutSeconds": 10800}}));
    }
    if kind != "LoadBalancer" {
        for key in ["allocateLoadBalancerNodePorts", "loadBalancerClass", "healthCheckNodePort"] {
            spec.remove(key);
        }
    }
    if !matches!(kind.as_str(), "NodePort" | "LoadBalancer") && spec.get("externalIPs").is_none() {
        spec.remove("externalTrafficPolicy");
    }
}

/// What an update did not name stays as it was, and what its new type has no use for goes.
fn keep_allocated(new: &mut Value, old: &Value) {
    normalise(new, old);
    let (is, was) = (str_at(new, "/spec/type").to_string(), str_at(old, "/spec/type").to_string());
    let has_ip = |t: &str| t != "ExternalName";
    if has_ip(&is) && has_ip(&was) {
        if str_at(new, "/spec/clusterIP").is_empty() && items_at(new, "/spec/clusterIPs").is_empty() {
            fields::copy(new, old, &["spec", "clusterIP"]);
            fields::copy(new, old, &["spec", "clusterIPs"]);
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if new["spec"].get(field).is_none_or(Value::is_null) {
                fields::copy(new, old, &["spec", field]);
            }
        }
    }
    if !has_ip(&is)
        && has_ip(&was)
        && fields::same(new, old, "/spec/clusterIP")
        && let Some(spec) = fields::map_mut(new, "spec")
    {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            spec.remove(field);
        }
    }
    let has_ports = |t: &str| matches!(t, "NodePort" | "LoadBalancer");
    let before = items_at(old, "/spec/ports").to_vec();
    let matching =
        |port: &Value| before.iter().find(|o| o["port"] == port["port"] && o["protocol"] == port["protocol"]).cloned();
    for port in fields::items_mut(new, &["spec", "ports"]) {
        let Some(was_port) = matching(port) else { continue };
        let unset = port["nodePort"].as_i64().unwrap_or(0) == 0;
        if has_ports(&is) && has_ports(&was) && unset && was_port["nodePort"].is_i64() {
            port["nodePort"] = was_port["nodePort"].clone();
        }
        if !has_ports(&is)
            && has_ports(&was)
            && port["nodePort"] == was_port["nodePort"]
            && let Some(map) = port.as_object_mut()
        {
            map.remove("nodePort");
        }
    }
    if is == "LoadBalancer" && was == "LoadBalancer" && new["spec"].get("healthCheckNodePort").is_none() {
        fields::copy(new, old, &["spec", "healthCheckNodePort"]);
    }
}

/// An old client knows only one of the two fields of the address: the other one follows it.
fn normalise(new: &mut Value, old: &Value) {
    let ip = str_at(new, "/spec/clusterIP").to_string();
    let same_ip = ip == str_at(old, "/spec/clusterIP");
    let same_list = fields::same(new, old, "/spec/clusterIPs");
    let Some(spec) = fields::map_mut(new, "spec") else { return };
    match (same_ip, same_list) {
        (false, true) if ip.is_empty() => drop(spec.remove("clusterIPs")),
        (false, true) => drop(spec.insert("clusterIPs".into(), json!([ip]))),
        (true, false) => match spec.get("clusterIPs").and_then(|l| l.get(0)).cloned() {
            Some(first) => drop(spec.insert("clusterIP".into(), first)),
            None => fields::copy(new, old, &["spec", "clusterIPs"]),
        },
        _ => {}
    }
}

fn invalid(new: &Value, field: &str, value: &Value, detail: &str) -> ApiError {
    ApiError::invalid("", "Service", fields::name(new), vec![Cause::invalid(field, value, detail)])
}

fn addresses(ctx: Context<'_>, new: &mut Value) -> Result<()> {
    if str_at(new, "/spec/type") == "ExternalName" {
        return Ok(());
    }
    let first = str_at(new, "/spec/clusterIP").to_string();
    let mut wanted: Vec<String> =
        items_at(new, "/spec/clusterIPs").iter().filter_map(|v| v.as_str().map(str::to_string)).collect();
    if wanted.is_empty() && !first.is_empty() {
        wanted.push(first.clone());
    }
    if !first.is_empty() && wanted.first() != Some(&first) {
        return Err(invalid(new, "spec.clusterIPs", &json!(wanted), "first value must match `clusterIP`"));
    }
    let headless = wanted.first().is_some_and(|ip| ip == "None");
    let families = families(ctx, new, &wanted)?;
    new["spec"]["ipFamilies"] = json!(families);
    if new["spec"].get("ipFamilyPolicy").is_none_or(Value::is_null) {
        new["spec"]["ipFamilyPolicy"] = json!(if families.len() > 1 { "PreferDualStack" } else { "SingleStack" });
    }
    if headless {
        new["spec"]["clusterIP"] = json!("None");
        new["spec"]["clusterIPs"] = json!(["None"]);
        return Ok(());
    }
    let mut given = Vec::new();
    for (i, family) in families.iter().enumerate() {
        let text = wanted.get(i).map(String::as_str).filter(|t| !t.is_empty());
        let ip = match text {
            None => None,
            Some(text) => {
                let parsed = text.parse::<IpAddr>();
                let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
                Some(parsed.map_err(|_| invalid(new, &format!("spec.clusterIPs[{i}]"), &json!(text), detail))?)
            }
        };
        let got = allocator(&ctx).ip(&ctx.state.registry, &owner(new), family, ip);
        given.push(got.map_err(|e| address_error(new, text, &e))?.to_string());
    }
    new["spec"]["clusterIP"] = json!(given[0]);
    new["spec"]["clusterIPs"] = json!(given);
    Ok(())
}

fn address_error(new: &Value, wanted: Option<&str>, error: &AllocError) -> ApiError {
    match wanted {
        Some(ip) => invalid(new, "spec.clusterIPs", &json!([ip]), &format!("failed to allocate IP {ip}: {error}")),
        None => ApiError::internal(format!("failed to allocate a serviceIP: {error}")),
    }
}

/// The families a service gets, in order.
fn families(ctx: Context<'_>, new: &Value, wanted: &[String]) -> Result<Vec<&'static str>> {
    let served = allocator(&ctx).families();
    let mut out: Vec<&'static str> = Vec::new();
    for family in items_at(new, "/spec/ipFamilies") {
        match served.iter().find(|s| family.as_str() == Some(s)) {
            Some(known) => out.push(known),
            None => return Err(invalid(new, "spec.ipFamilies", family, "not configured on this cluster")),
        }
    }
    if out.is_empty() {
        for ip in wanted.iter().filter_map(|w| w.parse::<IpAddr>().ok()) {
            out.push(if ip.is_ipv6() { "IPv6" } else { "IPv4" });
        }
    }
    if out.is_empty() {
        out.extend(served.first().copied());
    }
    let policy = str_at(new, "/spec/ipFamilyPolicy");
    if policy == "RequireDualStack" && served.len() < 2 {
        return Err(invalid(
            new,
            "spec.ipFamilyPolicy",
            &json!(policy),
            "this cluster is not configured for dual-stack services",
        ));
    }
    if matches!(policy, "PreferDualStack" | "RequireDualStack") && out.len() == 1 {
        out.extend(served.iter().copied().filter(|s| *s != out[0]).take(1).collect::<Vec<_>>());
    }
    if policy == "SingleStack" || policy.is_empty() && wanted.len() < 2 {
        out.truncate(1);
    }
    Ok(out)
}

fn node_ports(ctx: Context<'_>, new: &mut Value) -> Result<()> {
    let kind = str_at(new, "/spec/type").to_string();
    let wants =
        kind == "NodePort" || kind == "LoadBalancer" && new["spec"]["allocateLoadBalancerNodePorts"] != json!(false);
    if !matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        return Ok(());
    }
    let (owner, name) = (owner(new), fields::name(new).to_string());
    let mut taken: Vec<(u16, String, i64)> = Vec::new();
    for (i, port) in fields::items_mut(new, &["spec", "ports"]).iter_mut().enumerate() {
        let protocol = str_at(port, "/protocol").to_string();
        let number = port["port"].as_i64().unwrap_or_default();
        let asked = port["nodePort"].as_u64().filter(|n| *n != 0);
        if asked.is_none() && !wants {
            continue;
        }
        let fail = |e: &dyn std::fmt::Display, value: &Value| {
            ApiError::invalid(
                "",
                "Service",
                &name,
                vec![Cause::invalid(&format!("spec.ports[{i}].nodePort"), value, &e.to_string())],
            )
        };
        let asked = match asked {
            None => taken.iter().find(|(_, p, n)| *n == number && *p != protocol).map(|t| t.0),
            Some(n) => Some(u16::try_from(n).map_err(|_| fail(&"must be a port number", &json!(n)))?),
        };
        if let Some(clash) = asked.filter(|a| taken.iter().any(|(p, proto, _)| p == a && *proto == protocol)) {
            return Err(fail(&AllocError::PortTaken, &json!(clash)));
        }
        let got = allocator(&ctx).port(&ctx.state.registry, &owner, asked).map_err(|e| fail(&e, &json!(asked)))?;
        taken.push((got, protocol, number));
        port["nodePort"] = json!(got);
    }
    let local = str_at(new, "/spec/externalTrafficPolicy") == "Local";
    if kind == "LoadBalancer" && local && new["spec"]["healthCheckNodePort"].as_i64().unwrap_or(0) == 0 {
        let port = allocator(&ctx).port(&ctx.state.registry, &owner, None);
        new["spec"]["healthCheckNodePort"] =
            json!(port.map_err(|e| ApiError::internal(format!("failed to allocate a health check port: {e}")))?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn updates_keep_what_they_do_not_name() {
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.0.0.9", "clusterIPs": ["10.0.0.9"], "ipFamilies": ["IPv4"],
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]}});
        let mut new = json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}, {"port": 81, "protocol": "TCP"}]}});
        keep_allocated(&mut new, &old);
        assert_eq!(new["spec"]["clusterIP"], "10.0.0.9");
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 30080);
        assert!(new["spec"]["ports"][1].get("nodePort").is_none());
        let mut plain = old.clone();
        plain["spec"]["type"] = json!("ClusterIP");
        keep_allocated(&mut plain, &old);
        assert!(plain["spec"]["ports"][0].get("nodePort").is_none());
        assert_eq!(plain["spec"]["clusterIP"], "10.0.0.9");
        let mut moved = old.clone();
        moved["spec"]["clusterIP"] = json!("10.0.0.10");
        keep_allocated(&mut moved, &old);
        assert_eq!(moved["spec"]["clusterIPs"], json!(["10.0.0.10"]), "the list follows");
        let mut external = old.clone();
        external["spec"]["type"] = json!("ExternalName");
        keep_allocated(&mut external, &old);
        assert!(external["spec"].get("clusterIP").is_none());
    }
}
