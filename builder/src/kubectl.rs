//! kubectl: the host's, or Debian's, fetched to where it changes nothing of the host.

use crate::cache;
use crate::doctor::in_path;
use crate::packages::{self, RELEASE};
use crate::progress::Progress;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// The kubectl to use here, as it can be typed; none where there is none.
pub fn find() -> Option<PathBuf> {
    if in_path("kubectl") {
        return Some(PathBuf::from("kubectl"));
    }
    place().ok().filter(|program| program.is_file())
}

/// The kubectl to use here; Debian's is fetched where there is none.
///
/// # Errors
/// No mirror gives the package.
pub fn ensure(progress: &Progress) -> Result<PathBuf> {
    if let Some(found) = find() {
        return Ok(found);
    }
    let place = place()?;
    let step = progress.step(&format!("fetching kubectl of Debian {RELEASE}"));
    packages::fetch_program(RELEASE, "kubectl", "/usr/bin/kubectl", &place)
        .context("fetching kubectl; install it with this system's package manager instead")?;
    step.finish_and_clear();
    Ok(place)
}

/// Where a fetched kubectl lies: with the other tools of a checkout, else in the user's cache.
fn place() -> Result<PathBuf> {
    match std::env::current_exe().ok().as_deref().and_then(checkout_tools) {
        Some(tools) => Ok(tools.join(format!("kubectl-{RELEASE}"))),
        None => Ok(cache::user_dir()?.join("tools/kubectl")),
    }
}

/// `target/tools` of the checkout in which `program` was built.
fn checkout_tools(program: &Path) -> Option<PathBuf> {
    program.ancestors().skip(1).find(|dir| dir.ends_with("target")).map(|target| target.join("tools"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkout_has_its_own_tools() {
        let place = |program: &str| checkout_tools(Path::new(program));
        let built = "/src/kimg/target/x86_64-unknown-linux-gnu/release/kimg";
        assert_eq!(place(built), Some(PathBuf::from("/src/kimg/target/tools")));
        assert_eq!(place("/usr/local/bin/kimg"), None);
    }
}
