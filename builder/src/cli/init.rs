//! `kimg init`: a folder with an example that says everything there is to set.

use crate::cache;
use crate::config::FILE_NAME;
use crate::hint::{next, program};
use crate::input;
use crate::pki::Secrets;
use anyhow::{Context, Result};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The example; every key stands in it, most as a comment with its default.
pub const EXAMPLE: &str = include_str!("cluster.toml");
const IGNORED: &str =
    "# Private keys, and what kimg makes anew.\n/secrets/\n/build/\n/run/\n/backups/\n/logs/\n/kubeconfig\n*.raw\n";

#[derive(Debug, clap::Args)]
pub(super) struct InitArgs {
    /// Folder to make, or an existing one without a cluster.toml
    #[arg(value_hint = clap::ValueHint::DirPath)]
    directory: PathBuf,
}

pub(super) fn run(args: &InitArgs) -> Result<()> {
    let dir = &args.directory;
    let path = dir.join(FILE_NAME);
    // The nearest place above that exists: a folder is made below it, and below nothing else.
    if let Some(file) = dir.ancestors().find(|place| place.exists()).filter(|place| !place.is_dir()) {
        return input::bad(format!("{} is no folder; name a folder, or a new name for one", file.display()));
    }
    if path.exists() {
        return taken(&path);
    }
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let name = cluster_name(dir);
    // .gitignore comes first: at no moment could a `git add` take the keys.
    ignore(&dir.join(".gitignore"))?;
    Secrets::ensure(&dir.join("secrets"), &name)?;
    let text = EXAMPLE.replacen("name = \"demo\"", &format!("name = \"{name}\""), 1);
    let text = with_examples(text, dir);
    write_new(&path, &text)?;
    println!("{}: cluster `{name}`, 1 master and 2 workers, for VMs on this machine", path.display());
    next(&format!("{} --dir {} up", program(), dir.display()));
    Ok(())
}

fn taken<T>(path: &Path) -> Result<T> {
    input::bad(format!("{} exists and stays as it is; edit it, or name another folder", path.display()))
}

/// Writes the file whole or not at all: half of one would be in the way of the next try.
fn write_new(path: &Path, text: &str) -> Result<()> {
    let writing = || format!("writing {}", path.display());
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let all = std::fs::Permissions::from_mode(0o666);
    let mut file = tempfile::Builder::new().permissions(all).tempfile_in(folder).with_context(writing)?;
    file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_all()).with_context(writing)?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(()),
        Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => taken(path),
        Err(error) => Err(error.error).with_context(writing),
    }
}

/// In a checkout of kimg, the worker image of a new cluster carries the examples' container images.
fn with_examples(text: String, dir: &Path) -> String {
    let Ok(dir) = dir.canonicalize() else { return text };
    let Some((up, _)) = dir.ancestors().enumerate().skip(1).find(|(_, place)| {
        ["toolbox", "web"].iter().all(|name| place.join("images/examples").join(name).join("image.toml").is_file())
    }) else {
        return text;
    };
    let base = format!("{}images/examples", "../".repeat(up));
    text.replace("#[image.worker]\n", &format!("[image.worker]\nimages = [\"{base}/toolbox\", \"{base}/web\"]\n"))
}

/// The folder's name where it can be a cluster's, else `demo`.
fn cluster_name(dir: &Path) -> String {
    let name = dir
        .canonicalize()
        .ok()
        .and_then(|d| d.file_name().map(|n| n.to_string_lossy().to_lowercase()))
        .unwrap_or_default();
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(40).collect();
    match name.trim_matches('-') {
        "" => "demo".to_string(),
        name => name.to_string(),
    }
}

/// Adds what must not be committed to a `.gitignore`, keeping what stands in it.
fn ignore(path: &Path) -> Result<()> {
    if path.is_symlink() {
        return input::bad(format!(
            "{} is a link, and what it leads to may be somebody else's; put a file of its own there, or name another folder",
            path.display()
        ));
    }
    let before = if path.exists() { input::text(path, input::SMALL)? } else { String::new() };
    let missing: Vec<&str> = IGNORED.lines().filter(|line| !before.lines().any(|have| have.trim() == *line)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut text = before;
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    for line in missing {
        text.push_str(line);
        text.push('\n');
    }
    // On a full disk what stood in it stays.
    cache::write_atomic(path, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_example_is_valid_and_so_is_each_commented_key() {
        let dir = tempfile::tempdir().expect("dir");
        let settings = crate::config::parse(Path::new("cluster.toml"), EXAMPLE, dir.path()).expect("valid");
        let addresses: Vec<String> = settings.nodes.iter().map(|n| n.local_address.to_string()).collect();
        assert_eq!(addresses, ["10.77.0.10", "10.77.0.11", "10.77.0.12"]);
        // `#key = value` is a default that can be switched on; `# text` is prose.
        let on: String = EXAMPLE
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(rest) if !rest.starts_with(' ') && !rest.is_empty() => format!("{rest}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        for file in ["monitoring.yaml", "web.tar", "motd"] {
            std::fs::write(dir.path().join(file), "").expect("file");
        }
        let agent = dir.path().join("agent");
        std::fs::write(&agent, crate::oci::pause::program()).expect("file");
        std::fs::set_permissions(&agent, std::fs::Permissions::from_mode(0o755)).expect("mode");
        crate::config::parse(Path::new("cluster.toml"), &on, dir.path()).expect("all keys on");
    }

    #[test]
    fn a_checkout_bakes_its_examples() {
        let dir = tempfile::tempdir().expect("dir");
        for name in ["toolbox", "web"] {
            let folder = dir.path().join("images/examples").join(name);
            std::fs::create_dir_all(&folder).expect("folder");
            std::fs::write(folder.join("image.toml"), "").expect("file");
        }
        let cluster = dir.path().join("a/b");
        run(&InitArgs { directory: cluster.clone() }).expect("init");
        let settings = crate::config::load(&cluster).expect("valid");
        assert_eq!(settings.worker_image.images.len(), 2);
        assert!(settings.worker_image.images[0].join("image.toml").is_file());
    }

    #[test]
    fn of_many_at_once_one_writes_and_the_others_are_told() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join(FILE_NAME);
        let done: Vec<Result<()>> = std::thread::scope(|scope| {
            let all: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let done = write_new(&path, EXAMPLE);
                        // Nobody sees half of it.
                        assert_eq!(std::fs::read_to_string(&path).expect("there"), EXAMPLE);
                        done
                    })
                })
                .collect();
            all.into_iter().map(|one| one.join().expect("joined")).collect()
        });
        assert_eq!(done.iter().filter(|one| one.is_ok()).count(), 1);
        for error in done.into_iter().filter_map(Result::err) {
            assert!(error.is::<input::BadInput>() && error.to_string().contains("stays as it is"), "{error:#}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 1);
    }

    #[test]
    fn a_link_is_not_written_through() {
        let dir = tempfile::tempdir().expect("dir");
        let (other, cluster) = (dir.path().join("other"), dir.path().join("c"));
        std::fs::write(&other, "theirs").expect("file");
        std::fs::create_dir(&cluster).expect("folder");
        std::os::unix::fs::symlink(&other, cluster.join(".gitignore")).expect("link");
        let error = run(&InitArgs { directory: cluster.clone() }).expect_err("a link");
        assert!(error.is::<input::BadInput>() && error.to_string().contains("is a link"), "{error:#}");
        assert_eq!(std::fs::read_to_string(&other).expect("file"), "theirs");
        assert!(!cluster.join("secrets").exists());
    }

    #[test]
    fn nothing_is_overwritten() {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::write(dir.path().join(".gitignore"), "mine\n/build/").expect("file");
        run(&InitArgs { directory: dir.path().to_path_buf() }).expect("init");
        let ignored = std::fs::read_to_string(dir.path().join(".gitignore")).expect("file");
        assert!(ignored.starts_with("mine\n/build/\n"), "{ignored}");
        assert_eq!(ignored.matches("/build/").count(), 1);
        assert!(ignored.contains("\n/secrets/\n"));
        assert!(run(&InitArgs { directory: dir.path().to_path_buf() }).is_err());
        for place in [dir.path().join(".gitignore"), dir.path().join("cluster.toml/below")] {
            let error = run(&InitArgs { directory: place }).expect_err("a file");
            assert!(error.is::<input::BadInput>() && error.to_string().contains("is no folder"), "{error}");
        }
    }
}
