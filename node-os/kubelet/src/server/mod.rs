//! placeholder
use crate::kubelet::Kubelet;
use std::sync::Arc;
pub async fn start(_k: &Arc<Kubelet>) -> anyhow::Result<()> { Ok(()) }
