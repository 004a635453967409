//! The node API's lists as tables.

use crate::release;
use crate::table::render;
use node_api::{
    Certificate, Connection, Container, Disk, Image, Link, NodeStatus, Pod, Process, Route, Service, Socket,
};

/// A list that has columns.
pub trait Row {
    /// The columns' titles.
    const HEAD: &'static [&'static str];
    /// One line.
    fn cells(&self) -> Vec<String>;
}

/// A table of a list.
pub fn table<T: Row>(list: &[T]) -> String {
    let rows: Vec<Vec<String>> =
        list.iter().map(|item| item.cells().into_iter().map(|cell| or_dash(&cell)).collect()).collect();
    render(T::HEAD, &rows)
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".into() } else { text.into() }
}

/// Bytes for people.
pub fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// Twelve digits of an id tell it apart.
fn short(id: &str) -> String {
    id.trim_start_matches("sha256:").chars().take(12).collect()
}

fn when(unix_ms: u64) -> String {
    i64::try_from(unix_ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .and_then(|t| jiff::Timestamp::from_second(t.as_second()).ok())
        .map_or_else(String::new, |t| t.to_string())
}

fn state_name(state: &impl serde::Serialize) -> String {
    serde_json::to_value(state).ok().and_then(|v| v.as_str().map(str::to_string)).unwrap_or_default()
}

impl Row for Service {
    const HEAD: &'static [&'static str] = &["SERVICE", "STATE", "PID", "SINCE", "RESTARTS", "MEMORY", "STATUS"];
    fn cells(&self) -> Vec<String> {
        let status = if self.last_exit.is_empty() || self.restarts == 0 {
            self.status.clone()
        } else {
            format!("{} (last end: {})", self.status, self.last_exit)
        };
        vec![
            self.name.clone(),
            state_name(&self.state),
            self.pid.map(|p| p.to_string()).unwrap_or_default(),
            format!("{:.1} s after boot", self.since_ms as f64 / 1000.0),
            self.restarts.to_string(),
            size(self.memory),
            status,
        ]
    }
}

impl Row for Certificate {
    const HEAD: &'static [&'static str] = &["FILE", "SUBJECT", "ISSUER", "NOT AFTER", "NAMES"];
    fn cells(&self) -> Vec<String> {
        vec![self.file.clone(), self.subject.clone(), self.issuer.clone(), self.not_after.clone(), self.sans.join(",")]
    }
}

impl Row for Pod {
    const HEAD: &'static [&'static str] = &["POD ID", "NAMESPACE", "NAME", "STATE", "ATTEMPT", "CREATED"];
    fn cells(&self) -> Vec<String> {
        vec![
            short(&self.id),
            self.namespace.clone(),
            self.name.clone(),
            self.state.clone(),
            self.attempt.to_string(),
            when(self.created_unix_ms),
        ]
    }
}

impl Row for Container {
    const HEAD: &'static [&'static str] = &["CONTAINER", "POD", "NAME", "IMAGE", "STATE", "ATTEMPT", "CREATED"];
    fn cells(&self) -> Vec<String> {
        vec![
            short(&self.id),
            self.pod.clone(),
            self.name.clone(),
            self.image.clone(),
            self.state.clone(),
            self.attempt.to_string(),
            when(self.created_unix_ms),
        ]
    }
}

impl Row for Image {
    const HEAD: &'static [&'static str] = &["IMAGE", "SIZE", "TAGS"];
    fn cells(&self) -> Vec<String> {
        vec![short(&self.id), size(self.size), self.tags.join(", ")]
    }
}

impl Row for Route {
    const HEAD: &'static [&'static str] =
        &["DESTINATION", "GATEWAY", "DEVICE", "SOURCE", "METRIC", "PROTOCOL", "TABLE"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.destination.clone(),
            self.gateway.clone(),
            self.device.clone(),
            self.source.clone(),
            self.metric.to_string(),
            self.protocol.clone(),
            self.table.to_string(),
        ]
    }
}

impl Row for Link {
    const HEAD: &'static [&'static str] =
        &["LINK", "STATE", "KIND", "MTU", "MAC", "MASTER", "RECEIVED", "SENT", "ADDRESSES"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.state.clone(),
            self.kind.clone(),
            self.mtu.to_string(),
            self.mac.clone(),
            self.master.clone(),
            size(self.rx_bytes),
            size(self.tx_bytes),
            self.addresses.join(", "),
        ]
    }
}

impl Row for Connection {
    const HEAD: &'static [&'static str] =
        &["PROTOCOL", "STATE", "SOURCE", "DESTINATION", "ANSWERED BY", "ANSWERED TO", "TIMEOUT"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.protocol.clone(),
            self.state.clone(),
            self.source.clone(),
            self.destination.clone(),
            self.reply_source.clone(),
            self.reply_destination.clone(),
            format!("{} s", self.timeout_s),
        ]
    }
}

impl Row for Socket {
    const HEAD: &'static [&'static str] = &["PROTOCOL", "STATE", "LOCAL", "REMOTE", "PROCESS"];
    fn cells(&self) -> Vec<String> {
        vec![self.protocol.clone(), self.state.clone(), self.local.clone(), self.remote.clone(), self.process.clone()]
    }
}

impl Row for Disk {
    const HEAD: &'static [&'static str] = &["DEVICE", "MOUNT", "KIND", "SIZE", "USED", "AVAILABLE", "MODE"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.device.clone(),
            self.mount.clone(),
            self.kind.clone(),
            size(self.size),
            size(self.used),
            size(self.available),
            if self.read_only { "ro" } else { "rw" }.into(),
        ]
    }
}

impl Row for Process {
    const HEAD: &'static [&'static str] = &["PID", "PARENT", "PSS", "RSS", "CPU", "GROUP", "COMMAND"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.pid.to_string(),
            self.parent.to_string(),
            size(self.pss_kib * 1024),
            size(self.rss_kib * 1024),
            format!("{:.1} s", self.cpu_ms as f64 / 1000.0),
            self.cgroup.clone(),
            self.command.clone(),
        ]
    }
}

/// The node in one screen.
pub fn status(s: &NodeStatus) -> String {
    let mut lines = vec![
        format!("node        {} ({}) of cluster {}", or_dash(&s.name), s.role, or_dash(&s.cluster)),
        format!("image       {}, kernel {}", s.image, s.kernel),
        format!("addresses   {} (from {})", or_dash(&s.addresses.join(", ")), or_dash(&s.source)),
        format!("stage       {}", s.stage),
        format!("up          {:.0} s, boot {}", s.uptime_ms as f64 / 1000.0, s.boot_id),
        format!("time        {}", when(s.now_unix_ms)),
        format!("memory      {} of {} available", size(s.memory_available), size(s.memory_total)),
        format!("fingerprint {}", s.fingerprint),
    ];
    if let Some(states) = &s.states {
        lines.insert(2, format!("states      {}", release::line(states)));
    }
    for (title, text) in [("waits for", &s.waits_for), ("because", &s.why), ("do", &s.hint)] {
        if !text.is_empty() {
            lines.push(format!("{title:<11} {text}"));
        }
    }
    lines.extend(s.warnings.iter().map(|w| format!("warning     {w}")));
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_empty_cells() {
        assert_eq!(size(512), "512 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(3 << 30), "3.0 GiB");
        let text = table(&[Route { destination: "default".into(), ..Route::default() }]);
        assert!(text.contains("default       -"), "{text}");
        let service = serde_json::json!({"name": "dns", "state": "ready", "since_ms": 20_340, "restarts": 0,
            "status": "", "last_exit": "", "needs": [], "memory": 0});
        let text = table(&[serde_json::from_value::<Service>(service).expect("a service")]);
        assert!(text.contains("20.3 s after boot"), "{text}");
    }
}
