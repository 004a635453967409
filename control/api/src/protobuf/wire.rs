//! The wire format: varints, lengths, fields.

use super::Error;

/// Appends a varint.
pub fn varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push((v as u8) | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

/// Appends a field's key.
pub fn key(out: &mut Vec<u8>, number: u32, wire: u8) {
    varint(out, u64::from(number) << 3 | u64::from(wire));
}

/// Appends a varint field.
pub fn varint_field(out: &mut Vec<u8>, number: u32, v: u64) {
    key(out, number, 0);
    varint(out, v);
}

/// Appends a field of bytes.
pub fn bytes_field(out: &mut Vec<u8>, number: u32, v: &[u8]) {
    key(out, number, 2);
    varint(out, v.len() as u64);
    out.extend_from_slice(v);
}

/// Bytes that a field of `length` bytes takes.
pub fn bytes_field_size(number: u32, length: usize) -> usize {
    let varint_size = |v: u64| (64 - (v | 1).leading_zeros() as usize).div_ceil(7);
    varint_size(u64::from(number) << 3) + varint_size(length as u64) + length
}

/// Appends a text field.
pub fn string_field(out: &mut Vec<u8>, number: u32, v: &str) {
    bytes_field(out, number, v.as_bytes());
}

/// A field's value as it stands on the wire.
#[derive(Debug, Clone, Copy)]
pub enum Raw<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

impl<'a> Raw<'a> {
    /// The bytes, when the field has a length.
    pub fn bytes(self) -> &'a [u8] {
        match self {
            Raw::Bytes(b) => b,
            _ => &[],
        }
    }

    /// The number, when it is one.
    pub fn number(self) -> u64 {
        match self {
            Raw::Varint(v) | Raw::Fixed64(v) => v,
            Raw::Fixed32(v) => u64::from(v),
            Raw::Bytes(_) => 0,
        }
    }
}

/// Walks the fields of a message.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    /// The next field, or none at the end.
    pub fn field(&mut self) -> Result<Option<(u32, Raw<'a>)>, Error> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let k = self.varint()?;
        let raw = match (k & 7) as u8 {
            0 => Raw::Varint(self.varint()?),
            1 => Raw::Fixed64(u64::from_le_bytes(self.take(8)?.try_into().map_err(|_| Error::Truncated)?)),
            5 => Raw::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().map_err(|_| Error::Truncated)?)),
            2 => {
                let n = usize::try_from(self.varint()?).map_err(|_| Error::Truncated)?;
                Raw::Bytes(self.take(n)?)
            }
            w => return Err(Error::WireType(w)),
        };
        Ok(Some(((k >> 3) as u32, raw)))
    }

    /// The next varint.
    pub fn varint(&mut self) -> Result<u64, Error> {
        let mut v = 0u64;
        for shift in (0..70).step_by(7) {
            let (b, rest) = self.0.split_first().ok_or(Error::Truncated)?;
            self.0 = rest;
            if shift < 64 {
                v |= u64::from(b & 0x7f) << shift;
            }
            if *b < 0x80 {
                return Ok(v);
            }
        }
        Err(Error::Truncated)
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], Error> {
        if n > self.0.len() {
            return Err(Error::Truncated);
        }
        let (a, b) = self.0.split_at(n);
        self.0 = b;
        Ok(a)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (number, length) in [(1, 0), (2, 1), (15, 127), (16, 128), (2, 16_383), (2, 16_384), (2000, 3_000_000)] {
            let mut out = Vec::new();
            bytes_field(&mut out, number, &vec![0; length]);
            assert_eq!(bytes_field_size(number, length), out.len(), "{number} {length}");
        }
    }
}
