//! Label selectors, in the form that objects carry.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

pub type Labels = BTreeMap<String, String>;

/// Whether all requirements hold. An empty selector matches everything.
pub fn matches(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
    let pairs = selector.match_labels.as_ref().is_none_or(|wanted| contains(wanted, labels));
    pairs
        && selector
            .match_expressions
            .as_deref()
            .unwrap_or_default()
            .iter()
            .all(|r| requirement(&r.key, &r.operator, r.values.as_deref().unwrap_or_default(), labels))
}

/// Whether the labels hold each of the pairs.
pub fn contains(wanted: &Labels, labels: Option<&Labels>) -> bool {
    wanted.iter().all(|(key, value)| labels.and_then(|l| l.get(key)) == Some(value))
}

/// One requirement, with the operators of label selectors and of node selectors.
pub fn requirement(key: &str, operator: &str, values: &[String], labels: Option<&Labels>) -> bool {
    let value = labels.and_then(|l| l.get(key));
    match operator {
        "In" => value.is_some_and(|v| values.contains(v)),
        "NotIn" => value.is_none_or(|v| !values.contains(v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => number(value, values).is_some_and(|(a, b)| a > b),
        "Lt" => number(value, values).is_some_and(|(a, b)| a < b),
        _ => false,
    }
}

fn number(value: Option<&String>, values: &[String]) -> Option<(i64, i64)> {
    Some((value?.parse().ok()?, values.first()?.parse().ok()?))
}

/// Selects nothing by its pairs or expressions, and so matches everything.
pub fn is_empty(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
        && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
}

/// The selector in the form of a query string, as `status.selector` of a scale shows it.
pub fn to_query(selector: &LabelSelector) -> String {
    let pairs = selector.match_labels.iter().flatten().map(|(k, v)| format!("{k}={v}"));
    let expressions = selector.match_expressions.iter().flatten().map(|r| {
        let values = r.values.as_deref().unwrap_or_default().join(",");
        match r.operator.as_str() {
            "In" => format!("{} in ({values})", r.key),
            "NotIn" => format!("{} notin ({values})", r.key),
            "Exists" => r.key.clone(),
            _ => format!("!{}", r.key),
        }
    });
    pairs.chain(expressions).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_by_operator() {
        let labels: Labels = [("a".to_owned(), "5".to_owned())].into();
        let values = |v: &[&str]| v.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let cases = [
            ("a", "In", vec!["5", "6"], true),
            ("a", "NotIn", vec!["5"], false),
            ("b", "NotIn", vec!["5"], true),
            ("b", "Exists", vec![], false),
            ("b", "DoesNotExist", vec![], true),
            ("a", "Gt", vec!["4"], true),
            ("a", "Lt", vec!["4"], false),
        ];
        for (key, operator, list, holds) in cases {
            assert_eq!(requirement(key, operator, &values(&list), Some(&labels)), holds, "{key} {operator}");
        }
    }
}
