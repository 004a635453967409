//! Debian version numbers: their order, as Debian Policy 5.6.12 defines it.

use std::cmp::Ordering;

/// Compares two versions, e.g. `1:4.6.1-1` and `4.7-2`.
pub fn compare(left: &str, right: &str) -> Ordering {
    let (left_epoch, left) = split_epoch(left);
    let (right_epoch, right) = split_epoch(right);
    let (left_upstream, left_revision) = split_revision(left);
    let (right_upstream, right_revision) = split_revision(right);
    left_epoch
        .cmp(&right_epoch)
        .then_with(|| compare_part(left_upstream, right_upstream))
        .then_with(|| compare_part(left_revision, right_revision))
}

/// Whether `version` stands in the relation `op` (`<<`, `<=`, `=`, `>=`, `>>`) to `bound`.
pub fn satisfies(version: &str, op: &str, bound: &str) -> bool {
    let order = compare(version, bound);
    match op {
        "<<" => order == Ordering::Less,
        "<=" | "<" => order != Ordering::Greater,
        "=" => order == Ordering::Equal,
        ">=" | ">" => order != Ordering::Less,
        ">>" => order == Ordering::Greater,
        _ => false,
    }
}

fn split_epoch(version: &str) -> (u64, &str) {
    match version.split_once(':') {
        Some((epoch, rest)) => (epoch.parse().unwrap_or(0), rest),
        None => (0, version),
    }
}

fn split_revision(version: &str) -> (&str, &str) {
    version.rsplit_once('-').unwrap_or((version, "0"))
}

/// `~` sorts before the end, the end before letters, letters before everything else.
fn weight(byte: Option<&u8>) -> i32 {
    match byte {
        Some(b'~') => -1,
        None => 0,
        Some(b) if b.is_ascii_digit() => 0,
        Some(b) if b.is_ascii_alphabetic() => i32::from(*b),
        Some(b) => i32::from(*b) + 256,
    }
}

fn compare_part(left: &str, right: &str) -> Ordering {
    let (mut l, mut r) = (left.as_bytes(), right.as_bytes());
    while !l.is_empty() || !r.is_empty() {
        while l.first().is_some_and(|b| !b.is_ascii_digit()) || r.first().is_some_and(|b| !b.is_ascii_digit()) {
            let order = weight(l.first()).cmp(&weight(r.first()));
            if order != Ordering::Equal {
                return order;
            }
            l = l.get(1..).unwrap_or_default();
            r = r.get(1..).unwrap_or_default();
        }
        let (l_number, l_rest) = take_number(l);
        let (r_number, r_rest) = take_number(r);
        let order = l_number.len().cmp(&r_number.len()).then_with(|| l_number.cmp(r_number));
        if order != Ordering::Equal {
            return order;
        }
        (l, r) = (l_rest, r_rest);
    }
    Ordering::Equal
}

/// The leading digits without leading zeros, and what follows them.
fn take_number(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes.iter().position(|b| !b.is_ascii_digit()).unwrap_or(bytes.len());
    let (digits, rest) = bytes.split_at(end);
    let start = digits.iter().position(|b| *b != b'0').unwrap_or(digits.len());
    (&digits[start..], rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_sort_as_policy_says() {
        for (small, large) in [
            ("1.0", "1.1"),
            ("1.9", "1.10"),
            ("1.0~rc1", "1.0"),
            ("1.7.24~ds1-6", "1.7.24~ds1-6+deb13u1"),
            ("6.12.107-1", "6.12.117-1"),
            ("2.0", "1:1.0"),
            ("1.0-1", "1.0-1+b1"),
            ("1.0-1", "1.0a-1"),
            ("20250419", "20250419+deb13u1"),
        ] {
            assert_eq!(compare(small, large), Ordering::Less, "{small} < {large}");
            assert_eq!(compare(large, small), Ordering::Greater, "{large} > {small}");
        }
        assert_eq!(compare("1.01-0", "1.1"), Ordering::Equal);
        assert!(satisfies("2.41-12", ">=", "2.38"));
        assert!(!satisfies("2.41-12", "=", "2.38"));
    }
}
