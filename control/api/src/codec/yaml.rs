//! YAML as every reader understands it: plain words stand bare, all other texts in quotes as
//! in JSON, so that no reader takes `yes`, `1e3` or a date for anything but a text.

use serde_json::Value;

/// The document of a value.
pub fn write(value: &Value) -> Vec<u8> {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => node(&mut out, value, 0),
        Value::Array(list) if !list.is_empty() => node(&mut out, value, 0),
        _ => scalar(&mut out, value),
    }
    if !out.ends_with('\n') {
        out.push('\n');
    }
    out.into_bytes()
}

/// A map or list that is not empty, one member a line; the first line has its margin already.
fn node(out: &mut String, value: &Value, margin: usize) {
    let start = |out: &mut String, first: bool| {
        if !first {
            out.extend(std::iter::repeat_n(' ', margin));
        }
    };
    match value {
        Value::Object(map) => {
            for (i, (key, value)) in map.iter().enumerate() {
                start(out, i == 0);
                text(out, key);
                out.push(':');
                match value {
                    Value::Object(m) if !m.is_empty() => {
                        out.push('\n');
                        out.extend(std::iter::repeat_n(' ', margin + 2));
                        node(out, value, margin + 2);
                    }
                    // Lists in maps have the map's margin, as usual.
                    Value::Array(a) if !a.is_empty() => {
                        out.push('\n');
                        out.extend(std::iter::repeat_n(' ', margin));
                        node(out, value, margin);
                    }
                    _ => {
                        out.push(' ');
                        scalar(out, value);
                    }
                }
            }
        }
        Value::Array(list) => {
            for (i, value) in list.iter().enumerate() {
                start(out, i == 0);
                out.push_str("- ");
                match value {
                    Value::Object(m) if !m.is_empty() => node(out, value, margin + 2),
                    Value::Array(a) if !a.is_empty() => node(out, value, margin + 2),
                    _ => scalar(out, value),
                }
            }
        }
        _ => scalar(out, value),
    }
}

/// A value that fits on one line, and the line's end.
fn scalar(out: &mut String, value: &Value) {
    match value {
        Value::String(s) => text(out, s),
        other => out.push_str(&other.to_string()),
    }
    out.push('\n');
}

fn text(out: &mut String, s: &str) {
    if is_plain(s) {
        return out.push_str(s);
    }
    for c in Value::from(s).to_string().chars() {
        match c {
            // Readers refuse these where they stand for themselves.
            '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
}

/// Whether a text is a word that nothing else is written like.
fn is_plain(s: &str) -> bool {
    const WORDS: [&str; 11] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"];
    s.starts_with(|c: char| c.is_ascii_alphabetic())
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b))
        && !WORDS.iter().any(|w| s.eq_ignore_ascii_case(w))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_written_is_read_back() {
        for value in [
            json!({}),
            json!([]),
            json!("x"),
            json!({"a": {"b": [1, {"c": null, "d": [[], [1, [2]], {}]}, "yes", "a: b", "- x", "#", "\u{7f}\u{2028}", "ü\n\t\"\\"], "": {}}, "no": true, "1": 1.5}),
            json!([{"a": [{"b": 1}]}]),
        ] {
            let text = write(&value);
            let back = crate::codec::parse_yaml(&text).unwrap().value;
            assert_eq!(back, value, "{}", String::from_utf8_lossy(&text));
        }
        let text = write(&json!({"kind": "Pod", "spec": {"a": [{"b": "c", "d": 1}]}}));
        assert_eq!(text, b"kind: Pod\nspec:\n  a:\n  - b: c\n    d: 1\n");
    }
}
