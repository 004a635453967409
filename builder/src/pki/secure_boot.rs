//! The cluster's Secure Boot keys, one for each of the firmware's variables: the platform key, the key exchange
//! key, and the one that signs kernels. Made when they are first needed, kept in `secrets/`, and never part of an image.
//!
//! Firmware takes RSA keys of 2048 bits everywhere, and others hardly anywhere.

use super::authority;
use super::secrets::Secrets;
use super::signed_data;
use crate::cache::hash::{self, sha256};
use crate::disk::gpt::Guid;
use anyhow::{Context, Result, bail};
use rcgen::{KeyPair, PublicKeyData, SigningKey};
use rsa::pkcs8::{EncodePrivateKey, LineEnding};
use std::path::Path;
use x509_parser::certificate::X509Certificate;
use x509_parser::parse_x509_certificate;

const BITS: usize = 2048;

/// EFI_GLOBAL_VARIABLE.
const GLOBAL: Guid = Guid::from_text_bytes([
    0x8b, 0xe4, 0xdf, 0x61, 0x93, 0xca, 0x11, 0xd2, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c,
]);
/// EFI_IMAGE_SECURITY_DATABASE_GUID.
const IMAGE_SECURITY: Guid = Guid::from_text_bytes([
    0xd7, 0x19, 0xb2, 0xcb, 0x3d, 0x3a, 0x45, 0x96, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f,
]);
/// EFI_CERT_X509_GUID: a signature list of certificates.
const CERT_X509: Guid = Guid::from_text_bytes([
    0xa5, 0xc0, 0x59, 0xa1, 0x94, 0xe4, 0x4a, 0xa7, 0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72,
]);
/// EFI_CERT_TYPE_PKCS7_GUID: how a variable's new value is signed.
const CERT_PKCS7: Guid = Guid::from_text_bytes([
    0x4a, 0xaf, 0xd2, 0x9d, 0x68, 0xdf, 0x49, 0xee, 0x8a, 0xa9, 0x34, 0x7d, 0x37, 0x56, 0x65, 0xa7,
]);
/// WIN_CERT_TYPE_EFI_GUID, revision 2.0.
const WIN_CERT_EFI_GUID: [u8; 4] = [0x00, 0x02, 0xf1, 0x0e];
/// Non-volatile, seen before and after the boot, authenticated by time.
const ATTRIBUTES: u32 = 0x27;

/// A key with its certificate.
#[derive(Debug)]
pub struct Signer {
    key: KeyPair,
    certificate: Vec<u8>,
}

impl Signer {
    /// Reads the pair `STEM.{key,crt}`; what is missing of it is made first.
    fn ensure(secrets: &Secrets, cluster: &str, stem: &str) -> Result<Signer> {
        let (key_file, certificate_file) = (format!("{stem}.key"), format!("{stem}.crt"));
        if !secrets.path(&key_file).exists() {
            let key = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, BITS)
                .with_context(|| format!("making {key_file}"))?;
            let pem = key.to_pkcs8_pem(LineEnding::LF).with_context(|| format!("making {key_file}"))?;
            secrets.write(&key_file, pem.as_bytes())?;
        }
        let key = secrets.key(&key_file)?;
        if !secrets.path(&certificate_file).exists() {
            let certificate = authority::self_signed_params(cluster, stem)
                .self_signed(&key)
                .with_context(|| format!("signing {certificate_file}"))?;
            secrets.write(&certificate_file, certificate.pem().as_bytes())?;
        }
        let path = secrets.path(&certificate_file);
        let (_, pem) = x509_parser::pem::parse_x509_pem(secrets.read(&certificate_file)?.as_bytes())
            .with_context(|| format!("reading {}", path.display()))?;
        let signer = Signer { key, certificate: pem.contents };
        let parsed = signer.certificate().with_context(|| format!("reading {}", path.display()))?;
        if parsed.public_key().subject_public_key.data.as_ref() != signer.key.der_bytes() {
            bail!(
                "{} is not the certificate of {key_file} beside it; restore both from your backup, or remove both: \
                 new ones are then made, which firmware has to learn",
                path.display()
            );
        }
        Ok(signer)
    }

    /// The signature of a message, RSA PKCS#1 v1.5 with SHA-256.
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        self.key.sign(message).context("signing by a Secure Boot key (it must be RSA)")
    }

    /// The certificate as it is encoded.
    pub fn certificate_der(&self) -> &[u8] {
        &self.certificate
    }

    pub(super) fn certificate(&self) -> Result<X509Certificate<'_>> {
        Ok(parse_x509_certificate(&self.certificate).context("a Secure Boot certificate cannot be read")?.1)
    }
}

/// A file that the firmware, or a tool that speaks to it, reads.
#[derive(Debug)]
pub struct EnrolmentFile {
    /// Variable and kind of file, e.g. `db.auth`.
    pub name: String,
    /// Content; nothing in it is secret.
    pub bytes: Vec<u8>,
}

/// All Secure Boot keys of a cluster.
#[derive(Debug)]
pub struct SecureBoot {
    /// Whose certificate the machine's owner puts in: signs changes of PK and KEK.
    pk: Signer,
    /// Signs changes of db.
    kek: Signer,
    /// Signs kernels.
    db: Signer,
}

impl SecureBoot {
    /// Reads the keys; what is missing is made.
    pub fn ensure(secrets: &Secrets, cluster: &str) -> Result<SecureBoot> {
        let _lock = secrets.lock()?;
        let signer = |stem| Signer::ensure(secrets, cluster, stem);
        Ok(SecureBoot { pk: signer("secure-boot-pk")?, kek: signer("secure-boot-kek")?, db: signer("secure-boot-db")? })
    }

    /// What signs kernels.
    pub fn signer(&self) -> &Signer {
        &self.db
    }

    /// Names all three certificates: SHA-256, hex.
    pub fn fingerprint(&self) -> String {
        let all: Vec<u8> = self.variables().iter().flat_map(|v| sha256(&v.signer.certificate)).collect();
        hash::hex_of(&all)
    }

    /// The certificates under the names and the form (DER) that firmware's own menus take.
    pub fn certificates(&self) -> Vec<EnrolmentFile> {
        let file = |v: &Variable<'_>| EnrolmentFile {
            name: format!("{}.cer", v.name),
            bytes: v.signer.certificate_der().to_vec(),
        };
        self.variables().iter().map(file).collect()
    }

    /// For each variable `NAME.auth` (a signed change), `NAME.esl` (the bare list) and `NAME.cer`.
    pub fn enrolment(&self) -> Result<Vec<EnrolmentFile>> {
        let mut files = self.certificates();
        for variable in self.variables() {
            let list = variable.signature_list()?;
            files.push(EnrolmentFile { name: format!("{}.auth", variable.name), bytes: variable.change(&list)? });
            files.push(EnrolmentFile { name: format!("{}.esl", variable.name), bytes: list });
        }
        Ok(files)
    }

    fn variables(&self) -> [Variable<'_>; 3] {
        [
            Variable { name: "PK", vendor: GLOBAL, signer: &self.pk, authority: &self.pk },
            Variable { name: "KEK", vendor: GLOBAL, signer: &self.kek, authority: &self.pk },
            Variable { name: "db", vendor: IMAGE_SECURITY, signer: &self.db, authority: &self.kek },
        ]
    }
}

/// One of the firmware's variables, whose value becomes one certificate of ours.
struct Variable<'a> {
    name: &'static str,
    vendor: Guid,
    signer: &'a Signer,
    /// Who may change it.
    authority: &'a Signer,
}

impl Variable<'_> {
    /// EFI_SIGNATURE_LIST with the certificate (UEFI 2.10, 32.4.1).
    fn signature_list(&self) -> Result<Vec<u8>> {
        let owner = Guid::derived("secure boot").disk_bytes();
        let entry = u32::try_from(owner.len() + self.signer.certificate.len())?;
        let mut out = CERT_X509.disk_bytes().to_vec();
        out.extend((28 + entry).to_le_bytes());
        out.extend(0u32.to_le_bytes());
        out.extend(entry.to_le_bytes());
        out.extend(owner);
        out.extend(&self.signer.certificate);
        Ok(out)
    }

    /// The signed change to `value`: EFI_VARIABLE_AUTHENTICATION_2 and the value (UEFI 2.10, 8.2.2).
    fn change(&self, value: &[u8]) -> Result<Vec<u8>> {
        let time = self.time()?;
        let mut message: Vec<u8> = self.name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        message.extend(self.vendor.disk_bytes());
        message.extend(ATTRIBUTES.to_le_bytes());
        message.extend(time);
        message.extend(value);
        let signature = signed_data::of_message(self.authority, &message)?;
        let mut out = time.to_vec();
        out.extend(u32::try_from(24 + signature.len())?.to_le_bytes());
        out.extend(WIN_CERT_EFI_GUID);
        out.extend(CERT_PKCS7.disk_bytes());
        out.extend(signature);
        out.extend(value);
        Ok(out)
    }

    /// EFI_TIME of the certificate's beginning: firmware takes a change only when it is later than the last one,
    /// which a later certificate is, and the same keys give the same files.
    fn time(&self) -> Result<[u8; 16]> {
        let certificate = self.signer.certificate()?;
        let at = certificate.validity().not_before.to_datetime();
        let mut out = [0; 16];
        out[0..2].copy_from_slice(&u16::try_from(at.year())?.to_le_bytes());
        out[2..7].copy_from_slice(&[u8::from(at.month()), at.day(), at.hour(), at.minute(), at.second()]);
        Ok(out)
    }
}

/// Writes the enrolment files to a folder, which is made where there is none; their names.
pub fn write_enrolment(keys: &SecureBoot, dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for file in keys.enrolment()? {
        crate::cache::write_atomic(&dir.join(&file.name), &file.bytes)?;
        names.push(file.name);
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};

    fn u32_at(bytes: &[u8], at: usize) -> usize {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
    }

    #[test]
    fn keys_are_made_once_and_their_files_are_what_firmware_reads() {
        let dir = tempfile::tempdir().unwrap();
        let secrets = Secrets::ensure(&dir.path().join("secrets"), "demo").unwrap();
        let keys = SecureBoot::ensure(&secrets, "demo").unwrap();
        let again = SecureBoot::ensure(&secrets, "demo").unwrap();
        assert_eq!(keys.fingerprint(), again.fingerprint());
        let names = write_enrolment(&keys, &dir.path().join("out")).unwrap();
        assert_eq!(
            names,
            ["KEK.auth", "KEK.cer", "KEK.esl", "PK.auth", "PK.cer", "PK.esl", "db.auth", "db.cer", "db.esl"]
        );
        let read = |name: &str| std::fs::read(dir.path().join("out").join(name)).unwrap();
        for file in again.enrolment().unwrap() {
            assert_eq!(read(&file.name), file.bytes, "{} is not the same twice", file.name);
        }
        for (name, authority) in [("PK", &keys.pk), ("KEK", &keys.pk), ("db", &keys.kek)] {
            let (auth, list) = (read(&format!("{name}.auth")), read(&format!("{name}.esl")));
            assert_eq!(u32_at(&list, 16), list.len());
            assert!(list.ends_with(&read(&format!("{name}.cer"))));
            let end = 16 + u32_at(&auth, 16);
            assert_eq!(&auth[end..], list, "{name}: the value follows the signature");
            let signed = &auth[40..end];
            // EDK II looks for the digest's OID at this place of a bare SignedData, and nowhere else.
            assert_eq!(&signed[13..22], [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01], "{name}");
            let vendor = if name == "db" { IMAGE_SECURITY } else { GLOBAL };
            let mut message: Vec<u8> = name.bytes().flat_map(|b| [b, 0]).collect();
            message.extend(vendor.disk_bytes());
            message.extend([0x27, 0, 0, 0]);
            message.extend(&auth[..16]);
            message.extend(&list);
            let public = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, authority.key.der_bytes());
            // The signature is the last element.
            public.verify(&message, &signed[signed.len() - 256..]).unwrap_or_else(|_| panic!("{name}"));
        }
    }

    #[test]
    fn a_key_with_another_ones_certificate_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let secrets = Secrets::ensure(&dir.path().join("secrets"), "demo").unwrap();
        SecureBoot::ensure(&secrets, "demo").unwrap();
        std::fs::copy(secrets.path("secure-boot-pk.crt"), secrets.path("secure-boot-db.crt")).unwrap();
        let error = SecureBoot::ensure(&secrets, "demo").unwrap_err().to_string();
        assert!(error.contains("secure-boot-db.crt is not the certificate of secure-boot-db.key"), "{error}");
    }
}
