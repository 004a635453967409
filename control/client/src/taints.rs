//! Which taints a pod tolerates.

use k8s_openapi::api::core::v1::{Taint, Toleration};

pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    let key = toleration.key.as_deref().unwrap_or_default();
    if !key.is_empty() && key != taint.key {
        return false;
    }
    let wanted = toleration.value.as_deref().unwrap_or_default();
    let value = taint.value.as_deref().unwrap_or_default();
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        "Equal" | "" => wanted == value,
        "Lt" => compares(value, wanted, |a, b| a < b),
        "Gt" => compares(value, wanted, |a, b| a > b),
        _ => false,
    }
}

fn compares(value: &str, wanted: &str, holds: fn(i64, i64) -> bool) -> bool {
    matches!((value.parse(), wanted.parse()), (Ok(a), Ok(b)) if holds(a, b))
}

pub fn is_tolerated(taint: &Taint, tolerations: &[Toleration]) -> bool {
    tolerations.iter().any(|t| tolerates(t, taint))
}

/// The first taint with one of the effects that is not tolerated.
pub fn untolerated<'a>(taints: &'a [Taint], tolerations: &[Toleration], effects: &[&str]) -> Option<&'a Taint> {
    taints.iter().find(|t| effects.contains(&t.effect.as_str()) && !is_tolerated(t, tolerations))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toleration_by_operator_key_and_effect() {
        let taint = Taint { key: "k".into(), value: Some("v".into()), effect: "NoSchedule".into(), ..Taint::default() };
        let toleration = |key: &str, operator: &str, value: &str, effect: &str| Toleration {
            key: Some(key.into()),
            operator: Some(operator.into()),
            value: Some(value.into()),
            effect: Some(effect.into()),
            toleration_seconds: None,
        };
        let cases = [
            (toleration("k", "Equal", "v", "NoSchedule"), true),
            (toleration("k", "", "v", ""), true),
            (toleration("k", "Equal", "w", "NoSchedule"), false),
            (toleration("k", "Exists", "", "NoExecute"), false),
            (toleration("", "Exists", "", ""), true),
            (toleration("other", "Exists", "", ""), false),
        ];
        for (toleration, holds) in cases {
            assert_eq!(tolerates(&toleration, &taint), holds, "{toleration:?}");
        }
    }
}
