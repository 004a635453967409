//! Quantities (`100m`, `1Gi`, `1e3`): exact to nano, with the canonical text.

use std::cmp::Ordering;
use std::fmt;

/// How a quantity is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suffix {
    Decimal,
    Binary,
    Exponent,
}

/// An amount in units of 10⁻⁹.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    nano: i128,
    suffix: Suffix,
}

const NANO: i128 = 1_000_000_000;

impl Quantity {
    /// Parses a quantity.
    pub fn parse(s: &str) -> Option<Quantity> {
        let (neg, body) = match s.as_bytes().first()? {
            b'-' => (true, &s[1..]),
            b'+' => (false, &s[1..]),
            _ => (false, s),
        };
        let end = body.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(body.len());
        let (digits, suffix) = body.split_at(end);
        let (whole, frac) = digits.split_once('.').unwrap_or((digits, ""));
        if (whole.is_empty() && frac.is_empty()) || frac.contains('.') {
            return None;
        }
        let (mul, div, form) = scale(suffix)?;
        let mut value: i128 = 0;
        for c in whole.bytes().chain(frac.bytes()) {
            value = value.checked_mul(10)?.checked_add(i128::from(c - b'0'))?;
        }
        let mut below = 10i128.checked_pow(u32::try_from(frac.len()).ok()?)?.checked_mul(div)?;
        let mut above = value.checked_mul(mul)?;
        // Both factors are reduced so that the product with 10⁹ stays in range.
        let shared = gcd(NANO, below);
        below /= shared;
        above = above.checked_mul(NANO / shared)?;
        // Finer than nano rounds up, as upstream does.
        let mut nano = above / below;
        if above % below != 0 {
            nano += 1;
        }
        Some(Quantity { nano: if neg { -nano } else { nano }, suffix: form })
    }

    /// From whole units.
    pub fn from_units(v: i64, suffix: Suffix) -> Quantity {
        Quantity { nano: i128::from(v) * NANO, suffix }
    }

    /// From thousandths.
    pub fn from_milli(v: i64) -> Quantity {
        Quantity { nano: i128::from(v) * 1_000_000, suffix: Suffix::Decimal }
    }

    /// As near as a float comes.
    pub fn approximately(&self) -> f64 {
        self.nano as f64 / NANO as f64
    }

    /// Whole units, rounded up.
    pub fn value(&self) -> i64 {
        ceil(self.nano, NANO)
    }

    /// Thousandths, rounded up.
    pub fn milli(&self) -> i64 {
        ceil(self.nano, 1_000_000)
    }

    /// Whether it is zero.
    pub fn is_zero(&self) -> bool {
        self.nano == 0
    }

    /// -1, 0 or 1.
    pub fn sign(&self) -> i32 {
        self.nano.signum() as i32
    }

    /// The sum, in the form of `self`.
    pub fn plus(&self, other: &Quantity) -> Quantity {
        let suffix = if self.is_zero() { other.suffix } else { self.suffix };
        Quantity { nano: self.nano.saturating_add(other.nano), suffix }
    }

    /// The difference, in the form of `self`.
    pub fn minus(&self, other: &Quantity) -> Quantity {
        let suffix = if self.is_zero() { other.suffix } else { self.suffix };
        Quantity { nano: self.nano.saturating_sub(other.nano), suffix }
    }
}

fn gcd(a: i128, b: i128) -> i128 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn ceil(nano: i128, unit: i128) -> i64 {
    let v = nano.div_euclid(unit) + i128::from(nano.rem_euclid(unit) != 0);
    i64::try_from(v).unwrap_or(if v < 0 { i64::MIN } else { i64::MAX })
}

fn scale(suffix: &str) -> Option<(i128, i128, Suffix)> {
    let d = |e: i32| -> Option<(i128, i128)> {
        let p = 10i128.checked_pow(e.unsigned_abs())?;
        Some(if e >= 0 { (p, 1) } else { (1, p) })
    };
    let (mul, div) = match suffix {
        "n" => d(-9)?,
        "u" => d(-6)?,
        "m" => d(-3)?,
        "" => (1, 1),
        "k" => d(3)?,
        "M" => d(6)?,
        "G" => d(9)?,
        "T" => d(12)?,
        "P" => d(15)?,
        "E" => d(18)?,
        "Ki" | "Mi" | "Gi" | "Ti" | "Pi" | "Ei" => {
            let p = "KMGTPE".find(&suffix[..1])? as u32 + 1;
            return Some((1i128 << (10 * p), 1, Suffix::Binary));
        }
        s => {
            let e: i32 = s.strip_prefix(['e', 'E'])?.parse().ok()?;
            if !(-30..=24).contains(&e) {
                return None;
            }
            let (m, v) = d(e)?;
            return Some((m, v, Suffix::Exponent));
        }
    };
    Some((mul, div, Suffix::Decimal))
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nano == 0 {
            return f.write_str("0");
        }
        let sign = if self.nano < 0 { "-" } else { "" };
        let n = self.nano.abs();
        if self.suffix == Suffix::Binary && n % NANO == 0 && n >= 1024 * NANO {
            let mut v = n / NANO;
            let mut i = 0;
            while v % 1024 == 0 && i < 6 {
                v /= 1024;
                i += 1;
            }
            return write!(f, "{sign}{v}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][i]);
        }
        let mut v = n;
        let mut e = -9;
        while v % 1000 == 0 && e < 18 {
            v /= 1000;
            e += 3;
        }
        if self.suffix == Suffix::Exponent {
            return if e == 0 { write!(f, "{sign}{v}") } else { write!(f, "{sign}{v}e{e}") };
        }
        write!(f, "{sign}{v}{}", ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"][((e + 9) / 3) as usize])
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nano.cmp(&other.nano)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_text() {
        for (s, want) in [
            ("100m", "100m"),
            ("1", "1"),
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1024Ki", "1Mi"),
            ("1Gi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("1000k", "1M"),
            ("1e3", "1e3"),
            ("1E", "1E"),
            ("0", "0"),
            ("0Mi", "0"),
            ("-1", "-1"),
            ("128974848", "128974848"),
            ("12e6", "12e6"),
            ("1000", "1k"),
            ("100Mi", "100Mi"),
            ("0.1Gi", "107374182400m"),
        ] {
            assert_eq!(Quantity::parse(s).unwrap().to_string(), want, "{s}");
        }
        for s in ["", "x", "1x", "1.2.3", ".", "1 Gi", "Gi"] {
            assert!(Quantity::parse(s).is_none(), "{s}");
        }
        let q = |s| Quantity::parse(s).unwrap();
        assert_eq!(q("1500m").value(), 2);
        assert_eq!(q("1500m").milli(), 1500);
        assert!(q("1Gi") > q("1G"));
        assert_eq!(q("1Gi").plus(&q("1Gi")).to_string(), "2Gi");
    }
}
