//! A mirror for tests. Its Release files are signed with a key of this process, which only tests trust.

use super::suites;
use crate::cache::hash;
use crate::web::fake::{Reply, Server};
use pgp::composed::{ArmorOptions, CleartextSignedMessage, KeyType, SecretKeyParamsBuilder, SignedSecretKey};
use pgp::types::Password;
use rsa::rand_core::OsRng;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, LazyLock, Mutex};

/// The key that tests trust.
pub(crate) static KEY: LazyLock<SignedSecretKey> = LazyLock::new(new_key);

/// A key that nobody knows.
pub(crate) fn new_key() -> SignedSecretKey {
    let mut params = SecretKeyParamsBuilder::default();
    params.key_type(KeyType::Ed25519Legacy).can_certify(true).can_sign(true).primary_user_id("tests".into());
    params.build().unwrap().generate(OsRng).unwrap()
}

/// The text in its signature.
pub(crate) fn signed(text: &str, key: &SignedSecretKey) -> String {
    let message = CleartextSignedMessage::sign(OsRng, text, &key.primary_key, &Password::empty()).unwrap();
    message.to_armored_string(ArmorOptions::default()).unwrap()
}

/// Both archives in one; without any package at first.
pub(crate) struct Mirror {
    server: Server,
    files: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
}

impl Mirror {
    pub(crate) fn start() -> Mirror {
        let files: Arc<Mutex<BTreeMap<String, Vec<u8>>>> = Arc::default();
        let there = files.clone();
        let server = Server::start(move |call| match there.lock().unwrap().get(&call.path) {
            Some(bytes) => Reply::new(200).body(bytes),
            None => Reply::new(404),
        });
        let mirror = Mirror { server, files };
        suites().iter().for_each(|suite| mirror.publish(suite, "2100-01-01T00:00:00Z", &[]));
        mirror
    }

    pub(crate) fn url(&self) -> String {
        self.server.url()
    }

    /// Makes these packages, by name and version, all that a suite has.
    pub(crate) fn publish(&self, suite: &str, until: &str, packages: &[(&str, &str)]) {
        let stanza = |(name, version): &(&str, &str)| {
            let sum = hash::hex_of(format!("{name} {version}").as_bytes());
            format!(
                "Package: {name}\nVersion: {version}\nArchitecture: amd64\nFilename: pool/{name}_{version}.deb\n\
                 Size: 1\nSHA256: {sum}\n\n"
            )
        };
        let mut packed = liblzma::write::XzEncoder::new(Vec::new(), 0);
        packed.write_all(packages.iter().map(stanza).collect::<String>().as_bytes()).unwrap();
        let packed = packed.finish().unwrap();
        let until = until.parse::<jiff::Timestamp>().unwrap().strftime("%a, %d %b %Y %H:%M:%S UTC").to_string();
        let index = "main/binary-amd64/Packages.xz";
        let text = format!(
            "Codename: {suite}\nValid-Until: {until}\nSHA256:\n {} {} {index}\n",
            hash::hex_of(&packed),
            packed.len()
        );
        let mut files = self.files.lock().unwrap();
        files.insert(format!("/dists/{suite}/InRelease"), signed(&text, &KEY).into_bytes());
        files.insert(format!("/dists/{suite}/{index}"), packed);
    }
}
