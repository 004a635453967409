//! What is asked of the cluster's own registry, and manifests that are pushed to it.

use cluster_registry::names::{Reference, is_repository};
use cluster_registry::routes::{Route, byte_range, digest_in};
use cluster_registry::store::parts_of;

/// The first byte chooses a path, a range, a query or a manifest.
pub(crate) fn requests(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    if first % 4 == 3 {
        let Some(([kind], body)) = rest.split_first_chunk() else { return };
        let kind = ["vnd.oci.image.manifest.v1", "vnd.oci.image.index.v1"][usize::from(kind & 1)];
        let Ok(parts) = parts_of(&format!("application/{kind}+json"), body) else { return };
        return assert!(parts.len() * 64 <= body.len(), "{} parts of {} bytes", parts.len(), body.len());
    }
    let Ok(text) = std::str::from_utf8(rest) else { return };
    match first % 4 {
        0 => path(text),
        1 => {
            for size in [0, 1, 1000, u64::MAX] {
                if let Some(Some((from, to))) = byte_range(text, size) {
                    assert!(from < to && to <= size, "{from} to {to} of {size}");
                }
            }
        }
        _ => {
            if let Some(digest) = digest_in(Some(text), "digest") {
                assert_eq!(digest_in(Some(&format!("digest={digest}")), "digest"), Some(digest));
            }
        }
    }
}

/// What a path means is written as a path, which means the same; no name leads out of a folder.
fn path(text: &str) {
    let Some(route) = Route::parse(text) else { return };
    let (repository, tail) = match &route {
        Route::Base | Route::Catalog => return,
        Route::Tags(name) => (name, "tags/list".to_owned()),
        Route::Manifest(name, Reference::Tag(tag)) => (name, format!("manifests/{tag}")),
        Route::Manifest(name, Reference::Digest(digest)) => (name, format!("manifests/{digest}")),
        Route::Blob(name, digest) => (name, format!("blobs/{digest}")),
        Route::Uploads(name) => (name, "blobs/uploads/".to_owned()),
        Route::Upload(name, id) => (name, format!("blobs/uploads/{id}")),
    };
    assert!(is_repository(repository) && !repository.split('/').any(|part| matches!(part, "" | "." | "..")));
    assert_eq!(Route::parse(&format!("/v2/{repository}/{tail}")), Some(route), "{text:?}");
}
