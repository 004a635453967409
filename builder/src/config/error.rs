//! The error of a `cluster.toml`: where, which field, what is wrong, and the way out.

use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A fault found in `cluster.toml`.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}{}: {}{message}", file.display(), position(*.line, *.column), field_prefix(.field))]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// Line from 1; 0 when the whole file is meant.
    pub line: usize,
    /// Column from 1, in characters.
    pub column: usize,
    /// The field, dotted; empty when none is meant.
    pub field: String,
    /// What is wrong and what to do.
    pub message: String,
}

fn position(line: usize, column: usize) -> String {
    if line == 0 { String::new() } else { format!(":{line}:{column}") }
}

fn field_prefix(field: &str) -> String {
    if field.is_empty() { String::new() } else { format!("{field}: ") }
}

impl ConfigError {
    /// A fault of the file as a whole.
    pub fn whole_file(file: &Path, message: String) -> Self {
        ConfigError { file: file.to_path_buf(), line: 0, column: 0, field: String::new(), message }
    }

    /// A fault at a byte range of the text.
    pub fn at(file: &Path, text: &str, span: Option<Range<usize>>, field: &str, message: &str) -> Self {
        let (line, column) = span.map_or((0, 0), |span| line_column(text, span.start));
        ConfigError { file: file.to_path_buf(), line, column, field: field.to_string(), message: message.to_string() }
    }

    /// The parser's error in kimg's words: which field, what it must be, the nearest known key where one is unknown.
    pub fn from_toml(file: &Path, text: &str, error: &toml::de::Error) -> Self {
        let message = error.message();
        let Ok(document) = DeTable::parse(text) else {
            let way_out = if !message.contains("duplicate key") {
                ""
            } else if line_at(text, error.span()).starts_with("[nodes]") {
                "; begin each node with [[nodes]], in double brackets"
            } else {
                "; remove one of the two"
            };
            return ConfigError::at(file, text, error.span(), "", &format!("not valid TOML: {message}{way_out}"));
        };
        let mut field = error.span().map(|span| field_at(document.get_ref(), span.start)).unwrap_or_default();
        let message = if let Some((unknown, known)) = unknown_field(message) {
            // Where the parser points to the table, the key is not part of the path yet.
            if field.rsplit('.').next() != Some(unknown) {
                field = join(&field, unknown);
            }
            unknown_key_sentence(unknown, &known)
        } else if let Some(missing) = message.strip_prefix("missing field `").and_then(|rest| rest.split('`').next()) {
            // The file as a whole lacks it where the parser points to all of it.
            let whole = error.span().is_none_or(|span| span.start == 0 && span.end + 1 >= text.len());
            field = if whole { missing.to_string() } else { join(&field, missing) };
            format!("missing; {}", missing_sentence(missing))
        } else if field == "nodes" && message.starts_with("invalid type: map") {
            // `[nodes]`, or `nodes = { … }`.
            "must be a list of nodes; begin each with [[nodes]], in double brackets".to_string()
        } else {
            type_sentence(message, &field)
        };
        ConfigError::at(file, text, error.span(), &field, &message)
    }
}

fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() { key.to_string() } else { format!("{prefix}.{key}") }
}

/// The dotted path of the key or value at a byte of the text; the smallest one that covers it.
fn field_at(document: &DeTable<'_>, offset: usize) -> String {
    let mut best = (usize::MAX, String::new());
    look_in_table(document, "", offset, &mut best);
    best.1
}

fn look_in_table(table: &DeTable<'_>, prefix: &str, offset: usize, best: &mut (usize, String)) {
    for (key, value) in table {
        let path = join(prefix, key.get_ref());
        consider(key.span(), &path, offset, best);
        look_in_value(value, &path, offset, best);
    }
}

fn look_in_value(value: &Spanned<DeValue<'_>>, path: &str, offset: usize, best: &mut (usize, String)) {
    consider(value.span(), path, offset, best);
    match value.get_ref() {
        DeValue::Table(table) => look_in_table(table, path, offset, best),
        DeValue::Array(list) => list.iter().for_each(|item| look_in_value(item, path, offset, best)),
        _ => {}
    }
}

fn consider(span: Range<usize>, path: &str, offset: usize, best: &mut (usize, String)) {
    if span.contains(&offset) && span.len() < best.0 {
        *best = (span.len(), path.to_string());
    }
}

fn missing_sentence(field: &str) -> &'static str {
    match field {
        "name" => "give one, e.g. name = \"demo\"",
        "role" => "say role = \"master\" or role = \"worker\"",
        "nodes" => "list the nodes, e.g. nodes = [{ name = \"master-1\", role = \"master\" }]",
        _ => "add it",
    }
}

/// serde's "invalid type: integer `5`, expected a string" as a sentence about the file.
fn type_sentence(message: &str, field: &str) -> String {
    let Some((found, wanted)) = message.split_once(", expected ").filter(|_| message.starts_with("invalid ")) else {
        return format!("cannot be read: {message}");
    };
    let value = found.strip_prefix("invalid value: ").and_then(|value| value.split('`').nth(1));
    let found = found.strip_prefix("invalid type: ").unwrap_or(found);
    let found = match found.split([' ', '`']).next() {
        Some("string") => "a string",
        Some("integer" | "floating") => "a number",
        Some("boolean") => "true or false",
        Some("sequence") => "a list",
        Some("map") => "a table",
        _ => "this",
    };
    let table = table_sentence(field);
    let wanted = match wanted {
        "a string" | "path string" => "a string in quotes, e.g. \"demo\"",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more and not too large",
        "i64" | "an integer" => "a whole number without quotes, e.g. 512",
        "a boolean" => "true or false",
        "a sequence" => "a list, e.g. [\"a\", \"b\"]",
        _ => table.as_str(),
    };
    format!("must be {wanted}, not {}", value.unwrap_or(found))
}

/// How a table is written there.
fn table_sentence(field: &str) -> String {
    let example = match field.rsplit_once('.').map_or(field, |(_, last)| last) {
        "nodes" => "{ name = \"worker-1\", role = \"worker\" }",
        "packages" if field != "packages" => "{ name = \"strace\", files = [\"/usr/bin/strace\"] }",
        "files" => "{ \"/etc/motd\" = \"motd\" }",
        "labels" => "{ disk = \"ssd\" }",
        "reserved" => "{ memory = \"96Mi\" }",
        _ if field.is_empty() => "{ key = \"value\" }",
        _ => return format!("a table: the line [{field}], and its keys in the lines below it"),
    };
    format!("a table, e.g. {example}")
}

fn unknown_key_sentence(unknown: &str, known: &[&str]) -> String {
    match nearest(unknown, known) {
        Some(near) => format!("unknown key; did you mean `{near}`?"),
        None => format!("unknown key; known here: {}", known.join(", ")),
    }
}

/// Takes serde's "unknown field `x`, expected one of `a`, `b`" apart.
fn unknown_field(message: &str) -> Option<(&str, Vec<&str>)> {
    let rest = message.strip_prefix("unknown field `")?;
    let mut quoted = rest.split('`');
    let unknown = quoted.next()?;
    let known = quoted.skip(1).step_by(2).collect();
    Some((unknown, known))
}

/// The candidate that differs least from `word`, if any is near enough to be meant.
pub fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    candidates
        .iter()
        .map(|candidate| (edit_distance(word, candidate), *candidate))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, candidate)| *distance <= (candidate.chars().count().max(word.chars().count()) / 3).max(1))
        .map(|(_, candidate)| candidate)
}

/// How many letters must be changed, added, removed or swapped with their neighbour; case ignored.
fn edit_distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.to_lowercase().chars().collect();
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let mut least = (rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1])).min(rows[i - 1][j] + 1);
            least = least.min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// The line that a span begins in, without its indentation.
fn line_at(text: &str, span: Option<Range<usize>>) -> &str {
    let (line, _) = span.map_or((0, 0), |span| line_column(text, span.start));
    line.checked_sub(1).and_then(|number| text.lines().nth(number)).unwrap_or_default().trim_start()
}

pub(super) fn line_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |l| l.chars().count()) + 1;
    (line, column)
}
