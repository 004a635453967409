//! Who kimg is at a registry: from the environment, or from the files that docker, podman, skopeo and oras share.

use crate::input;
use anyhow::{Context, Result, bail};
use base64::Engine;
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Environment: registry that the next two are for, `host[:port]`.
pub const REGISTRY: &str = "KIMG_REGISTRY";
/// Environment: user.
pub const USERNAME: &str = "KIMG_REGISTRY_USERNAME";
/// Environment: password or access token.
pub const PASSWORD: &str = "KIMG_REGISTRY_PASSWORD";

/// Environment: the file with credentials, in place of those that are looked for.
const AUTH_FILE: &str = "REGISTRY_AUTH_FILE";

/// What a registry is shown.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// User and password.
    Basic(String, String),
    /// A token that is exchanged for others (OAuth2's refresh token).
    Identity(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(…)")
    }
}

impl Credentials {
    /// The value of an `Authorization: Basic` header.
    pub fn basic(&self) -> Option<String> {
        match self {
            Credentials::Basic(user, password) => {
                let text = format!("{user}:{password}");
                Some(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text)))
            }
            Credentials::Identity(_) => None,
        }
    }
}

/// Where to look. A value in a test, the environment otherwise.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The process' environment.
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

/// The credentials for a registry; none where nothing names it.
///
/// # Errors
/// A file with credentials for it that others can read, one that is named and not there, or one that is not as it is
/// written by `login`.
pub fn find(authority: &str, env: Environment<'_>) -> Result<Option<Credentials>> {
    if let Some(registry) = env(REGISTRY) {
        let (Some(user), Some(password)) = (env(USERNAME), env(PASSWORD)) else {
            return input::bad(format!("{REGISTRY} is set, but not both of {USERNAME} and {PASSWORD}"));
        };
        if registry == authority {
            return Ok(Some(Credentials::Basic(user, password)));
        }
    } else if env(USERNAME).is_some() || env(PASSWORD).is_some() {
        let why = format!("{USERNAME} or {PASSWORD} is set, but not {REGISTRY}, which says whom to show them to");
        return input::bad(why);
    }
    for file in files(env) {
        if let Some(found) = find_in(&file, authority, env)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The files in the order in which skopeo and docker look.
fn files(env: Environment<'_>) -> Vec<PathBuf> {
    if let Some(file) = env(AUTH_FILE) {
        return vec![file.into()];
    }
    let mut files = Vec::new();
    if let Some(dir) = env("XDG_RUNTIME_DIR") {
        files.push(Path::new(&dir).join("containers/auth.json"));
    }
    if let Some(dir) = env("DOCKER_CONFIG") {
        files.push(Path::new(&dir).join("config.json"));
    } else if let Some(home) = env("HOME") {
        files.push(Path::new(&home).join(".docker/config.json"));
    }
    files
}

fn find_in(file: &Path, authority: &str, env: Environment<'_>) -> Result<Option<Credentials>> {
    if !file.try_exists().with_context(|| format!("reading {}", file.display()))? {
        // One that is named is meant.
        if env(AUTH_FILE).is_some() {
            let shown = file.display();
            return input::bad(format!(
                "{AUTH_FILE} names {shown}, which is not there; log in with that file, or unset it"
            ));
        }
        return Ok(None);
    }
    let text = input::bytes(file, input::SMALL)?;
    let config: Value = serde_json::from_slice(&text)
        .or_else(|error| input::bad(format!("{} is no JSON ({error}); log in anew", file.display())))?;
    let keys = keys(authority);
    for key in &keys {
        if let Some(helper) = config["credHelpers"][key].as_str() {
            return ask(helper, key, env).map(Some);
        }
        let entry = &config["auths"][key];
        let text = |name: &str| entry[name].as_str().filter(|t| !t.is_empty());
        if let Some(found) = decode(text("auth"), text("username"), text("password"), text("identitytoken"))
            .or_else(|why| input::bad(format!("the entry {key} of {}: {why}; log in anew", file.display())))?
        {
            input::check_private(file)?;
            return Ok(Some(found));
        }
    }
    if let Some(store) = config["credsStore"].as_str()
        && let Some(key) = keys.iter().find(|key| !config["auths"][key].is_null())
    {
        return ask(store, key, env).map(Some);
    }
    Ok(None)
}

/// Under which names a registry may stand; Docker's own stands under one of its past.
fn keys(authority: &str) -> Vec<String> {
    let mut keys = vec![authority.to_string(), format!("https://{authority}"), format!("http://{authority}")];
    if authority == "docker.io" {
        keys.push("https://index.docker.io/v1/".into());
    }
    keys
}

/// What was decoded must not be in the message.
fn decode(
    auth: Option<&str>,
    user: Option<&str>,
    password: Option<&str>,
    identity: Option<&str>,
) -> Result<Option<Credentials>, &'static str> {
    if let Some(token) = identity {
        return Ok(Some(Credentials::Identity(token.into())));
    }
    if let (Some(user), Some(password)) = (user, password) {
        return Ok(Some(Credentials::Basic(user.into(), password.into())));
    }
    let Some(auth) = auth else { return Ok(None) };
    let bytes = base64::engine::general_purpose::STANDARD.decode(auth).ok();
    let text = bytes.and_then(|b| String::from_utf8(b).ok()).ok_or("auth is no base64 of text")?;
    let (user, password) = text.trim_end_matches('\0').split_once(':').ok_or("auth is no user:password")?;
    Ok(Some(Credentials::Basic(user.into(), password.into())))
}

/// Asks a credential helper: `docker-credential-NAME get`, with the registry on its standard input.
fn ask(helper: &str, key: &str, env: Environment<'_>) -> Result<Credentials> {
    let program = format!("docker-credential-{helper}");
    let mut child = Command::new(&program)
        .arg("get")
        .env("PATH", env("PATH").unwrap_or_default())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("running {program}, which the registry's entry names"))?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(key.as_bytes()).with_context(|| format!("asking {program}"))?;
    }
    let output = child.wait_with_output().with_context(|| format!("asking {program}"))?;
    if !output.status.success() {
        bail!("{program} has no credentials for {key}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let answer: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("{program} gave no JSON"))?;
    let text = |name: &str| answer[name].as_str().with_context(|| format!("{program} gave no {name}"));
    Ok(match text("Username")? {
        "<token>" => Credentials::Identity(text("Secret")?.into()),
        user => Credentials::Basic(user.into(), text("Secret")?.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::os::unix::fs::PermissionsExt;

    fn look(authority: &str, env: &[(&str, &str)]) -> Result<Option<Credentials>> {
        let env: BTreeMap<String, String> = env.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        find(authority, &|name| env.get(name).cloned())
    }

    fn file(dir: &Path, text: &str, mode: u32) -> String {
        let file = dir.join("config.json");
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        file.display().to_string()
    }

    fn basic(user: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Basic(user.into(), password.into()))
    }

    #[test]
    fn the_environment_is_for_one_registry() {
        let env = [(REGISTRY, "r.example"), (USERNAME, "u"), (PASSWORD, "p")];
        assert_eq!(look("r.example", &env).unwrap(), basic("u", "p"));
        assert_eq!(look("other.example", &env).unwrap(), None);
        assert!(look("r.example", &env[..2]).unwrap_err().to_string().contains(PASSWORD));
        assert!(look("r.example", &env[1..]).unwrap_err().to_string().contains(REGISTRY));
    }

    #[test]
    fn the_shared_file_is_read_when_it_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let auths = r#"{"auths": {"r.example:5000": {"auth": "dTpwOnE="}, "t.example": {"identitytoken": "t"},
            "https://index.docker.io/v1/": {"username": "d", "password": "e"}, "bad.example": {"auth": "%"}}}"#;
        let path = file(dir.path(), auths, 0o600);
        let env = [("REGISTRY_AUTH_FILE", path.as_str())];
        assert_eq!(look("r.example:5000", &env).unwrap(), basic("u", "p:q"));
        assert_eq!(look("r.example", &env).unwrap(), None);
        assert_eq!(look("t.example", &env).unwrap(), Some(Credentials::Identity("t".into())));
        assert_eq!(look("docker.io", &env).unwrap(), basic("d", "e"));
        let error = look("bad.example", &env).unwrap_err();
        assert!(error.is::<input::BadInput>() && error.to_string().contains("bad.example"), "{error:#}");
        let home = dir.path().display().to_string();
        assert_eq!(look("r.example:5000", &[("DOCKER_CONFIG", home.as_str())]).unwrap(), basic("u", "p:q"));
        file(dir.path(), auths, 0o644);
        let error = look("r.example:5000", &env).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
        assert_eq!(look("nobody.example", &env).unwrap(), None);
    }

    #[test]
    fn a_file_that_is_named_must_be_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path(), "{\"auths\": {", 0o600);
        let home = dir.path().display().to_string();
        let missing = format!("{home}/nosuch.json");
        for (name, value, said) in [
            (AUTH_FILE, path.as_str(), "config.json is no JSON"),
            ("DOCKER_CONFIG", home.as_str(), "config.json is no JSON"),
            (AUTH_FILE, missing.as_str(), "nosuch.json, which is not there"),
        ] {
            let error = look("r.example", &[(name, value)]).unwrap_err();
            assert!(error.is::<input::BadInput>() && error.to_string().contains(said), "{error:#}");
        }
        // What is only looked for need not be there.
        assert_eq!(look("r.example", &[("DOCKER_CONFIG", "/nosuch"), ("XDG_RUNTIME_DIR", "/nosuch")]).unwrap(), None);
    }

    #[test]
    fn a_helper_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let helper = dir.path().join("docker-credential-test");
        let script = "#!/bin/sh\nread key\necho \"{\\\"Username\\\": \\\"$1\\\", \\\"Secret\\\": \\\"$key\\\"}\"\n";
        std::fs::write(&helper, script).unwrap();
        std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = file(dir.path(), r#"{"credHelpers": {"r.example": "test"}}"#, 0o644);
        let search = format!("{}:/usr/bin:/bin", dir.path().display());
        let env = [("REGISTRY_AUTH_FILE", path.as_str()), ("PATH", search.as_str())];
        assert_eq!(look("r.example", &env).unwrap(), basic("get", "r.example"));
    }
}
