//! The host's apt sources, read to learn which mirror to use (the product names none itself).

use std::path::{Path, PathBuf};

/// One archive that a source names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Archive root, without the slash at the end.
    pub uri: String,
    /// Suites of this source.
    pub suites: Vec<String>,
    /// Components.
    pub components: Vec<String>,
}

/// Archive roots to try, most promising first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Candidates {
    /// Roots that may hold the release and its updates.
    pub main: Vec<String>,
    /// Roots that may hold the security suite.
    pub security: Vec<String>,
}

/// All sources of this host; none where there is no apt.
pub fn host_sources() -> Vec<Source> {
    sources_in(Path::new("/etc/apt"))
}

fn sources_in(apt: &Path) -> Vec<Source> {
    let mut files: Vec<PathBuf> = vec![apt.join("sources.list")];
    if let Ok(entries) = std::fs::read_dir(apt.join("sources.list.d")) {
        let mut more: Vec<PathBuf> = entries.filter_map(|e| e.ok().map(|e| e.path())).collect();
        more.sort();
        files.extend(more);
    }
    let mut sources = Vec::new();
    for file in files {
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        match file.extension().and_then(|e| e.to_str()) {
            Some("sources") => sources.extend(parse_deb822(&text)),
            Some("list") => sources.extend(parse_list(&text)),
            _ => {}
        }
    }
    for source in &mut sources {
        source.uri = resolve_mirror_list(&source.uri);
    }
    sources
}

/// `mirror+file:/path` names a file whose first line is the mirror.
fn resolve_mirror_list(uri: &str) -> String {
    let Some(path) = uri.strip_prefix("mirror+file:") else { return uri.to_string() };
    let first = std::fs::read_to_string(path)
        .ok()
        .and_then(|text| text.lines().find(|l| !l.trim().is_empty() && !l.starts_with('#')).map(str::to_string));
    first
        .and_then(|line| line.split_whitespace().next().map(|u| u.trim_end_matches('/').to_string()))
        .unwrap_or_else(|| uri.to_string())
}

/// Sorts the host's sources into candidates for the main and the security archive.
pub fn candidates(sources: &[Source]) -> Candidates {
    let mut found = Candidates::default();
    for source in sources.iter().filter(|s| s.uri.starts_with("http") && s.components.iter().any(|c| c == "main")) {
        let security = source.suites.iter().any(|s| s.ends_with("-security") || s.ends_with("/updates"));
        push_new(if security { &mut found.security } else { &mut found.main }, &source.uri);
    }
    // A host that takes no security updates still has a main mirror, and mirrors carry both side by side.
    for uri in found.main.clone() {
        if let Some(base) = uri.strip_suffix("/debian") {
            push_new(&mut found.security, &format!("{base}/debian-security"));
        }
    }
    found
}

fn push_new(list: &mut Vec<String>, uri: &str) {
    if !list.iter().any(|u| u == uri) {
        list.push(uri.to_string());
    }
}

fn parse_list(text: &str) -> Vec<Source> {
    text.lines()
        .filter_map(|line| {
            let line = line.split('#').next().unwrap_or_default().trim().strip_prefix("deb ")?.trim();
            // Options stand in brackets before the URI.
            let line = match line.strip_prefix('[') {
                Some(rest) => rest.split_once(']')?.1,
                None => line,
            };
            let mut words = line.split_whitespace();
            Some(Source {
                uri: words.next()?.trim_end_matches('/').to_string(),
                suites: vec![words.next()?.to_string()],
                components: words.map(str::to_string).collect(),
            })
        })
        .collect()
}

fn parse_deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for stanza in super::index::stanzas(text) {
        let words = |key: &str| -> Vec<String> {
            stanza.get(key).map(|v| v.split_whitespace().map(str::to_string).collect()).unwrap_or_default()
        };
        let disabled = stanza.get("Enabled").is_some_and(|v| v.trim().eq_ignore_ascii_case("no"));
        if disabled || !words("Types").iter().any(|t| t == "deb") {
            continue;
        }
        for uri in words("URIs") {
            sources.push(Source {
                uri: uri.trim_end_matches('/').to_string(),
                suites: words("Suites"),
                components: words("Components"),
            });
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_are_read() {
        let list = "# old\ndeb [arch=amd64 signed-by=/k.gpg] http://m.example/debian/ bookworm main contrib # x\ndeb-src http://m.example/debian bookworm main\n";
        let deb822 = "Types: deb\n# comment\nURIs: http://s.example/debian-security\nSuites: bookworm-security\nComponents: main\n\nTypes: deb\nEnabled: no\nURIs: http://off.example/debian\nSuites: trixie\nComponents: main\n";
        let mut sources = parse_list(list);
        sources.extend(parse_deb822(deb822));
        let found = candidates(&sources);
        assert_eq!(found.main, ["http://m.example/debian"]);
        assert_eq!(found.security, ["http://s.example/debian-security", "http://m.example/debian-security"]);
    }
}
