//! The rules of the kinds, against tables of objects and what is wrong with them.
//!
//! The tables are the files of `rules/`. A line `= group/version resource` begins a kind,
//! and the JSON after it is an object without fault. Every `- title` is a case: lines of
//! JSON that change the object (as a merge patch: `old` what is there already, `new` what
//! is sent, `part` the sub-resource), and one line for each fault, as
//! `reason field: message`. `BLESS=1` writes what was found into the tables; read it then.

use api::status::FieldError;
use serde_json::{Value, json};
use std::path::Path;

struct Case {
    title: String,
    old: Option<Value>,
    new: Value,
    part: String,
    group: Option<String>,
    faults: Vec<String>,
    input: Vec<String>,
}

fn merged(base: &Value, text: &str, at: &str) -> Value {
    let patch: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{at}: {text}: {e}"));
    let mut out = base.clone();
    api::patch::merge::apply(&mut out, &patch);
    out
}

/// As the server has it before it looks for faults.
fn prepared(kind: &api::kinds::Kind, object: &Value, at: &str) -> Value {
    let mut o = object.clone();
    api::meta::set_type(&mut o, &kind.api_version(), &kind.kind);
    let read = api::codec::decode(o.to_string().as_bytes(), "application/json", kind.schema(), false);
    let read = read.unwrap_or_else(|e| panic!("{at}: {}", e.message));
    assert_eq!(read.strict, Vec::<String>::new(), "{at}");
    let mut o = read.object;
    api::defaults::apply(kind, &mut o);
    o
}

fn shown(e: &FieldError) -> String {
    format!("{} {}: {}", e.kind.reason().trim_start_matches("FieldValue"), e.field, e.body()).replace('\n', "\\n")
}

fn found(kind: &api::kinds::Kind, case: &Case) -> Vec<String> {
    let new = prepared(kind, &case.new, &case.title);
    let old = case.old.as_ref().map(|o| prepared(kind, o, &case.title));
    let group = case.group.as_deref().unwrap_or(&kind.group);
    let write = api::validation::Write { kind, group, part: &case.part, old: old.as_ref() };
    write.faults(&new).iter().map(shown).collect()
}

fn kind_of(line: &str) -> &'static api::kinds::Kind {
    let (version, plural) = line.split_once(' ').unwrap_or_else(|| panic!("no resource: {line}"));
    let (group, version) = version.rsplit_once('/').unwrap_or(("", version));
    api::kinds::find(group, version, plural).unwrap_or_else(|| panic!("no such kind: {line}"))
}

fn base_of(kind: &api::kinds::Kind, text: &str) -> Value {
    let mut base: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{}: {text}: {e}", kind.kind));
    if base["metadata"]["name"].is_null() {
        base["metadata"]["name"] = json!("x");
    }
    if kind.namespaced {
        base["metadata"]["namespace"] = json!("ns");
    }
    base
}

/// Runs one table; gives the cases that differ, and the table as it was found.
fn run(path: &Path) -> (Vec<String>, String) {
    let text = std::fs::read_to_string(path).expect("table");
    let (mut wrong, mut out) = (Vec::new(), String::new());
    for section in text.split("\n= ").skip(1) {
        let (line, rest) = section.split_once('\n').expect("a section has lines");
        let kind = kind_of(line.trim());
        let mut parts = rest.split("\n- ");
        let base_text = parts.next().expect("an object").trim();
        let base = base_of(kind, base_text);
        out.push_str(&format!("\n= {}\n{base_text}\n", line.trim()));
        for part in std::iter::once("without fault").chain(parts) {
            let case = case(&base, part);
            let got = found(kind, &case);
            if got != case.faults {
                wrong.push(format!("{} {}:\n  found {got:#?}\n  wanted {:#?}", kind.kind, case.title, case.faults));
            }
            if case.title != "without fault" {
                out.push_str(&format!("\n- {}\n", case.title));
                case.input.iter().chain(&got).for_each(|l| out.push_str(&format!("{l}\n")));
            }
        }
    }
    (wrong, out)
}

fn case(base: &Value, text: &str) -> Case {
    let mut lines = text.lines();
    let title = lines.next().unwrap_or("").trim().to_string();
    let mut case = Case {
        title,
        old: None,
        new: base.clone(),
        part: String::new(),
        group: None,
        faults: Vec::new(),
        input: Vec::new(),
    };
    for line in lines.map(str::trim).filter(|l| !l.is_empty()) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "old" => {
                let old = merged(base, rest, &case.title);
                case.new = old.clone();
                case.old = Some(old);
            }
            "new" => case.new = merged(&case.new, rest, &case.title),
            "part" => case.part = rest.to_string(),
            "group" => case.group = Some(rest.to_string()),
            _ => {
                case.faults.push(line.to_string());
                continue;
            }
        }
        case.input.push(line.to_string());
    }
    case
}

#[test]
fn tables() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rules");
    let mut files: Vec<_> = std::fs::read_dir(dir).expect("tables").map(|f| f.expect("file").path()).collect();
    files.sort();
    let mut all = Vec::new();
    for file in files {
        let (wrong, out) = run(&file);
        if std::env::var_os("BLESS").is_some() {
            let head = std::fs::read_to_string(&file).expect("table");
            let head = head.split("\n= ").next().unwrap_or("");
            std::fs::write(&file, format!("{}\n{out}", head.trim_end())).expect("written");
        } else {
            all.extend(wrong);
        }
    }
    assert!(all.is_empty(), "{} cases differ:\n{}", all.len(), all.join("\n"));
}

/// What the images and the examples bring is without fault.
#[test]
fn own_manifests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images");
    let mut seen = 0;
    for folder in ["manifests", "examples/web/manifests"] {
        for file in std::fs::read_dir(root.join(folder)).expect("manifests") {
            let path = file.expect("file").path();
            let text = std::fs::read_to_string(&path).expect("manifest");
            let text = text.replace("{{dns-address}}", "10.96.0.10").replace("{{ip-family}}", "IPv4");
            for part in text.split("\n---") {
                let parsed = api::codec::parse_yaml(part.trim_start_matches("---").as_bytes());
                let mut object = parsed.unwrap_or_else(|e| panic!("{}: {e}", path.display())).value;
                let (version, name) = (object["apiVersion"].clone(), object["kind"].clone());
                let (Some(version), Some(name)) = (version.as_str(), name.as_str()) else { continue };
                let (group, version) = api::kinds::split_api_version(version);
                let kind = api::kinds::find_kind(group, version, name).unwrap_or_else(|| panic!("no kind {name}"));
                if kind.namespaced && object["metadata"]["namespace"].is_null() {
                    object["metadata"]["namespace"] = json!("default");
                }
                if name == "Service" {
                    // As the server has given it an address.
                    object["spec"]["clusterIP"] = json!("10.96.0.10");
                    object["spec"]["clusterIPs"] = json!(["10.96.0.10"]);
                }
                if name == "Job" {
                    // And the job's pods a label of their own.
                    object["spec"]["manualSelector"] = json!(true);
                    object["spec"]["selector"] = json!({"matchLabels": {"own": "u"}});
                    object["spec"]["template"]["metadata"]["labels"]["own"] = json!("u");
                }
                let at = format!("{}: {name}", path.display());
                let object = prepared(kind, &object, &at);
                assert_eq!(api::validation::create(kind, &object), [], "{at}");
                seen += 1;
            }
        }
    }
    assert!(seen > 15, "{seen} objects");
}

/// Every kind that can be written has a table.
#[test]
fn no_kind_is_left_out() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rules");
    let text: String = std::fs::read_dir(dir)
        .expect("tables")
        .map(|f| std::fs::read_to_string(f.expect("file").path()).expect("table"))
        .collect();
    // Kinds are judged in the form they are stored in.
    let stored = |k: &api::kinds::Kind| k.storage().group == k.group && k.storage().version == k.version;
    // Their rules are what the schema requires.
    let by_schema = ["storagemigration.k8s.io", "internal.apiserver.k8s.io"];
    for kind in api::kinds::builtin() {
        let written = kind.has_verb("update") && stored(kind) && !by_schema.contains(&kind.group.as_ref());
        let stable = !kind.version.contains("alpha") && !kind.version.contains("beta");
        let listed = text.contains(&format!("\n= {} {}\n", kind.api_version(), kind.plural));
        assert!(listed || !written || !stable, "no table for {} {}", kind.api_version(), kind.plural);
    }
}
