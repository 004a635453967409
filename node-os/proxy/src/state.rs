//! What the watches said, and what of it is in the kernel.

use crate::model::{self, Ports, ServiceKey};
use crate::{conntrack, rules};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use node_client::{Change, apply};
use node_sys::nft::NftError;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// Everything kube-proxy knows.
#[derive(Debug)]
pub(crate) struct State {
    node: String,
    settings: rules::Settings,
    services: BTreeMap<ServiceKey, Service>,
    slices: BTreeMap<String, EndpointSlice>,
    heard: (bool, bool),
    /// What the kernel has; `None` before the first transaction and after a refused one.
    applied: Option<(Ports, BTreeSet<Ipv4Addr>)>,
}

impl State {
    pub(crate) fn new(node: String, settings: rules::Settings) -> Self {
        State {
            node,
            settings,
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            heard: (false, false),
            applied: None,
        }
    }

    /// Takes a change of Services.
    pub(crate) fn services(&mut self, change: Change<Service>) {
        self.heard.0 |= matches!(change, Change::All(_));
        apply(&mut self.services, change);
    }

    /// Takes a change of EndpointSlices.
    pub(crate) fn slices(&mut self, change: Change<EndpointSlice>) {
        self.heard.1 |= matches!(change, Change::All(_));
        apply(&mut self.slices, change);
    }

    /// Rules are only written once both kinds were heard of in full:
    /// half a picture would take running services away.
    pub(crate) fn complete(&self) -> bool {
        self.heard == (true, true)
    }

    /// Brings the kernel to what the watches said; `false` when nothing had to change.
    pub(crate) fn sync(&mut self) -> Result<bool, NftError> {
        let wanted = self.wanted();
        let local = rules::local_endpoints(&wanted);
        let fresh = self.applied.is_none();
        let (old, old_local) = self.applied.take().unwrap_or_default();
        let mut batch = rules::transaction(&old, &wanted, &self.settings, fresh);
        rules::hairpin(&mut batch, &old_local, &local);
        if batch.is_empty() {
            self.applied = Some((wanted, local));
            return Ok(false);
        }
        batch.commit()?;
        conntrack::forget_stale(&old, &wanted);
        self.applied = Some((wanted, local));
        Ok(true)
    }

    fn wanted(&self) -> Ports {
        let mut by_service: BTreeMap<ServiceKey, Vec<&EndpointSlice>> = BTreeMap::new();
        for slice in self.slices.values() {
            if let Some(key) = model::service_of(slice) {
                by_service.entry(key).or_default().push(slice);
            }
        }
        let mut out = Ports::new();
        for (key, service) in &self.services {
            let slices = by_service.get(key).map_or(&[][..], Vec::as_slice);
            out.extend(model::ports_of(service, slices, &self.node));
        }
        out
    }
}
