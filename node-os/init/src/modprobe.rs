//! `/sbin/modprobe`: the kernel calls it when it misses a module, with the module's name or one of its aliases.

use crate::kernel_modules::Index;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// Entry point; options are passed over.
pub fn main(args: &[OsString]) -> ExitCode {
    let wanted: Vec<String> =
        args.iter().map(|arg| arg.to_string_lossy().into_owned()).filter(|arg| !arg.starts_with('-')).collect();
    let mut index = match Index::read() {
        Ok(index) => index,
        Err(_) => return ExitCode::FAILURE,
    };
    let text = std::fs::read_to_string(index.folder().join("modules.alias")).unwrap_or_default();
    let aliases = Aliases::parse(&text);
    let builtin = std::fs::read_to_string(index.folder().join("modules.builtin")).unwrap_or_default();
    let mut good = true;
    for name in wanted {
        let name = name.replace('-', "_");
        let names: Vec<&str> = if index.has(&name) { vec![name.as_str()] } else { aliases.find(&name) };
        if names.is_empty() {
            good &= builtin.lines().any(|path| is_module(path, &name));
        }
        good &= index.load(&names).is_empty();
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn is_module(path: &str, name: &str) -> bool {
    let stem = Path::new(path).file_stem().map(|stem| stem.to_string_lossy().replace('-', "_"));
    stem.is_some_and(|stem| stem == name)
}

/// The index of aliases: patterns and the modules they stand for.
#[derive(Debug)]
pub(crate) struct Aliases<'a>(Vec<(String, &'a str)>);

impl<'a> Aliases<'a> {
    pub(crate) fn parse(text: &'a str) -> Aliases<'a> {
        let lines = text.lines().filter_map(|line| line.strip_prefix("alias ")?.rsplit_once(' '));
        Aliases(lines.map(|(pattern, module)| (normal(pattern), module)).collect())
    }

    /// Modules for a name, which may be a device's own text.
    pub(crate) fn find(&self, name: &str) -> Vec<&'a str> {
        let name = name.replace('-', "_");
        self.0
            .iter()
            .filter(|(pattern, _)| matches(pattern.as_bytes(), name.as_bytes()))
            .map(|(_, module)| *module)
            .collect()
    }
}

/// Dashes and underscores are the same, but not in a range such as `[0-9]`.
fn normal(pattern: &str) -> String {
    let mut inside = false;
    let one = |letter: char| {
        inside = (inside || letter == '[') && letter != ']';
        if letter == '-' && !inside { '_' } else { letter }
    };
    pattern.chars().map(one).collect()
}

/// Shell patterns with `*`, `?` and `[…]`, as the index has them.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern, name) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=name.len()).any(|at| matches(rest, name.get(at..).unwrap_or_default())),
        ([b'?', rest @ ..], [_, tail @ ..]) => matches(rest, tail),
        ([b'[', rest @ ..], [byte, tail @ ..]) => {
            let Some(end) = rest.iter().position(|byte| *byte == b']') else { return false };
            let (set, after) = rest.split_at(end);
            in_set(set, *byte) && matches(after.get(1..).unwrap_or_default(), tail)
        }
        ([first, rest @ ..], [byte, tail @ ..]) => first == byte && matches(rest, tail),
        _ => false,
    }
}

fn in_set(set: &[u8], byte: u8) -> bool {
    match set {
        [from, b'-', to, rest @ ..] => (*from..=*to).contains(&byte) || in_set(rest, byte),
        [one, rest @ ..] => *one == byte || in_set(rest, byte),
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_are_patterns() {
        let aliases = "alias pci:v00001AF4d*sv* virtio_net\nalias nft-chain-2-nat nft_chain_nat\nalias x[0-3]y z\n";
        let aliases = Aliases::parse(aliases);
        assert_eq!(aliases.find("pci:v00001AF4d00001000sv1"), ["virtio_net"]);
        assert_eq!(aliases.find("nft_chain_2_nat"), ["nft_chain_nat"]);
        assert_eq!(aliases.find("x2y"), ["z"]);
        assert!(aliases.find("x4y").is_empty());
    }
}
