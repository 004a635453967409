//! CMS SignedData (RFC 5652) in the two forms that firmware reads: around what an executable hashes to
//! (Microsoft's Authenticode), and beside the content of a UEFI variable. RSA PKCS#1 v1.5 over SHA-256 and no
//! signing time, so that the same content signed by the same key is the same bytes.

use super::secure_boot::Signer;
use crate::cache::hash::sha256;
use anyhow::Result;
use yasna::models::ObjectIdentifier;
use yasna::{DERWriter, Tag, construct_der};

const SIGNED_DATA: &[u64] = &[1, 2, 840, 113549, 1, 7, 2];
const DATA: &[u64] = &[1, 2, 840, 113549, 1, 7, 1];
const CONTENT_TYPE: &[u64] = &[1, 2, 840, 113549, 1, 9, 3];
const MESSAGE_DIGEST: &[u64] = &[1, 2, 840, 113549, 1, 9, 4];
const SHA256: &[u64] = &[2, 16, 840, 1, 101, 3, 4, 2, 1];
const RSA: &[u64] = &[1, 2, 840, 113549, 1, 1, 1];
/// SPC_INDIRECT_DATA_OBJID and SPC_PE_IMAGE_DATAOBJ of "Windows Authenticode Portable Executable Signature Format".
const INDIRECT_DATA: &[u64] = &[1, 3, 6, 1, 4, 1, 311, 2, 1, 4];
const PE_IMAGE_DATA: &[u64] = &[1, 3, 6, 1, 4, 1, 311, 2, 1, 15];
/// What stands in place of a file name ever since the specification was published.
const NO_FILE: &str = "<<<Obsolete>>>";

/// The signature of an executable with this Authenticode hash: a ContentInfo.
pub fn of_executable(signer: &Signer, hash: &[u8; 32]) -> Result<Vec<u8>> {
    let image = construct_der(|writer| {
        writer.write_sequence(|writer| {
            write_oid(writer.next(), PE_IMAGE_DATA);
            writer.next().write_sequence(|writer| {
                writer.next().write_bitvec_bytes(&[], 0);
                writer.next().write_tagged(Tag::context(0), |writer| {
                    writer.write_tagged(Tag::context(2), |writer| {
                        writer.write_tagged_implicit(Tag::context(0), |writer| writer.write_bmp_string(NO_FILE));
                    });
                });
            });
        });
    });
    let digest = construct_der(|writer| {
        writer.write_sequence(|writer| {
            write_algorithm(writer.next(), SHA256);
            writer.next().write_bytes(hash);
        });
    });
    // The digest of a content is that of its value, without the SEQUENCE's own tag and length.
    let elements = [image, digest].concat();
    let attributes = construct_der(|writer| write_attributes(writer, &sha256(&elements)));
    let signature = signer.sign(&attributes)?;
    let content = |writer: DERWriter<'_>| {
        writer.write_sequence(|writer| {
            write_oid(writer.next(), INDIRECT_DATA);
            writer.next().write_tagged(Tag::context(0), |writer| {
                writer.write_sequence(|writer| writer.next().write_der(&elements));
            });
        });
    };
    let data = signed_data(signer, content, Some(&sha256(&elements)), &signature)?;
    Ok(construct_der(|writer| {
        writer.write_sequence(|writer| {
            write_oid(writer.next(), SIGNED_DATA);
            writer.next().write_tagged(Tag::context(0), |writer| writer.write_der(&data));
        });
    }))
}

/// The signature of a message that is kept elsewhere: a SignedData without a ContentInfo around it, as UEFI wants it.
pub fn of_message(signer: &Signer, message: &[u8]) -> Result<Vec<u8>> {
    let signature = signer.sign(message)?;
    let content = |writer: DERWriter<'_>| writer.write_sequence(|writer| write_oid(writer.next(), DATA));
    signed_data(signer, content, None, &signature)
}

fn signed_data(
    signer: &Signer,
    content: impl FnOnce(DERWriter<'_>),
    attributes_of: Option<&[u8; 32]>,
    signature: &[u8],
) -> Result<Vec<u8>> {
    let certificate = signer.certificate()?;
    Ok(construct_der(|writer| {
        writer.write_sequence(|writer| {
            writer.next().write_u8(1);
            writer.next().write_set_of(|writer| write_algorithm(writer.next(), SHA256));
            content(writer.next());
            writer.next().write_tagged_implicit(Tag::context(0), |writer| {
                writer.write_set_of(|writer| writer.next().write_der(signer.certificate_der()));
            });
            writer.next().write_set_of(|writer| {
                writer.next().write_sequence(|writer| {
                    writer.next().write_u8(1);
                    writer.next().write_sequence(|writer| {
                        writer.next().write_der(certificate.issuer().as_raw());
                        writer.next().write_bigint_bytes(certificate.raw_serial(), true);
                    });
                    write_algorithm(writer.next(), SHA256);
                    if let Some(digest) = attributes_of {
                        writer.next().write_tagged_implicit(Tag::context(0), |writer| write_attributes(writer, digest));
                    }
                    write_algorithm(writer.next(), RSA);
                    writer.next().write_bytes(signature);
                });
            });
        });
    }))
}

/// What an executable's signature signs; the signed form has the tag of a set.
fn write_attributes(writer: DERWriter<'_>, digest: &[u8; 32]) {
    writer.write_set_of(|writer| {
        writer.next().write_sequence(|writer| {
            write_oid(writer.next(), CONTENT_TYPE);
            writer.next().write_set_of(|writer| write_oid(writer.next(), INDIRECT_DATA));
        });
        writer.next().write_sequence(|writer| {
            write_oid(writer.next(), MESSAGE_DIGEST);
            writer.next().write_set_of(|writer| writer.next().write_bytes(digest));
        });
    });
}

fn write_oid(writer: DERWriter<'_>, components: &[u64]) {
    writer.write_oid(&ObjectIdentifier::from_slice(components));
}

fn write_algorithm(writer: DERWriter<'_>, components: &[u64]) {
    writer.write_sequence(|writer| {
        write_oid(writer.next(), components);
        writer.next().write_null();
    });
}
