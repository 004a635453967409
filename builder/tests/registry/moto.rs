//! moto, which stands in for AWS and checks each signature by AWS' own library.

use crate::served::{Served, free_port};
use crate::tools;
use anyhow::{Context, Result};
use std::path::Path;
use std::process::{Command, Stdio};

/// The server, with a user who may do everything, and a bucket `images`.
pub struct Moto {
    _server: Served,
    pub url: String,
    pub key: String,
    pub secret: String,
}

impl Moto {
    pub fn start(dir: &Path) -> Result<Moto> {
        let port = free_port()?;
        let log = dir.join("moto.log");
        let mut command = Command::new(tools::moto()?.join("bin/moto_server"));
        command.args(["--host", "127.0.0.1", "--port", &port.to_string()]).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(std::fs::File::create(&log)?);
        let server = Served::start(&mut command, "moto", port, Some(&log))?;
        let url = format!("http://127.0.0.1:{port}");
        // As long as it lets everybody in.
        let iam = |action: &str| -> Result<String> {
            let scope =
                "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/iam/aws4_request, SignedHeaders=host, Signature=x";
            let request = ureq::post(&url).header("authorization", scope);
            let request = request.header("content-type", "application/x-www-form-urlencoded");
            Ok(request.send(format!("{action}&UserName=u&Version=2010-05-08"))?.body_mut().read_to_string()?)
        };
        iam("Action=CreateUser")?;
        let made = iam("Action=CreateAccessKey")?;
        let of = |name: &str| -> Result<String> {
            let (_, rest) = made.split_once(&format!("<{name}>")).with_context(|| format!("no {name}: {made}"))?;
            Ok(rest.split('<').next().unwrap_or_default().to_string())
        };
        let (key, secret) = (of("AccessKeyId")?, of("SecretAccessKey")?);
        let all = "%7B%22Version%22%3A%222012-10-17%22%2C%22Statement%22%3A%5B%7B%22Effect%22%3A%22Allow%22%2C\
            %22Action%22%3A%22%2A%22%2C%22Resource%22%3A%22%2A%22%7D%5D%7D";
        iam(&format!("Action=PutUserPolicy&PolicyName=all&PolicyDocument={all}"))?;
        ureq::put(format!("{url}/images")).send_empty()?;
        ureq::post(format!("{url}/moto-api/reset-auth")).send("0")?;
        Ok(Moto { _server: server, url, key, secret })
    }
}
