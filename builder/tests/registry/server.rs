//! Debian's docker-registry on a free port of loopback, with or without TLS and a password.

use crate::served::{Served, free_port};
use crate::tools::Tool;
use anyhow::Result;
use std::process::{Command, Stdio};

pub const USER: &str = "user";
/// The password of a published bcrypt test vector, so that no test needs a program to make hashes.
pub const PASSWORD: &str = "U*U";
const HASH: &str = "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW";

#[derive(Default)]
pub struct Setup {
    pub tls: bool,
    pub password: bool,
}

pub struct Server {
    served: Served,
    pem: String,
    _dir: tempfile::TempDir,
}

impl Server {
    pub fn start(setup: &Setup) -> Result<Server> {
        let dir = tempfile::tempdir()?;
        let at = |name: &str| dir.path().join(name).display().to_string();
        let port = free_port()?;
        let mut config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n\
             http:\n  addr: 127.0.0.1:{port}\n",
            at("data")
        );
        let mut pem = String::new();
        if setup.tls {
            let key = rcgen::KeyPair::generate()?;
            let mut parameters = rcgen::CertificateParams::new(vec!["127.0.0.1".into()])?;
            parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let authority_key = rcgen::KeyPair::generate()?;
            let authority = parameters.self_signed(&authority_key)?;
            let issuer = rcgen::Issuer::new(parameters, authority_key);
            let certificate = rcgen::CertificateParams::new(vec!["127.0.0.1".into()])?.signed_by(&key, &issuer)?;
            std::fs::write(at("tls.crt"), certificate.pem())?;
            std::fs::write(at("tls.key"), key.serialize_pem())?;
            config.push_str(&format!("  tls: {{certificate: {}, key: {}}}\n", at("tls.crt"), at("tls.key")));
            pem = authority.pem();
        }
        if setup.password {
            std::fs::write(at("htpasswd"), format!("{USER}:{HASH}\n"))?;
            config.push_str(&format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", at("htpasswd")));
        }
        std::fs::write(at("config.yml"), config)?;
        let mut command = Command::new(Tool::Registry.find()?);
        command
            .args(["serve", &at("config.yml")])
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // It calls each blob that is not there an error.
            .stderr(Stdio::null());
        Ok(Server { served: Served::start(&mut command, "docker-registry", port, None)?, pem, _dir: dir })
    }

    pub fn authority(&self) -> String {
        format!("127.0.0.1:{}", self.served.port)
    }

    pub fn authority_pem(&self) -> &str {
        &self.pem
    }
}
