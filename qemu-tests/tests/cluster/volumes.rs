//! Data outlives pods.

use anyhow::ensure;
use qemu_tests::{Cluster, Result, wait};

pub(crate) const TESTS: &[super::Test] = &[
    ("a_stateful_set_keeps_its_data_over_a_restart_of_its_pod", stateful_set),
    ("a_pod_sees_its_configuration_and_itself", projected),
];

const STATEFUL: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: db, namespace: data}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: data}
spec:
  serviceName: db
  replicas: 1
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: localhost/kimg/toolbox:latest
        imagePullPolicy: IfNotPresent
        command: [sh, -c, 'trap exit TERM; while true; do sleep 1; done']
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 10Mi}}}
"#;

fn stateful_set(cluster: &Cluster) -> Result {
    cluster.namespace("data")?;
    cluster.apply(STATEFUL)?;
    wait::until("pod db-0", wait::scale(20), || {
        Ok(cluster.kubectl(&["-n", "data", "get", "pod", "db-0"])?.ok.then_some(()))
    })?;
    cluster.pod_ready("data", "db-0")?;
    cluster.exec("data", "db-0", &["sh", "-c", "echo kept > /data/row; sync"])?;
    let uid = cluster.k(&["-n", "data", "get", "pod", "db-0", "-o", "jsonpath={.metadata.uid}"])?;
    cluster.k(&["-n", "data", "delete", "pod", "db-0", "--wait=true"])?;
    wait::until("a new pod db-0", wait::scale(30), || {
        let out = cluster.kubectl(&["-n", "data", "get", "pod", "db-0", "-o", "jsonpath={.metadata.uid}"])?;
        Ok((out.ok && out.out != uid).then_some(()))
    })?;
    cluster.pod_ready("data", "db-0")?;
    let row = cluster.exec("data", "db-0", &["cat", "/data/row"])?;
    ensure!(row.trim() == "kept", "the row says '{row}'");
    let claim = cluster.k(&["-n", "data", "get", "pvc", "data-db-0", "-o", "jsonpath={.status.phase}"])?;
    ensure!(claim == "Bound", "the claim is {claim}");
    // A claim that was given up goes with its pod, and the next pod gets a new one.
    cluster.k(&["-n", "data", "delete", "pvc", "data-db-0", "--wait=false"])?;
    cluster.k(&["-n", "data", "delete", "pod", "db-0", "--wait=true"])?;
    wait::until("a pod with a new claim", wait::scale(60), || {
        let out = cluster.kubectl(&["-n", "data", "exec", "db-0", "--", "ls", "/data"])?;
        Ok((out.ok && !out.out.contains("row")).then_some(()))
    })
}

const PROJECTED: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: data}
data: {colour: blue}
---
apiVersion: v1
kind: Secret
metadata: {name: hidden, namespace: data}
stringData: {word: swordfish}
---
apiVersion: v1
kind: Pod
metadata: {name: looker, namespace: data, labels: {tier: front}}
spec:
  terminationGracePeriodSeconds: 1
  initContainers:
  - name: first
    image: localhost/kimg/toolbox:latest
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'echo init > /scratch/init']
    volumeMounts: [{name: scratch, mountPath: /scratch}]
  containers:
  - name: main
    image: localhost/kimg/toolbox:latest
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'trap exit TERM; while true; do sleep 1; done']
    env:
    - {name: WORD, valueFrom: {secretKeyRef: {name: hidden, key: word}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    resources: {requests: {cpu: 10m, memory: 8Mi}, limits: {memory: 32Mi}}
    volumeMounts:
    - {name: scratch, mountPath: /scratch}
    - {name: settings, mountPath: /settings}
    - {name: about, mountPath: /about}
  volumes:
  - {name: scratch, emptyDir: {}}
  - {name: settings, configMap: {name: settings}}
  - name: about
    downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}
"#;

fn projected(cluster: &Cluster) -> Result {
    cluster.apply(PROJECTED)?;
    cluster.pod_ready("data", "looker")?;
    let script = "cat /scratch/init /settings/colour /about/labels; echo; echo $WORD $NODE; cat /sys/fs/cgroup/memory.max; \
                  ls /var/run/secrets/kubernetes.io/serviceaccount";
    let text = cluster.exec("data", "looker", &["sh", "-c", script])?;
    for word in ["init", "blue", "tier=\"front\"", "swordfish worker-", "33554432", "token", "ca.crt", "namespace"] {
        ensure!(text.contains(word), "'{word}' is missing in\n{text}");
    }
    Ok(())
}
