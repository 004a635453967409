//! Content negotiation: which form of an answer a client wants.

/// Encodings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    Json,
    Yaml,
    Protobuf,
}

impl Format {
    /// The media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Format::Json => super::JSON,
            Format::Yaml => super::YAML,
            Format::Protobuf => super::PROTOBUF,
        }
    }
}

/// What is to be made of the object before it is encoded.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum Transform {
    #[default]
    None,
    /// `as=Table`, with its version (v1 or v1beta1).
    Table(&'static str),
    /// `as=PartialObjectMetadata`.
    Partial(&'static str),
    /// `as=PartialObjectMetadataList`.
    PartialList(&'static str),
    /// `as=APIGroupDiscoveryList` of apidiscovery.k8s.io.
    Discovery(&'static str),
}

/// The outcome of a negotiation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accept {
    pub format: Format,
    pub transform: Transform,
    /// Indented JSON.
    pub pretty: bool,
    /// `;stream=watch` was asked for.
    pub stream: bool,
}

impl Accept {
    /// Plain JSON.
    pub fn json() -> Accept {
        Accept { format: Format::Json, transform: Transform::None, pretty: false, stream: false }
    }

    /// The Content-Type of the answer to a plain request.
    pub fn content_type(&self) -> String {
        let base = self.format.media_type();
        match &self.transform {
            Transform::Discovery(v) => {
                format!("{base};g=apidiscovery.k8s.io;v={v};as=APIGroupDiscoveryList")
            }
            Transform::None => base.to_string(),
            Transform::Table(v) => format!("{base};as=Table;v={v};g=meta.k8s.io"),
            Transform::Partial(v) => format!("{base};as=PartialObjectMetadata;v={v};g=meta.k8s.io"),
            Transform::PartialList(v) => {
                format!("{base};as=PartialObjectMetadataList;v={v};g=meta.k8s.io")
            }
        }
    }

    /// The Content-Type of the answer to a watch.
    pub fn watch_content_type(&self) -> String {
        match self.format {
            Format::Protobuf => format!("{};stream=watch", super::PROTOBUF),
            _ => super::JSON.to_string(),
        }
    }
}

struct Clause<'a> {
    media: &'a str,
    params: Vec<(&'a str, &'a str)>,
    q: f32,
}

fn clauses(header: &str) -> Vec<Clause<'_>> {
    let mut out: Vec<Clause> = header
        .split(',')
        .filter_map(|part| {
            let mut pieces = part.split(';').map(str::trim);
            let media = pieces.next().filter(|m| !m.is_empty())?;
            let mut c = Clause { media, params: Vec::new(), q: 1.0 };
            for p in pieces {
                let (k, v) = p.split_once('=').unwrap_or((p, ""));
                let v = v.trim_matches('"');
                if k == "q" { c.q = v.parse().unwrap_or(1.0) } else { c.params.push((k, v)) }
            }
            Some(c)
        })
        .collect();
    out.sort_by(|a, b| b.q.partial_cmp(&a.q).unwrap_or(std::cmp::Ordering::Equal));
    out
}

fn version(v: &str) -> Option<&'static str> {
    match v {
        "" | "v1" => Some("v1"),
        "v1beta1" => Some("v1beta1"),
        "v2" => Some("v2"),
        "v2beta1" => Some("v2beta1"),
        _ => None,
    }
}

fn accept_clause(c: &Clause, formats: &[Format], transforms: bool) -> Option<Accept> {
    let format = match c.media.to_ascii_lowercase().as_str() {
        "*/*" | "application/*" => *formats.first()?,
        "application/json" => Format::Json,
        "application/yaml" | "application/x-yaml" | "text/yaml" => Format::Yaml,
        "application/vnd.kubernetes.protobuf" => Format::Protobuf,
        _ => return None,
    };
    if !formats.contains(&format) {
        return None;
    }
    let mut a = Accept { format, ..Accept::json() };
    let get = |k: &str| c.params.iter().find(|(n, _)| *n == k).map_or("", |p| p.1);
    a.pretty = get("pretty") == "1" || get("pretty") == "true";
    a.stream = get("stream") == "watch";
    let (kind, group, v) = (get("as"), get("g"), version(get("v"))?);
    a.transform = match (kind, group) {
        ("", _) => Transform::None,
        ("Table", "meta.k8s.io") if transforms => Transform::Table(v),
        ("PartialObjectMetadata", "meta.k8s.io") if transforms => Transform::Partial(v),
        ("PartialObjectMetadataList", "meta.k8s.io") if transforms => Transform::PartialList(v),
        ("APIGroupDiscoveryList", "apidiscovery.k8s.io") if matches!(v, "v2" | "v2beta1") => Transform::Discovery(v),
        _ => return None,
    };
    Some(a)
}

/// Chooses by an Accept header among the formats that the resource has; the
/// first is what `*/*` gets. `transforms` says whether tables and partial
/// metadata can be made. None is a 406.
pub fn negotiate(header: &str, formats: &[Format], transforms: bool) -> Option<Accept> {
    if header.trim().is_empty() {
        return formats.first().map(|f| Accept { format: *f, ..Accept::json() });
    }
    clauses(header).iter().find_map(|c| accept_clause(c, formats, transforms))
}

/// The same for a watch, which has no YAML.
pub fn negotiate_watch(header: &str, protobuf: bool) -> Option<Accept> {
    let formats: &[Format] = if protobuf { &[Format::Json, Format::Protobuf] } else { &[Format::Json] };
    negotiate(header, formats, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chooses() {
        let all = [Format::Json, Format::Yaml, Format::Protobuf];
        let no_pb = [Format::Json, Format::Yaml];
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        for (h, formats, want) in [
            ("", &all[..], Some((Format::Json, Transform::None))),
            ("*/*", &all, Some((Format::Json, Transform::None))),
            (kubectl, &all, Some((Format::Json, Transform::Table("v1")))),
            ("application/vnd.kubernetes.protobuf,application/json", &all, Some((Format::Protobuf, Transform::None))),
            ("application/vnd.kubernetes.protobuf,application/json", &no_pb, Some((Format::Json, Transform::None))),
            (
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json",
                &all,
                Some((Format::Protobuf, Transform::PartialList("v1"))),
            ),
            ("application/json;q=0.5, application/yaml", &all, Some((Format::Yaml, Transform::None))),
            ("text/html,application/xml;q=0.9,*/*;q=0.8", &all, Some((Format::Json, Transform::None))),
            ("application/cbor", &all, None),
            (
                "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json",
                &all,
                Some((Format::Json, Transform::Discovery("v2"))),
            ),
        ] {
            assert_eq!(negotiate(h, formats, true).map(|a| (a.format, a.transform)), want, "{h}");
        }
        assert_eq!(negotiate(kubectl, &all, false).map(|a| a.transform), Some(Transform::None));
    }
}
