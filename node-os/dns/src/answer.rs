//! DNS messages: from a query to the zone's answer. Pure.

use crate::zone::{Data, Found, Zone};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use std::str::FromStr;

/// Seconds that resolvers may keep an answer; CoreDNS's usual setting.
const TTL_SECS: u32 = 30;

/// What to do with a query.
#[derive(Debug)]
pub enum Step {
    /// Send this.
    Reply(Box<Message>),
    /// Ask upstream.
    Forward,
    /// The name is an alias of a foreign one: ask upstream for it and put its answers behind these.
    Follow(Box<Message>, Name),
}

/// Decides on a query.
pub fn step(zone: &Zone, request: &Message) -> Step {
    let meta = &request.metadata;
    let mut reply = Message::response(meta.id, meta.op_code);
    reply.metadata.recursion_desired = meta.recursion_desired;
    reply.metadata.recursion_available = true;
    let (OpCode::Query, [query]) = (meta.op_code, request.queries.as_slice()) else {
        let code = if meta.op_code == OpCode::Query { ResponseCode::FormErr } else { ResponseCode::NotImp };
        reply.metadata.response_code = code;
        return Step::Reply(Box::new(reply));
    };
    reply.add_query(query.clone());
    let text = plain(query.name());
    let found = match zone.find(&text) {
        Found::Foreign => return Step::Forward,
        found => found,
    };
    reply.metadata.authoritative = true;
    let data = match found {
        Found::Name(data) => data,
        Found::Missing | Found::Foreign => {
            reply.metadata.response_code = ResponseCode::NXDomain;
            Vec::new()
        }
    };
    let alias = data.iter().find_map(|d| match d {
        Data::Cname(target) => Name::from_str(&format!("{target}.")).ok(),
        _ => None,
    });
    for record in data.iter().filter_map(|d| record(query, d)) {
        reply.add_answer(record);
    }
    add_targets(zone, &mut reply);
    if let (Some(target), RecordType::A | RecordType::AAAA) = (alias, query.query_type()) {
        return Step::Follow(Box::new(reply), target);
    }
    if reply.answers.is_empty() {
        reply.authorities.extend(soa(zone.domain()));
    }
    Step::Reply(Box::new(reply))
}

/// A name as the zone writes it: lower case, no dot at its end.
pub(crate) fn plain(name: &Name) -> String {
    name.to_ascii().trim_end_matches('.').to_ascii_lowercase()
}

fn record(query: &Query, data: &Data) -> Option<Record> {
    let name = |text: &str| Name::from_str(&format!("{text}.")).ok();
    let rdata = match data {
        Data::A(ip) => RData::A(A(*ip)),
        Data::Srv { port, target } => RData::SRV(SRV::new(0, 100, *port, name(target)?)),
        Data::Cname(target) => RData::CNAME(CNAME(name(target)?)),
        Data::Ptr(target) => RData::PTR(PTR(name(target)?)),
        Data::Txt(text) => RData::TXT(TXT::new(vec![text.clone()])),
    };
    let wanted = query.query_type();
    let fits = wanted == RecordType::ANY || rdata.record_type() == wanted || matches!(rdata, RData::CNAME(_));
    fits.then(|| Record::from_rdata(query.name().clone(), TTL_SECS, rdata))
}

/// Addresses of what SRV records point to, so that nobody has to ask again.
fn add_targets(zone: &Zone, reply: &mut Message) {
    let targets: Vec<Name> = reply
        .answers
        .iter()
        .filter_map(|r| match &r.data {
            RData::SRV(srv) => Some(srv.target.clone()),
            _ => None,
        })
        .collect();
    for target in targets {
        if let Found::Name(data) = zone.find(&plain(&target)) {
            for ip in data.iter().filter_map(|d| if let Data::A(ip) = d { Some(*ip) } else { None }) {
                reply.add_additional(Record::from_rdata(target.clone(), TTL_SECS, RData::A(A(ip))));
            }
        }
    }
}

fn soa(domain: &str) -> Option<Record> {
    let zone = Name::from_str(&format!("{domain}.")).ok()?;
    let primary = Name::from_str(&format!("ns.dns.{domain}.")).ok()?;
    let mail = Name::from_str(&format!("hostmaster.{domain}.")).ok()?;
    Some(Record::from_rdata(zone, TTL_SECS, RData::SOA(SOA::new(primary, mail, 1, 7200, 1800, 86_400, TTL_SECS))))
}

/// A failure that a resolver understands.
pub fn failure(request: &Message, code: ResponseCode) -> Message {
    let mut reply = Message::error_msg(request.metadata.id, request.metadata.op_code, code);
    reply.metadata.message_type = MessageType::Response;
    reply.metadata.recursion_desired = request.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.add_queries(request.queries.iter().cloned());
    reply
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Service;
    use serde_json::json;

    fn zone() -> Zone {
        let services: Vec<Service> = serde_json::from_value(json!([
            {"metadata": {"name": "web", "namespace": "a"}, "spec": {"clusterIP": "10.32.0.5", "ports": [{"name": "http", "port": 80}]}},
            {"metadata": {"name": "out", "namespace": "a"}, "spec": {"type": "ExternalName", "externalName": "example.com"}}
        ]))
        .expect("services");
        Zone::new("cluster.local", services.iter(), [].iter(), ["a"].into_iter())
    }

    fn query(name: &str, kind: RecordType) -> Message {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_str(name).expect("a name"), kind));
        message
    }

    fn ask(name: &str, kind: RecordType) -> Step {
        step(&zone(), &query(name, kind))
    }

    fn reply(step: Step) -> Message {
        match step {
            Step::Reply(message) => *message,
            other => panic!("expected a reply, got {other:?}"),
        }
    }

    #[test]
    fn answers_have_the_asked_type() {
        let message = reply(ask("web.a.svc.cluster.local.", RecordType::A));
        assert_eq!((message.answers.len(), message.metadata.response_code), (1, ResponseCode::NoError));
        let message = reply(ask("WEB.A.svc.cluster.local.", RecordType::SRV));
        assert_eq!((message.answers.len(), message.additionals.len()), (1, 1));
    }

    #[test]
    fn another_type_of_a_name_is_no_data_and_an_unknown_name_is_nxdomain() {
        let message = reply(ask("web.a.svc.cluster.local.", RecordType::AAAA));
        assert_eq!((message.answers.len(), message.authorities.len()), (0, 1));
        assert_eq!(message.metadata.response_code, ResponseCode::NoError);
        let message = reply(ask("nothing.a.svc.cluster.local.", RecordType::A));
        assert_eq!((message.metadata.response_code, message.authorities.len()), (ResponseCode::NXDomain, 1));
    }

    #[test]
    fn foreign_names_go_upstream_and_aliases_are_followed() {
        assert!(matches!(ask("example.com.", RecordType::A), Step::Forward));
        assert!(
            matches!(ask("out.a.svc.cluster.local.", RecordType::A), Step::Follow(_, target) if target.to_ascii() == "example.com.")
        );
    }

    /// What pods send: it is read, answered and written again, or dropped.
    #[test]
    fn spoiled_queries_are_answered_or_dropped() {
        let zone = zone();
        let mut dice = test_spoil::Dice::new(4);
        let mut answered = 0;
        for (name, kind) in [
            ("web.a.svc.cluster.local.", RecordType::A),
            ("_http._tcp.web.a.svc.cluster.local.", RecordType::SRV),
            ("out.a.svc.cluster.local.", RecordType::AAAA),
            ("5.0.32.10.in-addr.arpa.", RecordType::PTR),
            ("example.com.", RecordType::ANY),
        ] {
            let mut message = query(name, kind);
            message.edns = Some(hickory_proto::op::Edns::new());
            let good = message.to_vec().expect("a message");
            for _ in 0..5000 {
                let Ok(request) = Message::from_vec(&test_spoil::bytes(&good, &mut dice)) else { continue };
                let reply = match step(&zone, &request) {
                    Step::Reply(reply) | Step::Follow(reply, _) => *reply,
                    Step::Forward => failure(&request, ResponseCode::ServFail),
                };
                if let Ok(bytes) = reply.to_vec() {
                    assert!(bytes.len() < 64 << 10);
                    answered += 1;
                }
            }
        }
        assert!((1000..25_000).contains(&answered), "{answered} were answered");
    }
}
