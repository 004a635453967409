//! What pods and their runtime send: questions for names, configurations of the CNI plugin.

use cluster_dns::answer::{self, Step};
use cluster_dns::server::encode;
use cluster_dns::zone::Zone;
use hickory_proto::op::{Message, ResponseCode};
use std::sync::LazyLock;

/// Without EDNS a datagram has no more.
const PLAIN_UDP: usize = 512;

static ZONE: LazyLock<Zone> = LazyLock::new(|| {
    let services = serde_json::from_str::<Vec<_>>(include_str!("../../objects/dns-services.json"));
    let slices = serde_json::from_str::<Vec<_>>(include_str!("../../objects/dns-endpoints.json"));
    let (services, slices) = (services.expect("Services"), slices.expect("EndpointSlices"));
    Zone::new("cluster.local", services.iter(), slices.iter(), ["a"].into_iter())
});

/// A question of a pod; the same bytes as an answer of a resolver are passed on in the same way.
pub(crate) fn dns(data: &[u8]) {
    let Ok(request) = Message::from_vec(data) else { return };
    let reply = match answer::step(&ZONE, &request) {
        Step::Reply(reply) | Step::Follow(reply, _) => *reply,
        Step::Forward => request.clone(),
    };
    for reply in [reply, answer::failure(&request, ResponseCode::ServFail)] {
        assert_eq!(reply.metadata.id, request.metadata.id);
        let Some(whole) = encode(&reply, usize::from(u16::MAX)) else { continue };
        Message::from_vec(&whole).unwrap_or_else(|e| panic!("{whole:?}, which was written, is no message: {e}"));
        let cut = encode(&reply, PLAIN_UDP).expect("what can be written can be cut");
        let cut_again = Message::from_vec(&cut).expect("and is a message then");
        assert!(whole.len() <= PLAIN_UDP || cut_again.metadata.truncation, "it is cut, and does not say so");
    }
}

/// GC is the command whose input is all of the request.
pub(crate) fn cni(data: &[u8]) {
    if let Err(failure) = cni::config::Request::parse("GC", data) {
        assert!(!failure.message().is_empty());
        let _answer = failure.to_json("1.1.0").to_string();
    }
}
