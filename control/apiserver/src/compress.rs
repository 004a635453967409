//! gzip for answers that are worth it, piece by piece.

use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::stream;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, VARY};
use http::{HeaderMap, HeaderValue, Response};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, StreamBody};

use crate::pipeline::Body;

/// Answers smaller than this go out as they are.
pub const WORTH: usize = 128 << 10;

/// Marks an answer of unknown size as worth it.
#[derive(Clone, Copy, Debug)]
pub struct Large;

/// Whether a client takes gzip.
pub fn is_asked(headers: &HeaderMap) -> bool {
    let given = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok());
    given.flat_map(|v| v.split(',')).any(|coding| {
        let (name, params) = coding.split_once(';').unwrap_or((coding, ""));
        let refused = params.trim().strip_prefix("q=").is_some_and(|q| q.parse::<f32>().is_ok_and(|q| q <= 0.0));
        name.trim().eq_ignore_ascii_case("gzip") && !refused
    })
}

/// The answer, compressed if that is worth it.
pub fn compress(mut response: Response<Body>) -> Response<Body> {
    let large = response.extensions().get::<Large>().is_some()
        || response.body().size_hint().exact().is_some_and(|size| size >= WORTH as u64);
    if !large || response.headers().contains_key(CONTENT_ENCODING) {
        return response;
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
    headers.remove(CONTENT_LENGTH);
    response.map(packed)
}

/// What is written to memory cannot fail; the type says that it could.
fn packed(body: Body) -> Body {
    let start = (body, Some(GzEncoder::new(Vec::new(), Compression::fast())));
    let pieces = stream::unfold(start, |(mut body, encoder)| async move {
        let mut encoder = encoder?;
        loop {
            let done = match body.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => encoder.write_all(&data).map(|()| std::mem::take(encoder.get_mut())),
                    Err(_) => continue,
                },
                Some(Err(error)) => Err(error),
                None => return Some((encoder.finish().map(|out| Frame::data(Bytes::from(out))), (body, None))),
            };
            match done {
                Ok(out) if out.is_empty() => {}
                Ok(out) => return Some((Ok(Frame::data(Bytes::from(out))), (body, Some(encoder)))),
                Err(error) => return Some((Err(error), (body, None))),
            }
        }
    });
    StreamBody::new(pieces).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks() {
        for (header, wanted) in
            [("gzip", true), ("deflate, gzip;q=0.5", true), ("gzip;q=0", false), ("identity", false), ("GZIP", true)]
        {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(header));
            assert_eq!(is_asked(&headers), wanted, "{header}");
        }
        assert!(!is_asked(&HeaderMap::new()));
    }
}
