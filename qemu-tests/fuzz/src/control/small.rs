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
    assert_eq!(read.minus(&quantity).to_string(), "0", "{text:?} and {written:?}");
    // Bytes that are no whole Ki are written as a number without a suffix, and that is read as a decimal one: so
    // 812.5Ki is 832000, and that 832k (upstream's `Quantity.CanonicalizeBytes`). Then it stays.
    let once_more = api::quantity::Quantity::parse(&read.to_string()).map(|again| again.to_string());
    assert_eq!(once_more, Some(read.to_string()), "{text:?} has no form that stays");
    let _sum = quantity.plus(&read).minus(&quantity).milli();
}
