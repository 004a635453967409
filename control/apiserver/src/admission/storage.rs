//! DefaultStorageClass, StorageObjectInUseProtection, PersistentVolumeClaimResize, DefaultIngressClass.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Attributes, Operation};
use crate::authn::view::{Gr, INGRESS_CLASSES, STORAGE_CLASSES, items_at, name_of, str_at};
use crate::error::Result;
use crate::strategy::fields;

/// The class marked as default; of several the newest, then by name.
fn default_of(at: &Attributes<'_>, gr: Gr, annotation: &str) -> Option<String> {
    let marked = |c: &Arc<Value>| {
        c.pointer("/metadata/annotations").and_then(|a| a.get(annotation)).and_then(Value::as_str) == Some("true")
    };
    let mut classes: Vec<Arc<Value>> = at.view().list(gr, "").into_iter().filter(marked).collect();
    classes.sort_by(|a, b| {
        let created = |c: &Value| str_at(c, "/metadata/creationTimestamp").to_string();
        created(b).cmp(&created(a)).then_with(|| name_of(a).cmp(name_of(b)))
    });
    classes.first().map(|c| name_of(c).to_string())
}

/// A claim that names no class gets the default one.
pub fn default_class(at: &Attributes<'_>, claim: &mut Value) {
    if !at.is("", "persistentvolumeclaims") {
        return;
    }
    let annotated = claim.pointer("/metadata/annotations/volume.beta.kubernetes.io~1storage-class").is_some();
    if !claim["spec"]["storageClassName"].is_null() || annotated {
        return;
    }
    if let Some(class) = default_of(at, STORAGE_CLASSES, "storageclass.kubernetes.io/is-default-class") {
        claim["spec"]["storageClassName"] = json!(class);
    }
}

/// Volumes and claims stay while they are in use.
pub fn protect(at: &Attributes<'_>, object: &mut Value) {
    let finalizer = if at.is("", "persistentvolumeclaims") {
        "kubernetes.io/pvc-protection"
    } else if at.is("", "persistentvolumes") {
        "kubernetes.io/pv-protection"
    } else {
        return;
    };
    if items_at(object, "/metadata/finalizers").iter().any(|f| f == finalizer) {
        return;
    }
    match object["metadata"]["finalizers"].as_array_mut() {
        Some(list) => list.push(json!(finalizer)),
        None => object["metadata"]["finalizers"] = json!([finalizer]),
    }
}

/// Only claims of classes that allow it may grow.
pub fn resize(at: &Attributes<'_>, new: &Value, old: Option<&Value>) -> Result<()> {
    let Some(old) = old.filter(|_| at.is("", "persistentvolumeclaims") && at.operation == Operation::Update) else {
        return Ok(());
    };
    let size = |o: &Value| fields::quantity(&o["spec"]["resources"]["requests"]["storage"]);
    let grows = matches!((size(new), size(old)), (Some(is), Some(was)) if is > was);
    if !grows {
        return Ok(());
    }
    let class = str_at(old, "/spec/storageClassName");
    let allows = at.view().get(STORAGE_CLASSES, "", class).is_some_and(|c| c["allowVolumeExpansion"] == json!(true));
    if allows {
        return Ok(());
    }
    Err(at.forbidden("only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize"))
}

/// An ingress that names no class gets the default one.
pub fn default_ingress_class(at: &Attributes<'_>, ingress: &mut Value) {
    if !at.is("networking.k8s.io", "ingresses") {
        return;
    }
    let annotated = ingress.pointer("/metadata/annotations/kubernetes.io~1ingress.class").is_some();
    if !ingress["spec"]["ingressClassName"].is_null() || annotated {
        return;
    }
    if let Some(class) = default_of(at, INGRESS_CLASSES, "ingressclass.kubernetes.io/is-default-class") {
        ingress["spec"]["ingressClassName"] = json!(class);
    }
}
