//! What each source makes of its recorded answers, and which sources a machine has at all.

use crate::fixture::{self, Fixture};
use node_metadata::sources::{self, Found, Source, SourceError};
use serde_yaml_ng::Value;
use std::collections::BTreeSet;

/// Sources that look on every machine, because looking costs nothing.
const EVERYWHERE: [&str; 2] = ["nocloud", "config-drive"];

fn source_of(fixture: &Fixture) -> Box<dyn Source> {
    sources::by_name(&fixture.source).unwrap_or_else(|| panic!("no source has the name {}", fixture.source))
}

#[test]
fn recorded_answers_give_what_is_expected() {
    for fixture in fixture::all() {
        let source = source_of(&fixture);
        match (&fixture.error, source.read(&fixture)) {
            (None, Ok(Some(found))) => compare(&fixture, &found),
            (Some(wanted), Err(error)) => {
                assert!(error.to_string().contains(wanted), "{}: {error} should contain {wanted}", fixture.name);
            }
            (_, outcome) => panic!("{}: {outcome:?}", fixture.name),
        }
        if fixture.ready {
            source.report_ready(&fixture).unwrap_or_else(|error| panic!("{}: {error}", fixture.name));
        }
    }
}

fn compare(fixture: &Fixture, found: &Found) {
    let shown = serde_yaml_ng::to_value(found).unwrap();
    let wanted = fixture.expected.clone().unwrap_or_else(|| panic!("{} has neither expected nor error", fixture.name));
    assert_eq!(shown, wanted, "{}: found\n{}", fixture.name, serde_yaml_ng::to_string(found).unwrap());
    let user_data = found.user_data.as_ref().map(|raw| String::from_utf8_lossy(raw).into_owned());
    assert_eq!(user_data, fixture.user_data, "{}", fixture.name);
}

#[test]
fn a_machine_has_one_source_and_dmi_says_which() {
    for fixture in fixture::all() {
        let detected: Vec<&str> = sources::all()
            .iter()
            .filter(|source| source.detect(&fixture))
            .map(|source| source.name())
            .filter(|name| !EVERYWHERE.contains(name))
            .collect();
        // A drive stands above the platform's own service, and a machine may have both.
        if EVERYWHERE.contains(&fixture.source.as_str()) {
            assert!(detected.len() <= 1, "{}: {detected:?}", fixture.name);
        } else {
            assert_eq!(detected, [fixture.source.as_str()], "{}", fixture.name);
        }
    }
}

#[test]
fn a_machine_of_no_provider_asks_nobody() {
    // It answers nothing: a request would end in an error.
    let bare = Fixture { name: "bare".into(), ..Fixture::default() };
    for source in sources::all().iter().filter(|source| source.detect(&bare)) {
        assert_eq!(source.read(&bare), Ok(None), "{}", source.name());
        assert!(source.reach(&bare).is_empty(), "{} would wait for a network", source.name());
    }
}

#[test]
fn every_source_has_recorded_answers_and_a_way_to_them() {
    let recorded: BTreeSet<String> = fixture::all().into_iter().map(|fixture| fixture.source).collect();
    for source in sources::all() {
        assert!(recorded.contains(source.name()), "tests/fixtures/{} is missing", source.name());
    }
    for fixture in fixture::all() {
        let source = source_of(&fixture);
        let needs_network =
            !fixture.answers.is_empty() || fixture.error.as_deref().is_some_and(|e| e.contains("no answer"));
        assert!(!needs_network || !source.reach(&fixture).is_empty(), "{} names no way to its server", source.name());
    }
}

/// A server that is not there is not an error of the machine: others are asked.
#[test]
fn an_absent_server_is_told_from_a_broken_one() {
    for fixture in fixture::all().into_iter().filter(|fixture| !fixture.answers.is_empty()) {
        let source = source_of(&fixture);
        let silent = Fixture { answers: Vec::new(), ..fixture.clone() };
        match source.read(&silent) {
            Err(SourceError::Absent(why)) => assert!(why.contains("no answer from"), "{}: {why}", fixture.name),
            Err(SourceError::Unusable(why)) => assert!(why.contains("http://"), "{}: {why}", fixture.name),
            other => panic!("{}: {other:?}", fixture.name),
        }
    }
}

#[test]
fn user_data_reads_the_same_in_every_encoding_from_every_source() {
    use base64::Engine;
    use std::io::Write;
    let text = "#cloud-config\nhostname: packed\nkimg: {}\n";
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(text.as_bytes()).unwrap();
    let packed = base64::engine::general_purpose::STANDARD.encode(gzip.finish().unwrap());
    for fixture in fixture::all().into_iter().filter(|fixture| fixture.user_data.is_some()) {
        let plain = fixture.user_data.clone().unwrap();
        let as_base64 = base64::engine::general_purpose::STANDARD.encode(&plain);
        // JSON and YAML documents hold it as text with escaped line ends.
        let escaped = plain.replace('\n', "\\n");
        let swap = |text: &str| text.replace(&plain, &packed).replace(&escaped, &packed).replace(&as_base64, &packed);
        let mut other = fixture.clone();
        other.answers.iter_mut().for_each(|answer| answer.body = swap(&answer.body));
        other.firmware.values_mut().for_each(|text| *text = swap(text));
        other.guest_info.values_mut().for_each(|text| *text = swap(text));
        if let Some(drive) = &mut other.drive {
            drive.files.values_mut().for_each(|text| *text = swap(text));
        }
        let found = source_of(&other).read(&other).unwrap().unwrap();
        let user = node_metadata::userdata::parse(&found.user_data.unwrap()).unwrap();
        assert_eq!(user.hostname.as_deref(), Some("packed"), "{}", fixture.name);
    }
}

/// The labels that the fixtures expect are labels.
#[test]
fn expected_documents_are_whole() {
    for fixture in fixture::all() {
        let Some(Value::Mapping(expected)) = &fixture.expected else { continue };
        assert_eq!(expected.get("source").and_then(Value::as_str), Some(fixture.source.as_str()), "{}", fixture.name);
    }
}
