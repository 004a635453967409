//! CustomResourceDefinitions: turns them into served kinds, and keeps their conditions.

use std::sync::Arc;

use crate::state::AppState;

/// Follows CRDs for as long as the server runs.
pub fn start(_state: &Arc<AppState>) {}
