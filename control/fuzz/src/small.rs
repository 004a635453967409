//! Short texts: selectors, continue tokens, quantities.

use api::continuation::Continuation;
use serde_json::json;

pub(crate) fn selector(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(labels) = api::selector::Labels::parse(text) {
        let written = labels.to_string();
        let read = api::selector::Labels::parse(&written)
            .unwrap_or_else(|e| panic!("{written:?}, written of a selector, is none: {e}"));
        let object = json!({"metadata": {"labels": {"a": "b", "app": "web", "n": "5"}}});
        assert_eq!(labels.matches_object(&object), read.matches_object(&object), "{text:?} and {written:?}");
    }
    let _fields = api::selector::Fields::parse(text).map(|f| f.to_string());
}

pub(crate) fn continue_token(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(token) = Continuation::read(text) {
        let again = Continuation::read(&token.write()).expect("a token that was written is one");
        assert_eq!(again, token);
    }
}

pub(crate) fn quantity(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Some(quantity) = api::quantity::Quantity::parse(text) else { return };
    let written = quantity.to_string();
    let read = api::quantity::Quantity::parse(&written)
        .unwrap_or_else(|| panic!("{written:?}, written of {text:?}, is no quantity"));
    assert_eq!(read.to_string(), written, "{text:?} is not written in its one form");
    assert_eq!(read.sign(), quantity.sign());
    let _sum = quantity.plus(&read).minus(&quantity).milli();
}
