//! Lines on standard output, each with its node and service before it.

use super::line::harmless;
use super::merge::Entry;
use anyhow::Result;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::sync::Arc;

/// Colours of nodes, in turn: cyan, yellow, green, magenta, blue, red.
const COLOURS: [u8; 6] = [36, 33, 32, 35, 34, 31];

/// What stands before a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefix {
    /// Node and service.
    Both,
    /// The service; the node is known.
    Service,
    /// Nothing: there is one log.
    None,
}

/// Where lines go.
type Write = Box<dyn FnMut(&[u8]) -> Result<()>>;

/// Writes lines.
pub struct Printer {
    prefix: Prefix,
    /// Somebody looks at a terminal, which logs must not steer.
    terminal: bool,
    colours: bool,
    write: Write,
    /// The nodes seen, in turn.
    nodes: BTreeMap<Arc<str>, usize>,
    /// Widths of the columns.
    widths: (usize, usize),
}

impl std::fmt::Debug for Printer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Printer").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Printer {
    /// For standard output, which `write` writes to.
    pub fn new(prefix: Prefix, write: impl FnMut(&[u8]) -> Result<()> + 'static) -> Printer {
        let terminal = std::io::stdout().is_terminal();
        // The convention of no-color.org: set to anything but nothing.
        let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let colours = terminal && !plain && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Printer { prefix, terminal, colours, write: Box::new(write), nodes: BTreeMap::new(), widths: (0, 0) }
    }

    /// For a file.
    pub fn plain(prefix: Prefix, write: impl FnMut(&[u8]) -> Result<()> + 'static) -> Printer {
        Printer { terminal: false, colours: false, ..Printer::new(prefix, write) }
    }

    /// Writes lines.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn print(&mut self, entries: &[Entry]) -> Result<()> {
        let text = self.text(entries);
        if text.is_empty() { Ok(()) } else { (self.write)(text.as_bytes()) }
    }

    fn text(&mut self, entries: &[Entry]) -> String {
        for entry in entries {
            let turn = self.nodes.len();
            self.nodes.entry(entry.node.clone()).or_insert(turn);
            let width = |text: &str, old: usize| old.max(text.chars().count());
            self.widths = (width(&entry.node, self.widths.0), width(&entry.service, self.widths.1));
        }
        let mut out = String::new();
        for entry in entries {
            let (node, service) = self.widths;
            let before = match self.prefix {
                Prefix::Both => format!("{:<node$}  {:<service$}  ", entry.node, entry.service),
                Prefix::Service => format!("{:<service$}  ", entry.service),
                Prefix::None => String::new(),
            };
            let (before, text) =
                if self.terminal { (harmless(&before), harmless(&entry.text)) } else { (before, entry.text.clone()) };
            let colour = COLOURS[self.nodes.get(&entry.node).copied().unwrap_or(0) % COLOURS.len()];
            // Writing to a String cannot fail.
            let _ = if self.colours && !before.is_empty() {
                writeln!(out, "\u{1b}[{colour}m{before}\u{1b}[0m{text}")
            } else {
                writeln!(out, "{before}{text}")
            };
        }
        out
    }

    /// Says on standard error why a node is left out.
    pub fn complain(&self, node: &str, error: &anyhow::Error) {
        self.note(node, &format!("{error:#}"));
    }

    /// Says something of all nodes on standard error.
    pub fn warn(&self, text: &str) {
        eprintln!("kimg: {}", harmless(text));
    }

    /// Says something of a node on standard error.
    pub fn note(&self, node: &str, text: &str) {
        eprintln!("kimg: {node}: {}", harmless(text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printer(prefix: Prefix, terminal: bool) -> Printer {
        let write = Box::new(|_: &[u8]| Ok(()));
        Printer { prefix, terminal, colours: terminal, write, nodes: BTreeMap::new(), widths: (0, 0) }
    }

    fn entry(node: &str, service: &str, text: &str) -> Entry {
        Entry { at: 0, node: node.into(), service: service.into(), text: text.into() }
    }

    #[test]
    fn lines_say_whose_they_are() {
        let lines = [entry("a", "kubelet", "x"), entry("long", "dns", "\u{1b}[31my")];
        let show = |prefix, terminal| printer(prefix, terminal).text(&lines);
        // Where a program reads it, what was written is what comes.
        assert_eq!(show(Prefix::Both, false), "a     kubelet  x\nlong  dns      \u{1b}[31my\n");
        assert_eq!(show(Prefix::Service, false), "kubelet  x\ndns      \u{1b}[31my\n");
        assert_eq!(show(Prefix::None, false), "x\n\u{1b}[31my\n");
        assert_eq!(show(Prefix::None, true), "x\n\\u{1b}[31my\n");
        let shown = show(Prefix::Both, true);
        let expected = "\u{1b}[36ma     kubelet  \u{1b}[0mx\n\u{1b}[33mlong  dns      \u{1b}[0m\\u{1b}[31my\n";
        assert_eq!(shown, expected, "{shown:?}");
    }
}
