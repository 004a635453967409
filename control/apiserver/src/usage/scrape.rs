//! A kubelet's `/metrics/resource`, and the rates between two of them.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// Over less than this a rate says little.
const LEAST_WINDOW: i64 = 500;
/// Most samples that are read of one kubelet; it runs far fewer containers.
const MOST_SAMPLES: usize = 50_000;

/// What is read of one container, or of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Reading {
    cpu_nanoseconds: Option<u64>,
    memory_bytes: Option<u64>,
    /// Unix milliseconds, by the kubelet's clock.
    at: i64,
    /// When the container was made; 0 where that is not known.
    started: i64,
}

/// Readings of a node at one time.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    node: Reading,
    /// By namespace and name of the pod, and name of the container.
    pods: HashMap<(String, String), BTreeMap<String, Reading>>,
    /// Whether the kubelet says that it could not read its containers.
    pub failed: bool,
}

/// What was used in a short time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Unix milliseconds: the end of the window.
    pub at: i64,
    pub window: Duration,
    pub nanocores: u64,
    pub memory_bytes: u64,
}

/// What a node and its pods used.
#[derive(Clone, Debug, Default)]
pub struct NodeUsage {
    pub node: Option<Usage>,
    /// By namespace and name of the pod, and name of the container.
    pub pods: HashMap<(String, String), BTreeMap<String, Usage>>,
}

impl Scrape {
    /// Reads Prometheus' text form; `now` is the time of samples that do not say theirs. What cannot be read is left
    /// out.
    pub fn parse(text: &str, now: i64) -> Scrape {
        let mut scrape = Scrape::default();
        for sample in text.lines().filter_map(Sample::parse).take(MOST_SAMPLES) {
            scrape.failed |= sample.name == "resource_scrape_error" && sample.value > 0.0;
            let Some(reading) = scrape.reading(&sample) else { continue };
            let at = sample.at.unwrap_or(now);
            match sample.name.rsplit_once('_').map_or("", |(_, unit)| unit) {
                "total" => (reading.cpu_nanoseconds, reading.at) = (whole(sample.value * 1e9), at),
                "bytes" => reading.memory_bytes = whole(sample.value),
                _ => reading.started = whole(sample.value * 1e3).and_then(|ms| i64::try_from(ms).ok()).unwrap_or(0),
            }
        }
        scrape
    }

    /// Where a sample belongs to.
    fn reading(&mut self, sample: &Sample<'_>) -> Option<&mut Reading> {
        match sample.name {
            "node_cpu_usage_seconds_total" | "node_memory_working_set_bytes" => Some(&mut self.node),
            "container_cpu_usage_seconds_total"
            | "container_memory_working_set_bytes"
            | "container_start_time_seconds" => {
                let label = |name: &str| sample.labels.iter().find(|(n, _)| *n == name).map(|(_, v)| v.clone());
                let pod = (label("namespace")?, label("pod")?);
                Some(self.pods.entry(pod).or_default().entry(label("container")?).or_default())
            }
            _ => None,
        }
    }

    /// What was used between `before` and this.
    pub fn since(&self, before: &Scrape) -> NodeUsage {
        let of_pod = |(pod, containers): (&(String, String), &BTreeMap<String, Reading>)| {
            let old = before.pods.get(pod);
            let of = |(name, now): (&String, &Reading)| {
                Some((name.clone(), now.since(old.and_then(|containers| containers.get(name)), before.node.at)?))
            };
            // A pod with a container of which nothing is known is left out, or its sum would be wrong.
            Some((pod.clone(), containers.iter().map(of).collect::<Option<_>>()?))
        };
        let node = self.node.since(Some(&before.node), before.node.at);
        NodeUsage { node, pods: self.pods.iter().filter_map(of_pod).collect() }
    }
}

impl Reading {
    /// What was used between `before`, which was to be read at `last`, and this.
    fn since(&self, before: Option<&Reading>, last: i64) -> Option<Usage> {
        let (cpu, memory_bytes) = (self.cpu_nanoseconds?, self.memory_bytes?);
        let before = before.and_then(|b| Some((b.started, b.cpu_nanoseconds?, b.at)));
        let (base, from) = match before {
            Some((started, base, from)) if started == self.started && base <= cpu => (base, from),
            // Made since then: it has used nothing before.
            _ if self.started > last => (0, self.started),
            // The mean of a long life says nothing of now; the next time there is something to compare with.
            _ => return None,
        };
        let window = self.at.checked_sub(from).filter(|w| *w >= LEAST_WINDOW)?;
        let nanocores = u128::from(cpu - base) * 1000 / window.unsigned_abs() as u128;
        Some(Usage {
            at: self.at,
            window: Duration::from_millis(window.unsigned_abs()),
            nanocores: u64::try_from(nanocores).unwrap_or(u64::MAX),
            memory_bytes,
        })
    }
}

/// A value that counts something.
fn whole(value: f64) -> Option<u64> {
    // Beyond 2⁶³ it is no figure of this world.
    (0.0..9.2e18).contains(&value).then_some(value as u64)
}

/// One line.
struct Sample<'a> {
    name: &'a str,
    labels: Vec<(&'a str, String)>,
    value: f64,
    at: Option<i64>,
}

impl Sample<'_> {
    fn parse(line: &str) -> Option<Sample<'_>> {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            return None;
        }
        let end = line.find(['{', ' ', '\t'])?;
        let (name, mut rest) = line.split_at(end);
        let mut labels = Vec::new();
        if let Some(inside) = rest.strip_prefix('{') {
            rest = inside.trim_start();
            while !rest.starts_with('}') {
                let (key, after) = rest.split_once("=\"")?;
                let (value, after) = quoted(after)?;
                labels.push((key.trim(), value));
                let after = after.trim_start();
                rest = after.strip_prefix(',').unwrap_or(after).trim_start();
            }
            rest = &rest[1..];
        }
        let mut words = rest.split_whitespace();
        let value = words.next()?.parse().ok()?;
        let at = words.next().map(str::parse).transpose().ok()?;
        words.next().is_none().then_some(Sample { name, labels, value, at })
    }
}

/// A label's value up to its quote, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = r#"
# HELP container_cpu_usage_seconds_total Cumulative cpu time
# TYPE container_cpu_usage_seconds_total counter
container_cpu_usage_seconds_total{container="a",namespace="d",pod="p"} 10.5 1700000000000
container_cpu_usage_seconds_total{container="b",namespace="d",pod="p"} 7 1700000000000
container_memory_working_set_bytes{container="a",namespace="d",pod="p"} 4096 1700000000000
container_memory_working_set_bytes{container="b",namespace="d",pod="p"} 8192 1700000000000
container_start_time_seconds{container="a",namespace="d",pod="p"} 1600000000.25
container_start_time_seconds{container="b",namespace="d",pod="p"} 1600000000
node_cpu_usage_seconds_total 100 1700000000000
node_memory_working_set_bytes 1e+09 1700000000000
"#;

    fn pod() -> (String, String) {
        ("d".into(), "p".into())
    }

    /// Of the node, and of both containers, in the same time later.
    fn between(after: &str) -> NodeUsage {
        Scrape::parse(after, 0).since(&Scrape::parse(BEFORE, 0))
    }

    #[test]
    fn rates_are_between_two_readings() {
        let after =
            BEFORE.replace("1700000000000", "1700000015000").replace(" 10.5 ", " 13.5 ").replace(" 100 ", " 130 ");
        let usage = between(&after);
        let node = usage.node.unwrap();
        assert_eq!((node.nanocores, node.memory_bytes), (2_000_000_000, 1_000_000_000));
        assert_eq!((node.window, node.at), (Duration::from_secs(15), 1_700_000_015_000));
        let containers = &usage.pods[&pod()];
        assert_eq!((containers["a"].nanocores, containers["a"].memory_bytes), (200_000_000, 4096));
        assert_eq!((containers["b"].nanocores, containers["b"].memory_bytes), (0, 8192));
    }

    #[test]
    fn what_began_anew_is_measured_since_its_start() {
        // Container `a` was started again two seconds ago, and used one of them.
        let after = BEFORE
            .replace("1700000000000", "1700000015000")
            .replace(" 10.5 ", " 1 ")
            .replace("1600000000.25", "1700000013");
        let a = between(&after).pods[&pod()]["a"].clone();
        assert_eq!((a.nanocores, a.window), (500_000_000, Duration::from_secs(2)));
        // A moment ago: too short to say anything, and so of the whole pod.
        let young = after.replace("1700000013", "1700000014.9");
        assert!(between(&young).pods.is_empty() && between(&young).node.is_some());
        // The node's counter went back, as after a boot: nothing is known of it, until the next time.
        assert_eq!(between(&after.replace(" 100 ", " 1 ")).node, None);
        // A clock that stood still or went back.
        assert_eq!(between(BEFORE).node, None);
        assert_eq!(between(&BEFORE.replace("1700000000000", "1600000000000")).node, None);
    }

    #[test]
    fn a_long_life_is_no_window() {
        let later = |text: &str| text.replace("1700000000000", "1700000015000");
        // The kubelet did not read container `b` the last time, or its counter went back without a new start.
        let without: String = BEFORE.lines().filter(|line| !line.contains("\"b\"")).map(|l| format!("{l}\n")).collect();
        let usage = Scrape::parse(&later(BEFORE), 0).since(&Scrape::parse(&without, 0));
        assert!(usage.pods.is_empty() && usage.node.is_some());
        assert!(between(&later(BEFORE).replace(" 10.5 ", " 1 ")).pods.is_empty());
    }

    #[test]
    fn a_kubelet_says_when_it_could_not_read() {
        assert!(!Scrape::parse(BEFORE, 0).failed && !Scrape::parse("resource_scrape_error 0\n", 0).failed);
        assert!(Scrape::parse("resource_scrape_error 1\n", 0).failed);
    }

    #[test]
    fn samples_without_a_time_are_of_now() {
        let scrape = Scrape::parse("node_cpu_usage_seconds_total 1\nnode_memory_working_set_bytes 5\n", 42);
        assert_eq!(
            scrape.node,
            Reading { cpu_nanoseconds: Some(1_000_000_000), memory_bytes: Some(5), at: 42, started: 0 }
        );
    }

    #[test]
    fn what_cannot_be_read_is_left_out() {
        for line in [
            "",
            "#",
            "{",
            "x",
            "node_cpu_usage_seconds_total",
            "node_cpu_usage_seconds_total x",
            "node_cpu_usage_seconds_total 1 2 3",
            "node_cpu_usage_seconds_total 1 x",
            "node_cpu_usage_seconds_total NaN",
            "node_cpu_usage_seconds_total -1",
            "node_cpu_usage_seconds_total +Inf",
            "node_cpu_usage_seconds_total{",
            "node_cpu_usage_seconds_total{a",
            "node_cpu_usage_seconds_total{a=\"",
            "node_cpu_usage_seconds_total{a=\"\\",
            "node_cpu_usage_seconds_total{a=\"ü\"",
            "container_cpu_usage_seconds_total{container=\"c\",pod=\"p\"} 1",
        ] {
            let scrape = Scrape::parse(line, 1);
            assert!(scrape.node.cpu_nanoseconds.is_none() && scrape.pods.is_empty(), "{line}");
        }
        let escaped = r#"container_start_time_seconds{ namespace="a\"\\\nb", pod="p", container="c", } 1"#;
        let scrape = Scrape::parse(escaped, 0);
        assert_eq!(scrape.pods.keys().next().unwrap().0, "a\"\\\nb");
    }
}
