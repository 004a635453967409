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
}

impl Accept {
    /// Plain JSON.
    pub fn json() -> Accept {
        Accept { format: Format::Json, transform: Transform::None, pretty: false }
    }

    /// The Content-Type of an answer.  Only discovery names its transformation there: its
    /// clients read it to learn which document they got.
    pub fn content_type(&self) -> String {
        let base = self.format.media_type();
        match &self.transform {
            Transform::Discovery(v) => {
                format!("{base};g=apidiscovery.k8s.io;v={v};as=APIGroupDiscoveryList")
            }
            _ => base.to_string(),
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

/// What an endpoint can answer with.  All three encodings are there for transformed objects,
/// as those are no custom resources any more.
#[derive(Debug, Clone, Copy)]
pub struct Offer {
    /// Whether plain objects have a protobuf form.
    pub protobuf: bool,
    /// Whether objects can be shown as tables.
    pub tables: bool,
    /// Whether objects can be shown as metadata alone.
    pub partial: bool,
    /// Whether this is `/api` or `/apis`, which have an aggregated form.
    pub discovery: bool,
}

impl Offer {
    /// Plain objects in the three encodings.
    pub const PLAIN: Offer = Offer { protobuf: true, tables: false, partial: false, discovery: false };
}

/// Chooses among plain media types, of which the first is what `*/*` gets; None is a 406.
pub fn choose<'a>(header: &str, offered: &[&'a str]) -> Option<&'a str> {
    if header.trim().is_empty() {
        return offered.first().copied();
    }
    let clauses = clauses(header);
    let wanted = clauses.iter().filter(|c| c.q > 0.0);
    wanted.flat_map(|c| offered.iter().map(move |o| (c, *o))).find_map(|(c, o)| c.names(o).map(|_| o))
}

const FORMATS: [Format; 3] = [Format::Json, Format::Yaml, Format::Protobuf];

struct Clause<'a> {
    media: (&'a str, &'a str),
    params: Vec<(&'a str, &'a str)>,
    q: f32,
}

impl Clause<'_> {
    /// How closely the clause names a media type: 2 as itself, 1 by `type/*`, 0 by `*/*`.
    fn names(&self, media_type: &str) -> Option<u8> {
        let (kind, sub) = media_type.split_once('/').unwrap_or_default();
        match self.media {
            (k, s) if k.eq_ignore_ascii_case(kind) && s.eq_ignore_ascii_case(sub) => Some(2),
            (k, "*") if k.eq_ignore_ascii_case(kind) => Some(1),
            ("*", "*") => Some(0),
            _ => None,
        }
    }

    fn param(&self, name: &str) -> &str {
        self.params.iter().find(|(n, _)| *n == name).map_or("", |p| p.1)
    }
}

/// The clauses of an Accept header, the most wanted first; among equals the closer one.
fn clauses(header: &str) -> Vec<Clause<'_>> {
    let mut out: Vec<Clause> = header
        .split(',')
        .filter_map(|part| {
            let mut pieces = part.split(';').map(str::trim);
            let media = pieces.next().filter(|m| !m.is_empty())?;
            let media = if media == "*" { ("*", "*") } else { media.split_once('/')? };
            let mut c = Clause { media, params: Vec::new(), q: 1.0 };
            for p in pieces {
                let (k, v) = p.split_once('=').unwrap_or((p, ""));
                let (k, v) = (k.trim(), v.trim().trim_matches('"'));
                if k == "q" { c.q = v.parse().unwrap_or(1.0) } else { c.params.push((k, v)) }
            }
            Some(c)
        })
        .collect();
    let vague = |c: &Clause| u8::from(c.media.0 == "*") + u8::from(c.media.1 == "*");
    out.sort_by(|a, b| b.q.total_cmp(&a.q).then(vague(a).cmp(&vague(b))));
    out
}

fn transform(c: &Clause, format: Format, offer: &Offer) -> Option<Transform> {
    let of = |known: &[&'static str]| known.iter().find(|v| **v == c.param("v")).copied();
    match (c.param("as"), c.param("g")) {
        ("", "") if c.param("v").is_empty() => Some(Transform::None),
        ("Table", "meta.k8s.io") if offer.tables && format != Format::Protobuf => {
            of(&["v1", "v1beta1"]).map(Transform::Table)
        }
        ("PartialObjectMetadata", "meta.k8s.io") if offer.partial => of(&["v1", "v1beta1"]).map(Transform::Partial),
        ("PartialObjectMetadataList", "meta.k8s.io") if offer.partial => {
            of(&["v1", "v1beta1"]).map(Transform::PartialList)
        }
        ("APIGroupDiscoveryList", "apidiscovery.k8s.io") if offer.discovery && format == Format::Json => {
            of(&["v2", "v2beta1"]).map(Transform::Discovery)
        }
        _ => None,
    }
}

fn accept_clause(c: &Clause, format: Format, offer: &Offer) -> Option<Accept> {
    if !matches!(c.param("stream"), "" | "watch") || !matches!(c.param("sv"), "" | "v1") {
        return None;
    }
    let transform = transform(c, format, offer)?;
    if transform == Transform::None && format == Format::Protobuf && !offer.protobuf {
        return None;
    }
    Some(Accept { format, transform, pretty: c.param("pretty") == "1" })
}

/// Chooses by an Accept header among what the endpoint offers; JSON is what `*/*` gets.
/// A format that its closest clause refuses with `q=0` is not taken for a vaguer one.
/// None is a 406.
pub fn negotiate(header: &str, offer: &Offer) -> Option<Accept> {
    if header.trim().is_empty() {
        return Some(Accept::json());
    }
    let clauses = clauses(header);
    let refused = |format: Format| {
        let closest = clauses.iter().filter_map(|c| Some((c.names(format.media_type())?, c))).reduce(|a, b| {
            // The first of equals is the most wanted one.
            if b.0 > a.0 { b } else { a }
        });
        closest.is_some_and(|(_, c)| c.q <= 0.0)
    };
    let wanted = clauses.iter().filter(|c| c.q > 0.0);
    wanted
        .flat_map(|c| FORMATS.into_iter().map(move |f| (c, f)))
        .filter(|(c, f)| c.names(f.media_type()).is_some() && !refused(*f))
        .find_map(|(c, f)| accept_clause(c, f, offer))
}

/// The same for a watch, which has no YAML.
pub fn negotiate_watch(header: &str, offer: &Offer) -> Option<Accept> {
    negotiate(header, offer).filter(|a| a.format != Format::Yaml)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chooses() {
        use Format::{Json, Protobuf, Yaml};
        let all = Offer { protobuf: true, tables: true, partial: true, discovery: false };
        let custom = Offer { protobuf: false, ..all };
        let apis = Offer { discovery: true, ..Offer::PLAIN };
        let review = Offer::PLAIN;
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
        let proto = "application/vnd.kubernetes.protobuf,application/json";
        let metadata =
            "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
        let discovery = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
        let older = "application/json;g=apidiscovery.k8s.io;v=v3;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList;profile=nopeer";
        let none = |f| Some((f, Transform::None));
        for (header, offer, want) in [
            ("", &all, none(Json)),
            ("*/*", &all, none(Json)),
            ("*", &all, none(Json)),
            (kubectl, &all, Some((Json, Transform::Table("v1")))),
            (kubectl, &review, none(Json)),
            (table, &review, None),
            ("application/yaml;as=Table;v=v1beta1;g=meta.k8s.io", &all, Some((Yaml, Transform::Table("v1beta1")))),
            ("application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io", &all, None),
            ("application/json;as=Table;v=v2;g=meta.k8s.io", &all, None),
            ("application/json;as=Nothing;v=v1;g=meta.k8s.io", &all, None),
            (proto, &all, none(Protobuf)),
            (proto, &custom, none(Json)),
            (metadata, &all, Some((Protobuf, Transform::PartialList("v1")))),
            (metadata, &custom, Some((Protobuf, Transform::PartialList("v1")))),
            ("application/json;q=0.5, application/yaml", &all, none(Yaml)),
            ("*/*, application/yaml", &all, none(Yaml)),
            ("*/*;q=1, application/yaml;q=0.3", &all, none(Json)),
            ("application/*;q=0.1", &all, none(Json)),
            ("application/json;q=0, */*", &all, none(Yaml)),
            ("application/json;q=0", &all, None),
            ("text/html,application/xml;q=0.9,*/*;q=0.8", &all, none(Json)),
            ("text/*", &all, None),
            ("application/json;stream=watch", &all, none(Json)),
            ("application/json;stream=other", &all, None),
            ("application/json; pretty=1", &all, none(Json)),
            ("application/cbor", &all, None),
            ("application/cbor, application/json;q=0.1", &all, none(Json)),
            (discovery, &apis, Some((Json, Transform::Discovery("v2")))),
            (discovery, &Offer::PLAIN, none(Json)),
            (older, &apis, Some((Json, Transform::Discovery("v2beta1")))),
        ] {
            assert_eq!(negotiate(header, offer).map(|a| (a.format, a.transform)), want, "{header}");
        }
        assert!(negotiate_watch("application/yaml", &all).is_none());
        assert_eq!(choose("a/c;q=0.5, a/b", &["a/c", "a/b"]), Some("a/b"));
        assert_eq!(choose("*/*", &["a/c", "a/b"]), Some("a/c"));
        assert_eq!(choose("x/y", &["a/c", "a/b"]), None);
        assert!(negotiate("application/json;pretty=1", &all).unwrap().pretty);
    }
}
