//! JSON patch (RFC 6902) with upstream's limits.

use crate::status::Status;
use serde_json::Value;

const MAX_OPERATIONS: usize = 10_000;
/// How many bytes `copy` operations may make in all.
const MAX_COPIED: usize = 3 << 20;

/// Applies the operations; the document is unchanged when one fails.
pub fn apply(document: &Value, patch: &Value) -> Result<Value, Status> {
    let ops = patch.as_array().ok_or_else(|| {
        Status::bad_request("error decoding patch: json: cannot unmarshal object into Go value of type jsonpatch.Patch")
    })?;
    if ops.len() > MAX_OPERATIONS {
        return Err(Status::too_large(MAX_OPERATIONS)).map_err(|mut s: Status| {
            s.message =
                format!("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}", ops.len());
            s
        });
    }
    let mut doc = document.clone();
    let mut copied = 0;
    for op in ops {
        step(&mut doc, op, &mut copied).map_err(refuse)?;
    }
    Ok(doc)
}

/// The answer to a patch that does not fit the document.
fn refuse(why: String) -> Status {
    Status::unprocessable("the server rejected our request due to an error in our request").with_cause(
        "UnexpectedServerResponse",
        why,
        "",
    )
}

fn step(doc: &mut Value, op: &Value, copied: &mut usize) -> Result<(), String> {
    let path = pointer(op["path"].as_str().ok_or("operation missing path field")?)?;
    let value = || op.get("value").cloned().ok_or("operation missing value field".to_string());
    let from = || pointer(op["from"].as_str().unwrap_or(""));
    match op["op"].as_str().unwrap_or("") {
        "add" => add(doc, &path, value()?),
        "remove" => remove(doc, &path).map(|_| ()),
        "replace" => {
            let slot = find(doc, &path).ok_or_else(|| missing("replace", &path))?;
            *slot = value()?;
            Ok(())
        }
        "move" => {
            let from = from()?;
            if path.len() > from.len() && path[..from.len()] == from[..] {
                return Err("a value cannot be moved into itself".into());
            }
            let v = remove(doc, &from)?;
            add(doc, &path, v)
        }
        "copy" => {
            let from = from()?;
            let v = find(doc, &from).cloned().ok_or_else(|| missing("copy", &from))?;
            *copied += v.to_string().len();
            if *copied > MAX_COPIED {
                return Err(format!("the copy operations make more than {MAX_COPIED} bytes"));
            }
            add(doc, &path, v)
        }
        "test" => {
            let want = op.get("value").cloned().unwrap_or(Value::Null);
            match find(doc, &path) {
                Some(v) if same(v, &want) => Ok(()),
                None if want.is_null() => Ok(()),
                _ => Err(format!("testing value /{} failed: test failed", path.join("/"))),
            }
        }
        o => Err(format!("Unexpected kind: {o}")),
    }
}

fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        _ => a == b,
    }
}

fn missing(op: &str, path: &[String]) -> String {
    format!("{op} operation does not apply: doc is missing path: /{}: missing value", path.join("/"))
}

fn pointer(s: &str) -> Result<Vec<String>, String> {
    if s.is_empty() {
        return Ok(Vec::new());
    }
    let rest = s.strip_prefix('/').ok_or_else(|| format!("the path {s:?} must begin with '/'"))?;
    Ok(rest.split('/').map(|p| p.replace("~1", "/").replace("~0", "~")).collect())
}

fn index(s: &str, len: usize) -> Option<usize> {
    if let Some(back) = s.strip_prefix('-').filter(|b| !b.is_empty()) {
        return len.checked_sub(back.parse().ok()?);
    }
    if s.len() > 1 && s.starts_with('0') {
        return None;
    }
    s.parse().ok()
}

fn find<'a>(doc: &'a mut Value, path: &[String]) -> Option<&'a mut Value> {
    path.iter().try_fold(doc, |v, p| match v {
        Value::Object(m) => m.get_mut(p),
        Value::Array(a) => {
            let i = index(p, a.len())?;
            a.get_mut(i)
        }
        _ => None,
    })
}

fn add(doc: &mut Value, path: &[String], value: Value) -> Result<(), String> {
    let Some((last, parents)) = path.split_last() else {
        *doc = value;
        return Ok(());
    };
    match find(doc, parents) {
        Some(Value::Object(m)) => {
            m.insert(last.clone(), value);
            Ok(())
        }
        Some(Value::Array(a)) => {
            let i = if last == "-" { Some(a.len()) } else { index(last, a.len()) };
            match i.filter(|i| *i <= a.len()) {
                Some(i) => {
                    a.insert(i, value);
                    Ok(())
                }
                None => {
                    Err(format!("add operation does not apply: doc is missing path: {last}: invalid index referenced"))
                }
            }
        }
        _ => Err(missing("add", path)),
    }
}

fn remove(doc: &mut Value, path: &[String]) -> Result<Value, String> {
    let Some((last, parents)) = path.split_last() else {
        return Ok(std::mem::take(doc));
    };
    match find(doc, parents) {
        Some(Value::Object(m)) => m.remove(last).ok_or_else(|| {
            format!("remove operation does not apply: doc is missing path: /{}: missing value", path.join("/"))
        }),
        Some(Value::Array(a)) => match index(last, a.len()).filter(|i| *i < a.len()) {
            Some(i) => Ok(a.remove(i)),
            None => Err(missing("remove", path)),
        },
        _ => Err(missing("remove", path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn operations() {
        let d = json!({"a": {"b": [1, 2, 3]}, "c/d": "x"});
        for (ops, want) in [
            (json!([{"op": "add", "path": "/a/b/1", "value": 9}]), Some(json!({"a": {"b": [1, 9, 2, 3]}, "c/d": "x"}))),
            (json!([{"op": "add", "path": "/a/b/-", "value": 9}]), Some(json!({"a": {"b": [1, 2, 3, 9]}, "c/d": "x"}))),
            (json!([{"op": "remove", "path": "/c~1d"}]), Some(json!({"a": {"b": [1, 2, 3]}}))),
            (json!([{"op": "replace", "path": "/a/b", "value": null}]), Some(json!({"a": {"b": null}, "c/d": "x"}))),
            (json!([{"op": "move", "from": "/c~1d", "path": "/a/e"}]), Some(json!({"a": {"b": [1, 2, 3], "e": "x"}}))),
            (
                json!([{"op": "copy", "from": "/a/b/0", "path": "/f"}]),
                Some(json!({"a": {"b": [1, 2, 3]}, "c/d": "x", "f": 1})),
            ),
            (json!([{"op": "test", "path": "/a/b/0", "value": 1}]), Some(d.clone())),
            (json!([{"op": "test", "path": "/a/b/0", "value": 2}]), None),
            (json!([{"op": "test", "path": "/zz", "value": null}]), Some(d.clone())),
            (json!([{"op": "remove", "path": "/zz"}]), None),
            (json!([{"op": "replace", "path": "/zz", "value": 1}]), None),
            (json!([{"op": "add", "path": "/zz/y", "value": 1}]), None),
            (json!([{"op": "add", "path": "/a/b/7", "value": 1}]), None),
            (json!([{"op": "nope", "path": "/a"}]), None),
        ] {
            assert_eq!(apply(&d, &ops).ok(), want, "{ops}");
        }
        assert_eq!(apply(&d, &json!([{"op": "remove", "path": "/zz"}])).unwrap_err().code, 422);
    }
}
