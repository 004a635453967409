//! Tables, as `kubectl get` asks for them.

use api::kinds::Kind;
use api::table::Include;
use serde_json::{Value, json};

use crate::error::Result;
use crate::handlers::Scope;

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// The table of objects.
pub(crate) fn of(scope: &Scope<'_>, items: &[Value], version: &str, metadata: Value) -> Result<Value> {
    let include = crate::handlers::include(scope)?;
    Ok(api::table::table(&scope.kind, items, metadata, include, version, true, now()))
}

/// The row of one object.
pub(crate) fn row(kind: &Kind, item: &Value, version: &str, include: Include) -> Value {
    api::table::row(kind, item, include, version, now())
}

/// The table of a watch event.
pub(crate) fn of_event(kind: &Kind, item: &Value, version: &str, include: Include, columns: bool) -> Value {
    let metadata = json!({"resourceVersion": item["metadata"]["resourceVersion"]});
    api::table::table(kind, [item], metadata, include, version, columns, now())
}

/// The table of a bookmark: no rows but one without cells, which carries the metadata.
pub(crate) fn of_bookmark(kind: &Kind, bookmark: &Value, version: &str, columns: bool) -> Value {
    let metadata = json!({"resourceVersion": bookmark["metadata"]["resourceVersion"]});
    let mut table = api::table::table(kind, [], metadata, Include::Metadata, version, columns, now());
    let partial =
        json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": bookmark["metadata"]});
    table["rows"] = json!([{"cells": [], "object": partial}]);
    table
}

/// The table of a Scale, which is no resource of its own.
pub(crate) fn of_scale(scope: &Scope<'_>, scale: &Value, version: &str) -> Result<Value> {
    let metadata = json!({"resourceVersion": scale["metadata"]["resourceVersion"]});
    Ok(api::table::of_scale(scale, metadata, crate::handlers::include(scope)?, version, now()))
}
