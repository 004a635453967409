//! Nothing that comes from outside makes the machinery panic: objects of every
//! kind with values of the wrong type, broken bodies, odd patches.

use api::kinds::builtin;
use api::schema::{Schema, Ty};
use serde_json::{Map, Value, json};

/// A small generator; the same numbers on every run.
struct Dice(u64);

impl Dice {
    fn next(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

fn any(d: &mut Dice) -> Value {
    match d.next(9) {
        0 => Value::Null,
        1 => true.into(),
        2 => (d.next(100) as i64 - 50).into(),
        3 => "".into(),
        4 => "ä/b".into(),
        5 => json!([null, {}, "x", 3]),
        6 => json!({"a": {"b": []}, "": 1}),
        7 => 1.5.into(),
        _ => "10%".into(),
    }
}

/// A value that mostly fits the schema, and now and then does not.
fn value(s: &Schema, d: &mut Dice, depth: u32) -> Value {
    if d.next(12) == 0 || depth == 0 {
        return any(d);
    }
    match s.ty {
        Ty::Object if s.is_map() => {
            let item = s.child("x");
            json!({"k": item.map_or(Value::Null, |i| value(i, d, depth - 1)), "l/m": any(d)})
        }
        Ty::Object => {
            let mut m = Map::new();
            for f in &s.fields {
                if f.required || d.next(3) == 0 {
                    m.insert(f.name.to_string(), value(f.schema(), d, depth - 1));
                }
            }
            Value::Object(m)
        }
        Ty::Array => {
            let n = d.next(3);
            (0..n).map(|_| s.item().map_or(Value::Null, |i| value(i, d, depth - 1))).collect()
        }
        Ty::Boolean => (d.next(2) == 0).into(),
        Ty::Int32 | Ty::Int64 => (d.next(70_000) as i64 - 2).into(),
        Ty::Number => 0.25.into(),
        Ty::Quantity => ["1", "100m", "1Gi", "x"][d.next(4) as usize].into(),
        Ty::Time | Ty::MicroTime => {
            ["2026-01-02T03:04:05Z", "2026-01-02T03:04:05.000001Z", "nine"][d.next(3) as usize].into()
        }
        Ty::Bytes => ["aGk=", "?"][d.next(2) as usize].into(),
        Ty::String => {
            ["a", "Running", "Always", "RollingUpdate", "1.2.3.4", "a.b/c", "ClientIP"][d.next(7) as usize].into()
        }
        _ => any(d),
    }
}

#[test]
fn odd_objects() {
    let mut d = Dice(0x9e37_79b9_7f4a_7c15);
    for kind in builtin() {
        let mut last: Option<Value> = None;
        for _ in 0..10 {
            let mut o = value(kind.schema(), &mut d, 9);
            if !o.is_object() {
                continue;
            }
            api::meta::set_type(&mut o, &kind.api_version(), &kind.kind);
            // As it is: a stored object may be old or strange.
            api::table::cells(kind, &o, 1_800_000_000);
            api::validation::create(kind, &o);
            let mut raw = o.clone();
            api::defaults::apply(kind, &mut raw);
            for f in ["metadata.name", "metadata.namespace", "status.phase", "spec.nodeName", "source", "status.podIPs"]
            {
                api::selector::field_value(&o, f);
            }
            // As a body.
            let Ok(decoded) = api::codec::decode(o.to_string().as_bytes(), "application/json", kind.schema(), true)
            else {
                continue;
            };
            let mut new = decoded.object;
            api::defaults::apply(kind, &mut new);
            api::validation::create(kind, &new);
            api::table::cells(kind, &new, 1_800_000_000);
            let bytes = api::protobuf::encode_object(&new, Some(kind.schema()));
            api::protobuf::decode_object(&bytes, Some(kind.schema())).expect("what was encoded can be read");
            for cut in [5, bytes.len() / 2, bytes.len().saturating_sub(1)] {
                let _ = api::protobuf::decode_object(&bytes[..cut.min(bytes.len())], None);
            }
            if let Some(old) = &last {
                let write = api::apply::Write {
                    manager: "m",
                    api_version: "v1",
                    subresource: "",
                    now: "2026-01-02T03:04:05Z",
                    has_status: true,
                };
                let mut tracked = new.clone();
                api::apply::on_update(Some(old), &mut tracked, kind.schema(), write);
                let _ = api::apply::apply(Some(old), &o, kind.schema(), write, true);
                let _ = api::patch::strategic::apply(old, &o, kind.schema());
                api::validation::update(kind, &new, old);
                api::convert::convert(old.clone(), kind);
            }
            last = Some(new);
        }
    }
}

#[test]
fn odd_texts() {
    let texts = [
        "",
        " ",
        "a",
        "=",
        "!=",
        "a=b,",
        "a in (",
        "a in ()",
        "(",
        ")",
        "!",
        "!!a",
        "a in (b",
        "ä",
        "a,b=,c!=d",
        "a>1",
        "a>x",
        "\\",
        "a=\\,b",
        "1e",
        "1E99",
        "1e-99",
        "--",
        "+",
        ".",
        "1.",
        ".5",
        "9999999999999999999999999999999999999999999",
        "0.0000000000000000000000000000000000001",
        "1Ki1",
        "[",
        "]",
        ".a[",
        "{.a}",
        ".a[?(@.b==",
        "2026-01-01T00:00:00",
        "2026-13-01T00:00:00Z",
        "2026-01-01T00:00:00.Z",
        "2026-01-01T00:00:00+99:99",
        "ααααααααααααααααααααα",
        "1h",
        "h",
        "-",
        "1.2.3s",
    ];
    for t in texts {
        let _ = api::selector::Labels::parse(t).map(|l| l.to_string());
        let _ = api::selector::Fields::parse(t);
        let _ = api::quantity::Quantity::parse(t).map(|q| (q.to_string(), q.value(), q.milli()));
        let _ = api::time::parse(t);
        let _ = api::time::parse_duration(t).map(api::time::format_duration);
        let _ = api::table::parse_json_path(t);
        let _ = api::codec::negotiate(t, &api::codec::Offer::PLAIN);
        let _ = api::codec::parse_json(t.as_bytes());
        let _ = api::codec::parse_yaml(t.as_bytes());
        for f in [
            api::names::dns1123_label,
            api::names::dns1123_subdomain,
            api::names::dns1035_label,
            api::names::qualified_name,
            api::names::label_value,
            api::names::config_key,
            api::names::port_name,
        ] {
            f(t);
        }
        let _ = api::protobuf::decode_object(t.as_bytes(), None);
        let patch = json!([{"op": "add", "path": t, "value": 1}, {"op": "remove", "path": t}]);
        let _ = api::patch::json::apply(&json!({"a": [1]}), &patch);
    }
    let deep = "[".repeat(100_000);
    assert!(api::codec::parse_json(deep.as_bytes()).is_err());
    assert!(api::codec::parse_yaml(deep.as_bytes()).is_err());
}
