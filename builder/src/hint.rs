//! How the way on is told: the next command, and paths and flags in it as they can be typed here.

use crate::config::Settings;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

/// What to type next; on a terminal only, so that scripts see nothing of it.
pub fn next(hint: &str) {
    if std::io::stderr().is_terminal() {
        // A hint that nobody reads is no failure.
        let _ = writeln!(std::io::stderr(), "\nNext: {hint}");
    }
}

/// `kimg` as it was called here, for hints: by its path where it is not in PATH.
pub fn program() -> String {
    match std::env::args_os().next().map(PathBuf::from) {
        Some(path) if path.parent().is_some_and(|folder| !folder.as_os_str().is_empty()) => shown(&path),
        _ => "kimg".to_string(),
    }
}

/// A path as it can be typed here: relative where it lies below the current folder.
pub fn shown(path: &Path) -> String {
    let below = std::env::current_dir().ok().and_then(|here| path.strip_prefix(here).ok().map(Path::to_path_buf));
    let text = match below {
        Some(below) if !below.as_os_str().is_empty() => below.display().to_string(),
        _ => path.display().to_string(),
    };
    if text.chars().all(|c| c.is_alphanumeric() || "/._-+=@%,:".contains(c)) {
        text
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

/// `--dir X` for hints, where the command was not run in the cluster's folder.
pub fn dir_flag(settings: &Settings) -> String {
    match std::env::current_dir() {
        Ok(here) if here == settings.dir => String::new(),
        _ => format!(" --dir {}", shown(&settings.dir)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_shown_as_they_can_be_typed() {
        let here = std::env::current_dir().expect("folder");
        assert_eq!(shown(&here.join("demo/kubeconfig")), "demo/kubeconfig");
        assert_eq!(shown(Path::new("/elsewhere")), "/elsewhere");
        assert_eq!(shown(Path::new("/my cluster")), "'/my cluster'");
        assert_eq!(shown(&here), here.display().to_string());
    }
}
