//! `/metrics` and `/metrics/resource` in Prometheus' text form.

use super::stats::{containers, node_figures};
use super::{Answer, typed};
use crate::cgroups::{Cgroups, figures};
use crate::join::files::Pair;
use crate::kubelet::Kubelet;
use crate::pods::spec;
use bytes::Bytes;
use http::StatusCode;
use std::fmt::Write;
use std::path::Path;

fn answer(text: String) -> Answer {
    typed(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", Bytes::from(text))
}

/// A family of samples: labels and value.
fn family(out: &mut String, name: &str, kind: &str, help: &str, samples: &[(String, f64)]) {
    family_at(out, name, kind, help, samples, "");
}

/// A family of samples that were taken at a time: Unix milliseconds.
fn family_at(out: &mut String, name: &str, kind: &str, help: &str, samples: &[(String, f64)], at: &str) {
    let space = if at.is_empty() { "" } else { " " };
    // Writing to a String cannot fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (labels, value) in samples {
        let _ = if labels.is_empty() {
            writeln!(out, "{name} {value}{space}{at}")
        } else {
            writeln!(out, "{name}{{{labels}}} {value}{space}{at}")
        };
    }
}

/// The kubelet's own metrics.
pub fn kubelet(kubelet: &Kubelet) -> Answer {
    let pods = kubelet.pods.list();
    let running = pods.iter().filter(|p| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running")).count();
    let node = format!("node=\"{}\"", kubelet.options.node_name);
    let mut out = String::new();
    family(&mut out, "kubelet_node_name", "gauge", "The node's name. The count is always 1.", &[(node, 1.0)]);
    family(&mut out, "kubelet_running_pods", "gauge", "Number of pods that run.", &[(String::new(), running as f64)]);
    family(
        &mut out,
        "kubelet_desired_pods",
        "gauge",
        "Number of pods bound to this node.",
        &[(String::new(), pods.len() as f64)],
    );
    let folder = kubelet.options.flags.tls_cert_file.parent().unwrap_or(Path::new("/"));
    let help = "When each of the node's own certificates ends, in seconds since 1970.";
    family(&mut out, "kimg_certificate_expiration_timestamp_seconds", "gauge", help, &certificates(folder));
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = crate::node::facts::meminfo(&status).get("VmRSS").copied().unwrap_or(0);
    family(
        &mut out,
        "process_resident_memory_bytes",
        "gauge",
        "Resident memory size in bytes.",
        &[(String::new(), resident as f64)],
    );
    answer(out)
}

/// The ends of the certificates in a folder; one that cannot be read is in the log of who uses it.
fn certificates(folder: &Path) -> Vec<(String, f64)> {
    let files = std::fs::read_dir(folder).map(|entries| entries.flatten().collect::<Vec<_>>()).unwrap_or_default();
    let names = files.iter().filter_map(|file| file.file_name().to_str()?.strip_suffix(".crt").map(String::from));
    let end = |name: String| {
        let leaf = Pair::new(folder, &name).leaf().ok()?;
        Some((format!("certificate=\"{name}\""), leaf.not_after as f64))
    };
    let mut ends: Vec<(String, f64)> = names.filter_map(end).collect();
    ends.sort_by(|a, b| a.0.cmp(&b.0));
    ends
}

/// What metrics servers read: counters and readings with the time at which they were read, as rates are made of two.
pub async fn resource(kubelet: &Kubelet) -> Answer {
    let (mut cpu, mut memory, mut start, mut pod_cpu, mut pod_memory) = (vec![], vec![], vec![], vec![], vec![]);
    let listed = containers(kubelet).await;
    if let Err(error) = &listed {
        tracing::warn!("what containers use is not read: {error}");
    }
    let failed = listed.is_err();
    let running = listed.unwrap_or_default();
    let at = jiff::Timestamp::now().as_millisecond().to_string();
    for pod in kubelet.pods.list() {
        let place = format!("namespace=\"{}\",pod=\"{}\"", spec::namespace(&pod), spec::name(&pod));
        for container in running.get(spec::uid(&pod)).into_iter().flatten() {
            let labels = format!("container=\"{}\",{place}", container.name);
            cpu.push((labels.clone(), seconds(container.figures.cpu_ns)));
            memory.push((labels.clone(), container.figures.working_set as f64));
            start.push((labels, container.started_at as f64 / 1e9));
        }
        let path = kubelet.cgroups.as_ref().map(|c| c.path(&Cgroups::pod_path(&pod)));
        if let Some(figures) = path.and_then(|p| figures(&p).ok()) {
            pod_cpu.push((place.clone(), seconds(figures.cpu_ns)));
            pod_memory.push((place, figures.working_set as f64));
        }
    }
    let node = node_figures(kubelet);
    let one = |value: f64| vec![(String::new(), value)];
    let mut out = String::new();
    let mut timed = |name: &str, kind: &str, help: &str, samples: &[(String, f64)]| {
        family_at(&mut out, name, kind, help, samples, &at);
    };
    let help = "Cumulative cpu time consumed by the container in core-seconds";
    timed("container_cpu_usage_seconds_total", "counter", help, &cpu);
    let help = "Current working set of the container in bytes";
    timed("container_memory_working_set_bytes", "gauge", help, &memory);
    let help = "Cumulative cpu time consumed by the node in core-seconds";
    timed("node_cpu_usage_seconds_total", "counter", help, &one(seconds(node.cpu_ns)));
    let help = "Current working set of the node in bytes";
    timed("node_memory_working_set_bytes", "gauge", help, &one(node.working_set as f64));
    let help = "Cumulative cpu time consumed by the pod in core-seconds";
    timed("pod_cpu_usage_seconds_total", "counter", help, &pod_cpu);
    timed("pod_memory_working_set_bytes", "gauge", "Current working set of the pod in bytes", &pod_memory);
    let help = "Start time of the container since unix epoch in seconds";
    family(&mut out, "container_start_time_seconds", "gauge", help, &start);
    let help = "1 if there was an error while getting container metrics, 0 otherwise";
    family(&mut out, "resource_scrape_error", "gauge", help, &one(f64::from(u8::from(failed))));
    answer(out)
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_written_as_text() {
        let mut out = String::new();
        family(&mut out, "a", "gauge", "h", &[(String::new(), 1.0), ("x=\"y\"".into(), 2.5)]);
        assert_eq!(out, "# HELP a h\n# TYPE a gauge\na 1\na{x=\"y\"} 2.5\n");
        let mut out = String::new();
        family_at(&mut out, "a", "counter", "h", &[(String::new(), 1.0), ("x=\"y\"".into(), 2.5)], "1700000000123");
        assert_eq!(out, "# HELP a h\n# TYPE a counter\na 1 1700000000123\na{x=\"y\"} 2.5 1700000000123\n");
    }

    #[test]
    fn certificates_say_when_they_end() {
        let folder = tempfile::tempdir().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["n".to_string()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem();
        for (name, text) in [("overlay.crt", certificate.as_str()), ("broken.crt", "x"), ("overlay.key", "x")] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        assert_eq!(certificates(folder.path()), [("certificate=\"overlay\"".to_string(), 1_893_456_000.0)]);
        assert!(certificates(&folder.path().join("none")).is_empty());
    }
}
