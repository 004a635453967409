//! `$(NAME)` in commands, arguments and environment values.

/// Replaces `$(NAME)` by what `lookup` finds; what it does not find stays as written, `$$` is a dollar.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            result.push('$');
            rest = after;
        } else if let Some(name_and_more) = rest.strip_prefix('(') {
            match name_and_more.split_once(')') {
                None => {
                    result.push('$');
                }
                Some((name, after)) => {
                    match lookup(name) {
                        Some(value) => result.push_str(&value),
                        None => {
                            result.push_str("$(");
                            result.push_str(name);
                            result.push(')');
                        }
                    }
                    rest = after;
                }
            }
        } else {
            result.push('$');
        }
    }
    result.push_str(rest);
    result
}

#[cfg(test)]
mod tests {
    use super::expand;

    #[test]
    fn references() {
        let lookup = |name: &str| (name == "A").then(|| "1".to_string());
        for (text, expected) in [
            ("x", "x"),
            ("$(A)", "1"),
            ("$(A)$(A)", "11"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(A", "$(A"),
            ("$A", "$A"),
            ("$", "$"),
            ("a$$b", "a$b"),
        ] {
            assert_eq!(expand(text, lookup), expected, "{text}");
        }
    }
}
