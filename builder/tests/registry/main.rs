//! `kimg build image`, `push` and `pull` against Debian's docker-registry, and what skopeo, umoci and oras make of
//! the results; uploads to an S3 server, to OpenStack and over ssh; and machines at what stands in for AWS. The programs
//! are fetched once into `target/tools/`; one that cannot be had is skipped with the reason, and counted as ignored.
//!
//! `cargo test --workspace --test registry -- --include-ignored`; `make test` runs it.

mod aws;
mod gate;
mod moto;
mod openstack;
mod rescue;
mod s3;
mod served;
mod server;
mod tools;

use anyhow::{Context, Result, ensure};
use kimg::cache::hash;
use kimg::disk::{self, config_part};
use kimg::image::manifest::{self, FileSum, Manifest};
use kimg::image::output::Format;
use kimg::oci::artifact::NODE_IMAGE;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use server::{Server, Setup};
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use tools::Tool;

type Test = fn(&Bench) -> Result<()>;

const TESTS: &[(&str, &[Tool], Test)] = &[
    ("an_image_is_what_others_read", &[Tool::Skopeo, Tool::Umoci], an_image_is_what_others_read),
    ("several_platforms_and_names_arrive", &[Tool::Skopeo], several_platforms_and_names_arrive),
    ("a_layer_of_many_chunks_is_pushed_mounted_and_pulled", &[], many_chunks),
    ("a_base_at_a_registry_is_built_on", &[Tool::Skopeo], a_base_at_a_registry),
    ("a_password_and_an_own_authority", &[], a_password_and_an_own_authority),
    ("what_oras_pushes_is_pulled", &[Tool::Oras], what_oras_pushes),
    ("a_node_image_is_pulled_by_others", &[Tool::Oras, Tool::Skopeo], a_node_image_is_pulled_by_others),
];

/// Name, what it needs, and the test in a folder of its own.
type Upload = (&'static str, fn() -> Result<PathBuf>, fn(&Path) -> Result<()>);

const UPLOADS: &[Upload] = &[
    ("an_image_goes_to_an_s3_server_once", tools::s3rver, s3::an_image_goes_there_once),
    ("a_wrong_secret_is_refused_by_aws", tools::moto, s3::a_wrong_secret_is_refused),
    ("machines_come_and_go_at_aws", tools::moto, aws::machines_come_and_go),
    ("an_image_goes_to_glance_once", tools::openstack, openstack::an_image_goes_there_once),
    ("a_token_of_keystone_runs_out_on_the_way", tools::openstack, openstack::a_token_runs_out_on_the_way),
    ("a_disk_is_written_by_who_has_the_key", || Tool::Sshd.find(), rescue::a_disk_is_written_by_who_has_the_key),
    ("what_glance_was_taking_is_removed", tools::openstack, openstack::what_it_was_taking_is_removed),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = TESTS.iter().map(|(name, needs, test)| {
        let run = move || {
            let mut lacking = std::iter::once(&Tool::Registry).chain(*needs).filter_map(|tool| tool.find().err());
            if let Some(error) = lacking.next() {
                return Ok(Completion::ignored_with(format!("{error:#}")));
            }
            let done = Bench::new().and_then(|bench| test(&bench));
            done.map(|()| Completion::Completed).map_err(|error| Failed::from(format!("{error:#}")))
        };
        // They fetch programs, which `cargo test` alone should not.
        Trial::ignorable_test(*name, run).with_ignored_flag(true)
    });
    let uploads = UPLOADS.iter().map(|(name, needs, test)| {
        let run = move || {
            if let Err(error) = needs() {
                return Ok(Completion::ignored_with(format!("{error:#}")));
            }
            let done = tempfile::tempdir().context("making a folder").and_then(|dir| test(dir.path()));
            done.map(|()| Completion::Completed).map_err(|error| Failed::from(format!("{error:#}")))
        };
        Trial::ignorable_test(*name, run).with_ignored_flag(true)
    });
    // It needs no program but kimg.
    let silent = Trial::test("a_silent_server_keeps_nobody", || {
        let done = Bench::new().and_then(|bench| a_silent_server_keeps_nobody(&bench));
        done.map_err(|error| Failed::from(format!("{error:#}")))
    });
    let trials = trials.chain(uploads).chain([silent]).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A folder with an image's files in it, and a user with nothing in its home.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Result<Bench> {
        let bench = Bench { dir: tempfile::tempdir()? };
        bench.write("web/index.html", b"hello")?;
        Ok(bench)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().context("a file has a folder")?)?;
        std::fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))
    }

    fn command(&self, program: &Path, words: &str) -> Command {
        let mut command = Command::new(program);
        command
            .args(words.split_whitespace())
            .current_dir(self.dir.path())
            .env_clear()
            .env("HOME", self.dir.path())
            .env("PATH", "/usr/bin:/bin")
            .env("XDG_RUNTIME_DIR", self.dir.path());
        command
    }

    fn kimg(&self, words: &str) -> Result<String> {
        said(&mut self.command(Path::new(env!("CARGO_BIN_EXE_kimg")), words))
    }

    fn tool(&self, tool: Tool, words: &str) -> Result<String> {
        said(&mut tool.prepare(self.command(&tool.find()?, words))?)
    }
}

fn said(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?}: {out}{err}");
    Ok(out.into_owned())
}

/// The digest that kimg prints.
fn digest(text: &str) -> Result<String> {
    let at = text.find("sha256:").with_context(|| format!("no digest in {text}"))?;
    Ok(text[at..].chars().take(71).collect())
}

fn a_silent_server_keeps_nobody(bench: &Bench) -> Result<()> {
    let server = TcpListener::bind("127.0.0.1:0")?;
    // Who starts the tests in the background has them ignore the signal, and with them what they start.
    let name = format!("{}/x:1", server.local_addr()?);
    let mut kimg = bench.command(Path::new("env"), "--default-signal=INT");
    kimg.arg(env!("CARGO_BIN_EXE_kimg")).args(["pull", &name, "--output", "x.tar"]);
    let mut kimg = kimg.spawn()?;
    let (mut connection, _) = server.accept()?;
    // It has asked, and waits.
    let mut asked = [0; 4];
    connection.read_exact(&mut asked)?;
    let id = rustix::process::Pid::from_child(&kimg);
    rustix::process::kill_process(id, rustix::process::Signal::INT)?;
    let status = kimg.wait()?;
    ensure!(status.signal() == Some(rustix::process::Signal::INT.as_raw()), "kimg waited for the server: {status}");
    Ok(())
}

fn an_image_is_what_others_read(bench: &Bench) -> Result<()> {
    let server = Server::start(&Setup::default())?;
    let name = format!("{}/team/web:1", server.authority());
    let built = bench.kimg(&format!("build image web --name {name} --gzip --port 80 --output web.tar"))?;
    let pushed = bench.kimg("push web.tar")?;
    ensure!(digest(&built)? == digest(&pushed)?, "{built}{pushed}");
    let seen = bench.tool(Tool::Skopeo, &format!("inspect --tls-verify=false docker://{name}"))?;
    let seen: serde_json::Value = serde_json::from_str(&seen)?;
    ensure!(seen["Digest"] == digest(&built)? && seen["Architecture"] == "amd64", "{seen}");

    // From the registry to a layout by skopeo, and unpacked by umoci.
    bench.tool(Tool::Skopeo, &format!("--insecure-policy copy --src-tls-verify=false docker://{name} oci:skopeo:1"))?;
    bench.tool(Tool::Umoci, "unpack --rootless --image skopeo:1 bundle")?;
    ensure!(std::fs::read(bench.path("bundle/rootfs/index.html"))? == b"hello", "what umoci unpacked");

    // And from kimg's own layout.
    bench.kimg(&format!("build image web --name {name} --gzip --port 80 --output layout"))?;
    bench.tool(Tool::Umoci, "unpack --rootless --image layout:1 bundle2")?;
    ensure!(std::fs::read(bench.path("bundle2/rootfs/index.html"))? == b"hello", "what umoci unpacked of kimg's");

    // Back by kimg: the same bytes as were built.
    bench.kimg(&format!("pull {name} --output back.tar"))?;
    ensure!(
        std::fs::read(bench.path("back.tar"))? == std::fs::read(bench.path("web.tar"))?,
        "the archive that came back"
    );
    // What skopeo wrote is pushed as it is, under a name of its own.
    let again = bench.kimg(&format!("push skopeo {}/other/web:2", server.authority()))?;
    ensure!(digest(&again)? == digest(&built)?, "{again}");
    Ok(())
}

fn several_platforms_and_names_arrive(bench: &Bench) -> Result<()> {
    let server = Server::start(&Setup::default())?;
    let place = format!("{}/team/web", server.authority());
    bench.write("web/amd/arch", b"amd64")?;
    bench.write("web/arm/arch", b"arm64")?;
    let recipe = format!(
        "name = \"{place}:1\"\ntags = [\"latest\"]\nplatforms = [\"linux/amd64\", \"linux/arm64\"]\n\
         [[layer]]\nroot = \"amd\"\nplatforms = [\"linux/amd64\"]\n[[layer]]\nroot = \"arm\"\nplatforms = [\"linux/arm64\"]\n"
    );
    bench.write("web/image.toml", recipe.as_bytes())?;
    bench.kimg("build image web --output web.tar")?;
    let pushed = bench.kimg("push web.tar")?;
    ensure!(pushed.matches("sha256:").count() == 2 && pushed.contains("0 parts sent"), "{pushed}");
    let skopeo = |what: &str| bench.tool(Tool::Skopeo, &format!("inspect --tls-verify=false {what}"));
    ensure!(skopeo(&format!("--raw docker://{place}:latest"))?.contains("arm64"), "the index");
    let arm = bench
        .tool(Tool::Skopeo, &format!("--override-arch arm64 inspect --tls-verify=false --config docker://{place}:1"))?;
    ensure!(arm.contains("\"arm64\""), "{arm}");
    bench.kimg(&format!("pull {place}:1 --platform linux/arm64 --output arm"))?;
    let index = std::fs::read_to_string(bench.path("arm/index.json"))?;
    ensure!(index.contains("arm64") && !index.contains("amd64"), "{index}");
    Ok(())
}

fn many_chunks(bench: &Bench) -> Result<()> {
    let server = Server::start(&Setup::default())?;
    let large: Vec<u8> = (0..(40u32 << 18)).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    bench.write("large/blob", &large)?;
    let name = |path: &str| format!("{}/{path}", server.authority());
    bench.kimg(&format!("build image large --name {} --output large.tar", name("a/large:1")))?;
    let pushed = bench.kimg("push large.tar")?;
    ensure!(pushed.contains("2 parts sent"), "{pushed}");
    let mounted = bench.kimg(&format!("push large.tar {} --mount-from a/large", name("b/large:1")))?;
    ensure!(mounted.contains("0 parts sent") && mounted.contains("2 mounted"), "{mounted}");
    let pinned = name(&format!("b/large@{}", digest(&pushed)?));
    bench.kimg(&format!("pull {pinned} --output back.tar"))?;
    let blobs = |file: &str| -> Result<Vec<String>> {
        let list = said(Command::new("tar").args(["-tf", file]).current_dir(bench.dir.path()))?;
        Ok(list.lines().map(str::to_string).collect())
    };
    ensure!(blobs("back.tar")? == blobs("large.tar")?, "the blobs of the archives differ");
    Ok(())
}

fn a_base_at_a_registry(bench: &Bench) -> Result<()> {
    let server = Server::start(&Setup::default())?;
    let place = server.authority();
    bench.kimg(&format!("build image web --name {place}/base:1 --env A=1 --gzip --output base.tar"))?;
    let base = bench.kimg("push base.tar")?;
    bench.write("top/extra", b"more")?;
    let build = |output: &str| {
        let words = format!("build image top --name {place}/top:1 --base {place}/base:1 --gzip --output {output}");
        bench.kimg(&words)
    };
    build("top.tar")?;
    build("again.tar")?;
    ensure!(std::fs::read(bench.path("top.tar"))? == std::fs::read(bench.path("again.tar"))?, "two builds differ");
    // The base's layer is not sent again: it is mounted from the base's repository.
    let pushed = bench.kimg("push top.tar")?;
    ensure!(pushed.contains("1 mounted"), "{pushed}");
    let seen = bench.tool(Tool::Skopeo, &format!("inspect --tls-verify=false docker://{place}/top:1"))?;
    let seen: serde_json::Value = serde_json::from_str(&seen)?;
    ensure!(seen["Layers"].as_array().map(Vec::len) == Some(2), "{seen}");
    ensure!(seen["Env"].to_string().contains("A=1"), "{seen}");
    let manifest = bench.tool(Tool::Skopeo, &format!("inspect --raw --tls-verify=false docker://{place}/top:1"))?;
    ensure!(manifest.contains(&digest(&base)?), "{manifest}");
    Ok(())
}

fn a_password_and_an_own_authority(bench: &Bench) -> Result<()> {
    let server = Server::start(&Setup { tls: true, password: true })?;
    bench.write("ca.pem", server.authority_pem().as_bytes())?;
    let place = server.authority();
    bench.kimg(&format!("build image web --name {place}/web:1 --output web.tar"))?;
    let error = bench.kimg("push web.tar --ca ca.pem").unwrap_err().to_string();
    ensure!(error.contains("wants to know who you are"), "{error}");
    let error = bench.kimg("push web.tar").unwrap_err().to_string();
    ensure!(error.contains("HTTP 400") || error.contains("HTTPS"), "plain HTTP to a server with TLS: {error}");

    let login = |user: &str, password: &str| -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let auths = serde_json::json!({"auths": {place.as_str(): {"username": user, "password": password}}});
        bench.write(".docker/config.json", auths.to_string().as_bytes())?;
        let mode = std::fs::Permissions::from_mode(0o600);
        Ok(std::fs::set_permissions(bench.path(".docker/config.json"), mode)?)
    };
    login(server::USER, "wrong-s3cr3t")?;
    let error = bench.kimg("push web.tar --ca ca.pem").unwrap_err().to_string();
    ensure!(error.contains("401") && !error.contains("s3cr3t"), "{error}");
    login(server::USER, server::PASSWORD)?;
    bench.kimg("push web.tar --ca ca.pem")?;
    bench.kimg(&format!("pull {place}/web:1 --ca ca.pem --output back.tar"))?;
    // By the environment, without a file.
    std::fs::remove_file(bench.path(".docker/config.json"))?;
    let mut command = bench.command(Path::new(env!("CARGO_BIN_EXE_kimg")), "push web.tar --ca ca.pem");
    command
        .env("KIMG_REGISTRY", &place)
        .env("KIMG_REGISTRY_USERNAME", server::USER)
        .env("KIMG_REGISTRY_PASSWORD", server::PASSWORD);
    ensure!(said(&mut command)?.contains("0 parts sent"), "the parts were there");
    Ok(())
}

fn what_oras_pushes(bench: &Bench) -> Result<()> {
    let server = Server::start(&Setup::default())?;
    let place = server.authority();
    // Both ways: kimg reads what oras wrote, and oras what kimg wrote.
    bench.write("note.txt", b"n")?;
    bench.tool(Tool::Oras, &format!("push --plain-http {place}/notes:1 --artifact-type text/x note.txt"))?;
    bench.kimg(&format!("pull {place}/notes:1 --output notes"))?;
    bench.kimg(&format!("push notes {place}/copy:1"))?;
    bench.tool(Tool::Oras, &format!("pull --plain-http {place}/copy:1 --output copied"))?;
    ensure!(std::fs::read(bench.path("copied/note.txt"))? == b"n", "what oras pulled");
    Ok(())
}

/// A folder as `kimg build` leaves it, with a disk that has partitions and CONFIG but boots nothing.
fn build(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let (root, raw) = (dir.join("root"), dir.join(Format::Raw.file()));
    std::fs::write(&root, vec![1; 8192])?;
    let files = ["cluster.json", "secrets.sealed"].map(|name| (name.into(), (0o600, b"{}".to_vec())));
    let parts = disk::Parts {
        boot_img: &[0; 512],
        esp_files: &[],
        root: &root,
        verity: &root,
        root_hash: [1; 32],
        config: &config_part::encode(&files.into())?,
    };
    disk::write(&raw, &parts, b"core")?;
    let packed = dir.join(Format::RawZst.file());
    Format::RawZst.write(&raw, &packed)?;
    let manifest = serde_json::json!({
        "version": "1", "cluster": "c", "role": "master", "root-hash": "01".repeat(32), "kernel": "",
        "command-line": "", "secrets": "sealed", "inputs": "", "partitions": {}, "packages": {}, "components": [],
        "files": {Format::RawZst.file(): FileSum::of(&packed)?},
    });
    serde_json::from_value::<Manifest>(manifest)?.write(dir)
}

fn a_node_image_is_pulled_by_others(bench: &Bench) -> Result<()> {
    let server = Server::start(&Setup::default())?;
    let name = format!("{}/nodes/master:7", server.authority());
    bench.kimg("init .")?;
    build(&bench.path("build/master"))?;
    let pushed = digest(&bench.kimg(&format!("push master {name}"))?)?;
    let same = |folder: &str| -> Result<()> {
        for file in [Format::RawZst.file(), manifest::FILE] {
            let read = |dir: &str| std::fs::read(bench.path(dir).join(file));
            ensure!(read(folder)? == read("build/master")?, "{folder}/{file} is another");
        }
        Ok(())
    };
    bench.tool(Tool::Oras, &format!("pull --plain-http {name} --output by-oras"))?;
    same("by-oras")?;
    bench.kimg(&format!("pull {name} --output by-kimg"))?;
    same("by-kimg")?;
    let raw = bench.tool(Tool::Skopeo, &format!("inspect --raw --tls-verify=false docker://{name}"))?;
    let seen: serde_json::Value = serde_json::from_str(&raw)?;
    ensure!(seen["artifactType"] == NODE_IMAGE && seen["annotations"]["io.kimg.role"] == "master", "{raw}");
    ensure!(pushed == format!("sha256:{}", hash::hex_of(raw.as_bytes())), "{pushed}");
    // Bytes for bytes, whatever they are of.
    bench
        .tool(Tool::Skopeo, &format!("--insecure-policy copy --src-tls-verify=false docker://{name} dir:by-skopeo"))?;
    let layers = seen["layers"].as_array().context("no layers")?;
    for layer in layers {
        let (file, sum) = (layer["annotations"]["org.opencontainers.image.title"].as_str(), layer["digest"].as_str());
        let (file, sum) = (file.context("no name")?, sum.context("no digest")?.trim_start_matches("sha256:"));
        let copied = std::fs::read(bench.path("by-skopeo").join(sum))?;
        ensure!(copied == std::fs::read(bench.path("build/master").join(file))?, "{file}");
    }
    ensure!(layers.len() == 2, "{raw}");
    Ok(())
}
