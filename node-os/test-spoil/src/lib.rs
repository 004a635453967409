//! Spoiled input for the tests of parsers: changed copies of good input, the same ones at each run. And how a test that
//! this machine cannot run says so.

use std::io::Write;
use std::path::Path;

/// Where the suite reads what was skipped; tests outside it only print.
const SKIPS: &str = "KIMG_TESTS_SKIPS";

/// Says that the running test, or a part of it, is skipped, and why: the suite counts it.
#[track_caller]
pub fn skipped(why: &str) {
    let place = std::panic::Location::caller();
    let line = format!("{}:{}: {}", place.file(), place.line(), why.replace('\n', " "));
    println!("skipped: {line}");
    if let Some(file) = std::env::var_os(SKIPS) {
        append(Path::new(&file), &line).unwrap_or_else(|error| panic!("{SKIPS}={}: {error}", file.display()));
    }
}

/// In one piece: other tests write to the same file.
fn append(file: &Path, line: &str) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(file)?;
    file.write_all(format!("{line}\n").as_bytes())
}

/// A small generator of numbers (xorshift), so that a failure comes again.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Of a seed; zero is as good as any.
    pub fn new(seed: u64) -> Dice {
        Dice(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `bound`; zero where that is zero.
    pub fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.roll() % bound).unwrap_or_default()
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        of.get(self.below(of.len())).copied()
    }
}

/// Texts that parsers stumble over.
const NASTY: [&str; 22] = [
    "",
    "null",
    "-1",
    "99999999999999999999",
    "[]",
    "{}",
    "[[[[[[[[",
    "\"",
    "\\u0000",
    "\u{0}",
    "\u{feff}",
    "\n\n",
    "../../etc",
    "::",
    "255.255.255.255",
    "0.0.0.0/0",
    "999.1.1.1",
    "&a [*a]",
    "!!binary x",
    "%25nic]",
    "\u{1F980}\u{202E}",
    "a: b: c",
];

/// Values of lengths, counts and offsets that parsers stumble over, in both orders.
const EDGES: [&[u8]; 14] = [
    &[0],
    &[1],
    &[0x7f],
    &[0x80],
    &[0xff],
    &[0xc0, 0x0c],
    &[0xff, 0xff],
    &[0, 0, 0, 0],
    &[0, 0, 0, 1],
    &[1, 0, 0, 0],
    &[0xff, 0xff, 0xff, 0x7f],
    &[0x80, 0, 0, 0],
    &[0xff, 0xff, 0xff, 0xff],
    &[0xff; 8],
];

/// The text with one to three changes.
pub fn text(good: &str, dice: &mut Dice) -> String {
    let mut characters: Vec<char> = good.chars().collect();
    for _ in 0..=dice.below(3) {
        let nasty = |dice: &mut Dice| dice.one(&NASTY).unwrap_or_default().chars().collect();
        let any = |dice: &mut Dice| u8::try_from(dice.below(127)).map_or('?', char::from);
        change(&mut characters, dice, nasty, any);
    }
    characters.into_iter().collect()
}

/// The bytes with one to three changes.
pub fn bytes(good: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..=dice.below(3) {
        let edge = |dice: &mut Dice| dice.one(&EDGES).unwrap_or_default().to_vec();
        let any = |dice: &mut Dice| u8::try_from(dice.below(256)).unwrap_or_default();
        change(&mut bytes, dice, edge, any);
    }
    bytes
}

/// Cuts, overwrites, inserts, repeats or removes.
fn change<T: Clone>(
    all: &mut Vec<T>,
    dice: &mut Dice,
    nasty: impl Fn(&mut Dice) -> Vec<T>,
    any: impl Fn(&mut Dice) -> T,
) {
    let at = dice.below(all.len() + 1);
    let end = |dice: &mut Dice, most: usize| (at + dice.below(most)).min(all.len());
    match dice.below(7) {
        0 => all.truncate(at),
        1 => {
            // In place, as a field of a fixed width is.
            let new = nasty(dice);
            let end = (at + new.len()).min(all.len());
            all.splice(at..end, new);
        }
        2 => {
            let end = end(dice, 12);
            all.splice(at..end, nasty(dice));
        }
        3 => {
            let new = any(dice);
            if let Some(place) = all.get_mut(at) {
                *place = new;
            }
        }
        4 => {
            let copy: Vec<T> = all.get(at..end(dice, 40)).unwrap_or_default().to_vec();
            all.splice(at..at, copy);
        }
        5 => {
            let end = end(dice, 20);
            all.drain(at..end);
        }
        _ => {
            all.splice(at..at, nasty(dice));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_skipped_is_a_line_each() {
        let file = tempfile::NamedTempFile::new().unwrap();
        append(file.path(), "a.rs:1: no kernel").unwrap();
        append(file.path(), "a.rs:1: no kernel").unwrap();
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "a.rs:1: no kernel\n".repeat(2));
    }

    #[test]
    fn the_same_seed_spoils_alike_and_another_one_does_not() {
        let run = |seed| {
            let mut dice = Dice::new(seed);
            (0..50).map(|_| bytes(b"0123456789", &mut dice)).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
        let changed = run(1).iter().filter(|copy| copy.as_slice() != b"0123456789").count();
        assert!(changed > 40, "only {changed} of 50 copies are changed");
    }
}
