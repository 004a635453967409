//! Rules of the kinds that have no strategy of their own.

use crate::kinds::Kind;
use crate::meta;
use crate::names;
use crate::quantity::Quantity;
use crate::status::FieldError;
use serde_json::Value;

/// Kinds whose required texts are checked by schema.
pub(super) fn wants_required(kind: &Kind) -> bool {
    matches!(
        (kind.group.as_ref(), kind.kind.as_ref()),
        ("networking.k8s.io", _)
            | ("autoscaling", _)
            | ("storage.k8s.io", _)
            | ("node.k8s.io", _)
            | ("discovery.k8s.io", _)
            | ("admissionregistration.k8s.io", _)
            | ("apiregistration.k8s.io", _)
            | ("scheduling.k8s.io", _)
            | ("resource.k8s.io", _)
            | ("", "LimitRange")
    )
}

fn text<'a>(v: &'a Value, key: &str) -> &'a str {
    v[key].as_str().unwrap_or("")
}

fn items<'a>(v: &'a Value, key: &str) -> &'a [Value] {
    v[key].as_array().map_or(&[], Vec::as_slice)
}

fn one_of(v: &Value, path: &str, allowed: &[&str], out: &mut Vec<FieldError>) {
    if let Some(s) = v.as_str().filter(|s| !allowed.contains(s)) {
        out.push(FieldError::not_supported(path, s, allowed));
    }
}

pub(super) fn create(kind: &Kind, o: &Value) -> Vec<FieldError> {
    let mut out = Vec::new();
    let spec = &o["spec"];
    match (kind.group.as_ref(), kind.kind.as_ref()) {
        ("networking.k8s.io", "Ingress") => ingress(spec, &mut out),
        ("networking.k8s.io", "NetworkPolicy") => {
            for (i, t) in items(spec, "policyTypes").iter().enumerate() {
                one_of(t, &format!("spec.policyTypes[{i}]"), &["Egress", "Ingress"], &mut out);
            }
            network_peers(spec, &mut out);
        }
        ("autoscaling", "HorizontalPodAutoscaler") => autoscaler(spec, &mut out),
        ("policy", "PodDisruptionBudget") => budget(spec, &mut out),
        ("storage.k8s.io", "StorageClass") => {
            one_of(&o["reclaimPolicy"], "reclaimPolicy", &["Delete", "Retain"], &mut out);
            one_of(&o["volumeBindingMode"], "volumeBindingMode", &["Immediate", "WaitForFirstConsumer"], &mut out);
        }
        ("scheduling.k8s.io", "PriorityClass") => priority_class(o, &mut out),
        ("discovery.k8s.io", "EndpointSlice") => endpoint_slice(o, &mut out),
        ("", "Endpoints") => endpoints(o, &mut out),
        ("", "LimitRange") => limit_range(spec, &mut out),
        ("", "ResourceQuota") => quantities(&spec["hard"], "spec.hard", &mut out),
        ("", "Event") => {
            let ns = text(&o["involvedObject"], "namespace");
            if !ns.is_empty() && ns != meta::namespace(o) {
                out.push(FieldError::invalid("involvedObject.namespace", ns, "does not match event.namespace"));
            }
        }
        ("coordination.k8s.io", "Lease") => lease(spec, &mut out),
        ("admissionregistration.k8s.io", "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration") => {
            webhooks(o, &mut out)
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy") => {
            if items(spec, "validations").is_empty() && items(spec, "auditAnnotations").is_empty() {
                out.push(FieldError::required("spec.validations", "validations or auditAnnotations must be specified"));
            }
            one_of(&spec["failurePolicy"], "spec.failurePolicy", &["Fail", "Ignore"], &mut out);
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding") => {
            if items(spec, "validationActions").is_empty() {
                out.push(FieldError::required("spec.validationActions", ""));
            }
            for (i, a) in items(spec, "validationActions").iter().enumerate() {
                one_of(a, &format!("spec.validationActions[{i}]"), &["Audit", "Deny", "Warn"], &mut out);
            }
        }
        ("apiextensions.k8s.io", _) => out.extend(crate::crd::check(o)),
        ("apiregistration.k8s.io", _) => {
            let want = format!("{}.{}", text(spec, "version"), text(spec, "group"));
            if meta::name(o) != want {
                out.push(FieldError::invalid(
                    "metadata.name",
                    meta::name(o),
                    format!("must be `spec.version+\".\"+spec.group`: \"{want}\""),
                ));
            }
        }
        _ => {}
    }
    out
}

fn backend(b: &Value, at: &str, out: &mut Vec<FieldError>) {
    let (service, resource) = (&b["service"], &b["resource"]);
    match (service.is_object(), resource.is_object()) {
        (true, true) => out.push(FieldError::invalid(at, "", "cannot set both resource and service backends")),
        (false, false) => out.push(FieldError::invalid(at, "", "resource or service backend is required")),
        (true, false) => {
            let port = &service["port"];
            match (!text(port, "name").is_empty(), port["number"].is_i64()) {
                (true, true) => out.push(FieldError::invalid(at, "", "cannot set both port name & port number")),
                (false, false) => out.push(FieldError::required(at, "port name or number is required")),
                _ => {}
            }
        }
        _ => {}
    }
}

fn ingress(spec: &Value, out: &mut Vec<FieldError>) {
    if items(spec, "rules").is_empty() && !spec["defaultBackend"].is_object() {
        out.push(FieldError::invalid("spec", spec.clone(), "either `defaultBackend` or `rules` must be specified"));
    }
    if spec["defaultBackend"].is_object() {
        backend(&spec["defaultBackend"], "spec.defaultBackend", out);
    }
    for (i, r) in items(spec, "rules").iter().enumerate() {
        let host = text(r, "host");
        let at = format!("spec.rules[{i}]");
        let bare = host.strip_prefix("*.").unwrap_or(host);
        if !host.is_empty() {
            if host.parse::<std::net::IpAddr>().is_ok() {
                out.push(FieldError::invalid(format!("{at}.host"), host, "must be a DNS name, not an IP address"));
            }
            out.extend(
                names::dns1123_subdomain(bare).into_iter().map(|e| FieldError::invalid(format!("{at}.host"), host, e)),
            );
        }
        if r["http"].is_object() && items(&r["http"], "paths").is_empty() {
            out.push(FieldError::required(format!("{at}.http.paths"), ""));
        }
        for (j, p) in items(&r["http"], "paths").iter().enumerate() {
            let at = format!("{at}.http.paths[{j}]");
            let ty = text(p, "pathType");
            if ty.is_empty() {
                out.retain(|e| e.field != format!("{at}.pathType"));
                out.push(FieldError::required(format!("{at}.pathType"), "pathType must be specified"));
            } else {
                one_of(&p["pathType"], &format!("{at}.pathType"), &["Exact", "ImplementationSpecific", "Prefix"], out);
            }
            let path = text(p, "path");
            if (matches!(ty, "Exact" | "Prefix") || !path.is_empty()) && !path.starts_with('/') {
                out.push(FieldError::invalid(format!("{at}.path"), path, "must be an absolute path"));
            }
            backend(&p["backend"], &format!("{at}.backend"), out);
        }
    }
}

fn network_peers(spec: &Value, out: &mut Vec<FieldError>) {
    for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
        for (i, r) in items(spec, rules).iter().enumerate() {
            for (j, p) in items(r, peers).iter().enumerate() {
                let at = format!("spec.{rules}[{i}].{peers}[{j}]");
                let block = p["ipBlock"].is_object();
                if block && (p["podSelector"].is_object() || p["namespaceSelector"].is_object()) {
                    out.push(FieldError::forbidden(&at, "may not specify both ipBlock and another peer"));
                } else if !block && !p["podSelector"].is_object() && !p["namespaceSelector"].is_object() {
                    out.push(FieldError::required(&at, "must specify a peer"));
                }
                if block && !is_cidr(text(&p["ipBlock"], "cidr")) {
                    out.push(FieldError::invalid(
                        format!("{at}.ipBlock.cidr"),
                        p["ipBlock"]["cidr"].clone(),
                        "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
                    ));
                }
            }
        }
    }
}

fn is_cidr(s: &str) -> bool {
    let Some((ip, bits)) = s.split_once('/') else {
        return false;
    };
    match (ip.parse::<std::net::IpAddr>(), bits.parse::<u8>()) {
        (Ok(ip), Ok(b)) => b <= if ip.is_ipv4() { 32 } else { 128 },
        _ => false,
    }
}

fn autoscaler(spec: &Value, out: &mut Vec<FieldError>) {
    let (min, max) = (spec["minReplicas"].as_i64(), spec["maxReplicas"].as_i64().unwrap_or(0));
    if min.is_some_and(|m| m < 1) {
        out.push(FieldError::invalid(
            "spec.minReplicas",
            spec["minReplicas"].clone(),
            "must be greater than or equal to 1",
        ));
    }
    if max < 1 {
        out.push(FieldError::invalid("spec.maxReplicas", max, "must be greater than 0"));
    }
    if min.is_some_and(|m| max < m) {
        out.push(FieldError::invalid("spec.maxReplicas", max, "must be greater than or equal to `minReplicas`"));
    }
}

fn budget(spec: &Value, out: &mut Vec<FieldError>) {
    if !spec["minAvailable"].is_null() && !spec["maxUnavailable"].is_null() {
        out.push(FieldError::invalid("spec", spec.clone(), "minAvailable and maxUnavailable cannot be both set"));
    }
    for f in ["minAvailable", "maxUnavailable"] {
        let at = format!("spec.{f}");
        match &spec[f] {
            Value::String(s) => {
                let percent = s.strip_suffix('%').and_then(|p| p.parse::<u32>().ok());
                match percent {
                    None => out.push(FieldError::invalid(&at, s.as_str(), "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')")),
                    Some(p) if p > 100 => out.push(FieldError::invalid(&at, s.as_str(), "must not be greater than 100%")),
                    _ => {}
                }
            }
            v if v.as_i64().is_some_and(|n| n < 0) => {
                out.push(FieldError::invalid(&at, v.clone(), "must be greater than or equal to 0"))
            }
            _ => {}
        }
    }
    one_of(
        &spec["unhealthyPodEvictionPolicy"],
        "spec.unhealthyPodEvictionPolicy",
        &["AlwaysAllow", "IfHealthyBudget"],
        out,
    );
}

fn priority_class(o: &Value, out: &mut Vec<FieldError>) {
    let (name, value) = (meta::name(o), o["value"].as_i64().unwrap_or(0));
    let known = match name {
        "system-cluster-critical" => Some(2_000_000_000),
        "system-node-critical" => Some(2_000_001_000),
        _ => None,
    };
    if name.starts_with("system-") && known != Some(value) {
        out.push(FieldError::forbidden(
            "metadata.name",
            "priority class names with 'system-' prefix are reserved for system use only. error: \"".to_string()
                + name
                + "\" is not a known system priority class",
        ));
    } else if known.is_none() && value > 1_000_000_000 {
        out.push(FieldError::forbidden("value", "maximum allowed value of a user defined priority is 1000000000"));
    }
    one_of(&o["preemptionPolicy"], "preemptionPolicy", &["Never", "PreemptLowerPriority"], out);
}

fn endpoint_slice(o: &Value, out: &mut Vec<FieldError>) {
    one_of(&o["addressType"], "addressType", &["FQDN", "IPv4", "IPv6"], out);
    let ty = text(o, "addressType");
    if items(o, "endpoints").len() > 1000 {
        out.push(FieldError::too_many("endpoints", items(o, "endpoints").len(), 1000));
    }
    if items(o, "ports").len() > 20_000 {
        out.push(FieldError::too_many("ports", items(o, "ports").len(), 20_000));
    }
    for (i, e) in items(o, "endpoints").iter().enumerate() {
        if items(e, "addresses").is_empty() {
            out.push(FieldError::required(format!("endpoints[{i}].addresses"), "must contain at least 1 address"));
        }
        for (j, a) in items(e, "addresses").iter().enumerate() {
            let at = format!("endpoints[{i}].addresses[{j}]");
            let s = a.as_str().unwrap_or("");
            let ip = s.parse::<std::net::IpAddr>().ok();
            match ty {
                "IPv4" if !ip.is_some_and(|i| i.is_ipv4()) => {
                    out.push(FieldError::invalid(at, s, "must be an IPv4 address"))
                }
                "IPv6" if !ip.is_some_and(|i| i.is_ipv6()) => {
                    out.push(FieldError::invalid(at, s, "must be an IPv6 address"))
                }
                "IPv4" | "IPv6" => out.extend(ip.and_then(special).map(|why| FieldError::invalid(at, s, why))),
                "FQDN" => {
                    out.extend(names::dns1123_subdomain(s).into_iter().map(|e| FieldError::invalid(at.clone(), s, e)))
                }
                _ => {}
            }
        }
    }
}

fn endpoints(o: &Value, out: &mut Vec<FieldError>) {
    for (i, s) in items(o, "subsets").iter().enumerate() {
        for list in ["addresses", "notReadyAddresses"] {
            for (j, a) in items(s, list).iter().enumerate() {
                let ip = text(a, "ip");
                let fault = match ip.parse::<std::net::IpAddr>() {
                    Ok(address) => special(address),
                    Err(_) => Some("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"),
                };
                out.extend(fault.map(|why| FieldError::invalid(format!("subsets[{i}].{list}[{j}].ip"), ip, why)));
            }
        }
        for (j, p) in items(s, "ports").iter().enumerate() {
            if !p["port"].as_i64().is_some_and(|n| (1..=65_535).contains(&n)) {
                out.push(FieldError::invalid(
                    format!("subsets[{i}].ports[{j}].port"),
                    p["port"].clone(),
                    "must be between 1 and 65535, inclusive",
                ));
            }
        }
    }
}

/// Why an address is no place for a service to lead to: it is each node's own, as the metadata address is.
fn special(ip: std::net::IpAddr) -> Option<&'static str> {
    use std::net::IpAddr;
    let link_local_multicast = match ip {
        IpAddr::V4(four) => four.octets()[..3] == [224, 0, 0],
        IpAddr::V6(six) => six.segments()[0] & 0xff0f == 0xff02,
    };
    let link_local = match ip {
        IpAddr::V4(four) => four.is_link_local(),
        IpAddr::V6(six) => six.is_unicast_link_local(),
    };
    if ip.is_unspecified() {
        Some("may not be unspecified (0.0.0.0 or ::)")
    } else if ip.is_loopback() {
        Some("may not be in the loopback range (127.0.0.0/8, ::1/128)")
    } else if link_local {
        Some("may not be in the link-local range (169.254.0.0/16, fe80::/10)")
    } else if link_local_multicast {
        Some("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)")
    } else {
        None
    }
}

fn quantities(v: &Value, at: &str, out: &mut Vec<FieldError>) {
    for (k, q) in v.as_object().into_iter().flatten() {
        if q.as_str().and_then(Quantity::parse).is_some_and(|q| q.sign() < 0) {
            out.push(FieldError::invalid(format!("{at}[{k}]"), q.clone(), "must be greater than or equal to 0"));
        }
    }
}

fn limit_range(spec: &Value, out: &mut Vec<FieldError>) {
    for (i, l) in items(spec, "limits").iter().enumerate() {
        let at = format!("spec.limits[{i}]");
        let get = |m: &str, k: &str| l[m][k].as_str().and_then(Quantity::parse);
        for k in l["min"].as_object().into_iter().flatten().map(|(k, _)| k) {
            if let (Some(min), Some(max)) = (get("min", k), get("max", k))
                && min > max
            {
                out.push(FieldError::invalid(
                    format!("{at}.min[{k}]"),
                    l["min"][k].clone(),
                    format!("min value {min} is greater than max value {max}"),
                ));
            }
        }
        for (a, b) in [("defaultRequest", "default"), ("default", "max"), ("defaultRequest", "max")] {
            for k in l[a].as_object().into_iter().flatten().map(|(k, _)| k) {
                if let (Some(x), Some(y)) = (get(a, k), get(b, k))
                    && x > y
                {
                    let name = |s: &str| if s == "defaultRequest" { "default request" } else { s }.to_string();
                    let detail = format!(
                        "{} value {x} is greater than {} value {y}",
                        name(a),
                        if b == "default" { "default limit".into() } else { name(b) }
                    );
                    out.push(FieldError::invalid(format!("{at}.{a}[{k}]"), l[a][k].clone(), detail));
                }
            }
        }
    }
}

fn lease(spec: &Value, out: &mut Vec<FieldError>) {
    if spec["leaseDurationSeconds"].as_i64().is_some_and(|n| n <= 0) {
        out.push(FieldError::invalid(
            "spec.leaseDurationSeconds",
            spec["leaseDurationSeconds"].clone(),
            "must be greater than 0",
        ));
    }
    if spec["leaseTransitions"].as_i64().is_some_and(|n| n < 0) {
        out.push(FieldError::invalid(
            "spec.leaseTransitions",
            spec["leaseTransitions"].clone(),
            "must be greater than or equal to 0",
        ));
    }
}

fn webhooks(o: &Value, out: &mut Vec<FieldError>) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, w) in items(o, "webhooks").iter().enumerate() {
        let at = format!("webhooks[{i}]");
        let name = text(w, "name");
        if name.split('.').count() < 3 && !name.is_empty() {
            out.push(FieldError::invalid(
                format!("{at}.name"),
                name,
                "should be a domain with at least three segments separated by dots",
            ));
        }
        if seen.contains(&name) {
            out.push(FieldError::duplicate(format!("{at}.name"), name));
        }
        seen.push(name);
        if items(w, "admissionReviewVersions").is_empty() {
            out.push(FieldError::required(format!("{at}.admissionReviewVersions"), "must specify one of v1, v1beta1"));
        }
        one_of(&w["failurePolicy"], &format!("{at}.failurePolicy"), &["Fail", "Ignore"], out);
        one_of(&w["matchPolicy"], &format!("{at}.matchPolicy"), &["Equivalent", "Exact"], out);
        one_of(&w["sideEffects"], &format!("{at}.sideEffects"), &["None", "NoneOnDryRun"], out);
        if !w["timeoutSeconds"].as_i64().is_none_or(|t| (1..=30).contains(&t)) {
            out.push(FieldError::invalid(
                format!("{at}.timeoutSeconds"),
                w["timeoutSeconds"].clone(),
                "the timeout value must be between 1 and 30 seconds",
            ));
        }
        let c = &w["clientConfig"];
        if c["url"].is_string() == c["service"].is_object() {
            out.push(FieldError::required(format!("{at}.clientConfig"), "exactly one of url or service is required"));
        }
    }
}

/// Fields that stay as they were made.
fn fixed(kind: &Kind) -> &'static [(&'static str, &'static str)] {
    const IMMUTABLE: &str = "field is immutable";
    match (kind.group.as_ref(), kind.kind.as_ref()) {
        ("storage.k8s.io", "StorageClass") => &[
            ("parameters", "updates to parameters are forbidden."),
            ("provisioner", "updates to provisioner are forbidden."),
            ("reclaimPolicy", "updates to reclaimPolicy are forbidden."),
            ("volumeBindingMode", IMMUTABLE),
        ],
        ("storage.k8s.io", "VolumeAttachment") => &[("spec", IMMUTABLE)],
        ("storage.k8s.io", "CSIDriver") => {
            &[("spec.attachRequired", IMMUTABLE), ("spec.volumeLifecycleModes", IMMUTABLE)]
        }
        ("scheduling.k8s.io", "PriorityClass") => {
            &[("value", "may not be changed in an update."), ("preemptionPolicy", IMMUTABLE)]
        }
        ("node.k8s.io", "RuntimeClass") => &[("handler", IMMUTABLE)],
        ("networking.k8s.io", "IngressClass") => &[("spec.controller", IMMUTABLE)],
        ("networking.k8s.io", "IPAddress") => &[("spec.parentRef", IMMUTABLE)],
        ("discovery.k8s.io", "EndpointSlice") => &[("addressType", IMMUTABLE)],
        ("apps", "ControllerRevision") => &[("data", IMMUTABLE)],
        ("resource.k8s.io", "ResourceClaim" | "ResourceClaimTemplate") => &[("spec", IMMUTABLE)],
        ("apiextensions.k8s.io", _) => &[
            ("spec.group", IMMUTABLE),
            ("spec.scope", IMMUTABLE),
            ("spec.names.plural", IMMUTABLE),
            ("spec.names.kind", IMMUTABLE),
        ],
        _ => &[],
    }
}

pub(super) fn update(kind: &Kind, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut out = Vec::new();
    for (path, detail) in fixed(kind) {
        let parts: Vec<&str> = path.split('.').collect();
        let (a, b) = (meta::at(new, &parts), meta::at(old, &parts));
        if a != b {
            let forbidden = detail.starts_with("updates to") || detail.starts_with("may not");
            out.push(if forbidden {
                FieldError::forbidden(*path, *detail)
            } else {
                FieldError::invalid(*path, a.clone(), *detail)
            });
        }
    }
    if kind.kind == "CustomResourceDefinition" {
        stored_versions(new, &mut out);
    }
    out
}

/// A version that objects may still be stored in cannot leave the CRD.
fn stored_versions(new: &Value, out: &mut Vec<FieldError>) {
    let names: Vec<&str> = items(&new["spec"], "versions").iter().filter_map(|v| v["name"].as_str()).collect();
    for (i, v) in items(&new["status"], "storedVersions").iter().filter_map(Value::as_str).enumerate() {
        if !names.contains(&v) {
            out.push(FieldError::invalid(
                format!("status.storedVersions[{i}]"),
                v,
                "missing from spec.versions; status.storedVersions must remain in spec.versions",
            ));
        }
    }
}
