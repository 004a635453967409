//! The client against a registry of memory that asks for tokens, breaks off and lies. Real registries: `builder/tests/registry`.

use super::credentials::Credentials;
use super::{Placed, Registry, Scope};
use crate::cache::download::Store;
use crate::cache::hash;
use crate::oci::content::Blob;
use crate::oci::model::{Descriptor, INDEX, Index, LAYER, MANIFEST, Manifest};
use crate::oci::reference::Reference;
use crate::oci::{pause_content, transfer};
use crate::progress::Progress;
use crate::web::Request;
use crate::web::fake::{Call, Fault, Reply, Server, Virtual};
use indicatif::ProgressBar;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};

#[derive(Default)]
struct State {
    /// By `repository digest`.
    blobs: BTreeMap<String, Vec<u8>>,
    /// By `repository target`.
    manifests: BTreeMap<String, (String, Vec<u8>)>,
    uploads: BTreeMap<String, Vec<u8>>,
    /// Nobody gets in without a token.
    token: bool,
    /// Each token is good for so many calls.
    good_for: usize,
    used: usize,
    given: usize,
    scopes: Vec<String>,
    /// Answers manifests with other bytes than were put.
    lies: bool,
}

type Shared = Arc<Mutex<State>>;

fn registry(state: &Shared) -> Server {
    let state = state.clone();
    Server::start(move |call| answer(call, &mut state.lock().unwrap()))
}

fn answer(call: &Call, state: &mut State) -> Reply {
    if call.path == "/token" {
        if call.header("authorization") != "Basic dTpw" {
            return Reply::new(401);
        }
        if call.query.contains("closed") {
            return Reply::new(403);
        }
        state.scopes.push(call.query.clone());
        state.given += 1;
        state.used = 0;
        return Reply::json(200, &json!({"token": format!("t{}", state.given)}));
    }
    if state.token {
        state.used += 1;
        let good = call.header("authorization") == format!("Bearer t{}", state.given) && state.used <= state.good_for;
        if !good {
            let realm = format!("http://{}/token", call.header("host"));
            return Reply::new(401).header("www-authenticate", &format!("Bearer realm=\"{realm}\",service=\"s\""));
        }
    }
    let path = call.path.strip_prefix("/v2/").unwrap();
    if let Some((repository, digest)) = path.split_once("/blobs/sha256:") {
        return match state.blobs.get(&format!("{repository} sha256:{digest}")) {
            Some(blob) => match call.header("range").strip_prefix("bytes=") {
                Some(range) => Reply::new(206).body(&blob[range.trim_end_matches('-').parse().unwrap()..]),
                None => Reply::new(200).body(blob),
            },
            None => Reply::new(404),
        };
    }
    if let Some((repository, target)) = path.split_once("/manifests/") {
        let key = format!("{repository} {target}");
        if call.method == "PUT" {
            let mut body = call.body.clone();
            if state.lies {
                body.push(b' ');
            }
            state.manifests.insert(key, (call.header("content-type").into(), body));
            return Reply::new(201);
        }
        return match state.manifests.get(&key) {
            Some((kind, body)) => Reply::new(200)
                .header("content-type", kind)
                .header("docker-content-digest", &format!("sha256:{}", hash::hex_of(body)))
                .body(body),
            None => Reply::new(404),
        };
    }
    let (repository, id) = path.split_once("/blobs/uploads/").unwrap();
    upload(call, state, repository, id)
}

fn upload(call: &Call, state: &mut State, repository: &str, id: &str) -> Reply {
    let place = |id: &str| format!("/v2/{repository}/blobs/uploads/{id}?state=x");
    let digest = |name: &str| call.asked(name).map(|d| d.replace("%3A", ":"));
    match call.method.as_str() {
        "POST" => {
            if let (Some(digest), Some(from)) = (digest("mount"), call.asked("from"))
                && let Some(blob) = state.blobs.get(&format!("{from} {digest}")).cloned()
            {
                state.blobs.insert(format!("{repository} {digest}"), blob);
                return Reply::new(201);
            }
            let id = format!("u{}", state.uploads.len());
            state.uploads.insert(id.clone(), Vec::new());
            Reply::new(202).header("location", &place(&id))
        }
        "GET" => match state.uploads.get(id) {
            Some(have) => Reply::new(204)
                .header("range", &format!("0-{}", have.len().saturating_sub(1)))
                .header("location", &place(id)),
            None => Reply::new(404),
        },
        "DELETE" => Reply::new(if state.uploads.remove(id).is_some() { 204 } else { 404 }),
        "PATCH" => {
            let Some(have) = state.uploads.get_mut(id) else { return Reply::new(404) };
            if !call.header("content-range").starts_with(&format!("{}-", have.len())) {
                return Reply::new(416);
            }
            have.extend(&call.body);
            let last = have.len() - 1;
            // As seen from where the chunk went to.
            Reply::new(202).header("range", &format!("0-{last}")).header("location", &format!("{id}?state=x"))
        }
        _ => {
            let Some(mut have) = state.uploads.remove(id) else { return Reply::new(404) };
            have.extend(&call.body);
            let digest = digest("digest").unwrap();
            if digest != format!("sha256:{}", hash::hex_of(&have)) {
                return Reply::new(400).body(b"DIGEST_INVALID");
            }
            state.blobs.insert(format!("{repository} {digest}"), have);
            Reply::new(201)
        }
    }
}

fn client(server: &Server, credentials: Option<Credentials>) -> Registry {
    Registry::new(&Virtual::new().client(), &server.authority(), credentials, true).with_chunks_of(64 << 10)
}

fn name(server: &Server, path: &str) -> Reference {
    Reference::parse(&format!("{}/{path}", server.authority())).unwrap()
}

fn user() -> Option<Credentials> {
    Some(Credentials::Basic("u".into(), "p".into()))
}

fn large() -> (Descriptor, Blob) {
    static BYTES: OnceLock<Arc<[u8]>> = OnceLock::new();
    let make = || (0..(40u32 << 10)).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let bytes = BYTES.get_or_init(make);
    (Descriptor::of(LAYER, bytes), Blob::Bytes(bytes.clone()))
}

#[test]
fn an_image_goes_there_and_comes_back() {
    let state: Shared = Arc::default();
    let server = registry(&state);
    let content = pause_content().unwrap();
    let (registry, target) = (client(&server, None), name(&server, "team/pause:1"));
    let root = content.choose(None).unwrap();
    let push = || transfer::send(&content, root, &target, &registry, &[], &Progress::hidden()).unwrap();
    assert!(push().starts_with("2 parts sent"));
    assert!(push().starts_with("0 parts sent"));
    // The manifest comes last: the name never stands for a part.
    let log = server.log();
    let first = |what: &str| log.iter().position(|l| l.starts_with(what)).unwrap();
    assert!(first("PUT /v2/team/pause/manifests/1") > first("PUT /v2/team/pause/blobs"));
    let (found, bytes) = registry.manifest(&target, "1").unwrap();
    assert_eq!((found.digest.as_str(), bytes), (root.digest.as_str(), content.document(root).unwrap()));
    assert_eq!(registry.resolve(&target, "2").unwrap(), None);
}

#[test]
fn a_token_is_got_for_the_scope_and_renewed() {
    let state: Shared = Arc::default();
    {
        let mut state = state.lock().unwrap();
        (state.token, state.good_for) = (true, 3);
    }
    let server = registry(&state);
    let content = pause_content().unwrap();
    let root = content.choose(None).unwrap();
    let target = name(&server, "team/pause:1");
    let send = |registry: &Registry| transfer::send(&content, root, &target, registry, &[], &Progress::hidden());
    send(&client(&server, user())).unwrap();
    let state = state.lock().unwrap();
    assert!(state.given > 2, "{}", state.given);
    assert_eq!(state.scopes[0], "service=s&scope=repository%3Ateam%2Fpause%3Apull%2Cpush");
    drop(state);
    let error = format!("{:#}", send(&client(&server, None)).unwrap_err());
    assert!(error.contains("KIMG_REGISTRY_PASSWORD"), "{error}");
    let wrong = Some(Credentials::Basic("u".into(), "s3cr3t".into()));
    let error = format!("{:#}", send(&client(&server, wrong)).unwrap_err());
    assert!(error.contains("does not accept the credentials") && !error.contains("s3cr3t"), "{error}");
}

#[test]
fn a_layer_that_lies_on_the_disk_arrives_in_chunks() {
    let state: Shared = Arc::default();
    let server = registry(&state);
    let (descriptor, blob) = large();
    let mut file = tempfile::tempfile().unwrap();
    std::io::copy(&mut *blob.open().unwrap(), &mut file).unwrap();
    let blob = Blob::Nameless(Arc::new(file), descriptor.size);
    client(&server, None).put_blob(&name(&server, "a"), &descriptor, &blob, &[], &ProgressBar::hidden()).unwrap();
    assert!(server.log().iter().filter(|call| call.starts_with("PATCH")).count() > 1);
    let arrived = &state.lock().unwrap().blobs[&format!("a {}", descriptor.digest)];
    assert_eq!(Descriptor::of(LAYER, arrived).digest, descriptor.digest);
}

#[test]
fn a_large_blob_goes_on_where_it_broke_off() {
    let state: Shared = Arc::default();
    let server = registry(&state);
    let (descriptor, blob) = large();
    // HEAD, POST, PATCH; the second PATCH is done and its answer lost, the fourth call of the kind never arrives.
    server.fail(3, Fault::CutAnswer(0));
    server.fail(5, Fault::CutRequest(1000));
    let registry = client(&server, None);
    let placed = registry.put_blob(&name(&server, "a"), &descriptor, &blob, &[], &ProgressBar::hidden()).unwrap();
    assert_eq!(placed, Placed::Sent);
    assert_eq!(state.lock().unwrap().blobs[&format!("a {}", descriptor.digest)].len() as u64, descriptor.size);
    let sent: usize = server.calls().iter().filter(|c| c.method == "PATCH").map(|c| c.body.len()).sum();
    // Only the chunk that never arrived was sent twice.
    assert!(sent as u64 <= descriptor.size + 1000, "{sent} of {}", descriptor.size);
}

#[test]
fn an_upload_breaks_at_any_point_and_arrives_or_leaves_nothing() {
    let calls = {
        let state: Shared = Arc::default();
        let server = registry(&state);
        let (descriptor, blob) = large();
        client(&server, None).put_blob(&name(&server, "a"), &descriptor, &blob, &[], &ProgressBar::hidden()).unwrap();
        server.log().len()
    };
    for n in 0..calls {
        for fault in [
            Fault::CutRequest(10),
            Fault::CutAnswer(5),
            Fault::Instead(Reply::new(500)),
            Fault::Instead(Reply::new(403)),
        ] {
            let state: Shared = Arc::default();
            let server = registry(&state);
            let (descriptor, blob) = large();
            server.fail(n, fault.clone());
            let done =
                client(&server, None).put_blob(&name(&server, "a"), &descriptor, &blob, &[], &ProgressBar::hidden());
            let state = state.lock().unwrap();
            match done {
                Ok(_) => {
                    assert!(state.blobs.contains_key(&format!("a {}", descriptor.digest)), "{n} {fault:?}")
                }
                Err(error) => {
                    assert!(format!("{error:#}").contains("403"), "{n} {fault:?}: {error:#}");
                    assert!(state.uploads.is_empty(), "{n} {fault:?}");
                }
            }
        }
    }
}

#[test]
fn what_another_repository_has_is_mounted() {
    let state: Shared = Arc::default();
    let server = registry(&state);
    let registry = client(&server, None);
    let blob = Blob::Bytes((*b"x").into());
    let descriptor = Descriptor::of(LAYER, b"x");
    let put = |path: &str, from: &[String]| {
        registry.put_blob(&name(&server, path), &descriptor, &blob, from, &ProgressBar::hidden()).unwrap()
    };
    assert_eq!(put("t/a", &["t/none".into()]), Placed::Sent);
    assert_eq!(put("t/b", &["t/none".into(), "t/a".into()]), Placed::Mounted);
    assert_eq!(put("t/b", &[]), Placed::There);
    // What was begun where nothing could be mounted was given up.
    assert!(state.lock().unwrap().uploads.is_empty());
}

#[test]
fn a_repository_that_may_not_be_read_is_not_needed() {
    let state: Shared = Arc::default();
    (state.lock().unwrap().token, state.lock().unwrap().good_for) = (true, 100);
    let server = registry(&state);
    let (descriptor, blob) = (Descriptor::of(LAYER, b"x"), Blob::Bytes((*b"x").into()));
    let put = |server: &Server, user| {
        let from = ["closed/base".to_string()];
        client(server, user).put_blob(&name(server, "t/a"), &descriptor, &blob, &from, &ProgressBar::hidden())
    };
    // The token server gives nothing for it,
    assert_eq!(put(&server, user()).unwrap(), Placed::Sent);
    // or the registry itself says no.
    let state: Shared = Arc::default();
    let server = registry(&state);
    server.fail(1, Fault::Instead(Reply::new(403)));
    assert_eq!(put(&server, None).unwrap(), Placed::Sent);
    assert!(server.calls()[1].query.contains("from=closed"));
}

#[test]
fn a_blob_is_fetched_in_two_pieces_and_checked() {
    let state: Shared = Arc::default();
    let server = registry(&state);
    let (good, bad) = (Descriptor::of(LAYER, b"0123456789"), Descriptor::of(LAYER, b"abc"));
    {
        let mut state = state.lock().unwrap();
        state.blobs.insert(format!("a {}", good.digest), b"0123456789".to_vec());
        state.blobs.insert(format!("a {}", bad.digest), b"abd".to_vec());
    }
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path(), &dir.path().join("sums"));
    std::fs::write(dir.path().join(format!("{}.part", good.sha256().unwrap())), "0123").unwrap();
    let registry = client(&server, None);
    let fetch = |d: &Descriptor| registry.fetch(&name(&server, "a"), d, &store, &ProgressBar::hidden());
    assert_eq!(std::fs::read(fetch(&good).unwrap()).unwrap(), b"0123456789");
    assert_eq!(server.calls()[0].header("range"), "bytes=4-");
    assert!(fetch(&bad).unwrap_err().to_string().contains("was asked for"));
}

#[test]
fn a_registry_that_changes_manifests_is_found_out() {
    let state: Shared = Arc::default();
    let server = registry(&state);
    state.lock().unwrap().lies = true;
    let registry = client(&server, None);
    let bytes = br#"{"schemaVersion":2}"#.to_vec();
    let target = name(&server, "a:1");
    let error = registry.put_manifest(&target, "1", &Descriptor::of(MANIFEST, &bytes), bytes).unwrap_err().to_string();
    assert!(error.contains("changes manifests"), "{error}");
    let digest = format!("sha256:{}", "0".repeat(64));
    state.lock().unwrap().manifests.insert(format!("a {digest}"), (MANIFEST.into(), b"{}".to_vec()));
    assert!(registry.manifest(&target, &digest).unwrap_err().to_string().contains("changes what it holds"));
}

#[test]
fn a_registry_that_never_has_enough_is_given_up() {
    let said = Arc::new(Mutex::new("0-0".to_string()));
    let says = said.clone();
    let server = Server::start(move |call| match call.method.as_str() {
        "HEAD" => Reply::new(404),
        "DELETE" => Reply::new(204),
        _ => Reply::new(202)
            .header("location", "/v2/a/blobs/uploads/1")
            .header("oci-chunk-min-length", "0")
            .header("range", &says.lock().unwrap()),
    });
    let (descriptor, blob) = large();
    let put = || {
        let registry = client(&server, None);
        let done = registry.put_blob(&name(&server, "a"), &descriptor, &blob, &[], &ProgressBar::hidden());
        format!("{:#}", done.unwrap_err())
    };
    let error = put();
    assert!(error.contains("broke off 5 times"), "{error}");
    *said.lock().unwrap() = format!("0-{}", u64::MAX);
    let error = put();
    assert!(error.contains(&format!("has {} of", u64::MAX)), "{error}");
}

#[test]
fn an_index_is_fetched_once_and_not_without_end() {
    let document = |kind: &str, manifests: &[Descriptor]| {
        let bytes = serde_json::to_vec(&Index::new(manifests.to_vec())).unwrap();
        (Descriptor::of(kind, &bytes), bytes)
    };
    // Each names the next twice.
    let deep = |depth: usize| {
        let state: Shared = Arc::default();
        let server = registry(&state);
        let mut below = document(INDEX, &[]);
        for _ in 0..depth {
            let (descriptor, bytes) = below;
            below = document(INDEX, &[descriptor.clone(), descriptor.clone()]);
            state.lock().unwrap().manifests.insert(format!("a {}", descriptor.digest), (INDEX.into(), bytes));
        }
        state.lock().unwrap().manifests.insert("a 1".into(), (INDEX.into(), below.1));
        let done = transfer::fetch(&name(&server, "a:1"), &client(&server, None), None, &Progress::hidden());
        (done.map(drop), server.log().len())
    };
    let (done, calls) = deep(4);
    done.unwrap();
    assert_eq!(calls, 5);
    let error = deep(40).0.unwrap_err().to_string();
    assert!(error.contains("within each other"), "{error}");

    let state: Shared = Arc::default();
    let server = registry(&state);
    let long = Descriptor::new(MANIFEST, &hash::hex_of(b"x"), 65 << 20);
    state.lock().unwrap().manifests.insert("a 1".into(), (INDEX.into(), document(INDEX, &[long]).1));
    let done = transfer::fetch(&name(&server, "a:1"), &client(&server, None), None, &Progress::hidden());
    assert!(done.unwrap_err().to_string().contains("more than 64 MiB"));
    assert_eq!(server.log().len(), 1);
}

#[test]
fn an_index_that_takes_a_document_for_another_is_refused() {
    let state: Shared = Arc::default();
    let server = registry(&state);
    let inner = serde_json::to_vec(&Index::new(Vec::new())).unwrap();
    // What is below an index that is said to be something else would be missing.
    for said in [MANIFEST, LAYER] {
        let outer = serde_json::to_vec(&Index::new(vec![Descriptor::of(said, &inner)])).unwrap();
        let mut state = state.lock().unwrap();
        let digest = Descriptor::of(INDEX, &inner).digest;
        state.manifests.insert(format!("a {digest}"), (INDEX.into(), inner.clone()));
        state.manifests.insert("a 1".into(), (INDEX.into(), outer));
        drop(state);
        let done = transfer::fetch(&name(&server, "a:1"), &client(&server, None), None, &Progress::hidden());
        let error = done.unwrap_err().to_string();
        assert!(error.contains("and the index says"), "{error}");
    }
}

#[test]
fn an_image_that_would_fill_every_disk_is_not_pulled() {
    let state: Shared = Arc::default();
    let server = registry(&state);
    let endless = Descriptor::new(LAYER, &hash::hex_of(b"x"), 1 << 63);
    let manifest = serde_json::to_vec(&Manifest::new(endless, Vec::new())).unwrap();
    state.lock().unwrap().manifests.insert("a 1".into(), (MANIFEST.into(), manifest));
    let done = transfer::fetch(&name(&server, "a:1"), &client(&server, None), None, &Progress::hidden());
    assert!(done.unwrap_err().to_string().contains("more than 64 GiB"));
    assert_eq!(server.log().len(), 1);
}

#[test]
fn a_password_goes_to_no_token_server_that_a_registry_without_tls_names() {
    let server = Server::start(|_| {
        let challenge = "Bearer realm=\"https://evil.example/token\",service=\"s\"";
        Reply::new(401).header("www-authenticate", challenge)
    });
    let client = Virtual::new().client();
    let answer = client.send(&Request::get(server.url())).unwrap();
    let learn = |authority: &str, user: Option<Credentials>, plain: bool| {
        Registry::new(&client, authority, user, plain).learn(&Scope::pull("a"), &answer)
    };
    let error = learn("registry.example:5000", user(), true).unwrap_err().to_string();
    assert!(error.contains("without TLS"), "{error}");
    assert!(learn("registry.example:5000", user(), false).unwrap());
    assert!(learn("registry.example:5000", None, true).unwrap());
    assert!(learn("127.0.0.1:5000", user(), true).unwrap());
}

#[test]
fn a_pass_goes_to_the_registry_alone() {
    let other = Server::start(|_| Reply::new(201));
    let elsewhere = format!("{}/up?x=1", other.url());
    let server = Server::start(move |call| match call.method.as_str() {
        _ if call.header("authorization").is_empty() => Reply::new(401).header("www-authenticate", "Basic realm=x"),
        "HEAD" => Reply::new(404),
        _ => Reply::new(202).header("location", &elsewhere),
    });
    let blob = Blob::Bytes((*b"x").into());
    client(&server, user())
        .put_blob(&name(&server, "a"), &Descriptor::of(LAYER, b"x"), &blob, &[], &ProgressBar::hidden())
        .unwrap();
    assert!(server.calls().iter().any(|c| c.header("authorization") == "Basic dTpw"));
    assert_eq!(other.calls().len(), 1);
    assert_eq!(other.calls()[0].header("authorization"), "");
}
