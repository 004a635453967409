//! The part of JSONPath that printer columns, scale paths and selectable fields
//! use: fields, indexes, wildcards, and filters by equality.

use serde_json::Value;

/// One step of a path.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    Field(String),
    Index(i64),
    All,
    /// `[?(@.a.b=="c")]`
    Filter(Vec<String>, bool, Value),
}

/// Parses `.spec.a[0].b['c'][?(@.type=="Ready")].status`.
pub fn parse(path: &str) -> Result<Vec<Step>, String> {
    let mut rest = path.trim().trim_start_matches('{').trim_end_matches('}').trim_start_matches('$');
    let mut out = Vec::new();
    while !rest.is_empty() {
        if let Some(r) = rest.strip_prefix('[') {
            let end = closing(r).ok_or_else(|| format!("unterminated array in {path:?}"))?;
            out.push(bracket(&r[..end]).ok_or_else(|| format!("invalid array index in {path:?}"))?);
            rest = &r[end + 1..];
            continue;
        }
        let r = rest.strip_prefix('.').unwrap_or(rest);
        let (name, after) = field(r);
        match name.as_str() {
            "" if after.is_empty() || after.starts_with('[') => {}
            "" => return Err(format!("unexpected path element in {path:?}")),
            "*" => out.push(Step::All),
            _ => out.push(Step::Field(name)),
        }
        rest = after;
    }
    Ok(out)
}

/// The end of a bracket, with respect to quotes.
fn closing(s: &str) -> Option<usize> {
    let mut quote = None;
    for (i, c) in s.char_indices() {
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(q), c) if q == c => quote = None,
            (None, ']') => return Some(i),
            _ => {}
        }
    }
    None
}

fn field(s: &str) -> (String, &str) {
    let mut name = String::new();
    let mut chars = s.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '\\' => {
                if let Some((_, c)) = chars.next() {
                    name.push(c);
                }
            }
            '.' | '[' => return (name, &s[i..]),
            c => name.push(c),
        }
    }
    (name, "")
}

fn bracket(s: &str) -> Option<Step> {
    let s = s.trim();
    if s == "*" {
        return Some(Step::All);
    }
    if let Some(f) = s.strip_prefix("?(").and_then(|f| f.strip_suffix(')')) {
        let (left, right, equal) = match f.split_once("==") {
            Some((l, r)) => (l, r, true),
            None => f.split_once("!=").map(|(l, r)| (l, r, false))?,
        };
        let path = left.trim().trim_start_matches("@.").split('.').map(String::from).collect();
        let right = right.trim();
        let value = match right.trim_matches(['"', '\'']) {
            t if t.len() != right.len() => t.into(),
            t => serde_json::from_str(t).unwrap_or_else(|_| t.into()),
        };
        return Some(Step::Filter(path, equal, value));
    }
    let bare = s.trim_matches(['"', '\'']);
    if bare.len() != s.len() { Some(Step::Field(bare.into())) } else { s.parse().ok().map(Step::Index) }
}

/// All values at a path.
pub fn find<'a>(root: &'a Value, steps: &[Step]) -> Vec<&'a Value> {
    let mut now = vec![root];
    for step in steps {
        let mut next = Vec::new();
        for v in now {
            match (step, v) {
                (Step::Field(f), Value::Object(m)) => next.extend(m.get(f)),
                (Step::Index(i), Value::Array(a)) => {
                    let at = if *i < 0 { a.len() as i64 + i } else { *i };
                    next.extend(usize::try_from(at).ok().and_then(|i| a.get(i)));
                }
                (Step::All, Value::Array(a)) => next.extend(a),
                (Step::All, Value::Object(m)) => next.extend(m.values()),
                (Step::Filter(path, equal, want), Value::Array(a)) => {
                    next.extend(a.iter().filter(|i| (path.iter().fold(*i, |v, p| &v[p.as_str()]) == want) == *equal));
                }
                _ => {}
            }
        }
        now = next;
    }
    now
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths() {
        let o = json!({"a": {"b": [{"t": "x", "v": 1}, {"t": "y", "v": 2}]}, "m": {"k.z/w": "q"}});
        for (p, want) in [
            (".a.b[0].v", vec![json!(1)]),
            (".a.b[-1].v", vec![json!(2)]),
            (".a.b[*].v", vec![json!(1), json!(2)]),
            (".a.b[?(@.t==\"y\")].v", vec![json!(2)]),
            (".m['k.z/w']", vec![json!("q")]),
            (".m.k\\.z/w", vec![json!("q")]),
            (".x.y", vec![]),
            ("{.a.b[1].t}", vec![json!("y")]),
        ] {
            let steps = parse(p).unwrap();
            assert_eq!(find(&o, &steps).into_iter().cloned().collect::<Vec<_>>(), want, "{p}");
        }
        assert!(parse(".a[").is_err());
    }
}
