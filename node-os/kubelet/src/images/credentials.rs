//! Pull secrets: from docker's configuration files to the credentials of one registry. Pure.

use crate::cri::AuthConfig;
use base64::Engine;
use k8s_openapi::ByteString;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Credentials by registry, as pull secrets give them.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    list: Vec<(String, Entry)>,
}

#[derive(Clone, Default, Deserialize)]
struct Entry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
    #[serde(default, rename = "identitytoken")]
    identity_token: String,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Entry({})", self.username)
    }
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

impl Credentials {
    /// Adds a pull secret's data; what it holds besides is ignored.
    pub fn add(&mut self, data: &BTreeMap<String, ByteString>) {
        if let Some(bytes) = data.get(".dockerconfigjson")
            && let Ok(config) = serde_json::from_slice::<DockerConfig>(&bytes.0)
        {
            self.list.extend(config.auths);
        }
        if let Some(bytes) = data.get(".dockercfg")
            && let Ok(auths) = serde_json::from_slice::<BTreeMap<String, Entry>>(&bytes.0)
        {
            self.list.extend(auths);
        }
    }

    /// The credentials that fit an image, the most specific first; the last one is "none".
    pub fn for_image(&self, image: &str) -> Vec<Option<AuthConfig>> {
        let full = normalize(image);
        let mut fitting: Vec<(usize, AuthConfig)> = self
            .list
            .iter()
            .filter_map(|(place, entry)| {
                let place = clean_place(place);
                let fits = full == place || full.strip_prefix(&place).is_some_and(|rest| rest.starts_with(['/', ':']));
                let fits = fits || wildcard_fits(&place, registry_of(&full));
                fits.then(|| (place.len(), auth_of(entry, &place)))
            })
            .collect();
        fitting.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        let mut list: Vec<Option<AuthConfig>> = fitting.into_iter().map(|(_, auth)| Some(auth)).collect();
        if list.is_empty() {
            list.push(None);
        }
        list
    }
}

fn clean_place(place: &str) -> String {
    let place = place.trim_start_matches("https://").trim_start_matches("http://");
    let place = place.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches("/v2");
    match place {
        "index.docker.io" => "docker.io".into(),
        other => other.into(),
    }
}

fn wildcard_fits(place: &str, registry: &str) -> bool {
    let host = place.split('/').next().unwrap_or_default();
    if !host.contains('*') {
        return false;
    }
    let (wanted, given): (Vec<&str>, Vec<&str>) = (host.split('.').collect(), registry.split('.').collect());
    wanted.len() == given.len()
        && wanted.iter().zip(given).all(|(w, g)| match w.split_once('*') {
            None => *w == g,
            Some((before, after)) => {
                g.len() >= before.len() + after.len() && g.starts_with(before) && g.ends_with(after)
            }
        })
}

fn auth_of(entry: &Entry, place: &str) -> AuthConfig {
    let decoded = base64::engine::general_purpose::STANDARD.decode(entry.auth.trim()).ok();
    let decoded = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
    let (user, password) = match decoded.as_deref().and_then(|text| text.split_once(':')) {
        Some((user, password)) => (user.to_string(), password.trim_end_matches('\0').to_string()),
        None => (entry.username.clone(), entry.password.clone()),
    };
    AuthConfig {
        username: user,
        password,
        server_address: place.into(),
        identity_token: entry.identity_token.clone(),
        ..Default::default()
    }
}

/// The image's full name: registry, and `library/` where docker leaves it out; tag `latest` by default.
pub fn normalize(image: &str) -> String {
    let (first, rest) = image.split_once('/').unwrap_or(("", image));
    let has_registry = first.contains(['.', ':']) || first == "localhost";
    let name = if has_registry {
        image.to_string()
    } else if first.is_empty() {
        format!("docker.io/library/{rest}")
    } else {
        format!("docker.io/{image}")
    };
    let last = name.rsplit('/').next().unwrap_or(&name);
    if name.contains('@') || last.contains(':') { name } else { format!("{name}:latest") }
}

/// The registry of a full name.
pub fn registry_of(full: &str) -> &str {
    full.split('/').next().unwrap_or(full)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed() {
        for (image, full) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1", "docker.io/library/nginx:1"),
            ("a/b", "docker.io/a/b:latest"),
            ("r.example:5000/a", "r.example:5000/a:latest"),
            ("localhost/a:1", "localhost/a:1"),
            ("r.example/a@sha256:0", "r.example/a@sha256:0"),
        ] {
            assert_eq!(normalize(image), full, "{image}");
        }
    }

    #[test]
    fn the_most_specific_credentials_come_first() {
        let auth = base64::engine::general_purpose::STANDARD.encode("u:p");
        let json = format!(
            "{{\"auths\": {{\"https://r.example\": {{\"auth\": \"{auth}\"}}, \"r.example/team\": {{\"username\": \"t\", \"password\": \"q\"}}, \"*.other.example\": {{\"username\": \"w\"}}}}}}"
        );
        let mut credentials = Credentials::default();
        credentials.add(&BTreeMap::from([(".dockerconfigjson".to_string(), ByteString(json.into_bytes()))]));
        let users = |image: &str| -> Vec<String> {
            credentials.for_image(image).into_iter().map(|a| a.map_or("-".into(), |a| a.username)).collect()
        };
        assert_eq!(users("r.example/team/a"), ["t", "u"]);
        assert_eq!(users("r.example/teams/a"), ["u"]);
        assert_eq!(users("x.other.example/a"), ["w"]);
        assert_eq!(users("nginx"), ["-"]);
    }
}
