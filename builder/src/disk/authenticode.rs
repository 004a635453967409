//! The signature in an EFI executable, after "Windows Authenticode Portable Executable Signature Format": what is
//! hashed, and where the signature lies.

use super::uki::Layout;
use crate::pki::secure_boot::Signer;
use crate::pki::signed_data;
use anyhow::{Context, Result, bail};
use ring::digest;
use std::ops::Range;

/// Of an attribute certificate: its length, revision 2.0, PKCS_SIGNED_DATA.
const HEADER: usize = 8;
const REVISION_AND_TYPE: [u8; 4] = [0x00, 0x02, 0x02, 0x00];

/// Signs a PE32+ file, which has no signature yet.
pub fn sign(pe: &mut Vec<u8>, signer: &Signer) -> Result<()> {
    // Signatures begin at multiples of eight, and what comes before them is hashed.
    pe.resize(pe.len().next_multiple_of(8), 0);
    let signature = signed_data::of_executable(signer, &hash(pe)?)?;
    let (start, length) = (u32::try_from(pe.len())?, u32::try_from(HEADER + signature.len())?);
    let entry = certificate_entry(pe, &Layout::read(pe)?)?;
    pe[entry.start..entry.start + 4].copy_from_slice(&start.to_le_bytes());
    pe[entry.start + 4..entry.end].copy_from_slice(&length.next_multiple_of(8).to_le_bytes());
    pe.extend(length.to_le_bytes());
    pe.extend(REVISION_AND_TYPE);
    pe.extend(signature);
    pe.resize(pe.len().next_multiple_of(8), 0);
    Ok(())
}

/// SHA-256 of an unsigned file, without what a signature changes: the checksum and the entry that names signatures.
fn hash(pe: &[u8]) -> Result<[u8; 32]> {
    let layout = Layout::read(pe)?;
    let entry = certificate_entry(pe, &layout)?;
    if pe[entry.clone()] != [0; 8] {
        bail!("the EFI executable has a signature already");
    }
    let checksum = layout.optional + 64;
    let mut sections = layout.sections;
    sections.sort_by_key(|section| section.start);
    let hashed: usize = layout.headers_size + sections.iter().map(ExactSizeIterator::len).sum::<usize>();
    let head = [0..checksum, checksum + 4..entry.start, entry.end..layout.headers_size];
    let mut context = digest::Context::new(&digest::SHA256);
    for range in head.into_iter().chain(sections).chain(std::iter::once(hashed..pe.len())) {
        context.update(pe.get(range).context("the EFI executable is cut short")?);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    Ok(out)
}

/// Where the headers name the signatures: the fifth data directory.
fn certificate_entry(pe: &[u8], layout: &Layout) -> Result<Range<usize>> {
    let start = layout.optional + 112 + 4 * 8;
    let count = pe.get(layout.optional + 108..layout.optional + 112).context("the EFI executable is cut short")?;
    if u32::from_le_bytes(count.try_into()?) < 5 || start + 8 > layout.headers_size || layout.headers_size > pe.len() {
        bail!("the EFI executable has no place for a signature");
    }
    Ok(start..start + 8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::uki::tests::stub;
    use crate::pki::{Secrets, SecureBoot};

    fn signed(keys: &SecureBoot) -> Vec<u8> {
        let mut pe = crate::disk::uki::build(&stub(), &[(".cmdline", b"quiet")]).unwrap();
        sign(&mut pe, keys.signer()).unwrap();
        pe
    }

    #[test]
    fn the_signature_is_where_the_headers_say_and_the_same_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let secrets = Secrets::ensure(&dir.path().join("secrets"), "demo").unwrap();
        let keys = SecureBoot::ensure(&secrets, "demo").unwrap();
        let pe = signed(&keys);
        assert_eq!(pe, signed(&keys));
        let entry = certificate_entry(&pe, &Layout::read(&pe).unwrap()).unwrap();
        let word = |at: usize| u32::from_le_bytes(pe[at..at + 4].try_into().unwrap()) as usize;
        let (start, size) = (word(entry.start), word(entry.start + 4));
        assert_eq!(start + size, pe.len());
        assert_eq!((start % 8, size % 8), (0, 0));
        assert_eq!(pe[start + 4..start + 8], REVISION_AND_TYPE);
        assert!(sign(&mut pe.clone(), keys.signer()).unwrap_err().to_string().contains("already"));
    }

    #[test]
    fn every_byte_counts_but_the_checksum() {
        let pe = crate::disk::uki::build(&stub(), &[(".cmdline", b"quiet")]).unwrap();
        let plain = hash(&pe).unwrap();
        let layout = Layout::read(&pe).unwrap();
        let changed = |at: usize| {
            let mut other = pe.clone();
            other[at] ^= 1;
            hash(&other)
        };
        assert_eq!(changed(layout.optional + 65).unwrap(), plain);
        // The time of the build, the last byte of the headers, a byte of the stub's section, one of the command line.
        for at in [layout.pe + 9, layout.headers_size - 1, 0x410, pe.len() - 512] {
            assert_ne!(changed(at).unwrap(), plain, "byte {at:#x}");
        }
        let mut longer = pe.clone();
        longer.extend([0; 8]);
        assert_ne!(hash(&longer).unwrap(), plain);
    }
}
