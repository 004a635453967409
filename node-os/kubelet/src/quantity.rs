//! Kubernetes quantities: parsed to thousandths, printed as integers or with `m`.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// A quantity in thousandths of its unit, rounded up; none if it is not a quantity.
pub fn parse_milli(text: &str) -> Option<i128> {
    let text = text.trim();
    let split = text
        .char_indices()
        .find(|(at, c)| !(c.is_ascii_digit() || *c == '.' || (*at == 0 && (*c == '-' || *c == '+'))))
        .map_or(text.len(), |(at, _)| at);
    let (number, suffix) = text.split_at(split);
    let (multiplier, divisor) = scale(suffix)?;
    let negative = number.starts_with('-');
    let number = number.trim_start_matches(['-', '+']);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || whole.len() > 18 {
        return None;
    }
    let fraction = fraction.get(..fraction.len().min(9))?;
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let denominator = 10i128.pow(fraction.len() as u32) * divisor;
    let value = digits.checked_mul(multiplier)?.checked_mul(1000)?;
    let rounded = (value + denominator - 1) / denominator;
    Some(if negative { -rounded } else { rounded })
}

/// Multiplier and divisor of a suffix.
fn scale(suffix: &str) -> Option<(i128, i128)> {
    Some(match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => {
            let digits = exponent.strip_prefix(['e', 'E'])?;
            let power: i32 = digits.parse().ok()?;
            match power {
                0..=18 => (10i128.pow(power as u32), 1),
                -9..=-1 => (1, 10i128.pow(power.unsigned_abs())),
                _ => return None,
            }
        }
    })
}

/// A quantity in whole units, rounded up.
pub fn parse(text: &str) -> Option<i64> {
    let milli = parse_milli(text)?;
    i64::try_from((milli + 999).div_euclid(1000)).ok()
}

/// Thousandths (for cpu) of an API quantity; 0 if it cannot be read.
pub fn milli(quantity: &Quantity) -> i64 {
    parse_milli(&quantity.0).and_then(|v| i64::try_from(v).ok()).unwrap_or(0)
}

/// Whole units of an API quantity; 0 if it cannot be read.
pub fn value(quantity: &Quantity) -> i64 {
    parse(&quantity.0).unwrap_or(0)
}

/// A quantity of thousandths as the API prints cpu.
pub fn from_milli(milli: i64) -> Quantity {
    if milli % 1000 == 0 { Quantity((milli / 1000).to_string()) } else { Quantity(format!("{milli}m")) }
}

/// Bytes as the kubelet prints memory.
pub fn from_bytes_ki(bytes: i64) -> Quantity {
    if bytes % 1024 == 0 { Quantity(format!("{}Ki", bytes / 1024)) } else { Quantity(bytes.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_the_api_reads_them() {
        for (text, milli) in [
            ("1", 1000),
            ("100m", 100),
            ("0.1", 100),
            ("1.5Gi", 1_610_612_736_000),
            ("128Mi", 134_217_728_000),
            ("2k", 2_000_000),
            ("1e3", 1_000_000),
            ("5n", 1),
            ("-1", -1000),
        ] {
            assert_eq!(parse_milli(text), Some(milli), "{text}");
        }
        for bad in ["", "x", "1Q", "Mi", "1.2.3"] {
            assert_eq!(parse_milli(bad), None, "{bad}");
        }
        assert_eq!(parse("1500m"), Some(2));
        assert_eq!(from_milli(1500).0, "1500m");
        assert_eq!(from_milli(2000).0, "2");
    }
}
