//! Host ports: elements of the map that the overlay's rules look into (table `inet kimg-cni`).

use crate::config::{Failure, PortMapping, code};
use node_sys::nft::{Batch, Elem, Family, pad4};
use std::net::Ipv4Addr;

const TABLE: &str = "kimg-cni";
const MAP: &str = "host-ports";

fn key(mapping: &PortMapping) -> Option<Vec<u8>> {
    let mut key = pad4(&[mapping.protocol_number()?]);
    key.extend(pad4(&mapping.host_port.to_be_bytes()));
    Some(key)
}

/// Leads the host ports to a pod.
pub(crate) fn open(address: Ipv4Addr, mappings: &[PortMapping]) -> Result<(), Failure> {
    let elems: Vec<Elem> = mappings
        .iter()
        .filter_map(|m| {
            let mut data = address.octets().to_vec();
            data.extend(pad4(&m.container_port.to_be_bytes()));
            Some(Elem::data(key(m)?, data))
        })
        .collect();
    let mut batch = Batch::new(Family::Inet, TABLE);
    batch.add_elements(MAP, 0, &elems);
    batch.commit().map_err(|e| Failure::new(code::NETWORK, "opening host ports", describe(&e)))
}

/// Closes host ports; those that are closed already are no error.
pub(crate) fn close(mappings: &[PortMapping]) -> Result<(), Failure> {
    for mapping in mappings {
        let Some(key) = key(mapping) else { continue };
        let mut batch = Batch::new(Family::Inet, TABLE);
        batch.delete_elements(MAP, &[Elem::key(key)]);
        match batch.commit() {
            Err(error) if !gone(&error) => {
                return Err(Failure::new(code::NETWORK, "closing host ports", describe(&error)));
            }
            _ => {}
        }
    }
    Ok(())
}

fn gone(error: &node_sys::nft::NftError) -> bool {
    matches!(error, node_sys::nft::NftError::Refused { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
}

fn describe(error: &node_sys::nft::NftError) -> String {
    let source = std::error::Error::source(error).map(|s| format!(": {s}")).unwrap_or_default();
    format!("{error}{source}")
}
