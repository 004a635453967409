//! Documents as platforms hand them over: raw, base64, gzip, or base64 of gzip. What they unpack to is bounded.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use std::io::Read;

const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];

/// Some tools leave the padding away.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why a document cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum EncodingError {
    /// Beyond the limit.
    #[error("it has more than {0} bytes; shorten it")]
    TooLarge(usize),
    /// Gzip or UTF-8 is broken.
    #[error("{0}")]
    Broken(String),
}

/// The text of a document, without a byte order mark and with plain line ends.
pub(crate) fn decode(raw: &[u8], limit: usize) -> Result<String, EncodingError> {
    let bytes = if raw.starts_with(GZIP_MAGIC) {
        gunzip(raw, limit)?
    } else if let Some(decoded) = from_base64(raw).filter(|_| !raw.starts_with(b"#")) {
        if decoded.starts_with(GZIP_MAGIC) { gunzip(&decoded, limit)? } else { decoded }
    } else {
        raw.to_vec()
    };
    if bytes.len() > limit {
        return Err(EncodingError::TooLarge(limit));
    }
    let text = String::from_utf8(bytes).map_err(|_| EncodingError::Broken("it is not UTF-8 text".to_owned()))?;
    Ok(text.trim_start_matches('\u{feff}').replace("\r\n", "\n"))
}

/// The bytes when all of it is base64, in one line or several.
pub(crate) fn from_base64(raw: &[u8]) -> Option<Vec<u8>> {
    let compact: Vec<u8> = raw.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    if compact.is_empty() {
        return None;
    }
    LENIENT.decode(compact).ok()
}

fn gunzip(bytes: &[u8], limit: usize) -> Result<Vec<u8>, EncodingError> {
    let mut text = Vec::new();
    // One byte more shows that there would be more.
    let bound = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    flate2::read::MultiGzDecoder::new(bytes)
        .take(bound)
        .read_to_end(&mut text)
        .map_err(|error| EncodingError::Broken(format!("the gzip data is damaged ({error})")))?;
    Ok(text)
}
