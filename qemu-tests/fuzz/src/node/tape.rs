//! An input as a row of pieces, of which whatever is asked next gets the next one.

use std::cell::Cell;

/// No text in UTF-8 has it.
const BETWEEN: u8 = 0xff;

pub(super) struct Tape<'a>(Cell<Option<&'a [u8]>>);

impl<'a> Tape<'a> {
    pub(super) fn new(data: &'a [u8]) -> Tape<'a> {
        Tape(Cell::new(Some(data)))
    }

    /// None at the end.
    pub(super) fn next(&self) -> Option<&'a [u8]> {
        let rest = self.0.get()?;
        let at = rest.iter().position(|byte| *byte == BETWEEN);
        self.0.set(at.and_then(|at| rest.get(at + 1..)));
        rest.get(..at.unwrap_or(rest.len()))
    }

    /// The same as text; what is none is nothing.
    pub(super) fn text(&self) -> Option<String> {
        String::from_utf8(self.next()?.to_vec()).ok()
    }
}
