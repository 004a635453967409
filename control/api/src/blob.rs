//! Reads the tables that `build.rs` wrote. Everything stays in the executable's
//! read-only data; only what is asked for is decoded.

/// The tables.
static TABLES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tables.bin"));

fn word(at: usize) -> usize {
    TABLES.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, |b| u32::from_le_bytes(b) as usize)
}

/// Number of types in the tables.
pub fn type_count() -> usize {
    word(4)
}

/// Number of kinds in the tables.
pub fn kind_count() -> usize {
    word(8)
}

fn string_base() -> usize {
    12 + 4 * (word(0) + 1) + 4 * (type_count() + 1)
}

fn type_index() -> usize {
    12 + 4 * (word(0) + 1)
}

fn type_base() -> usize {
    string_base() + word(12 + 4 * word(0))
}

/// An interned string.
pub fn string(id: u32) -> &'static str {
    let at = 12 + 4 * id as usize;
    let base = string_base();
    TABLES.get(base + word(at)..base + word(at + 4)).and_then(|b| std::str::from_utf8(b).ok()).unwrap_or("")
}

/// Cursor over one record.
pub struct Reader(&'static [u8]);

impl Reader {
    /// The record of type number `index`.
    pub fn of_type(index: u16) -> Reader {
        let at = type_index() + 4 * index as usize;
        let base = type_base();
        Reader(TABLES.get(base + word(at)..base + word(at + 4)).unwrap_or(&[]))
    }

    /// All kinds, one after the other.
    pub fn of_kinds() -> Reader {
        let base = type_base() + word(type_index() + 4 * type_count());
        Reader(TABLES.get(base..).unwrap_or(&[]))
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((b, rest)) => {
                self.0 = rest;
                *b
            }
            None => 0,
        }
    }

    /// The next variable-length number.
    pub fn num(&mut self) -> u32 {
        let mut v = 0u32;
        let mut shift = 0;
        loop {
            let b = self.byte();
            v |= u32::from(b & 0x7f) << shift;
            if b < 0x80 || shift >= 28 {
                return v;
            }
            shift += 7;
        }
    }

    /// The next string.
    pub fn str(&mut self) -> &'static str {
        string(self.num())
    }

    /// The next list of strings.
    pub fn strs(&mut self) -> Vec<&'static str> {
        (0..self.num()).map(|_| self.str()).collect()
    }
}
