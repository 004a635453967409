//! The few DER forms that a certificate is made of.
//!
//! Subject and key go from request to certificate as they are, byte for byte, which a
//! builder that takes names apart and puts them together again cannot promise.

pub const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// Tag, length, content.
pub fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let length = content.len();
    if length < 0x80 {
        out.push(length as u8);
    } else {
        let bytes = length.to_be_bytes();
        let bytes = &bytes[bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len() - 1)..];
        out.push(0x80 | bytes.len() as u8);
        out.extend_from_slice(bytes);
    }
    out.extend_from_slice(content);
    out
}

pub fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    tagged(SEQUENCE, &parts.concat())
}

/// A positive number from its big-endian bytes.
pub fn integer(bytes: &[u8]) -> Vec<u8> {
    let first = bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len().saturating_sub(1));
    let mut content = bytes[first..].to_vec();
    if content.first().is_none_or(|b| b & 0x80 != 0) {
        content.insert(0, 0);
    }
    tagged(INTEGER, &content)
}

pub fn bits(bytes: &[u8], unused: u8) -> Vec<u8> {
    let mut content = vec![unused];
    content.extend_from_slice(bytes);
    tagged(BIT_STRING, &content)
}

pub fn octets(bytes: &[u8]) -> Vec<u8> {
    tagged(OCTET_STRING, bytes)
}

/// An object identifier from its numbers.
pub fn oid(numbers: &[u64]) -> Vec<u8> {
    let mut content = Vec::new();
    let first = numbers.first().copied().unwrap_or(0) * 40 + numbers.get(1).copied().unwrap_or(0);
    for number in std::iter::once(first).chain(numbers.iter().skip(2).copied()) {
        let mut groups = vec![(number & 0x7f) as u8];
        let mut rest = number >> 7;
        while rest > 0 {
            groups.push((rest & 0x7f) as u8 | 0x80);
            rest >>= 7;
        }
        groups.reverse();
        content.extend(groups);
    }
    tagged(OBJECT_IDENTIFIER, &content)
}

/// UTCTime until 2049, GeneralizedTime from 2050 on, as X.509 demands.
pub fn time(at: jiff::Timestamp) -> Vec<u8> {
    let utc = at.to_zoned(jiff::tz::TimeZone::UTC);
    if (1950..2050).contains(&utc.year()) {
        tagged(UTC_TIME, utc.strftime("%y%m%d%H%M%SZ").to_string().as_bytes())
    } else {
        tagged(GENERALIZED_TIME, utc.strftime("%Y%m%d%H%M%SZ").to_string().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_as_the_standard_says() {
        let cases: [(Vec<u8>, &[u8]); 5] = [
            (integer(&[0, 0x80]), &[2, 2, 0, 0x80]),
            (integer(&[0]), &[2, 1, 0]),
            (oid(&[1, 2, 840, 113549, 1, 1, 11]), &[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x0b]),
            (bits(&[0xa0], 5), &[3, 2, 5, 0xa0]),
            (time(jiff::Timestamp::UNIX_EPOCH), b"\x17\x0d700101000000Z"),
        ];
        for (got, wanted) in cases {
            assert_eq!(got, wanted);
        }
        assert_eq!(&tagged(4, &[0; 300])[..4], &[4, 0x82, 1, 44]);
    }
}
