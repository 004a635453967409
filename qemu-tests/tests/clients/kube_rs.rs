//! kube-rs: typed and dynamic clients, watcher, reflector and controller.

use anyhow::{Context, Error, anyhow, bail, ensure};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServicePort, ServiceSpec};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind, ObjectMeta};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Client, Config, ResourceExt};
use qemu_tests::Result;
use qemu_tests::apiserver::{Apiserver, End};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub(crate) const TESTS: &[super::Test] = &[
    ("kube_rs_create_update_conflict", |s| alone(s, conflict)),
    ("kube_rs_patches", |s| alone(s, patches)),
    ("kube_rs_apply", |s| alone(s, apply)),
    ("kube_rs_pagination", |s| alone(s, pagination)),
    ("kube_rs_delete", |s| alone(s, delete)),
    ("kube_rs_dynamic_and_metadata", |s| alone(s, dynamic)),
    ("kube_rs_watcher_through_a_restart", |s| restarted(s, watcher::Config::default())),
    ("kube_rs_streaming_list_through_a_restart", |s| restarted(s, watcher::Config::default().streaming_lists())),
    ("kube_rs_controller_through_a_restart", controller),
];

/// What waits for an event gives up after this.
const PATIENCE: Duration = Duration::from_secs(30);

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("starting the runtime")
}

async fn connect(server: &Apiserver) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(server.kubeconfig()).context("reading the kubeconfig")?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Client::try_from(config).context("making a client")
}

/// A test that leaves the server alone.
fn alone<F: Future<Output = Result>>(server: &mut Apiserver, test: fn(Client) -> F) -> Result {
    runtime()?.block_on(async { test(connect(server).await?).await })
}

fn map(name: &str, colour: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.into()),
            labels: Some(BTreeMap::from([("made-by".into(), "kube".into())])),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([("colour".into(), colour.into())])),
        ..ConfigMap::default()
    }
}

fn reason<T>(answer: kube::Result<T>) -> Result<String> {
    match answer {
        Err(kube::Error::Api(status)) => Ok(status.reason.clone()),
        Err(other) => Err(other).context("instead of a refusal"),
        Ok(_) => bail!("what must be refused was done"),
    }
}

async fn conflict(client: Client) -> Result {
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    let post = PostParams::default();
    let first = maps.create(&post, &map("a", "red")).await?;
    ensure!(reason(maps.create(&post, &map("a", "red")).await)? == "AlreadyExists", "a second create");
    let mut newer = first.clone();
    newer.data = map("a", "green").data;
    let second = maps.replace("a", &post, &newer).await?;
    ensure!(second.uid() == first.uid() && second.resource_version() != first.resource_version(), "an update");
    ensure!(reason(maps.replace("a", &post, &first).await)? == "Conflict", "an update of an old version");
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    maps.create(&dry, &map("dry", "red")).await?;
    ensure!(reason(maps.get("dry").await)? == "NotFound", "a dry run left an object");
    ensure!(reason(maps.create(&post, &map("Not_A_Name", "red")).await)? == "Invalid", "a bad name");
    let mut entry = maps.entry("a").await?.or_insert(|| map("a", "blue"));
    entry.get_mut().data = map("a", "blue").data;
    entry.commit(&post).await.map_err(|e| anyhow!("committing an entry: {e}"))?;
    Ok(())
}

async fn patches(client: Client) -> Result {
    let services: Api<Service> = Api::default_namespaced(client);
    let service = Service {
        metadata: ObjectMeta {
            name: Some("s".into()),
            annotations: Some(BTreeMap::from([("gone".into(), "soon".into())])),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            ports: Some(vec![ServicePort { name: Some("http".into()), port: 80, ..ServicePort::default() }]),
            ..ServiceSpec::default()
        }),
        status: None,
    };
    services.create(&PostParams::default(), &service).await?;
    let params = PatchParams::default();
    let merge = Patch::Merge(json!({"metadata": {"annotations": {"gone": null, "stays": "here"}}}));
    let merged = services.patch("s", &params, &merge).await.context("merge patch")?;
    ensure!(merged.annotations().len() == 1, "merge patch gave {:?}", merged.annotations());
    let strategic = Patch::Strategic(json!({"spec": {"ports": [{"name": "https", "port": 443}]}}));
    let both = services.patch("s", &params, &strategic).await.context("strategic merge patch")?;
    ensure!(both.spec.and_then(|s| s.ports).is_some_and(|p| p.len() == 2), "a strategic merge patch replaced a list");
    let operations = serde_json::from_value(json!([{"op": "add", "path": "/metadata/labels", "value": {"a": "b"}}]))?;
    let labelled = services.patch("s", &params, &Patch::<()>::Json(operations)).await.context("JSON patch")?;
    ensure!(labelled.labels().contains_key("a"), "a JSON patch added nothing");
    let test = serde_json::from_value(json!([{"op": "test", "path": "/metadata/name", "value": "other"}]))?;
    let failed = reason(services.patch("s", &params, &Patch::<()>::Json(test)).await)?;
    ensure!(failed == "Invalid", "a failed test gave {failed}");
    Ok(())
}

async fn apply(client: Client) -> Result {
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    let body = |data| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}, "data": data});
    let (one, two) = (PatchParams::apply("one"), PatchParams::apply("two"));
    maps.patch("applied", &one, &Patch::Apply(body(json!({"a": "1", "b": "1"})))).await?;
    let theirs = maps.patch("applied", &two, &Patch::Apply(body(json!({"a": "2"})))).await;
    ensure!(reason(theirs)? == "Conflict", "another's field was taken");
    maps.patch("applied", &two.force(), &Patch::Apply(body(json!({"a": "2"})))).await?;
    let fewer = maps.patch("applied", &one, &Patch::Apply(body(json!({})))).await?;
    ensure!(fewer.data == Some(BTreeMap::from([("a".into(), "2".into())])), "giving fields up left {:?}", fewer.data);
    Ok(())
}

async fn pagination(client: Client) -> Result {
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    for i in 0..25 {
        maps.create(&PostParams::default(), &map(&format!("page-{i:02}"), "red")).await?;
    }
    let mut params = ListParams::default().labels("made-by=kube").limit(10);
    let (mut names, mut versions) = (Vec::new(), BTreeSet::new());
    loop {
        let page = maps.list(&params).await?;
        if names.is_empty() {
            maps.create(&PostParams::default(), &map("page-99", "late")).await?;
        }
        names.extend(page.items.iter().map(ResourceExt::name_any));
        versions.insert(page.metadata.resource_version);
        match page.metadata.continue_.filter(|t| !t.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => break,
        }
    }
    ensure!(names.len() == 25 && versions.len() == 1, "{} objects of {} versions", names.len(), versions.len());
    Ok(())
}

async fn delete(client: Client) -> Result {
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    for name in ["x", "y", "z"] {
        maps.create(&PostParams::default(), &map(name, "red")).await?;
    }
    let wrong = Preconditions { uid: Some("not-this-one".into()), resource_version: None };
    let params = DeleteParams::default().preconditions(wrong);
    ensure!(reason(maps.delete("x", &params).await)? == "Conflict", "a wrong precondition");
    ensure!(maps.delete("x", &DeleteParams::default()).await?.is_right(), "a delete gave no status");
    ensure!(maps.delete("y", &DeleteParams::foreground()).await?.is_left(), "foreground deletion gave no object");
    let merge = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    maps.patch("y", &PatchParams::default(), &merge).await?;
    ensure!(reason(maps.get("y").await)? == "NotFound", "the last finalizer's end left the object");
    let ours = ListParams::default().labels("made-by=kube");
    maps.delete_collection(&DeleteParams::default(), &ours).await?;
    ensure!(maps.list(&ours).await?.items.is_empty(), "deletecollection left objects");
    Ok(())
}

async fn dynamic(client: Client) -> Result {
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "ConfigMap"));
    let objects: Api<DynamicObject> = Api::default_namespaced_with(client.clone(), &kind);
    let object = DynamicObject::new("loose", &kind).data(json!({"data": {"colour": "red"}}));
    objects.create(&PostParams::default(), &object).await?;
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    ensure!(maps.get_metadata("loose").await?.types.is_some_and(|t| t.kind == "PartialObjectMetadata"), "no metadata");
    ensure!(!maps.list_metadata(&ListParams::default()).await?.items.is_empty(), "a list of metadata is empty");
    let found = kube::discovery::Discovery::new(client).run_aggregated().await?;
    let groups: Vec<&str> = found.groups().map(|g| g.name()).collect();
    ensure!(groups.contains(&"apps"), "aggregated discovery has the groups {groups:?}");
    Ok(())
}

async fn until(what: &str, mut ok: impl AsyncFnMut() -> bool) -> Result {
    let polling = async {
        while !ok().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, polling).await.with_context(|| format!("waited in vain for {what}"))
}

/// A reflector's store follows through an orderly restart and through a kill.
fn restarted(server: &mut Apiserver, config: watcher::Config) -> Result {
    let runtime = runtime()?;
    let client = runtime.block_on(connect(server))?;
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    let (reader, writer) = reflector::store();
    let events = watcher(maps.clone(), config).default_backoff().reflect(writer).applied_objects();
    let following = runtime.spawn(events.for_each(|_| futures::future::ready(())));
    let has = |name: &'static str| {
        let reader = reader.clone();
        async move || reader.find(|m| m.name_any() == name).is_some()
    };
    let create = |name: &'static str| {
        let maps = maps.clone();
        async move { maps.create(&PostParams::default(), &map(name, "red")).await.map(|_| ()) }
    };
    runtime.block_on(create("first"))?;
    runtime.block_on(until("the first object", has("first")))?;
    server.restart(End::InOrder)?;
    runtime.block_on(create("second"))?;
    runtime.block_on(until("an object after the restart", has("second")))?;
    server.restart(End::Killed)?;
    runtime.block_on(async { maps.delete("first", &DeleteParams::default()).await })?;
    let there = has("first");
    runtime.block_on(until("a deletion after the kill", async || !there().await))?;
    following.abort();
    Ok(())
}

/// A controller writes into every map that it is told of.
async fn reconcile(map: Arc<ConfigMap>, client: Arc<Client>) -> kube::Result<Action> {
    let maps: Api<ConfigMap> = Api::default_namespaced((*client).clone());
    if map.labels().contains_key("made-by") && map.metadata.deletion_timestamp.is_none() {
        let body = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": map.name_any()}, "data": {"seen": "yes"},
        });
        maps.patch(&map.name_any(), &PatchParams::apply("controller").force(), &Patch::Apply(body)).await?;
    }
    Ok(Action::await_change())
}

fn controller(server: &mut Apiserver) -> Result {
    let runtime = runtime()?;
    let client = runtime.block_on(connect(server))?;
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let troubles = Arc::new(Mutex::new(Vec::<Error>::new()));
    let noted = troubles.clone();
    let stream = Controller::new(maps.clone(), watcher::Config::default())
        .run(reconcile, |_, _: &kube::Error, _| Action::requeue(Duration::from_millis(100)), Arc::new(client))
        .map_err(Error::from);
    let running = runtime.spawn(stream.for_each(move |done| {
        if let (Err(error), Ok(mut list)) = (done, noted.lock()) {
            list.push(error);
        }
        futures::future::ready(())
    }));
    let seen = |name: &'static str| {
        let maps = maps.clone();
        async move || match maps.get(name).await {
            Ok(map) => map.data.is_some_and(|d| d.contains_key("seen")),
            Err(_) => false,
        }
    };
    for (name, how) in [("one", Some(End::InOrder)), ("two", Some(End::Killed)), ("three", None)] {
        runtime.block_on(async { maps.create(&PostParams::default(), &map(name, "red")).await })?;
        let told = runtime.block_on(until("the controller", seen(name)));
        told.with_context(|| format!("the controller's troubles: {:?}", troubles.lock().map(|l| l.len())))?;
        if let Some(how) = how {
            server.restart(how)?;
        }
    }
    running.abort();
    Ok(())
}
