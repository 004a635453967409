//! What was measured, flat, and how it stands against the peer and the targets.

use serde_json::{Map, Value};

/// Upstream's kube-apiserver 1.36 with etcd, measured on two cores at 16 connections.
pub const PEER: &[(&str, f64)] = &[
    ("configmap.create.per_second", 1295.0),
    ("configmap.get.per_second", 3157.0),
    ("pod.create.per_second", 689.0),
    ("configmap.list.per_second", 34.0),
    ("pod.list.per_second", 11.0),
    ("configmap.create.cpu_ms", 0.96 + 0.32),
];

/// Figures by name.
#[derive(Debug, Default)]
pub struct Figures(Map<String, Value>);

impl Figures {
    pub fn put(&mut self, name: impl Into<String>, value: f64) {
        let rounded = (value * 1000.0).round() / 1000.0;
        self.0.insert(name.into(), rounded.into());
    }

    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).and_then(Value::as_f64)
    }

    /// A figure with its target, in a line; `ratio` is how many times better than demanded it is.
    pub fn against(&mut self, name: &str, target: f64, unit: &str) {
        let Some(value) = self.get(name) else { return };
        let ratio = target / value.max(0.001);
        self.put(format!("{name}.target"), target);
        self.put(format!("{name}.ratio"), ratio);
        say(&format!("{name:<44} {value:>10.2} {unit:<6} target {target:>8.2}  {}", verdict(ratio)));
    }

    pub fn json(self) -> String {
        format!("{:#}\n", Value::Object(self.0))
    }
}

/// Whether a ratio of at least one was reached.
pub fn verdict(ratio: f64) -> String {
    format!("{ratio:.2}x {}", if ratio >= 1.0 { "held" } else { "MISSED" })
}

#[allow(clippy::print_stdout, reason = "the figures are this program's output")]
pub fn say(text: &str) {
    println!("{text}");
}
