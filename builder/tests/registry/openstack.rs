//! `kimg upload --to openstack`, `image` and `gc` against a real Keystone and Glance: gunicorn, SQLite and a folder.

use crate::gate::Gate;
use crate::served::{Served, free_port, pid};
use crate::{said, tools};
use anyhow::{Context, Result, bail, ensure};
use kimg::disk::{self, Parts, config_part};
use kimg::image::manifest::{FileSum, Manifest};
use kimg::image::output::Format;
use kimg::web::{Answer, Client, Request};
use node_metadata::Role;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::Duration;

/// More than what the kernel takes of a connection that stands still, behind what is let through.
const LARGE: usize = 24 << 20;
const BEGIN: u64 = 4 << 20;
const ADMIN: &str = "adm1n-s3cr3t";
const PASSWORD: &str = "us3r-s3cr3t";

/// One file goes to Glance once, comes back whole, and is removed; a wrong password and a wrong form get nowhere.
pub fn an_image_goes_there_once(dir: &Path) -> Result<()> {
    let cloud = Cloud::start(&dir.join("cloud"), 3600)?;
    let image = Image::write(&dir.join("cluster"), 2 << 20)?;

    let error = failed(cloud.kimg(&image, "upload worker --to openstack").env("OS_PASSWORD", "wr0ng"))?;
    ensure!(error.contains("does not accept the credentials") && error.contains("401"), "{error}");
    ensure!(!error.contains("wr0ng"), "{error}");

    // Glance takes a packed disk for a plain one without a word; so kimg has to look itself.
    let packed = image.file(Format::RawGz);
    Format::RawGz.write(&image.file(Format::Raw), &packed)?;
    let made = json!({"name": "swallowed", "disk_format": "raw", "container_format": "bare"});
    let made = cloud.glance(Request::post(cloud.image_url("")).json(&made))?.expect(&[201])?.json()?;
    let id = made["id"].as_str().context("no id")?.to_string();
    let body = std::fs::read(&packed)?;
    let sent = Request::put(cloud.image_url(&format!("/{id}/file"))).bytes("application/octet-stream", body);
    cloud.glance(sent)?.expect(&[204])?;
    cloud.glance(Request::delete(cloud.image_url(&format!("/{id}"))))?.expect(&[204])?;
    for wrong in [Format::RawGz, Format::Raw] {
        std::fs::copy(image.file(wrong), image.file(Format::Qcow2))?;
        image.name_files(&[Format::Raw, Format::Qcow2])?;
        let error = failed(&mut cloud.kimg(&image, "upload worker --to openstack"))?;
        ensure!(error.contains("does not begin as disk.qcow2 does"), "{error}");
        ensure!(cloud.images()?.is_empty(), "{wrong:?} went there");
    }
    std::fs::remove_file(image.file(Format::Qcow2))?;
    image.name_files(&[Format::Raw])?;

    let first = said(&mut cloud.kimg(&image, "upload worker --to openstack"))?;
    ensure!(first.contains("sent, is there as"), "{first}");
    let second = said(&mut cloud.kimg(&image, "upload worker --to openstack"))?;
    ensure!(second.contains("was there as"), "{second}");
    let known = cloud.images()?;
    ensure!(known.len() == 1 && known[0]["min_disk"] == 1 && known[0]["visibility"] == "private", "{known:?}");
    let id = known[0]["id"].as_str().context("no id")?;
    let back = cloud.glance(Request::get(cloud.image_url(&format!("/{id}/file"))))?.expect(&[200])?;
    ensure!(back.body == std::fs::read(image.file(Format::Qcow2))?, "what came back");

    let listed = said(&mut cloud.kimg(&image, "image ls --at openstack --json"))?;
    let listed: Value = serde_json::from_str(&listed)?;
    let name = listed[0]["name"].as_str().context("no name")?;
    ensure!(listed[0]["id"] == id && listed[0]["state"] == "ready" && name == image.name()?, "{listed}");
    let text = said(&mut cloud.with_application_credential(&image, "image ls --at openstack")?)?;
    ensure!(text.contains(name) && text.contains("ready"), "{text}");

    let left = said(&mut cloud.kimg(&image, "gc --provider openstack"))?;
    ensure!(left.trim() == "0 removed", "{left}");
    said(&mut cloud.kimg(&image, &format!("image rm {name} --at openstack")))?;
    ensure!(cloud.images()?.is_empty(), "it was removed");
    let error = failed(&mut cloud.kimg(&image, &format!("image rm {name} --at openstack")))?;
    ensure!(error.contains("has put no image"), "{error}");
    Ok(())
}

/// The token ends while the bytes go, and kimg gets another one to look at the image.
pub fn a_token_runs_out_on_the_way(dir: &Path) -> Result<()> {
    const LIFE: u64 = 8;
    let cloud = Cloud::start(&dir.join("cloud"), LIFE)?;
    let image = Image::write(&dir.join("cluster"), LARGE)?;
    cloud.way.shut_after(BEGIN);
    let kimg = cloud.start_kimg(&image, "upload worker --to openstack")?;
    cloud.way.wait()?;
    let before = cloud.refused()?;
    std::thread::sleep(Duration::from_secs(LIFE + 1));
    cloud.way.open();
    let output = kimg.wait_with_output()?;
    ensure!(output.status.success(), "{output:?}");
    ensure!(cloud.refused()? > before, "the token did not run out");
    ensure!(cloud.images()?.len() == 1, "the image");
    Ok(())
}

/// However an upload ends, what is at Glance is removed, at the latest by `kimg gc`.
pub fn what_it_was_taking_is_removed(dir: &Path) -> Result<()> {
    let mut cloud = Cloud::start(&dir.join("cloud"), 3600)?;
    let image = Image::write(&dir.join("cluster"), LARGE)?;
    let held = |cloud: &Cloud| -> Result<Child> {
        cloud.way.shut_after(BEGIN);
        let kimg = cloud.start_kimg(&image, "upload worker --to openstack")?;
        cloud.way.wait()?;
        Ok(kimg)
    };
    let gc = |cloud: &Cloud, words: &str| said(&mut cloud.kimg(&image, &format!("gc --provider openstack{words}")));

    // Ctrl-C: kimg removes it.
    let kimg = held(&cloud)?;
    kill_process(pid(&kimg)?, Signal::INT)?;
    cloud.way.open();
    let output = kimg.wait_with_output()?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && error.contains("interrupted"), "{output:?}");
    ensure!(cloud.images()?.is_empty(), "after Ctrl-C: {:?}", cloud.images()?);

    // A connection that is cut: kimg sends it again.
    let kimg = held(&cloud)?;
    cloud.way.cut();
    let output = kimg.wait_with_output()?;
    ensure!(output.status.success(), "{output:?}");
    let known = cloud.images()?;
    ensure!(known.len() == 1 && known[0]["status"] == "active", "{known:?}");
    said(&mut cloud.kimg(&image, &format!("image rm {} --at openstack", image.name()?)))?;

    // kimg is killed: gc removes it.
    let mut kimg = held(&cloud)?;
    kimg.kill()?;
    kimg.wait()?;
    cloud.way.open();
    cloud.wait_for_status("queued")?;
    let left = gc(&cloud, " --dry-run")?;
    ensure!(left.contains("1 would be removed") && cloud.images()?.len() == 1, "{left}");
    let left = gc(&cloud, "")?;
    ensure!(left.contains("1 removed") && cloud.images()?.is_empty(), "{left}");

    // Both are killed: Glance calls it 'saving' for ever.
    let mut kimg = held(&cloud)?;
    kimg.kill()?;
    kimg.wait()?;
    cloud.crash_glance()?;
    cloud.way.cut();
    cloud.start_glance()?;
    cloud.wait_for_status("saving")?;
    let left = gc(&cloud, "")?;
    ensure!(left.contains("1 removed") && cloud.images()?.is_empty(), "{left}");
    said(&mut cloud.kimg(&image, "upload worker --to openstack"))?;
    ensure!(cloud.images()?.len() == 1, "the next run");
    Ok(())
}

/// What a command that fails says.
fn failed(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    ensure!(!output.status.success(), "{command:?} did not fail: {output:?}");
    Ok(text(&output))
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A cluster's folder with a worker's image that has partitions and CONFIG but boots nothing.
struct Image {
    dir: PathBuf,
}

impl Image {
    fn write(dir: &Path, size: usize) -> Result<Image> {
        let image = Image { dir: dir.to_path_buf() };
        std::fs::create_dir_all(image.file(Format::Raw).parent().context("a file has a folder")?)?;
        let settings = "name = \"demo\"\nnodes = [{ name = \"m\", role = \"master\" }]\n";
        std::fs::write(dir.join("cluster.toml"), settings)?;
        // What no packer makes smaller.
        let root = dir.join("root");
        let noise = |n: u32| u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(n % 61).to_le_bytes();
        std::fs::write(&root, (0..(size / 8) as u32).flat_map(noise).collect::<Vec<u8>>())?;
        let config = [(PathBuf::from("cluster.json"), (0o644, b"{}".to_vec()))].into();
        let parts = Parts {
            boot_img: &[0; 512],
            esp_files: &[],
            root: &root,
            verity: &dir.join("cluster.toml"),
            root_hash: [1; 32],
            config: &config_part::encode(&config)?,
        };
        disk::write(&image.file(Format::Raw), &parts, b"core")?;
        image.name_files(&[Format::Raw])?;
        Ok(image)
    }

    fn file(&self, format: Format) -> PathBuf {
        self.dir.join("build/worker").join(format.file())
    }

    /// Writes the manifest, which names the files as they are now.
    fn name_files(&self, formats: &[Format]) -> Result<()> {
        let sum = |format: &Format| Ok((format.file().to_string(), FileSum::of(&self.file(*format))?));
        let manifest = Manifest {
            version: env!("CARGO_PKG_VERSION").into(),
            states: None,
            cluster: "demo".into(),
            role: Role::Worker,
            root_hash: "01".repeat(32),
            kernel: String::new(),
            command_line: String::new(),
            secrets: "none".into(),
            secure_boot: None,
            inputs: String::new(),
            partitions: Default::default(),
            packages: Default::default(),
            components: Vec::new(),
            files: formats.iter().map(sum).collect::<Result<_>>()?,
            sources: None,
        };
        manifest.write(&self.dir.join("build/worker"))
    }

    fn name(&self) -> Result<String> {
        Ok(format!("kimg-demo-worker-{}", &FileSum::of(&self.file(Format::Raw))?.sha256[..12]))
    }
}

/// A Keystone with a user in a project, and a Glance behind a gate.
struct Cloud {
    dir: PathBuf,
    keystone: Served,
    glance: Served,
    way: Gate,
    client: Client,
}

impl Cloud {
    /// Both servers, with a user of the role `member`, whose tokens live so many seconds.
    fn start(dir: &Path, token_life: u64) -> Result<Cloud> {
        copy(&prepared()?, dir)?;
        let keystone_port = free_port()?;
        configure(dir, &format!("http://127.0.0.1:{keystone_port}"), token_life)?;
        let cloud = Cloud {
            keystone: serve(dir, "served_keystone:application", keystone_port)?,
            glance: serve(dir, "glance.wsgi.api:application", free_port()?)?,
            way: Gate::new(0)?,
            client: Client::new(None)?,
            dir: dir.to_path_buf(),
        };
        cloud.way.lead_to(cloud.glance.port);
        cloud.introduce()?;
        Ok(cloud)
    }

    /// Tells Keystone of Glance and of the user.
    fn introduce(&self) -> Result<()> {
        let (token, _) = self.token("admin", ADMIN, "admin")?;
        let ask = |request: Request| -> Result<Value> {
            let answer = self.client.send(&request.secret("x-auth-token", token.clone()))?.expect(&[200, 201, 204])?;
            if answer.body.is_empty() { Ok(Value::Null) } else { answer.json() }
        };
        let make = |kind: &str, what: Value| -> Result<String> {
            let made = ask(Request::post(self.identity_url(&format!("/{kind}s"))).json(&json!({kind: what})))?;
            Ok(made[kind]["id"].as_str().with_context(|| format!("no id of the {kind}"))?.to_string())
        };
        for (service, url) in
            [("identity", self.identity_url("")), ("image", format!("http://127.0.0.1:{}", self.way.port))]
        {
            let id = make("service", json!({"type": service, "name": service}))?;
            make("endpoint", json!({"interface": "public", "region_id": "R1", "service_id": id, "url": url}))?;
        }
        let project = make("project", json!({"name": "nodes", "domain_id": "default"}))?;
        let user = make("user", json!({"name": "kimg", "password": PASSWORD, "domain_id": "default"}))?;
        let roles = ask(Request::get(self.identity_url("/roles?name=member")))?;
        let role = roles["roles"][0]["id"].as_str().context("no role 'member'")?;
        ask(Request::put(self.identity_url(&format!("/projects/{project}/users/{user}/roles/{role}"))))?;
        Ok(())
    }

    fn identity_url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/v3{path}", self.keystone.port)
    }

    /// Past the gate.
    fn image_url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/v2/images{path}", self.glance.port)
    }

    /// A token, and the user's id.
    fn token(&self, user: &str, password: &str, project: &str) -> Result<(String, String)> {
        let domain = json!({"name": "Default"});
        let user = json!({"name": user, "domain": domain, "password": password});
        let identity = json!({"methods": ["password"], "password": {"user": user}});
        let auth = json!({"identity": identity, "scope": {"project": {"name": project, "domain": domain}}});
        let request = Request::post(self.identity_url("/auth/tokens")).json(&json!({ "auth": auth })).repeatable(true);
        let answer = self.client.send(&request)?.expect(&[201])?;
        let token = answer.header("x-subject-token").context("no token")?.to_string();
        Ok((token, answer.json()?["token"]["user"]["id"].as_str().context("no user")?.to_string()))
    }

    /// Asks Glance as the user.
    fn glance(&self, request: Request) -> Result<Answer> {
        let (token, _) = self.token("kimg", PASSWORD, "nodes")?;
        self.client.send(&request.secret("x-auth-token", token))
    }

    /// All images of the user.
    fn images(&self) -> Result<Vec<Value>> {
        let list = self.glance(Request::get(self.image_url("")))?.expect(&[200])?.json()?;
        Ok(list["images"].as_array().context("no list")?.clone())
    }

    fn wait_for_status(&self, status: &str) -> Result<()> {
        let mut seen = Vec::new();
        for _ in 0..60 {
            seen = self.images()?;
            if seen.len() == 1 && seen[0]["status"] == status {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        bail!("no image is {status}: {seen:?}")
    }

    /// How many calls Glance answered with 401.
    fn refused(&self) -> Result<usize> {
        let log = std::fs::read_to_string(self.dir.join("glance.wsgi.api:application.log"))?;
        Ok(log.lines().filter(|line| line.starts_with("kimg/") && line.ends_with(" 401")).count())
    }

    fn crash_glance(&mut self) -> Result<()> {
        let master = self.glance.child.id().to_string();
        // The worker holds the bytes; without its master nothing starts another.
        let workers = said(Command::new("ps").args(["-o", "pid=", "--ppid", &master]))?;
        self.glance.child.kill()?;
        self.glance.child.wait()?;
        for worker in workers.split_whitespace() {
            kill_process(Pid::from_raw(worker.parse()?).context("no process id")?, Signal::KILL)?;
        }
        Ok(())
    }

    fn start_glance(&mut self) -> Result<()> {
        self.glance = serve(&self.dir, "glance.wsgi.api:application", free_port()?)?;
        self.way.lead_to(self.glance.port);
        Ok(())
    }

    fn kimg(&self, image: &Image, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kimg"));
        command
            .args(words.split(' '))
            .current_dir(&image.dir)
            .env_clear()
            .env("HOME", &image.dir)
            .env("PATH", "/usr/bin:/bin")
            .env("OS_AUTH_URL", self.identity_url(""))
            .env("OS_USERNAME", "kimg")
            .env("OS_PASSWORD", PASSWORD)
            .env("OS_PROJECT_NAME", "nodes");
        command
    }

    fn start_kimg(&self, image: &Image, words: &str) -> Result<Child> {
        let mut command = self.kimg(image, words);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("starting kimg")
    }

    fn with_application_credential(&self, image: &Image, words: &str) -> Result<Command> {
        let (token, user) = self.token("kimg", PASSWORD, "nodes")?;
        let request = Request::post(self.identity_url(&format!("/users/{user}/application_credentials")))
            .json(&json!({"application_credential": {"name": "up", "secret": "cr3d"}}));
        let made = self.client.send(&request.secret("x-auth-token", token))?.expect(&[201])?.json()?;
        let id = made["application_credential"]["id"].as_str().context("no id")?.to_string();
        let mut command = self.kimg(image, words);
        for name in ["OS_USERNAME", "OS_PASSWORD", "OS_PROJECT_NAME"] {
            command.env_remove(name);
        }
        command.env("OS_APPLICATION_CREDENTIAL_ID", id).env("OS_APPLICATION_CREDENTIAL_SECRET", "cr3d");
        Ok(command)
    }
}

/// The program that serves one of their applications.
fn serve(dir: &Path, application: &str, port: u16) -> Result<Served> {
    let at = |end: &str| dir.join(format!("{application}.{end}")).display().to_string();
    let log = std::fs::File::create(at("err"))?;
    let mut command = command(dir, "gunicorn")?;
    command
        .args(["--workers", "1", "--threads", "4", "--bind", &format!("127.0.0.1:{port}")])
        .args(["--access-logfile", &at("log"), "--access-logformat", "%(a)s %(r)s %(s)s"])
        .args(["--pythonpath", &dir.display().to_string(), "--no-control-socket", application])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    // It listens before its application is there, and answers when it is.
    Served::start(&mut command, application, port, Some(Path::new(&at("err"))))
}

/// Keys and databases that nothing is in but an administrator: programs that take seconds each, run once for each list
/// of packages.
fn prepared() -> Result<PathBuf> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().map_err(|_| anyhow::anyhow!("preparing failed in another test"))?;
    let dir = tools::openstack()?.join("prepared");
    if dir.exists() {
        return Ok(dir);
    }
    let temporary = dir.with_extension("new");
    if temporary.exists() {
        std::fs::remove_dir_all(&temporary)?;
    }
    configure(&temporary, "http://127.0.0.1", 3600)?;
    let run = |program: &str, config: &str, words: &str| {
        let config = temporary.join(config).display().to_string();
        said(command(&temporary, program)?.args(["--config-file", &config]).args(words.split(' ')))
    };
    let owner = if rustix::process::getuid().is_root() { " --keystone-user root --keystone-group root" } else { "" };
    run("keystone-manage", "keystone.conf", "db_sync")?;
    run("keystone-manage", "keystone.conf", &format!("fernet_setup{owner}"))?;
    run("keystone-manage", "keystone.conf", &format!("credential_setup{owner}"))?;
    run(
        "keystone-manage",
        "keystone.conf",
        &format!("bootstrap --bootstrap-password {ADMIN} --bootstrap-region-id R1"),
    )?;
    run("glance-manage", "glance-api.conf", "db_sync")?;
    std::fs::rename(&temporary, &dir)?;
    Ok(dir)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let said = Command::new("cp").arg("-a").args([from, to]).status().context("running cp")?;
    ensure!(said.success(), "copying {}", from.display());
    Ok(())
}

/// A program of the environment, which leaves nothing outside of `dir`.
fn command(dir: &Path, program: &str) -> Result<Command> {
    let mut command = Command::new(tools::openstack()?.join("bin").join(program));
    command
        .current_dir(dir)
        .env("HOME", dir)
        .env("PYTHONWARNINGS", "ignore")
        .env("OS_KEYSTONE_CONFIG_FILES", dir.join("keystone.conf"))
        .env("OS_GLANCE_CONFIG_DIR", dir);
    Ok(command)
}

fn configure(dir: &Path, url: &str, token_life: u64) -> Result<()> {
    let at = |name: &str| dir.join(name).display().to_string();
    for folder in ["fernet", "credentials", "images", "staging", "tasks"] {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(at(folder))?;
    }
    // Keystone reads gunicorn's arguments as its own otherwise.
    let served = "import sys\nsys.argv = sys.argv[:1]\nfrom keystone.server import wsgi\n\
                  application = wsgi.initialize_public_application()\n";
    std::fs::write(at("served_keystone.py"), served)?;
    let keystone = format!(
        "[DEFAULT]\nlog_file = {}\n[database]\nconnection = sqlite:///{}\n[token]\nexpiration = {token_life}\n\
         [identity]\npassword_hash_rounds = 4\n\
         [fernet_tokens]\nkey_repository = {}\n[credential]\nkey_repository = {}\n[cache]\nenabled = false\n",
        at("keystone.log"),
        at("keystone.db"),
        at("fernet"),
        at("credentials"),
    );
    std::fs::write(at("keystone.conf"), keystone)?;
    let paste = tools::openstack()?.join("etc/glance/glance-api-paste.ini");
    let stores = ["os_glance_staging_store", "os_glance_tasks_store"].map(|store| {
        let folder = store.split('_').nth(2).unwrap_or_default();
        format!("[{store}]\nfilesystem_store_datadir = {}\n", at(folder))
    });
    let glance = format!(
        "[DEFAULT]\nenabled_backends = files:file\nlog_file = {}\n[database]\nconnection = sqlite:///{}\n\
         [glance_store]\ndefault_backend = files\n[files]\nfilesystem_store_datadir = {}\n{}\
         [paste_deploy]\nflavor = keystone\nconfig_file = {}\n\
         [keystone_authtoken]\nwww_authenticate_uri = {url}\nauth_url = {url}\nauth_type = password\n\
         interface = public\nusername = admin\npassword = {ADMIN}\nproject_name = admin\n\
         user_domain_id = default\nproject_domain_id = default\n",
        at("glance.log"),
        at("glance.db"),
        at("images"),
        stores.concat(),
        paste.display(),
    );
    std::fs::write(at("glance-api.conf"), glance)?;
    Ok(())
}
