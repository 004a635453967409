//! Counters for `/metrics`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use crate::deprecated::Callers;
use crate::request::{RequestInfo, Verb};
use crate::state::AppState;

/// Upper bounds of the request durations' buckets, in seconds.
const BUCKETS: [f64; 10] = [0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 1.0, 2.0, 5.0, 30.0];

type Key = (&'static str, String, String, String, u16);

#[derive(Default)]
struct Durations {
    buckets: [u64; BUCKETS.len()],
    count: u64,
    sum: f64,
}

/// What is counted.
#[derive(Default)]
pub struct Metrics {
    requests: Mutex<BTreeMap<Key, u64>>,
    durations: Mutex<BTreeMap<&'static str, Durations>>,
    /// Who asks for deprecated APIs.
    pub(crate) deprecated: Callers,
    /// Watches open now.
    pub watches: AtomicI64,
    /// Stored values by the key that sealed them.
    pub sealed: Mutex<store::Usage>,
    /// The keys at hand, once all is sealed by the one that writes.
    pub keys: Mutex<Vec<String>>,
    /// Reloads of the encryption configuration: taken, and refused.
    pub encryption_reloads: [AtomicU64; 2],
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// Counts one answered request.
    pub fn count(&self, info: &RequestInfo, verb: &'static str, code: u16, took: Duration) {
        // What does not exist, or was refused to somebody who may have made it up, must not make a series of its own.
        let made_up = matches!(code, 401 | 403) || code == 404 && info.name.is_empty();
        let resource = if info.is_resource { info.resource_path() } else { String::new() };
        let (group, version, resource) =
            if made_up { Default::default() } else { (info.group.clone(), info.version.clone(), resource) };
        let key = (verb, group, version, resource, code);
        *self.requests.lock().unwrap_or_else(|e| e.into_inner()).entry(key).or_default() += 1;
        if info.is_long_running() {
            return;
        }
        let seconds = took.as_secs_f64();
        let mut durations = self.durations.lock().unwrap_or_else(|e| e.into_inner());
        let entry = durations.entry(verb).or_default();
        entry.count += 1;
        entry.sum += seconds;
        for (bucket, bound) in entry.buckets.iter_mut().zip(BUCKETS) {
            *bucket += u64::from(seconds <= bound);
        }
    }

    /// Everything, in Prometheus' text format.
    pub fn render(&self, state: &AppState) -> String {
        let mut out = String::with_capacity(16 << 10);
        out.push_str("# HELP apiserver_request_total Requests answered.\n# TYPE apiserver_request_total counter\n");
        for ((verb, group, version, resource, code), count) in
            self.requests.lock().unwrap_or_else(|e| e.into_inner()).iter()
        {
            line(
                &mut out,
                format_args!(
                    "apiserver_request_total{{verb=\"{verb}\",group=\"{group}\",version=\"{version}\",resource=\"{resource}\",code=\"{code}\"}} {count}"
                ),
            );
        }
        out.push_str("# HELP apiserver_request_duration_seconds Time to answer.\n# TYPE apiserver_request_duration_seconds histogram\n");
        for (verb, d) in self.durations.lock().unwrap_or_else(|e| e.into_inner()).iter() {
            for (bound, count) in BUCKETS.iter().zip(d.buckets) {
                line(
                    &mut out,
                    format_args!("apiserver_request_duration_seconds_bucket{{verb=\"{verb}\",le=\"{bound}\"}} {count}"),
                );
            }
            line(
                &mut out,
                format_args!("apiserver_request_duration_seconds_bucket{{verb=\"{verb}\",le=\"+Inf\"}} {}", d.count),
            );
            line(&mut out, format_args!("apiserver_request_duration_seconds_sum{{verb=\"{verb}\"}} {}", d.sum));
            line(&mut out, format_args!("apiserver_request_duration_seconds_count{{verb=\"{verb}\"}} {}", d.count));
        }
        let watches = self.watches.load(Ordering::Relaxed);
        line(
            &mut out,
            format_args!(
                "# TYPE apiserver_longrunning_requests gauge\napiserver_longrunning_requests{{verb=\"WATCH\"}} {watches}"
            ),
        );
        out.push_str(
            "# HELP apiserver_storage_objects Objects in the store.\n# TYPE apiserver_storage_objects gauge\n",
        );
        for (resource, count) in state.registry.counts() {
            line(&mut out, format_args!("apiserver_storage_objects{{resource=\"{resource}\"}} {count}"));
        }
        self.deprecated.render(&mut out);
        self.render_encryption(&mut out);
        render_store(&mut out, state.registry.store().as_ref());
        out
    }

    fn render_encryption(&self, out: &mut String) {
        let name = "kimg_store_sealed_objects";
        line(
            out,
            format_args!(
                "# HELP {name} Stored values by the key that sealed them, as of the last look: at the start and after each change of keys, and again while there are others than the one that writes."
            ),
        );
        line(out, format_args!("# TYPE {name} gauge"));
        for (key, count) in self.sealed.lock().unwrap_or_else(|e| e.into_inner()).iter() {
            line(out, format_args!("{name}{{key=\"{key}\"}} {count}"));
        }
        let name = "kimg_store_key_place";
        line(
            out,
            format_args!("# HELP {name} Keys that open stored values, by their place: of a key file the first seals."),
        );
        line(out, format_args!("# TYPE {name} gauge"));
        for (place, key) in self.keys.lock().unwrap_or_else(|e| e.into_inner()).iter().enumerate() {
            line(out, format_args!("{name}{{key=\"{key}\"}} {}", place + 1));
        }
        let name = "apiserver_encryption_config_controller_automatic_reloads_total";
        line(out, format_args!("# HELP {name} Reloads of the encryption configuration.\n# TYPE {name} counter"));
        for (status, count) in ["success", "failure"].iter().zip(&self.encryption_reloads) {
            line(out, format_args!("{name}{{status=\"{status}\"}} {}", count.load(Ordering::Relaxed)));
        }
    }
}

/// What upstream's metrics call a request's verb.
pub fn verb(info: &RequestInfo, content_type: &str) -> &'static str {
    match info.verb {
        _ if matches!(info.subresource.as_str(), "exec" | "attach" | "portforward" | "proxy") => "CONNECT",
        Verb::Create | Verb::Post => "POST",
        Verb::Update | Verb::Put => "PUT",
        Verb::Patch if content_type.starts_with("application/apply-patch+") => "APPLY",
        Verb::Patch => "PATCH",
        Verb::Delete => "DELETE",
        Verb::DeleteCollection => "DELETECOLLECTION",
        Verb::List => "LIST",
        Verb::Watch => "WATCH",
        Verb::Get | Verb::Head => "GET",
        Verb::Options => "OPTIONS",
    }
}

fn render_store(out: &mut String, store: &dyn store::Store) {
    let mut one = |name: &str, kind: &str, help: &str, value: u64| {
        line(out, format_args!("# HELP kimg_store_{name} {help}\n# TYPE kimg_store_{name} {kind}"));
        line(out, format_args!("kimg_store_{name} {value}"));
    };
    one("revision", "counter", "Newest revision.", store.revision());
    one("live_bytes", "gauge", "Bytes of live keys and values.", store.live_bytes());
    let Some(counters) = store.counters() else { return };
    one("batches_total", "counter", "Groups of writes made durable together.", counters.batches);
    one("writes_total", "counter", "Writes acknowledged.", counters.writes);
    one("acknowledged_bytes_total", "counter", "Bytes of their keys and values.", counters.acknowledged_bytes);
    one("written_bytes_total", "counter", "Bytes written to the store's files.", counters.written_bytes);
    one("syncs_total", "counter", "Syncs of files and of the directory.", counters.syncs);
    one("log_rewrites_total", "counter", "Times that the log was written anew.", counters.rewrites);
    one("log_bytes", "gauge", "Size of the log.", counters.log_bytes);
    one("history_changes", "gauge", "Changes kept for watches.", counters.history);
    one("history_bytes", "gauge", "Bytes of their keys and values.", counters.history_bytes);
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _written = out.write_fmt(text);
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_make_no_series() {
        let metrics = Metrics::default();
        for (path, code) in [
            ("/apis/a/v1/x", 401),
            ("/apis/b/v2/y", 401),
            ("/apis/a/v1/x", 403),
            ("/apis/b/v2/y/named", 403),
            ("/apis/a/v1/x", 404),
            ("/apis/b/v2/y", 404),
        ] {
            let info = RequestInfo::parse(&http::Method::GET, path, "watch=1");
            metrics.count(&info, verb(&info, ""), code, Duration::ZERO);
        }
        assert_eq!(metrics.requests.lock().unwrap().len(), 3);
    }

    #[test]
    fn verbs_have_upstreams_names() {
        let pods = "/api/v1/namespaces/a/pods";
        for (method, path, content_type, label) in [
            ("POST", pods, "application/json", "POST"),
            ("PUT", "/api/v1/namespaces/a/pods/p", "application/json", "PUT"),
            ("PATCH", "/api/v1/namespaces/a/pods/p", "application/merge-patch+json", "PATCH"),
            ("PATCH", "/api/v1/namespaces/a/pods/p", "application/apply-patch+yaml", "APPLY"),
            ("DELETE", pods, "", "DELETECOLLECTION"),
            ("GET", pods, "", "LIST"),
            ("GET", "/api/v1/namespaces/a/pods/p/exec", "", "CONNECT"),
            ("GET", "/api/v1/namespaces/a/pods/p/log", "", "GET"),
            ("GET", "/healthz", "", "GET"),
        ] {
            let info = RequestInfo::parse(&method.parse().unwrap(), path, "");
            assert_eq!(verb(&info, content_type), label, "{method} {path}");
        }
    }
}
