//! The error of a `cluster.toml`: where, which field, what is wrong, and the way out.

use std::ops::Range;
use std::path::{Path, PathBuf};

/// A fault found in `cluster.toml`.
#[derive(Debug, thiserror::Error)]
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

    /// The parser's error, with the nearest known key where a key is unknown.
    pub fn from_toml(file: &Path, text: &str, error: &toml::de::Error) -> Self {
        let message = error.message();
        let (field, message) = match unknown_field(message) {
            Some((unknown, known)) => (unknown.to_string(), unknown_key_sentence(unknown, &known)),
            None => (String::new(), format!("{message}{}", way_out(message))),
        };
        ConfigError::at(file, text, error.span(), &field, &message)
    }
}

fn way_out(message: &str) -> &'static str {
    if message.contains("missing field `name`") {
        "; every cluster and every node needs a name, e.g. name = \"demo\""
    } else if message.contains("missing field `role`") {
        "; say role = \"master\" or role = \"worker\""
    } else if message.contains("missing field `nodes`") {
        "; list the nodes, e.g. nodes = [{ name = \"master-1\", role = \"master\" }]"
    } else if message.contains("duplicate key") {
        "; remove one of the two"
    } else {
        ""
    }
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
        .min()
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len().max(word.len()) / 3)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance, case ignored.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.to_lowercase().chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn line_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |l| l.chars().count()) + 1;
    (line, column)
}
