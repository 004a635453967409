//! Resource quantities as numbers.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// In thousandths, rounded up; none where the text is no quantity.
pub fn milli(quantity: &Quantity) -> Option<i64> {
    parse(&quantity.0).map(|nanos| clamp(div_up(nanos, 1_000_000)))
}

/// In units, rounded up.
pub fn units(quantity: &Quantity) -> Option<i64> {
    parse(&quantity.0).map(|nanos| clamp(div_up(nanos, 1_000_000_000)))
}

fn clamp(value: i128) -> i64 {
    value.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
}

fn div_up(value: i128, by: i128) -> i128 {
    value.div_euclid(by) + i128::from(value.rem_euclid(by) != 0)
}

/// The value in thousand-millionths.
fn parse(text: &str) -> Option<i128> {
    const NANO: i128 = 1_000_000_000;
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (negative, number) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    // Digits beyond the ninth do not matter to anyone here.
    let fraction = &fraction[..fraction.len().min(9)];
    let mut value: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    value = value.checked_mul(NANO)?;
    if !fraction.is_empty() {
        value += fraction.parse::<i128>().ok()? * 10_i128.pow(9 - fraction.len() as u32);
    }
    let value = match suffix {
        "" => value,
        "n" => value / NANO,
        "u" => value / 1_000_000,
        "m" => value / 1000,
        "k" => value.checked_mul(1000)?,
        "M" => value.checked_mul(1_000_000)?,
        "G" => value.checked_mul(NANO)?,
        "T" => value.checked_mul(1_000_000_000_000)?,
        "P" => value.checked_mul(1_000_000_000_000_000)?,
        "E" => value.checked_mul(1_000_000_000_000_000_000)?,
        "Ki" => value.checked_mul(1 << 10)?,
        "Mi" => value.checked_mul(1 << 20)?,
        "Gi" => value.checked_mul(1 << 30)?,
        "Ti" => value.checked_mul(1 << 40)?,
        "Pi" => value.checked_mul(1 << 50)?,
        "Ei" => value.checked_mul(1 << 60)?,
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            match power {
                0..=18 => value.checked_mul(10_i128.pow(power as u32))?,
                -18..=-1 => value / 10_i128.pow(-power as u32),
                _ => return None,
            }
        }
    };
    Some(if negative { -value } else { value })
}

/// Thousandths in the shortest decimal form: `1500` is `1500m`, `2000` is `2`.
pub fn from_milli(value: i64) -> Quantity {
    Quantity(if value % 1000 == 0 { (value / 1000).to_string() } else { format!("{value}m") })
}

/// Units, in binary form where nothing is lost by it.
pub fn from_bytes(value: i64) -> Quantity {
    const SUFFIXES: [(u32, &str); 4] = [(40, "Ti"), (30, "Gi"), (20, "Mi"), (10, "Ki")];
    for (shift, suffix) in SUFFIXES {
        if value != 0 && value % (1 << shift) == 0 {
            return Quantity(format!("{}{suffix}", value >> shift));
        }
    }
    Quantity(value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_in_thousandths() {
        let cases = [
            ("1", Some(1000)),
            ("100m", Some(100)),
            ("0.5", Some(500)),
            ("1.5Gi", Some(1_610_612_736_000)),
            ("1k", Some(1_000_000)),
            ("1e3", Some(1_000_000)),
            ("1n", Some(1)),
            (".5", Some(500)),
            ("-2", Some(-2000)),
            ("", None),
            ("x", None),
        ];
        for (text, value) in cases {
            assert_eq!(milli(&Quantity(text.into())), value, "{text}");
        }
        assert_eq!(from_milli(1500).0, "1500m");
        assert_eq!(from_bytes(1 << 31).0, "2Gi");
    }
}
