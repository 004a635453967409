"""Checks of the API server with the Python client. `program.py CHECK` runs one check against the server
that $KUBECONFIG names; a failure ends with code 1 and a sentence on standard error.
A check that prints the line "restart" is answered on standard input once the server is back.
"""

import sys
import threading
import time

from kubernetes import client, config, dynamic, informer, watch
from kubernetes.client.rest import ApiException

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"
NS = "default"


def that(ok, sentence):
    if not ok:
        raise AssertionError(sentence)


def refused(code, reason, call, *args, **kwargs):
    """The call must fail with this code and reason."""
    try:
        call(*args, **kwargs)
    except ApiException as error:
        that(error.status == code and f'"reason":"{reason}"' in str(error.body), f"instead of {reason} came {error}")
        return
    raise AssertionError(f"what must fail with {reason} was done")


def restart():
    print("restart", flush=True)
    line = sys.stdin.readline()
    that(line == "restarted\n", f"the server's restart was answered with {line!r}")


def until(what, ok):
    for _ in range(1000):
        if ok():
            return
        time.sleep(0.02)
    raise AssertionError(f"waited in vain for {what}")


def config_map(name, colour="red"):
    metadata = client.V1ObjectMeta(name=name, labels={"made-by": "python"})
    return client.V1ConfigMap(metadata=metadata, data={"colour": colour})


def create_update_conflict(core):
    first = core.create_namespaced_config_map(NS, config_map("a"))
    refused(409, "AlreadyExists", core.create_namespaced_config_map, NS, config_map("a"))
    first.data["colour"] = "green"
    second = core.replace_namespaced_config_map("a", NS, first)
    that(second.metadata.uid == first.metadata.uid, "an update gave another object")
    that(second.metadata.resource_version != first.metadata.resource_version, "an update made no new version")
    refused(409, "Conflict", core.replace_namespaced_config_map, "a", NS, first)
    generated = core.create_namespaced_config_map(NS, client.V1ConfigMap(metadata=client.V1ObjectMeta(generate_name="b-")))
    that(len(generated.metadata.name) == 7, f"generateName gave {generated.metadata.name}")
    core.create_namespaced_config_map(NS, config_map("dry"), dry_run="All")
    refused(404, "NotFound", core.read_namespaced_config_map, "dry", NS)
    refused(422, "Invalid", core.create_namespaced_config_map, NS, config_map("Not_A_Name"))
    secret = client.V1Secret(metadata=client.V1ObjectMeta(name="s"), string_data={"k": "v"})
    that(core.create_namespaced_secret(NS, secret).data["k"], "stringData was not taken")


def patches(core):
    ports = [client.V1ServicePort(name="http", port=80)]
    metadata = client.V1ObjectMeta(name="s", annotations={"gone": "soon"})
    core.create_namespaced_service(NS, client.V1Service(metadata=metadata, spec=client.V1ServiceSpec(ports=ports)))

    def patch(kind, body):
        return core.patch_namespaced_service("s", NS, body, _content_type=kind)

    merged = patch(MERGE_PATCH, {"metadata": {"annotations": {"gone": None, "stays": "here"}}})
    that(merged.metadata.annotations == {"stays": "here"}, f"merge patch gave {merged.metadata.annotations}")
    strategic = patch(STRATEGIC_PATCH, {"spec": {"ports": [{"name": "https", "port": 443}]}})
    that(len(strategic.spec.ports) == 2, f"strategic merge patch gave {strategic.spec.ports}")
    changed = patch(JSON_PATCH, [{"op": "add", "path": "/metadata/labels", "value": {"a": "b"}}])
    that(changed.metadata.labels == {"a": "b"}, f"JSON patch gave {changed.metadata.labels}")
    refused(422, "Invalid", patch, JSON_PATCH, [{"op": "test", "path": "/metadata/name", "value": "other"}])
    removed = patch(STRATEGIC_PATCH, {"spec": {"ports": [{"$patch": "delete", "port": 443}]}})
    that([p.port for p in removed.spec.ports] == [80], f"strategic delete gave {removed.spec.ports}")


def apply(core):
    def with_(data, manager, force=None):
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}, "data": data}
        return core.patch_namespaced_config_map(
            "applied", NS, body, field_manager=manager, force=force, _content_type=APPLY
        )

    with_({"a": "1", "b": "1"}, "one")
    refused(409, "Conflict", with_, {"a": "2"}, "two")
    forced = with_({"a": "2"}, "two", force=True)
    that(forced.data == {"a": "2", "b": "1"}, f"force gave {forced.data}")
    fewer = with_({}, "one")
    that(fewer.data == {"a": "2"}, f"giving fields up left {fewer.data}")
    managers = {m.manager: m.operation for m in fewer.metadata.managed_fields}
    that(managers.get("two") == "Apply", f"the managers are {managers}")


def delete(core):
    for name in ("x", "y", "z"):
        core.create_namespaced_config_map(NS, config_map(name))
    wrong = client.V1DeleteOptions(preconditions=client.V1Preconditions(uid="not-this-one"))
    refused(409, "Conflict", core.delete_namespaced_config_map, "x", NS, body=wrong)
    status = core.delete_namespaced_config_map("x", NS)
    that(status["kind"] == "Status" and status["status"] == "Success", f"a delete gave {status}")
    refused(404, "NotFound", core.read_namespaced_config_map, "x", NS)
    core.delete_namespaced_config_map("y", NS, propagation_policy="Foreground")
    held = core.read_namespaced_config_map("y", NS)
    that(held.metadata.finalizers == ["foregroundDeletion"], f"foreground deletion gave {held.metadata.finalizers}")
    core.patch_namespaced_config_map("y", NS, {"metadata": {"finalizers": None}}, _content_type=MERGE_PATCH)
    refused(404, "NotFound", core.read_namespaced_config_map, "y", NS)
    core.delete_collection_namespaced_config_map(NS, label_selector="made-by=python")
    left = core.list_namespaced_config_map(NS, label_selector="made-by=python").items
    that(not left, f"deletecollection left {len(left)}")


def pagination(core):
    for i in range(25):
        core.create_namespaced_config_map(NS, config_map(f"page-{i:02}"))
    seen, versions, token = [], set(), None
    while True:
        page = core.list_namespaced_config_map(NS, limit=10, _continue=token, label_selector="made-by=python")
        if not seen:
            core.create_namespaced_config_map(NS, config_map("page-99"))
        seen += [item.metadata.name for item in page.items]
        versions.add(page.metadata.resource_version)
        token = page.metadata._continue
        if not token:
            break
    that(seen == [f"page-{i:02}" for i in range(25)], f"the pages held {seen}")
    that(len(versions) == 1, f"the pages are of several versions: {versions}")


def watch_through_a_restart(core):
    version = core.list_namespaced_config_map(NS).metadata.resource_version

    def expect(watcher, name):
        event = next(watcher)
        got = (event["type"], event["object"].metadata.name)
        that(got == ("ADDED", name), f"instead of {name} came {got}")

    def stream(since):
        return watch.Watch().stream(core.list_namespaced_config_map, NS, resource_version=since, timeout_seconds=30)

    watcher = stream(version)
    before = core.create_namespaced_config_map(NS, config_map("before"))
    expect(watcher, "before")
    restart()
    core.create_namespaced_config_map(NS, config_map("after"))
    # Whether the old stream ended or broke, a new one goes on where it was.
    watcher = stream(before.metadata.resource_version)
    expect(watcher, "after")


def informer_through_a_restart(core):
    for i in range(20):
        core.create_namespaced_config_map(NS, config_map(f"there-{i}"))
    cached = informer.SharedInformer(core.list_namespaced_config_map, namespace=NS)
    cached.start()
    has = lambda name: cached.cache.get_by_key(f"{NS}/{name}") is not None
    until("the informer's first list", lambda: has("there-0") and has("there-19"))
    restart()
    core.create_namespaced_config_map(NS, config_map("new"))
    core.delete_namespaced_config_map("there-0", NS)
    until("an object that came", lambda: has("new"))
    until("an object that went", lambda: not has("there-0"))
    # Its thread ends with this process: stop() waits for the server's next event.


def dynamic_client(core):
    maps = dynamic.DynamicClient(core.api_client).resources.get(api_version="v1", kind="ConfigMap")
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "loose"}, "data": {"colour": "red"}}
    maps.create(body=body, namespace=NS)
    maps.patch(body={"data": {"size": "xl"}}, name="loose", namespace=NS, content_type=MERGE_PATCH)
    body["data"] = {"shape": "round"}
    made = maps.server_side_apply(body=body, namespace=NS, field_manager="loose")
    data = made.data.to_dict()
    that(data == {"colour": "red", "size": "xl", "shape": "round"}, f"the dynamic client made {data}")
    that(maps.get(name="loose", namespace=NS).metadata.uid == made.metadata.uid, "another object was read")
    maps.delete(name="loose", namespace=NS)


CHECKS = {
    check.__name__: check
    for check in (
        create_update_conflict,
        patches,
        apply,
        delete,
        pagination,
        watch_through_a_restart,
        informer_through_a_restart,
        dynamic_client,
    )
}


def main():
    if len(sys.argv) != 2 or sys.argv[1] not in CHECKS:
        sys.exit("usage: program.py CHECK")
    config.load_kube_config()
    try:
        CHECKS[sys.argv[1]](client.CoreV1Api())
    except (AssertionError, ApiException) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    if threading.active_count() > 1:
        import os

        os._exit(code)
    sys.exit(code)
