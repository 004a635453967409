//! Azure's ready report: the platform's wire server is told that the machine has come up, or marks it as failed.
//! Goal state and report as WALinuxAgent and cloud-init exchange them, protocol version 2012-11-30.

use super::http::Service;
use super::platform::{Method, Platform, SourceError};

const WIRE_SERVER: &str = "http://168.63.129.16";
const AGENT: &str = "kimg";

pub(super) fn report(platform: &dyn Platform) -> Result<(), SourceError> {
    let service = Service::new(platform, WIRE_SERVER)
        .with_header("x-ms-agent-name", AGENT)
        .with_header("x-ms-version", "2012-11-30");
    let path = "/machine/?comp=goalstate";
    let state = service.root_text(path)?;
    let field = |name: &str| element(&state, name).ok_or_else(|| service.wrong(path, &format!("it has no {name}")));
    let body = health(&field("Incarnation")?, &field("ContainerId")?, &field("InstanceId")?);
    let path = "/machine?comp=health";
    let answer =
        service.with_header("Content-Type", "text/xml; charset=utf-8").send(Method::Post, path, body.as_bytes())?;
    match answer.status {
        200..=299 => Ok(()),
        status => Err(SourceError::Refused { url: format!("{WIRE_SERVER}{path}"), status }),
    }
}

fn health(incarnation: &str, container: &str, instance: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?>\
         <Health xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" \
         xmlns:xsd=\"http://www.w3.org/2001/XMLSchema\">\
         <GoalStateIncarnation>{incarnation}</GoalStateIncarnation>\
         <Container><ContainerId>{container}</ContainerId><RoleInstanceList><Role><InstanceId>{instance}</InstanceId>\
         <Health><State>Ready</State></Health></Role></RoleInstanceList></Container></Health>"
    )
}

/// The text of the first element of that name, whatever its prefix; elements in it are no text.
pub(super) fn element(document: &str, name: &str) -> Option<String> {
    let mut rest = document;
    while let Some((_, after)) = rest.split_once('<') {
        let (tag, body) = after.split_once('>')?;
        let full = tag.split_ascii_whitespace().next().unwrap_or_default();
        let local = full.rsplit(':').next().unwrap_or_default();
        if local == name && !full.starts_with('/') && !tag.ends_with('/') {
            return body.split('<').next().map(|text| text.trim().to_owned());
        }
        rest = body;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_found_with_and_without_prefix() {
        let document = "<?xml version='1.0'?><a xmlns:w='x'><w:CustomData> QUJD </w:CustomData><B/><B>1</B></a>";
        assert_eq!(element(document, "CustomData").as_deref(), Some("QUJD"));
        assert_eq!(element(document, "B").as_deref(), Some("1"));
        assert_eq!(element(document, "C"), None);
        for cut in 0..document.len() {
            let _ = element(&document[..cut], "B");
        }
    }
}
