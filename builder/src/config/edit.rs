//! Adds nodes to the text of a `cluster.toml`, and takes them out; all else stays as it is written, comments too.
//! What cannot be edited so is left to people: whoever calls compares what the new text says.

use std::net::IpAddr;
use std::ops::Range;

const HEAD: &str = "[[nodes]]";

/// A node as it is written: its lines, and its name.
struct Block {
    lines: Range<usize>,
    name: String,
}

fn blocks(lines: &[&str]) -> Vec<Block> {
    let is_head =
        |line: &str| line.split('#').next().is_some_and(|line| line.split_whitespace().collect::<String>() == HEAD);
    let starts = (0..lines.len()).filter(|at| is_head(lines[*at]));
    let block = |start: usize| {
        let ends = |line: &&str| line.trim_start().starts_with('[') && !line.trim_start().starts_with("[nodes.");
        let next = lines[start + 1..].iter().position(ends).map_or(lines.len(), |at| start + 1 + at);
        let written = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
        let last = (start..next).rev().find(|at| written(&lines[*at])).unwrap_or(start);
        // Remarks right below it are about it; what comes after an empty line is about what follows.
        let remarks = lines[last + 1..next].iter().take_while(|line| !line.trim().is_empty()).count();
        let range = start..last + 1 + remarks;
        let table: toml::Table = toml::from_str(&lines[range.clone()].concat()).ok()?;
        let name = table.get("nodes")?.get(0)?.get("name")?.as_str()?.to_owned();
        Some(Block { lines: range, name })
    };
    starts.filter_map(block).collect()
}

/// The lines, each with its end: a file keeps the ends that it has.
fn lines_of(text: &str) -> Vec<&str> {
    text.split_inclusive('\n').collect()
}

/// The text without these nodes.
pub fn without(text: &str, names: &[String]) -> String {
    let lines = lines_of(text);
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
    lines.into_iter().zip(kept).filter(|(_, kept)| *kept).map(|(line, _)| line).collect()
}

/// The text with these masters behind the one called `after`, and like it.
pub fn with_masters(text: &str, masters: &[(String, Option<IpAddr>)], after: &str) -> String {
    let own = |(name, address): &(String, Option<IpAddr>)| {
        let address = address.map(|address| format!("addresses = [\"{address}\"]"));
        [format!("name = \"{name}\""), "role = \"master\"".into()].into_iter().chain(address).collect()
    };
    added(text, masters.iter().map(own), after, true)
}

/// The text with this address of a node that has none.
pub fn with_address(text: &str, node: &str, address: IpAddr) -> String {
    let lines = lines_of(text);
    let Some(block) = blocks(&lines).into_iter().find(|block| block.name == node) else { return text.to_owned() };
    let name = block.lines.clone().find(|at| key(lines[*at]) == "name");
    behind(&lines, name, &format!("addresses = [\"{address}\"]"))
}

/// The text with this engine of the store.
pub fn with_store(text: &str, engine: &str) -> String {
    let lines = lines_of(text);
    let top = lines.iter().position(|line| line.trim_start().starts_with('[')).unwrap_or(lines.len());
    let of = |wanted: &str| (0..top).find(|at| key(lines[*at]) == wanted);
    let Some(at) = of("store") else { return behind(&lines, of("name"), &format!("store = \"{engine}\"")) };
    let written = ["embedded", "etcd"].iter().fold(lines[at].to_owned(), |line, known| {
        line.replacen(&format!("\"{known}\""), &format!("\"{engine}\""), 1).replacen(
            &format!("'{known}'"),
            &format!("'{engine}'"),
            1,
        )
    });
    [&lines[..at].concat(), &written, &lines[at + 1..].concat()].map(String::as_str).concat()
}

/// The lines with one more behind the one at `at`.
fn behind(lines: &[&str], at: Option<usize>, line: &str) -> String {
    let Some(at) = at else { return lines.concat() };
    let end = if lines[at].ends_with("\r\n") { "\r\n" } else { "\n" };
    let closed = if lines[at].ends_with('\n') { "" } else { end };
    format!("{}{closed}{line}{end}{}", lines[..=at].concat(), lines[at + 1..].concat())
}

/// The key of a line.
fn key(line: &str) -> String {
    line.split(['=', '#']).next().unwrap_or_default().trim().trim_matches(['"', '\'']).to_owned()
}

/// The text with these workers behind the node `after`, and like it where it is a worker, but for its addresses.
pub fn with(text: &str, names: &[String], after: &str, alike: bool) -> String {
    let own = |name: &String| [format!("name = \"{name}\""), "role = \"worker\"".into()].into();
    added(text, names.iter().map(own), after, alike)
}

/// The text with these spare workers behind the node `after`, and like the worker `like`.
pub fn with_spares(text: &str, spares: &[(String, Option<IpAddr>)], after: &str, like: &str) -> String {
    let own = |(name, address): &(String, Option<IpAddr>)| {
        let address = address.map(|address| format!("addresses = [\"{address}\"]"));
        [format!("name = \"{name}\""), "role = \"worker\"".into(), "spare = true".into()]
            .into_iter()
            .chain(address)
            .collect()
    };
    // What is on a data volume would outlive it.
    added_like(text, spares.iter().map(own), after, Some(like), &["data-gb"])
}

/// The text with more nodes behind the one called `after`, each with its own lines.
fn added(text: &str, nodes: impl ExactSizeIterator<Item = Vec<String>>, after: &str, alike: bool) -> String {
    added_like(text, nodes, after, alike.then_some(after), &[])
}

/// The same, like the node `of` but for these keys.
fn added_like(
    text: &str,
    nodes: impl ExactSizeIterator<Item = Vec<String>>,
    after: &str,
    of: Option<&str>,
    but: &[&str],
) -> String {
    let lines = lines_of(text);
    let blocks = blocks(&lines);
    let Some(block) = blocks.iter().find(|block| block.name == after) else { return text.to_owned() };
    let end = if lines[block.lines.start].ends_with("\r\n") { "\r\n" } else { "\n" };
    let of = blocks.iter().find(|block| Some(block.name.as_str()) == of);
    let like = of.map_or_else(Vec::new, |of| like(&lines[of.lines.start + 1..of.lines.end], but));
    let mut all = lines[..block.lines.end].concat();
    let closed = |text: &mut String| {
        if !text.ends_with('\n') {
            text.push_str(end);
        }
    };
    let any = nodes.len() > 0;
    for own in nodes {
        closed(&mut all);
        all.push_str(&format!("{end}{HEAD}{end}"));
        own.iter().for_each(|line| all.push_str(&format!("{line}{end}")));
        like.iter().for_each(|line| all.push_str(line));
    }
    if any {
        closed(&mut all);
    }
    all + &lines[block.lines.end..].concat()
}

/// What another node like this one has of its lines: not what is its own, each as a whole, whose value may go over
/// several lines.
fn like<'t>(lines: &[&'t str], but: &[&str]) -> Vec<&'t str> {
    let mut rest = lines;
    let mut kept = Vec::new();
    while let Some(first) = rest.first() {
        let whole = |count: &usize| toml::from_str::<toml::Table>(&rest[..*count].concat()).is_ok();
        let count = (1..=rest.len()).find(whole).unwrap_or(1);
        let key = key(first);
        if !["", "name", "role", "addresses"].iter().chain(but).any(|own| *own == key) {
            kept.extend(&rest[..count]);
        }
        rest = &rest[count..];
    }
    kept
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
    fn the_store_and_addresses_are_written_where_they_belong() {
        assert!(with_store(TEXT, "etcd").starts_with("# mine\nname = \"demo\"\nstore = \"etcd\"\n\n# The nodes."));
        let said = "name = \"x\"\r\nstore = 'embedded' # still\r\n[[nodes]]\r\n";
        assert_eq!(with_store(said, "etcd"), said.replace("embedded", "etcd"));
        assert_eq!(with_store("name = \"x\"", "etcd"), "name = \"x\"\nstore = \"etcd\"\n");
        let address = "10.77.0.10".parse().expect("address");
        let text = with_address(TEXT, "m", address);
        assert!(text.contains("name = \"m\"\naddresses = [\"10.77.0.10\"]\nrole = \"master\"\n"), "{text}");
        let text = with_masters(TEXT, &[("n".into(), Some(address))], "m");
        assert!(
            text.contains("\n[[nodes]]\nname = \"n\"\nrole = \"master\"\naddresses = [\"10.77.0.10\"]\n"),
            "{text}"
        );
        assert_eq!(without(&text, &["n".into()]), TEXT);
    }

    #[test]
    fn a_spare_is_like_the_worker_that_it_stands_in_for_but_for_what_would_outlive_it() {
        let text = TEXT.replace("# fast\n", "# fast\ndata-gb = 20\n");
        let spares = [("w3".to_string(), "10.77.0.13".parse().ok()), ("w4".to_string(), None)];
        let more = with_spares(&text, &spares, "w2", "w2");
        let like = "type = \"cx33\"\n[nodes.labels]\ndisk = \"ssd\"\n";
        let head = |name: &str| format!("\n[[nodes]]\nname = \"{name}\"\nrole = \"worker\"\nspare = true\n");
        let both =
            format!("#taints = []\n{}addresses = [\"10.77.0.13\"]\n{like}{}{like}\n# VMs.\n", head("w3"), head("w4"));
        assert!(more.contains(&both), "{more}");
        assert_eq!(without(&more, &["w3".to_string(), "w4".to_string()]), text);
        // Behind another spare, and not like that.
        let again = with_spares(&more, &[("w5".to_string(), None)], "w4", "w1");
        assert!(again.contains(&format!("{like}{}\n# VMs.\n", head("w5"))), "{again}");
    }

    #[test]
    fn lines_keep_their_ends() {
        let names = ["w3".to_string()];
        let text = TEXT.replace('\n', "\r\n");
        let more = with(&text, &names, "w2", true);
        assert_eq!(more.matches("\r\n").count(), more.matches('\n').count());
        assert_eq!(without(&more, &names), text);
        let mixed = TEXT.replacen('\n', "\r\n", 1);
        assert_eq!(without(&with(&mixed, &names, "w2", true), &names), mixed);
        // Also the last line, which may have none.
        let bare =
            "name = \"demo\"\n[[nodes]]\nname = \"m\"\nrole = \"master\"\n[[nodes]]\nname = \"w\"\nrole = \"worker\"";
        assert_eq!(without(bare, &names), bare);
        let more = with(bare, &names, "w", true);
        assert_eq!(more, format!("{bare}\n\n[[nodes]]\nname = \"w3\"\nrole = \"worker\"\n"));
    }

    #[test]
    fn a_value_over_several_lines_goes_as_a_whole() {
        let node = |name: &str, rest: &str| format!("[[nodes]]\nname = \"{name}\"\nrole = \"worker\"\n{rest}");
        let rest = "addresses = [\n  \"10.77.0.11\",\n]\ntaints = [\n  \"a=b:NoSchedule\",\n]\n";
        let text = with(&node("w1", rest), &["w2".to_string()], "w1", true);
        let like = node("w2", "taints = [\n  \"a=b:NoSchedule\",\n]\n");
        assert_eq!(text, format!("{}\n{like}", node("w1", rest)));
        let text = with(&node("w1", "\"addresses\" = [\"10.77.0.11\"]\n"), &["w2".to_string()], "w1", true);
        assert!(text.ends_with(&format!("\n{}", node("w2", ""))), "{text}");
        let spaced = node("w1", "").replace("[[nodes]]", "[[ nodes ]]");
        assert_eq!(with(&spaced, &["w2".to_string()], "w1", true), format!("{spaced}\n{}", node("w2", "")));
    }

    #[test]
    fn what_is_written_otherwise_stays() {
        let text = "name = \"demo\"\nnodes = [{ name = \"m\", role = \"master\" }]\n";
        assert_eq!(without(text, &["m".to_string()]), text);
        assert_eq!(with(text, &["w".to_string()], "m", false), text);
    }
}
