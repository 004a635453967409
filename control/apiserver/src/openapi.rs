//! OpenAPI documents, made when they are first asked for.

use std::collections::HashMap;
use std::sync::Mutex;

use bytes::Bytes;

/// Documents that were made, by their path and media type, with their ETag.
#[derive(Debug, Default)]
pub struct OpenApi {
    made: Mutex<HashMap<String, (Bytes, String)>>,
}

impl OpenApi {
    /// A document; `make` is called when it is not there yet.
    pub fn get(&self, key: &str, make: impl FnOnce() -> Option<Vec<u8>>) -> Option<(Bytes, String)> {
        if let Some(found) = self.made.lock().unwrap_or_else(|e| e.into_inner()).get(key) {
            return Some(found.clone());
        }
        let document = Bytes::from(make()?);
        let made = (document.clone(), etag(&document));
        self.made.lock().unwrap_or_else(|e| e.into_inner()).insert(key.to_string(), made.clone());
        Some(made)
    }

    /// Forgets everything, as kinds have changed.
    pub fn forget(&self) {
        self.made.lock().unwrap_or_else(|e| e.into_inner()).clear();
    }
}

/// The ETag of a document, without quotes.
pub fn etag(document: &[u8]) -> String {
    use sha2::Digest as _;
    hex::encode_upper(sha2::Sha256::digest(document))
}
