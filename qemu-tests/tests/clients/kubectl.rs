//! kubectl 1.20 and 1.32: what it does without a node.

use anyhow::{Context, ensure};
use qemu_tests::apiserver::{Apiserver, End};
use qemu_tests::cluster::{Output, run_in};
use qemu_tests::{Kubectl, Result, tools, wait};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

pub(crate) const TESTS: &[super::Test] = &[
    ("kubectl_1_32_create_replace_conflict", |s| conflict(s, Kubectl::V1_32)),
    ("kubectl_1_20_create_replace_conflict", |s| conflict(s, Kubectl::V1_20)),
    ("kubectl_1_32_patches", |s| patches(s, Kubectl::V1_32)),
    ("kubectl_1_20_patches", |s| patches(s, Kubectl::V1_20)),
    ("kubectl_1_32_apply", |s| apply(s, Kubectl::V1_32)),
    ("kubectl_1_20_apply", |s| apply(s, Kubectl::V1_20)),
    ("kubectl_1_32_watch_through_a_restart", |s| watch(s, Kubectl::V1_32)),
    ("kubectl_1_20_watch_through_a_restart", |s| watch(s, Kubectl::V1_20)),
    ("kubectl_1_32_pagination", |s| pagination(s, Kubectl::V1_32)),
    ("kubectl_1_20_pagination", |s| pagination(s, Kubectl::V1_20)),
    ("kubectl_1_32_delete", |s| delete(s, Kubectl::V1_32)),
    ("kubectl_1_20_delete", |s| delete(s, Kubectl::V1_20)),
    ("kubectl_1_32_discovery_and_explain", |s| discovery(s, Kubectl::V1_32)),
    ("kubectl_1_20_discovery_and_explain", |s| discovery(s, Kubectl::V1_20)),
];

/// One server and one kubectl, with a folder of its own for what it caches.
struct Driver<'a>(&'a Apiserver, Kubectl);

impl Driver<'_> {
    fn command(&self, args: &[&str]) -> Result<Vec<String>> {
        let fixed = [
            format!("--kubeconfig={}", self.0.kubeconfig().display()),
            format!("--cache-dir={}", self.0.dir().join("cache").display()),
        ];
        let _is_there = tools::kubectl(self.1)?;
        Ok(fixed.into_iter().chain(args.iter().map(|a| (*a).to_owned())).collect())
    }

    fn try_run(&self, args: &[&str], input: Option<&str>) -> Result<Output> {
        let all = self.command(args)?;
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        run_in(self.0.dir(), tools::kubectl(self.1)?, &all, input)
    }

    fn run(&self, args: &[&str]) -> Result<String> {
        self.try_run(args, None)?.success().with_context(|| format!("kubectl {}", args.join(" ")))
    }

    fn feed(&self, args: &[&str], yaml: &str) -> Result<String> {
        self.try_run(args, Some(yaml))?.success().with_context(|| format!("kubectl {}", args.join(" ")))
    }

    /// What it says when it is refused.
    fn refused(&self, args: &[&str], yaml: Option<&str>) -> Result<String> {
        let output = self.try_run(args, yaml)?;
        ensure!(!output.ok, "kubectl {} was not refused", args.join(" "));
        Ok(output.err)
    }
}

fn map(name: &str, data: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, labels: {{a: b}}}}\ndata: {{{data}}}\n---\n")
}

fn conflict(server: &mut Apiserver, version: Kubectl) -> Result {
    let k = Driver(server, version);
    k.feed(&["create", "-f", "-"], &map("m", "colour: red"))?;
    let twice = k.refused(&["create", "-f", "-"], Some(&map("m", "colour: red")))?;
    ensure!(twice.contains("AlreadyExists"), "a second create was answered with {twice}");
    let old = k.run(&["get", "cm", "m", "-o", "yaml"])?;
    k.feed(&["replace", "-f", "-"], &map("m", "colour: green"))?;
    let stale = k.refused(&["replace", "-f", "-"], Some(&old))?;
    ensure!(stale.contains("the object has been modified"), "an old version was answered with {stale}");
    ensure!(k.run(&["get", "cm", "m", "-o", "jsonpath={.data.colour}"])? == "green", "the old version was taken");
    let invalid = k.refused(&["create", "-f", "-"], Some(&map("Not_A_Name", "a: b")))?;
    ensure!(invalid.contains("is invalid: metadata.name: Invalid value"), "a bad name was answered with {invalid}");
    let unknown = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: u}\ndatta: {}\n";
    let unknown = k.refused(&["create", "-f", "-"], Some(unknown))?;
    ensure!(unknown.contains("datta"), "an unknown field was answered with {unknown}");
    k.run(&["create", "secret", "generic", "s", "--from-literal=k=v"])?;
    ensure!(k.run(&["get", "secret", "s", "-o", "jsonpath={.data.k}"])? == "dg==", "another value was kept");
    Ok(())
}

fn patches(server: &mut Apiserver, version: Kubectl) -> Result {
    let k = Driver(server, version);
    k.run(&["create", "service", "clusterip", "s", "--tcp=80"])?;
    k.run(&["patch", "svc", "s", "-p", r#"{"spec":{"ports":[{"name":"https","port":443}]}}"#])?;
    let ports = |k: &Driver<'_>| k.run(&["get", "svc", "s", "-o", "jsonpath={.spec.ports[*].port}"]);
    let both = ports(&k)?;
    ensure!(both.split(' ').count() == 2, "a strategic merge patch made the ports {both}");
    k.run(&["patch", "svc", "s", "-p", r#"{"spec":{"ports":[{"$patch":"delete","port":443}]}}"#])?;
    ensure!(ports(&k)? == "80", "a strategic delete made the ports {}", ports(&k)?);
    k.run(&["patch", "svc", "s", "--type=json", "-p", r#"[{"op":"replace","path":"/spec/ports/0/port","value":81}]"#])?;
    ensure!(ports(&k)? == "81", "a JSON patch made the ports {}", ports(&k)?);
    let test = r#"[{"op":"test","path":"/metadata/name","value":"other"}]"#;
    k.refused(&["patch", "svc", "s", "--type=json", "-p", test], None)?;
    k.run(&["patch", "svc", "s", "--type=merge", "-p", r#"{"metadata":{"labels":{"app":null,"x":"y"}}}"#])?;
    ensure!(
        k.run(&["get", "svc", "-l", "x=y,!app", "-o", "name"])?.trim() == "service/s",
        "a merge patch was not taken"
    );
    k.run(&["label", "svc", "s", "x=z", "--overwrite"])?;
    k.run(&["annotate", "svc", "s", "note=here"])?;
    let said = k.run(&["get", "svc", "s", "-o", "jsonpath={.metadata.labels.x} {.metadata.annotations.note}"])?;
    ensure!(said == "z here", "label and annotate made {said}");
    Ok(())
}

fn apply(server: &mut Apiserver, version: Kubectl) -> Result {
    let k = Driver(server, version);
    let colour = |k: &Driver<'_>, name: &str| k.run(&["get", "cm", name, "-o", "jsonpath={.data}"]);
    k.feed(&["apply", "-f", "-"], &map("c", "colour: red, size: xl"))?;
    let differs = k.try_run(&["diff", "-f", "-"], Some(&map("c", "colour: blue, size: xl")))?;
    ensure!(differs.code == 1 && differs.out.contains("+  colour: blue"), "diff said {}", differs.all());
    k.feed(&["apply", "-f", "-"], &map("c", "colour: green"))?;
    ensure!(!colour(&k, "c")?.contains("size"), "apply left a field that was taken away: {}", colour(&k, "c")?);
    let same = k.feed(&["apply", "-f", "-"], &map("c", "colour: green"))?;
    ensure!(same.contains("unchanged"), "the same again: {same}");
    // The kinds that the old one prunes by itself are of versions that a server of today has not.
    let only = if version == Kubectl::V1_20 { "--prune-whitelist" } else { "--prune-allowlist" };
    let prune = ["apply", "--prune", "-l", "a=b", only, "core/v1/ConfigMap", "-f", "-"];
    k.feed(&prune, &map("d", "colour: green"))?;
    ensure!(k.refused(&["get", "cm", "c"], None)?.contains("NotFound"), "apply --prune left an object");

    let one = &["apply", "--server-side", "--field-manager=one", "-f", "-"][..];
    let two = &["apply", "--server-side", "--field-manager=two", "-f", "-"][..];
    k.feed(one, &map("e", "colour: red"))?;
    let conflict = k.refused(two, Some(&map("e", "colour: blue")))?;
    ensure!(conflict.contains(".data.colour"), "another's field was answered with {conflict}");
    k.feed(&[two, &["--force-conflicts"]].concat(), &map("e", "colour: blue"))?;
    ensure!(colour(&k, "e")?.contains("blue"), "force made {}", colour(&k, "e")?);
    Ok(())
}

fn watch(server: &mut Apiserver, version: Kubectl) -> Result {
    for (how, before, after) in [(End::InOrder, "a", "b"), (End::Killed, "c", "d")] {
        let mut child = Command::new(tools::kubectl(version)?)
            .args(Driver(server, version).command(&["get", "cm", "-n", "default", "-o", "name", "--watch"])?)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("starting kubectl")?;
        let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        // The first may be in the list that kubectl begins with; the second comes by the watch, which is open then.
        for name in [before.to_owned(), format!("{before}-next")] {
            Driver(server, version).feed(&["create", "-f", "-"], &map(&name, "k: v"))?;
            lines
                .by_ref()
                .map_while(std::result::Result::ok)
                .find(|line| line == &format!("configmap/{name}"))
                .with_context(|| format!("the watch did not see {name}"))?;
        }
        server.restart(how)?;
        // It does not connect again by itself: the end of the stream is the end of the command.
        wait::until("kubectl's end", Duration::from_secs(20), || {
            Ok(child.try_wait().context("looking at kubectl")?.map(|_| ()))
        })
        .inspect_err(|_| drop(child.kill()))?;
        let k = Driver(server, version);
        k.feed(&["create", "-f", "-"], &map(after, "k: v"))?;
        let now = k.run(&["get", "cm", "-n", "default", "-o", "name"])?;
        ensure!(now.contains(before) && now.contains(after), "after the restart there is {now}");
    }
    Ok(())
}

fn pagination(server: &mut Apiserver, version: Kubectl) -> Result {
    let k = Driver(server, version);
    let all: String = (0..25).map(|i| map(&format!("page-{i:02}"), "k: v")).collect();
    k.feed(&["create", "-f", "-"], &all)?;
    let listed = k.try_run(&["get", "cm", "-l", "a=b", "--chunk-size=10", "-o", "name", "-v=6"], None)?;
    let names: Vec<&str> = listed.out.lines().collect();
    ensure!(names.len() == 25 && names.is_sorted(), "the pages held {names:?}");
    let pages = listed.err.lines().filter(|l| l.contains("limit=10")).count();
    ensure!(pages == 3, "25 objects by 10 took {pages} requests:\n{}", listed.err);
    let table = k.run(&["get", "cm", "-l", "a=b", "--chunk-size=7", "--no-headers"])?;
    ensure!(table.lines().count() == 25, "the table has {} lines", table.lines().count());
    let sorted = k.run(&["get", "cm", "-l", "a=b", "--sort-by=.metadata.name", "--no-headers"])?;
    ensure!(sorted.starts_with("page-00"), "sorted by name came {sorted}");
    Ok(())
}

fn delete(server: &mut Apiserver, version: Kubectl) -> Result {
    let k = Driver(server, version);
    let all: String = ["first", "held", "last"].iter().map(|n| map(n, "k: v")).collect();
    k.feed(&["create", "-f", "-"], &all)?;
    ensure!(k.run(&["delete", "cm", "first"])?.contains("deleted"), "delete said nothing");
    ensure!(k.refused(&["delete", "cm", "first"], None)?.contains("NotFound"), "a deleted object was deleted again");
    k.run(&["delete", "cm", "first", "--ignore-not-found"])?;
    k.run(&["patch", "cm", "held", "--type=merge", "-p", r#"{"metadata":{"finalizers":["example.com/held"]}}"#])?;
    k.run(&["delete", "cm", "held", "--wait=false"])?;
    let held = k.run(&["get", "cm", "held", "-o", "jsonpath={.metadata.deletionTimestamp}"])?;
    ensure!(!held.is_empty(), "an object with a finalizer is not under way");
    k.run(&["patch", "cm", "held", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#])?;
    // With its last finalizer the object is gone at once; kubectl 1.20 calls it a fault to wait for what is not there.
    if version == Kubectl::V1_32 {
        k.run(&["wait", "--for=delete", "cm/held", "--timeout=10s"])?;
    }
    ensure!(k.refused(&["get", "cm", "held"], None)?.contains("NotFound"), "an object outlives its last finalizer");
    k.run(&["delete", "cm", "-l", "a=b"])?;
    let left = k.run(&["get", "cm", "-l", "a=b", "-o", "name"])?;
    ensure!(left.is_empty(), "delete -l left {left}");
    Ok(())
}

fn discovery(server: &mut Apiserver, version: Kubectl) -> Result {
    let k = Driver(server, version);
    let kinds = k.run(&["api-resources", "--verbs=list", "-o", "name"])?;
    for kind in ["configmaps", "deployments.apps", "customresourcedefinitions.apiextensions.k8s.io"] {
        ensure!(kinds.lines().any(|l| l == kind), "api-resources lacks {kind}");
    }
    ensure!(k.run(&["api-versions"])?.lines().any(|l| l == "apps/v1"), "api-versions lacks apps/v1");
    let field = k.run(&["explain", "deployment.spec.template.spec.containers.image"])?;
    ensure!(field.contains("Container image name"), "explain said {field}");
    ensure!(k.run(&["auth", "can-i", "create", "pods"])?.trim() == "yes", "the administrator may not");
    ensure!(k.run(&["version"])?.contains("v1.36"), "the server has another version");
    k.run(&["create", "deployment", "d", "--image=example/d"])?;
    let described = k.run(&["describe", "deployment", "d"])?;
    ensure!(described.contains("example/d"), "describe said {described}");
    k.run(&["scale", "deployment", "d", "--replicas=3"])?;
    ensure!(k.run(&["get", "deployment", "d", "-o", "jsonpath={.spec.replicas}"])? == "3", "scale was not taken");
    ensure!(k.run(&["get", "all,cm,secrets", "-A"])?.contains("deployment.apps/d"), "get all lacks the deployment");
    Ok(())
}
