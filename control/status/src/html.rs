//! Markup in which no value can become markup.

use std::fmt::{Display, Write};

/// The most characters of one value: objects hold texts as long as their authors like.
const LONGEST: usize = 300;

/// A document as it grows. Markup is known when this program is compiled; everything else is text.
#[derive(Debug, Default)]
pub struct Html(String);

impl Html {
    /// Adds markup.
    pub fn raw(&mut self, markup: &'static str) -> &mut Html {
        self.0.push_str(markup);
        self
    }

    /// Adds a value, in an element or in an attribute's quotes.
    pub fn text(&mut self, value: impl Display) -> &mut Html {
        let mut whole = String::new();
        // Writing to a String cannot fail.
        let _ = write!(whole, "{value}");
        let mut characters = whole.chars();
        for character in characters.by_ref().take(LONGEST) {
            match character {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                '\n' | '\t' => self.0.push(' '),
                // A text must not turn round what stands beside it.
                '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => self.0.push('\u{fffd}'),
                other if other.is_control() => self.0.push('\u{fffd}'),
                other => self.0.push(other),
            }
        }
        if characters.next().is_some() {
            self.0.push('…');
        }
        self
    }

    /// The document.
    pub fn done(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_becomes_markup() {
        let shown = |value: &str| {
            let mut html = Html::default();
            html.text(value);
            html.done()
        };
        assert_eq!(shown("<script>alert('x')</script>"), "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;");
        assert_eq!(shown("a\" onload=\"b&amp;"), "a&quot; onload=&quot;b&amp;amp;");
        assert_eq!(shown("a\0b\u{1b}[2J\u{202e}c\nd"), "a\u{fffd}b\u{fffd}[2J\u{fffd}c d");
        assert_eq!(shown(&"é".repeat(301)), "é".repeat(300) + "…");
    }
}
