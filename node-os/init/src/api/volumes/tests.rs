use super::*;
use node_api::copy::{ROOT, Summed, XATTR, hex};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use std::collections::BTreeMap;
use std::os::unix::fs::{FileExt, FileTypeExt, PermissionsExt, symlink};
use tar::{Builder, EntryType, Header};

fn copy_of(folder: &Path) -> Vec<u8> {
    let mut copy = Vec::new();
    pack::pack(folder, &mut copy).unwrap();
    copy
}

/// All that is said of each file below a folder.
fn seen(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        let mut paths = vec![next.clone()];
        paths.extend(std::fs::read_dir(&next).unwrap().map(|entry| entry.unwrap().path()));
        for path in paths {
            let about = std::fs::symlink_metadata(&path).unwrap();
            let holds = match about.file_type() {
                kind if kind.is_symlink() => format!("{:?}", std::fs::read_link(&path).unwrap()),
                kind if kind.is_file() => {
                    let mut value = [0; 16];
                    let xattr = rustix::fs::lgetxattr(&path, "user.a", &mut value).unwrap_or_default();
                    let bytes = std::fs::read(&path).unwrap();
                    format!("{} {:?} {} links", hex(&bytes), &value[..xattr], about.nlink())
                }
                kind => format!("fifo: {}", kind.is_fifo()),
            };
            if about.is_dir() && path != next {
                folders.push(path.clone());
            }
            let (mode, uid, gid) = (about.mode(), about.uid(), about.gid());
            let said = format!("{mode:o} {uid}:{gid} {}.{} {holds}", about.mtime(), about.mtime_nsec());
            found.insert(path.strip_prefix(folder).unwrap().to_owned(), said);
        }
    }
    found
}

fn at(seconds: i64, nanos: i64) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos };
    Timestamps { last_access: time, last_modification: time }
}

#[test]
fn a_folder_comes_back_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("pvc-1");
    let deep = folder.join("a/b");
    std::fs::create_dir_all(&deep).unwrap();
    let long = deep.join("x".repeat(200));
    std::fs::write(&long, "long").unwrap();
    std::fs::set_permissions(&long, std::fs::Permissions::from_mode(0o4755)).unwrap();
    std::fs::hard_link(&long, folder.join("another")).unwrap();
    let _ = rustix::fs::lsetxattr(&long, "user.a", b"\n=\0", XattrFlags::empty());
    for (name, target) in [("relative", "./a//b/"), ("absolute", "/etc/passwd"), ("far", &"../".repeat(60))] {
        symlink(target, folder.join(name)).unwrap();
    }
    rustix::fs::mknodat(CWD, folder.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(folder.join("socket")).unwrap();
    let holes = File::create(folder.join("holes")).unwrap();
    holes.write_all_at(b"middle", 10 << 20).unwrap();
    holes.set_len(20 << 20).unwrap();
    std::fs::set_permissions(&deep, std::fs::Permissions::from_mode(0o2500)).unwrap();
    // As root it is somebody else's, too.
    let _ = std::os::unix::fs::chown(&long, Some(70_000), Some(3_000_000));
    for (path, time) in [(&long, at(1_000_000_000, 123_456_789)), (&deep, at(-5, 7)), (&folder, at(1, 0))] {
        rustix::fs::utimensat(CWD, path, &time, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
    let mut copy = Vec::new();
    assert_eq!(pack::pack(&folder, &mut copy).unwrap(), 1, "the socket");
    let other = tempfile::tempdir().unwrap();
    // The kubelet has made it meanwhile.
    std::fs::create_dir(other.path().join("pvc-1")).unwrap();
    put(other.path(), "pvc-1", copy.as_slice()).unwrap();
    let mut before = seen(&folder);
    assert!(before.remove(Path::new("socket")).is_some());
    let taken = other.path().join("pvc-1");
    assert_eq!(seen(&taken), before);
    let blocks = std::fs::metadata(taken.join("holes")).unwrap().blocks();
    assert!(blocks * 512 < 1 << 20, "{blocks}");
    // It is used from now on, and the same copy leaves it so.
    std::fs::write(taken.join("new"), "new").unwrap();
    assert!(put(other.path(), "pvc-1", copy.as_slice()).unwrap().contains("already"));
    assert!(taken.join("new").exists());
    let listed = volumes(other.path()).unwrap();
    let [volume] = listed.as_slice() else { panic!("{listed:?}") };
    assert!(!volume.empty && volume.copy_of.is_some() && volume.bytes >= 4096, "{volume:?}");
    // Another one does not take its place.
    std::fs::write(folder.join("more"), "more").unwrap();
    let refused = put(other.path(), "pvc-1", copy_of(&folder).as_slice());
    assert!(matches!(&refused, Err(Fault::Other(why)) if why.contains("something else")), "{refused:?}");
    assert!(taken.join("new").exists());
    // Nor does the mark of one that somebody has put aside.
    std::fs::rename(&taken, other.path().join("aside")).unwrap();
    put(other.path(), "pvc-1", copy.as_slice()).unwrap();
    assert_eq!(seen(&taken), before);
    assert!(!other.path().join(".pvc-1.part").exists());
}

#[test]
fn of_a_volume_that_nobody_has_used_nothing_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let copy = copy_of(&dir.path().join("pvc-1"));
    put(dir.path(), "pvc-1", copy.as_slice()).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// A copy that kimg would not make, with the right sum: a folder, and behind it what is added.
fn hostile(add: impl FnOnce(&mut Builder<Summed<&mut Vec<u8>>>)) -> Vec<u8> {
    let mut copy = Vec::new();
    let mut tar = Builder::new(Summed::new(&mut copy));
    raw(&mut tar, EntryType::Directory, ROOT, "", b"");
    add(&mut tar);
    tar.into_inner().unwrap().finish().unwrap();
    copy
}

/// Kind, path and target of an entry.
type Raw = (EntryType, String, String);

/// An entry whose names are taken as they are.
fn raw(tar: &mut Builder<Summed<&mut Vec<u8>>>, kind: EntryType, path: &str, link: &str, data: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_mode(0o755);
    header.set_uid(rustix::process::getuid().as_raw().into());
    header.set_gid(rustix::process::getgid().as_raw().into());
    header.set_mtime(0);
    header.set_size(data.len() as u64);
    header.set_cksum();
    tar.append(&header, data).unwrap();
}

#[test]
fn nothing_is_made_outside_and_nothing_that_is_no_file() {
    use EntryType::{Block, Char, Continuous, Directory, GNUSparse, Link, Regular, Symlink, XGlobalHeader, XHeader};
    let secret = tempfile::tempdir().unwrap();
    let outside = secret.path().to_str().unwrap().to_owned();
    std::fs::write(secret.path().join("secret"), "secret").unwrap();
    let file = |path: &'static str| vec![(Regular, path.to_owned(), String::new())];
    let one = |kind, path: &str, link: &str| vec![(kind, path.to_owned(), link.to_owned())];
    let through = |path: &str| [one(Symlink, "volume/l", &outside), one(Regular, path, "")].concat();
    let cases: Vec<(&str, Vec<Raw>)> = vec![
        ("a way out", file("volume/../out")),
        ("a way out from the inside", file("volume/a/../../out")),
        ("an absolute path", one(Regular, &format!("{outside}/out"), "")),
        ("another folder", file("other/out")),
        ("no folder", file("volume/a/out")),
        ("through a link", through("volume/l/out")),
        ("over a link", through("volume/l")),
        ("a folder over a link", [through("volume/x"), one(Directory, "volume/l", "")].concat()),
        ("a second beginning", one(Directory, ROOT, "")),
        ("twice", [file("volume/a"), file("volume/a")].concat()),
        ("a device", one(Char, "volume/a", "")),
        ("a disk", one(Block, "volume/a", "")),
        ("something else", one(Continuous, "volume/a", "")),
        ("holes that are said otherwise", one(GNUSparse, "volume/a", "")),
        ("records for all", one(XGlobalHeader, "volume/a", "")),
        ("a link to a file outside", one(Link, "volume/a", &format!("{outside}/secret"))),
        ("a link to what is above", one(Link, "volume/a", "volume/../secret")),
        (
            "a link through a link",
            [one(Symlink, "volume/l", &outside), one(Link, "volume/a", "volume/l/secret")].concat(),
        ),
        ("a link to a link", [one(Symlink, "volume/l", &outside), one(Link, "volume/a", "volume/l")].concat()),
        ("a link to the folder", one(Link, "volume/a", ROOT)),
    ];
    for (what, entries) in cases {
        let dir = tempfile::tempdir().unwrap();
        let copy = hostile(|tar| entries.iter().for_each(|(kind, path, link)| raw(tar, *kind, path, link, b"")));
        let refused = put(dir.path(), "pvc-1", copy.as_slice());
        assert!(matches!(refused, Err(Fault::Wrong(_))), "{what}: {refused:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{what}");
        let left: Vec<_> = std::fs::read_dir(&secret).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["secret"], "{what}");
    }
    for record in ["size=1", "KIMG.xattr=74727573746564:00", "KIMG.xattr=zz:00", "mtime=x", "mtime=1.9999999999"] {
        let dir = tempfile::tempdir().unwrap();
        let line = format!("{} {record}\n", record.len() + 4);
        assert_eq!(line.len(), record.len() + 4, "two digits");
        let copy = hostile(|tar| {
            raw(tar, XHeader, "x", "", line.as_bytes());
            raw(tar, Regular, "volume/a", "", b"");
        });
        let refused = put(dir.path(), "pvc-1", copy.as_slice());
        assert!(matches!(refused, Err(Fault::Wrong(_))), "{record}: {refused:?}");
    }
    assert!(XATTR.starts_with("KIMG"));
    // What is said of a file is kept in memory.
    let copy = hostile(|tar| raw(tar, EntryType::GNULongName, "x", "", &vec![b'a'; 2 << 20]));
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(put(dir.path(), "pvc-1", copy.as_slice()), Err(Fault::Wrong(_))));
    // A link may lead wherever it likes: it is followed by those who have the volume only.
    let copy = hostile(|tar| raw(tar, Symlink, "volume/l", &outside, b""));
    put(dir.path(), "pvc-1", copy.as_slice()).unwrap();
}

#[test]
fn what_is_cut_off_or_too_large_is_not_taken_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let copy = hostile(|tar| raw(tar, EntryType::Regular, "volume/a", "", &[1; 10_000]));
    for length in [0, 100, 600, 5000, copy.len() - 600, copy.len() - 1] {
        let refused = put(dir.path(), "pvc-1", &copy[..length]);
        assert!(matches!(refused, Err(Fault::Wrong(_))), "{length}: {refused:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{length}");
    }
    let into = dir.path().join("into");
    let unpack = |most| {
        let _ = std::fs::remove_dir_all(&into);
        unpack::unpack(Checked::new(copy.as_slice()), &into, most)
    };
    assert!(unpack(10_000 + 3 * 4096).unwrap());
    assert_eq!(unpack(10_000).unwrap_err().kind(), ErrorKind::StorageFull);
}

#[tokio::test]
async fn pieces_pass_through() {
    let (sender, mut receiver) = mpsc::channel(1);
    let bytes: Vec<u8> = (0..300_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let written = bytes.clone();
    let writing = tokio::task::spawn_blocking(move || {
        let mut sender = Sender { sender, piece: Vec::new() };
        written.chunks(1000).try_for_each(|chunk| sender.write_all(chunk)).and_then(|()| sender.flush())
    });
    let (other, from) = mpsc::channel(1);
    let reading = tokio::task::spawn_blocking(move || {
        let mut read = Vec::new();
        Receiver { receiver: from, piece: Bytes::new() }.read_to_end(&mut read).map(|_| read)
    });
    while let Some(piece) = receiver.recv().await {
        other.send(piece).await.unwrap();
    }
    drop(other);
    writing.await.unwrap().unwrap();
    assert!(reading.await.unwrap().unwrap() == bytes);
}
