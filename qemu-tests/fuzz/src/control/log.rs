//! The store's log, as a damaged or foreign disk may hold it.

use crate::crc32;
use std::cell::RefCell;
use std::io::{Seek, Write};

const HEADER: &[u8] = b"KIMG-STORE-LOG-2";

thread_local! {
    static FILE: RefCell<tempfile::NamedTempFile> =
        RefCell::new(tempfile::NamedTempFile::new().expect("a temporary file"));
}

/// One frame around these records, with the right length and checksum.
fn frame(records: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"KFRM");
    out.extend_from_slice(&u32::try_from(records.len()).unwrap_or(0).to_le_bytes());
    out.extend_from_slice(&crc32(records).to_le_bytes());
    out.extend_from_slice(records);
}

/// The first byte chooses between the bytes as they are, and bytes in two frames with right checksums,
/// which chance would never make.
pub(crate) fn log(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    let mut bytes = HEADER.to_vec();
    if first & 1 == 0 {
        bytes.extend_from_slice(rest);
    } else {
        let (one, two) = rest.split_at(rest.len().min(usize::from(first >> 1)));
        frame(one, &mut bytes);
        frame(two, &mut bytes);
    }
    FILE.with_borrow_mut(|file| {
        file.as_file_mut().set_len(0).expect("emptying the file");
        file.as_file_mut().rewind().expect("going to the file's beginning");
        file.write_all(&bytes).expect("writing the file");
        if let Ok(report) = store::verify(file.path()) {
            assert!(report.whole_bytes <= bytes.len() as u64, "more is whole than there is");
        }
    });
}
