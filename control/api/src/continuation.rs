//! Continue tokens: where the next page of a list begins, and of which picture.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continuation {
    /// Revision of the picture; -1: the newest, whatever it is.
    pub revision: i64,
    /// The last key of the page before.
    pub start: String,
}

/// The form that upstream gives it, too.
#[derive(Serialize, Deserialize)]
struct Token {
    v: String,
    rv: i64,
    start: String,
}

impl Continuation {
    /// The token's text.
    pub fn write(&self) -> String {
        let token = Token { v: "meta.k8s.io/v1".into(), rv: self.revision, start: self.start.clone() };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
    }

    /// Reads a token's text.
    ///
    /// # Errors
    /// It is none; says why.
    pub fn read(text: &str) -> Result<Continuation, String> {
        let raw = URL_SAFE_NO_PAD.decode(text).map_err(|e| e.to_string())?;
        let token: Token = serde_json::from_slice(&raw).map_err(|e| e.to_string())?;
        Ok(Continuation { revision: token.rv, start: token.start })
    }
}
