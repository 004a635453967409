//! One input, built in a bookworm and in a trixie: by two users, in two folders, locales, time zones, umasks and numbers
//! of cores, and kimg itself in two years. diffoscope finds nothing. Of the host, the builds have the kernel.
//!
//! Needs root, a mirror and what `make build` leaves; without one of the first two it is skipped, and ends with 77.

use anyhow::{Context, ensure};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use qemu_tests::Result;
use qemu_tests::cluster::run_in;
use qemu_tests::debian::Debian;
use qemu_tests::suite::SKIPPED;
use qemu_tests::tools::{kimg, workspace};
use std::path::Path;
use std::process::{Command, ExitCode};

/// Its keys are sealed, as in every image that leaves a machine.
const CLUSTER: &str = "name = \"roots\"\nsecrets = \"sealed\"\n\
    nodes = [{ name = \"m\", role = \"master\" }, { name = \"w\", role = \"worker\" }]\n";
const PROGRAMS: [&str; 4] = ["kimg", "kimg-node", "kimg-control", "kimg-stage1"];

/// Where and how one of the two builds.
struct Builder {
    debian: Debian,
    /// The cluster's folder and the user's, below the root.
    folder: &'static str,
    home: &'static str,
    uid: &'static str,
    umask: &'static str,
    environment: &'static str,
    /// Comes before the program.
    cores: &'static str,
    program: &'static str,
}

/// faketime tells another year by preloading a library, which a static program does not do. Nor do the tools that kimg
/// starts, with an environment of its own: their clock is this machine's, which goes on between the two builds.
const DYNAMIC: &str = "kimg-dynamic";
const LATER: &str = "faketime @1935619200";

fn main() -> ExitCode {
    let run = || {
        let made = Debian::with("bookworm", "bookworm", &["locales"]).and_then(|bookworm| {
            Ok((bookworm, Debian::with("trixie", "trixie", &["diffoscope-minimal", "faketime"])?))
        });
        match made {
            Err(error) => Ok(Completion::ignored_with(format!("{error:#}"))),
            Ok((bookworm, trixie)) => {
                let done = diffoscope_finds_nothing(bookworm, trixie);
                done.map(|()| Completion::Completed).map_err(|error| Failed::from(format!("{error:#}")))
            }
        }
    };
    let test = Trial::ignorable_test("an_image_is_the_same_in_bookworm_and_trixie", run).with_ignored_flag(true);
    let arguments = Arguments::from_args();
    let asked = arguments.ignored || arguments.include_ignored;
    let done = libtest_mimic::run(&arguments, vec![test]);
    // `cargo test` alone passes over it; who asks for it must not take nothing for green.
    if asked && !done.has_failed() && done.num_ignored > 0 { ExitCode::from(SKIPPED) } else { done.exit_code() }
}

fn diffoscope_finds_nothing(bookworm: Debian, trixie: Debian) -> Result {
    let dir = workspace().join("target/qemu-tests/roots");
    if dir.exists() {
        std::fs::remove_dir_all(&dir).context("removing the last run's folder")?;
    }
    std::fs::create_dir_all(&dir).context("making a folder")?;
    std::fs::write(dir.join("cluster.toml"), CLUSTER).context("writing cluster.toml")?;
    let host = |args: &[&str]| run_in(&dir, kimg(), args, None)?.success();
    // Both get the same programs, also where somebody compiles meanwhile.
    let own = kimg().canonicalize().context("resolving kimg")?;
    std::fs::create_dir_all(dir.join("programs")).context("making a folder")?;
    for name in PROGRAMS {
        let copied = std::fs::copy(own.with_file_name(name), dir.join("programs").join(name));
        copied.with_context(|| format!("copying {name}"))?;
    }
    dynamic(&dir.join("programs").join(DYNAMIC))?;
    let year = trixie.run("sh").args(["-c", &format!("{LATER} date +%Y")]).output().context("asking for the year")?;
    ensure!(year.stdout == b"2031\n", "faketime says {:?}", String::from_utf8_lossy(&year.stdout));
    host(&["lock"])?;
    host(&["pki", "init"])?;
    host(&["cache", "export", "bundle.tar"])?;
    let locale = bookworm.run("localedef").args(["-i", "tr_TR", "-f", "UTF-8", "tr_TR.UTF-8"]).status();
    ensure!(locale.context("running localedef")?.success(), "localedef failed");
    let one = Builder {
        debian: bookworm,
        folder: "srv/cluster",
        home: "home/one",
        uid: "1000",
        umask: "022",
        environment: "LC_ALL=tr_TR.UTF-8 TZ=America/St_Johns",
        cores: "taskset 1",
        program: "kimg",
    };
    let other = Builder {
        debian: trixie.clone(),
        folder: "home/other/another folder",
        home: "home/other",
        uid: "4321",
        umask: "077",
        environment: "LC_ALL=C TZ=Asia/Tokyo SOURCE_DATE_EPOCH=5",
        cores: LATER,
        program: DYNAMIC,
    };
    one.build(&dir)?;
    other.build(&dir)?;

    let compared = trixie.root.join("compared");
    if compared.exists() {
        std::fs::remove_dir_all(&compared).context("removing what was compared last")?;
    }
    std::fs::create_dir_all(&compared).context("making a folder")?;
    for (builder, name) in [(&one, "one"), (&other, "other")] {
        let built = builder.debian.root.join(builder.folder).join("build");
        std::fs::rename(&built, compared.join(name))
            .or_else(|_| copy(&built, &compared.join(name)))
            .with_context(|| format!("moving {}", built.display()))?;
        // Holds the number of the process that built last.
        std::fs::remove_file(compared.join(name).join(".lock")).context("removing the lock")?;
    }
    let diffoscope = |a: &str, b: &str| -> Result<(Option<i32>, String)> {
        let mut command = trixie.run("diffoscope");
        let output = command.args(["--exclude-directory-metadata=yes", a, b]).output().context("running diffoscope")?;
        Ok((output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned()))
    };
    let (code, said) = diffoscope("/compared/one/master/cmdline", "/compared/one/worker/cmdline")?;
    ensure!(code == Some(1) && said.contains("kimg.roothash"), "diffoscope sees no difference where one is: {said}");
    let (code, said) = diffoscope("/compared/one", "/compared/other")?;
    let beginning: String = said.chars().take(4000).collect();
    ensure!(code == Some(0), "diffoscope ends with {code:?}:\n{beginning}");
    Ok(())
}

/// Builds `kimg` once more, with the C library as a shared object.
fn dynamic(to: &Path) -> Result {
    let target = workspace().join("target/dynamic");
    let status = Command::new("cargo")
        .args(["build", "--quiet", "--package", "kimg", "--bin", "kimg"])
        .current_dir(workspace())
        .env("RUSTFLAGS", "-Ctarget-feature=-crt-static")
        .env("CARGO_TARGET_DIR", &target)
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "kimg does not build with a shared C library");
    std::fs::copy(target.join("x86_64-unknown-linux-gnu/debug/kimg"), to).context("copying kimg")?;
    Ok(())
}

impl Builder {
    fn build(&self, from: &Path) -> Result {
        let root = &self.debian.root;
        let (folder, programs) = (root.join(self.folder), root.join("opt/kimg"));
        for made in [&folder, &programs, &root.join(self.home).join(".cache")] {
            if made.exists() {
                std::fs::remove_dir_all(made).with_context(|| format!("removing {}", made.display()))?;
            }
            std::fs::create_dir_all(made).with_context(|| format!("making {}", made.display()))?;
        }
        copy(&from.join("programs"), &programs)?;
        copy(&from.join("secrets"), &folder.join("secrets"))?;
        for file in ["cluster.toml", "kimg.lock", "bundle.tar"] {
            std::fs::copy(from.join(file), folder.join(file)).with_context(|| format!("copying {file}"))?;
        }
        let Builder { folder, home, uid, umask, environment, cores, program, .. } = self;
        let script = format!(
            "set -e; chown -R {uid}:{uid} '/{folder}' '/{home}'; chmod 700 '/{folder}/secrets'; cd '/{folder}'; umask {umask}; \
             user=\"setpriv --reuid {uid} --regid {uid} --clear-groups env -i PATH=/usr/bin:/bin HOME=/{home} {environment} {cores} /opt/kimg/{program}\"; \
             $user cache import bundle.tar; $user build all; rm bundle.tar"
        );
        let output = self.debian.run("sh").args(["-c", &script]).output().context("entering the root")?;
        ensure!(output.status.success(), "in {}: {}", root.display(), String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let (path, target) = {
            let entry = entry?;
            (entry.path(), to.join(entry.file_name()))
        };
        if path.is_dir() {
            copy(&path, &target)?;
        } else {
            std::fs::copy(path, target)?;
        }
    }
    Ok(())
}
