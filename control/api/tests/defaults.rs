//! What the server fills in, against a table: kind, object, and the object with defaults.
//! `BLESS=1` writes what was found into the table; read it then.

use serde_json::Value;

#[test]
fn table() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/defaults.txt");
    let text = std::fs::read_to_string(&path).expect("table");
    let (head, _) = text.split_once("\n= ").expect("sections");
    let (mut out, mut wrong) = (head.to_string(), Vec::new());
    for section in text.split("\n= ").skip(1) {
        let mut lines = section.lines();
        let name = lines.next().expect("a kind");
        let (version, plural) = name.split_once(' ').expect("version and resource");
        let (group, version) = version.rsplit_once('/').unwrap_or(("", version));
        let kind = api::kinds::find(group, version, plural).expect("a kind");
        let given = lines.next().expect("an object");
        let mut object: Value = serde_json::from_str(given).expect("JSON");
        api::defaults::apply(kind, &mut object);
        let once = object.clone();
        api::defaults::apply(kind, &mut object);
        assert_eq!(object, once, "{name}: twice is once");
        let wanted = lines.next().unwrap_or("");
        let wanted: Value = serde_json::from_str(wanted).unwrap_or_default();
        if wanted != object {
            wrong.push(format!("{name} {given}\n  found  {object}\n  wanted {wanted}"));
        }
        out.push_str(&format!("\n= {name}\n{given}\n{object}\n"));
    }
    if std::env::var_os("BLESS").is_some() {
        return std::fs::write(path, out).expect("written");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
