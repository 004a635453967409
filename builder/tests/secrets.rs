//! No byte of an image that may leave this machine is a private key of its cluster: the whole disk, every file of
//! the root, and what the initramfs unpacks to are searched for each key in each form.
//!
//! Needs what `make build` leaves; `make test-long PART=secrets` runs it.

use kimg::image::contents;
use kimg::image::leave::{self, Keys};
use kimg::image::output::Format;
use kimg::image::reader::Disk;
use kimg::pki::Secrets;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::process::Command;

const CLUSTER: &str = "name = \"sealed\"\n\
    nodes = [{ name = \"m\", role = \"master\" }, { name = \"w\", role = \"worker\" }]\n\
    [image]\nsecure-boot = true\n";

#[test]
#[ignore = "needs the release build: make test-long runs it"]
fn no_byte_of_an_image_is_a_key() {
    let dir = tempfile::tempdir().expect("folder");
    std::fs::write(dir.path().join("cluster.toml"), CLUSTER).expect("cluster.toml");
    let kimg = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/kimg");
    let built = Command::new(kimg)
        .arg("--dir")
        .arg(dir.path())
        .args(["build", "all", "--format", &Format::all().iter().map(|form| form.name()).collect::<Vec<_>>().join(",")])
        .output()
        .expect("kimg runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let keys = Keys::of(&Secrets::open(&dir.path().join("secrets"))).expect("keys");
    for role in ["master", "worker"] {
        let folder = dir.path().join("build").join(role);
        for form in Format::all().iter().map(|form| form.file()) {
            let image = folder.join(form);
            leave::may_leave(&image).expect("it may leave");
            let found = keys.search(Disk::open(&image).expect("opened")).expect("searched");
            assert!(found.is_empty(), "{role}/{form}: {found:?}");
            // What the form has besides the disk.
            let found = keys.search(File::open(&image).expect("opened")).expect("searched");
            assert!(found.is_empty(), "{role}/{form}, as it is: {found:?}");
        }
        let root = contents::root_of(&mut Disk::open(&folder.join("disk.raw")).expect("opened")).expect("root");
        let mut files = 0;
        contents::walk(BufReader::new(root), |path, _, reader| {
            let Some(reader) = reader else { return Ok(()) };
            files += 1;
            let found = keys.search(reader)?;
            assert!(found.is_empty(), "{role}{path}: {found:?}");
            Ok(())
        })
        .expect("walked");
        assert!(files > 100, "{role}: only {files} files in the root");
        let packed = std::fs::read(folder.join("initrd")).expect("initrd");
        let mut initrd = Vec::new();
        zstd::stream::read::Decoder::new(&packed[..]).expect("zstd").read_to_end(&mut initrd).expect("unpacked");
        let found = keys.search(&initrd[..]).expect("searched");
        assert!(found.is_empty(), "{role}/initrd: {found:?}");
    }
}
