//! Globs of recipes: `*` stands for any run of characters without `/`, `**` for any run, `?` for one character.

/// Whether `pattern` matches the whole of `text`.
pub fn matches(pattern: &str, text: &str) -> bool {
    match_bytes(pattern.as_bytes(), text.as_bytes())
}

fn match_bytes(pattern: &[u8], text: &[u8]) -> bool {
    match pattern {
        [] => text.is_empty(),
        [b'*', b'*', rest @ ..] => (0..=text.len()).any(|n| match_bytes(rest, &text[n..])),
        [b'*', rest @ ..] => {
            let end = text.iter().position(|b| *b == b'/').unwrap_or(text.len());
            (0..=end).any(|n| match_bytes(rest, &text[n..]))
        }
        [b'?', rest @ ..] => text.first().is_some_and(|b| *b != b'/') && match_bytes(rest, &text[1..]),
        [c, rest @ ..] => text.first() == Some(c) && match_bytes(rest, &text[1..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stop_at_slashes() {
        for (pattern, text, expected) in [
            ("/usr/bin/*", "/usr/bin/crun", true),
            ("/usr/bin/*", "/usr/bin/a/b", false),
            ("/usr/**.crt", "/usr/share/a/b.crt", true),
            ("lib*", "libc6", true),
            ("lib*", "zlib1g", false),
            ("a?c", "abc", true),
            ("a?c", "a/c", false),
            ("linux-image-*", "linux-image-6.12.1+deb13-cloud-amd64", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
