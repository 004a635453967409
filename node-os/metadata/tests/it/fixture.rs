//! A fixture: what a machine and its metadata server say (`tests/fixtures/SOURCE/CASE.yaml`), and what the source
//! should make of it.

use node_metadata::ReadAt;
use node_metadata::sources::{Answer, Platform, Request, SourceError};
use serde::Deserialize;
use serde_yaml_ng::Value;
use std::collections::BTreeMap;
use std::path::Path;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct Fixture {
    /// Path of the file, for messages.
    #[serde(skip)]
    pub(crate) name: String,
    /// The folder's name: the source that should speak.
    #[serde(skip)]
    pub(crate) source: String,
    pub(crate) dmi: BTreeMap<String, String>,
    pub(crate) line: String,
    pub(crate) drive: Option<Drive>,
    /// Instead of the image that the drive's files make.
    #[serde(skip)]
    pub(crate) spoiled_image: Option<Vec<u8>>,
    pub(crate) firmware: BTreeMap<String, String>,
    pub(crate) guest_info: BTreeMap<String, String>,
    pub(crate) answers: Vec<Recorded>,
    /// `report_ready` succeeds.
    pub(crate) ready: bool,
    pub(crate) expected: Option<Value>,
    pub(crate) user_data: Option<String>,
    /// Instead: a part of the error's sentence.
    pub(crate) error: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Drive {
    label: String,
    pub(crate) files: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct Recorded {
    get: Option<String>,
    put: Option<String>,
    post: Option<String>,
    /// Headers without which the server answers 401.
    headers: BTreeMap<String, String>,
    /// Only to a low port; 403 to others.
    low_port: bool,
    /// What the request's body must contain; 400 otherwise.
    contains: String,
    status: Option<u16>,
    pub(crate) body: String,
}

impl Recorded {
    fn asked(&self) -> (&'static str, &str) {
        let all = [("GET", &self.get), ("PUT", &self.put), ("POST", &self.post)];
        let (method, url) = all.into_iter().find(|(_, url)| url.is_some()).expect("get, put or post");
        (method, url.as_deref().expect("just seen"))
    }

    fn answer(&self, request: &Request) -> u16 {
        let has = |(name, value): (&String, &String)| {
            request.headers.iter().any(|(own, given)| own.eq_ignore_ascii_case(name) && given == value)
        };
        if !self.headers.iter().all(has) {
            return 401;
        }
        if self.low_port && !request.low_port {
            return 403;
        }
        if !String::from_utf8_lossy(&request.body).contains(&self.contains) {
            return 400;
        }
        self.status.unwrap_or(200)
    }
}

impl Fixture {
    /// The drive's ISO 9660 image.
    pub(crate) fn image(&self) -> Option<Vec<u8>> {
        self.drive.as_ref().map(|drive| crate::iso::image(&drive.label, &drive.files))
    }
}

/// All fixtures, by path.
pub(crate) fn all() -> Vec<Fixture> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut fixtures = Vec::new();
    for folder in std::fs::read_dir(&root).unwrap() {
        let folder = folder.unwrap();
        for file in std::fs::read_dir(folder.path()).unwrap() {
            let path = file.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let parsed: Fixture =
                serde_yaml_ng::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let source = folder.file_name().into_string().unwrap();
            fixtures.push(Fixture { name: path.strip_prefix(&root).unwrap().display().to_string(), source, ..parsed });
        }
    }
    fixtures.sort_by(|a, b| a.name.cmp(&b.name));
    fixtures
}

impl Platform for Fixture {
    fn dmi(&self, name: &str) -> Option<String> {
        self.dmi.get(name).cloned()
    }

    fn kernel_line(&self) -> String {
        self.line.clone()
    }

    fn devices(&self) -> Vec<(String, Box<dyn ReadAt>)> {
        let disk: Box<dyn ReadAt> = Box::new(vec![0u8; 1 << 16]);
        let mut devices = vec![("vdx".to_owned(), disk)];
        if let Some(image) = self.spoiled_image.clone().or_else(|| self.image()) {
            devices.push(("sr0".to_owned(), Box::new(image)));
        }
        devices
    }

    fn firmware_file(&self, name: &str) -> Option<Vec<u8>> {
        self.firmware.get(name).map(|text| text.clone().into_bytes())
    }

    fn guest_info(&self, key: &str) -> Option<Vec<u8>> {
        self.guest_info.get(key).map(|text| text.clone().into_bytes())
    }

    /// A host of which nothing is recorded is not there; other paths of a known one are 404.
    fn send(&self, request: &Request) -> Result<Answer, SourceError> {
        let host = |url: &str| url.split('/').nth(2).unwrap_or_default().to_owned();
        let same = |recorded: &&Recorded| recorded.asked() == (request.method.as_str(), request.url.as_str());
        if let Some(recorded) = self.answers.iter().find(same) {
            let status = recorded.answer(request);
            let body = if status == 200 { recorded.body.clone().into_bytes() } else { Vec::new() };
            return Ok(Answer { status, body });
        }
        if self.answers.iter().any(|recorded| host(recorded.asked().1) == host(&request.url)) {
            return Ok(Answer { status: 404, body: b"<html>no such thing</html>".to_vec() });
        }
        Err(SourceError::Absent(format!("no answer from {}", host(&request.url))))
    }
}
