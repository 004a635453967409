//! Adds nodes to the text of a `cluster.toml`, and takes them out; all else stays as it is written, comments too.
//! What cannot be edited so is left to people: whoever calls compares what the new text says.

use std::ops::Range;

const HEAD: &str = "[[nodes]]";

/// A node as it is written: its lines, and its name.
struct Block {
    lines: Range<usize>,
    name: String,
}

fn blocks(lines: &[&str]) -> Vec<Block> {
    let is_head = |line: &str| line.split('#').next().unwrap_or_default().trim() == HEAD;
    let starts = (0..lines.len()).filter(|at| is_head(lines[*at]));
    let block = |start: usize| {
        let ends = |line: &&str| line.trim_start().starts_with('[') && !line.trim_start().starts_with("[nodes.");
        let next = lines[start + 1..].iter().position(ends).map_or(lines.len(), |at| start + 1 + at);
        let written = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
        let last = (start..next).rev().find(|at| written(&lines[*at])).unwrap_or(start);
        // Remarks right below it are about it; what comes after an empty line is about what follows.
        let remarks = lines[last + 1..next].iter().take_while(|line| !line.trim().is_empty()).count();
        let range = start..last + 1 + remarks;
        let table: toml::Table = toml::from_str(&lines[range.clone()].join("\n")).ok()?;
        let name = table.get("nodes")?.get(0)?.get("name")?.as_str()?.to_owned();
        Some(Block { lines: range, name })
    };
    starts.filter_map(block).collect()
}

fn joined(lines: Vec<&str>) -> String {
    let mut text = lines.join("\n");
    text.push('\n');
    text
}

/// The text without these nodes.
pub fn without(text: &str, names: &[String]) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let mut kept = vec![true; lines.len()];
    for block in blocks(&lines).into_iter().filter(|block| names.contains(&block.name)) {
        kept[block.lines.clone()].fill(false);
        // One empty line is left of two.
        let empty = |at: usize| lines.get(at).is_none_or(|line| line.trim().is_empty());
        let before = (0..block.lines.start).rev().find(|at| kept[*at]);
        if before.is_none_or(empty) && block.lines.end < lines.len() && empty(block.lines.end) {
            kept[block.lines.end] = false;
        }
    }
    joined(lines.into_iter().zip(kept).filter(|(_, kept)| *kept).map(|(line, _)| line).collect())
}

/// The text with these workers behind the node `after`, and like it where it is a worker, but for its addresses.
pub fn with(text: &str, names: &[String], after: &str, alike: bool) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let Some(block) = blocks(&lines).into_iter().find(|block| block.name == after) else { return text.to_owned() };
    let key = |line: &str| line.split(['=', '#']).next().unwrap_or_default().trim().to_owned();
    let own = |line: &&&str| !["", "name", "role", "addresses"].contains(&key(line).as_str());
    let like: Vec<&str> = match alike {
        true => lines[block.lines.start + 1..block.lines.end].iter().filter(own).copied().collect(),
        false => Vec::new(),
    };
    let mut all: Vec<String> = lines[..block.lines.end].iter().map(ToString::to_string).collect();
    for name in names {
        all.extend([String::new(), HEAD.into(), format!("name = \"{name}\""), "role = \"worker\"".into()]);
        all.extend(like.iter().map(ToString::to_string));
    }
    all.extend(lines[block.lines.end..].iter().map(ToString::to_string));
    joined(all.iter().map(String::as_str).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# mine
name = \"demo\"

# The nodes.
[[nodes]]
name = \"m\"
role = \"master\"

[[nodes]] # the first
name = \"w1\"
role = \"worker\"
addresses = [\"10.77.0.11\"]

[[nodes]]
name = \"w2\"
role = \"worker\"
addresses = [\"10.77.0.12\"]
# fast
type = \"cx33\"
[nodes.labels]
disk = \"ssd\"
#taints = []

# VMs.
[local]
node-ports = [30080] # web
";

    #[test]
    fn what_is_added_and_taken_out_again_leaves_the_text_as_it_was() {
        let names = ["w3".to_string(), "w4".to_string()];
        let more = with(TEXT, &names, "w2", true);
        let like = "type = \"cx33\"\n[nodes.labels]\ndisk = \"ssd\"\n";
        let both = format!(
            "#taints = []\n\n[[nodes]]\nname = \"w3\"\nrole = \"worker\"\n{like}\n[[nodes]]\nname = \"w4\"\nrole = \
             \"worker\"\n{like}\n# VMs.\n"
        );
        assert!(more.contains(&both), "{more}");
        assert_eq!(without(&more, &names), TEXT);
        let plain = with(TEXT, &names[..1], "m", false);
        assert!(
            plain.contains("role = \"master\"\n\n[[nodes]]\nname = \"w3\"\nrole = \"worker\"\n\n[[nodes]] # the"),
            "{plain}"
        );
        let less = without(TEXT, &["w1".to_string(), "w2".to_string()]);
        assert!(less.contains("role = \"master\"\n\n# VMs.\n[local]\n") && less.starts_with("# mine\n"), "{less}");
    }

    #[test]
    fn what_is_written_otherwise_stays() {
        let text = "name = \"demo\"\nnodes = [{ name = \"m\", role = \"master\" }]\n";
        assert_eq!(without(text, &["m".to_string()]), text);
        assert_eq!(with(text, &["w".to_string()], "m", false), text);
    }
}
