//! Which certificate requests are approved without a person: those of joining and joined nodes.
//!
//! | signer | requester | approved where |
//! |---|---|---|
//! | kubelet client | a bootstrap token | the token names this node, is unused and valid, and no live node has the name |
//! | kubelet client | the node itself | it asks for its own name again |
//! | kubelet serving | the node itself | its own name, and names and addresses that its Node has |
//! | client | a node | the subject is one of the node's own components |

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequestSpec;

use super::issue::{CLIENT, KUBELET_CLIENT, KUBELET_SERVING};
use super::request::Request;

/// Components of a node, whose certificates the node may ask for.
const COMPONENTS: [&str; 4] = ["system:kube-proxy", "kimg:overlay", "kimg:dns", "kimg:backup"];
const TOKEN_USER: &str = "system:bootstrap:";
const NODE_USER: &str = "system:node:";
const NODES_GROUP: &str = "system:nodes";

/// What the cluster knows about the requester.
#[derive(Debug, Default, Clone)]
pub struct Observed {
    pub token: Option<Token>,
    /// A Lease of the requested node name was renewed a short while ago.
    pub node_is_alive: bool,
    /// DNS names and addresses of the Node object, none where there is no such Node.
    pub node_names: Option<Vec<String>>,
}

/// A bootstrap token's Secret.
#[derive(Debug, Clone)]
pub struct Token {
    pub id: String,
    pub node_name: String,
    pub may_replace: bool,
    pub expires: Option<Timestamp>,
    /// The request that used it.
    pub used_by: Option<String>,
    /// Whether that request is the one at hand.
    pub used_by_this: bool,
}

#[derive(Debug, PartialEq)]
pub enum Verdict {
    Approve(&'static str),
    Deny(&'static str, String),
    /// What it depends on may come in a moment.
    Wait(&'static str),
    LeaveToPeople,
}

/// Whether the request is of a kind that is decided here.
pub fn concerns(spec: &CertificateSigningRequestSpec) -> bool {
    let user = spec.username.as_deref().unwrap_or_default();
    let known = [CLIENT, KUBELET_CLIENT, KUBELET_SERVING].contains(&spec.signer_name.as_str());
    known && (user.starts_with(TOKEN_USER) || user.starts_with(NODE_USER))
}

/// The token's ID where a bootstrap token asks.
pub fn token_id(spec: &CertificateSigningRequestSpec) -> Option<&str> {
    spec.username.as_deref()?.strip_prefix(TOKEN_USER)
}

/// The name of the node that asks.
pub fn requesting_node(spec: &CertificateSigningRequestSpec) -> Option<&str> {
    let of_node = spec.groups.as_deref().unwrap_or_default().iter().any(|g| g == NODES_GROUP);
    spec.username.as_deref()?.strip_prefix(NODE_USER).filter(|_| of_node)
}

/// The name of the node whose certificate is asked for.
pub fn requested_node(request: &Request) -> Option<&str> {
    request.common_name.strip_prefix(NODE_USER)
}

pub fn judge(spec: &CertificateSigningRequestSpec, request: &Request, observed: &Observed, now: Timestamp) -> Verdict {
    if let Some(id) = token_id(spec) {
        return judge_token(id, spec, request, observed, now);
    }
    let Some(requester) = requesting_node(spec) else { return Verdict::LeaveToPeople };
    if spec.signer_name == CLIENT {
        return judge_component(requester, request);
    }
    if request.organizations != [NODES_GROUP] || requested_node(request) != Some(requester) {
        return deny(
            "WrongSubject",
            format!(
                "node {requester} asks for a certificate of {:?}; a node gets certificates of its own name only",
                request.common_name
            ),
        );
    }
    match spec.signer_name.as_str() {
        KUBELET_CLIENT => Verdict::Approve("renewal of the node's own client certificate"),
        _ => judge_serving(requester, request, observed),
    }
}

fn deny(reason: &'static str, message: String) -> Verdict {
    Verdict::Deny(reason, message)
}

fn judge_token(
    id: &str,
    spec: &CertificateSigningRequestSpec,
    request: &Request,
    observed: &Observed,
    now: Timestamp,
) -> Verdict {
    if spec.signer_name != KUBELET_CLIENT {
        return deny("WrongSigner", format!("a bootstrap token gets certificates of {KUBELET_CLIENT} only"));
    }
    let node = match requested_node(request) {
        Some(node) if !node.is_empty() && request.organizations == [NODES_GROUP] => node,
        _ => {
            return deny(
                "WrongSubject",
                format!("the subject must be O={NODES_GROUP}, CN={NODE_USER}NAME, not CN={}", request.common_name),
            );
        }
    };
    let Some(token) = &observed.token else {
        // The request was authenticated by it, so it was there a moment ago.
        return Verdict::Wait("the token's Secret is not in the cache");
    };
    if token.expires.is_some_and(|end| end <= now) {
        return deny(
            "TokenExpired",
            format!("bootstrap token {id} has expired; make a new one with `kimg seed {node}`"),
        );
    }
    if token.node_name.is_empty() {
        return deny(
            "TokenWithoutNode",
            format!("bootstrap token {id} names no node; its Secret needs data.kimg-node-name"),
        );
    }
    if token.node_name != node {
        return deny(
            "TokenOfAnotherNode",
            format!("bootstrap token {id} is for node {}, not for {node}", token.node_name),
        );
    }
    if let Some(by) = &token.used_by
        && !token.used_by_this
    {
        return deny(
            "TokenUsed",
            format!("bootstrap token {id} was used before, by request {by}; make a new one with `kimg seed {node}`"),
        );
    }
    if observed.node_is_alive && !token.may_replace {
        return deny(
            "NodeIsAlive",
            format!(
                "a live node named {node} renewed its Lease a moment ago; stop it first, or make a token that may replace it"
            ),
        );
    }
    Verdict::Approve("first certificate of a joining node")
}

fn judge_component(requester: &str, request: &Request) -> Verdict {
    let is_component = COMPONENTS.contains(&request.common_name.as_str());
    if !is_component || !request.organizations.is_empty() || !request.names.is_empty() {
        return deny(
            "WrongSubject",
            format!(
                "node {requester} asks for a client certificate of {:?} {:?}; it gets those of {} only",
                request.common_name,
                request.organizations,
                COMPONENTS.join(", ")
            ),
        );
    }
    Verdict::Approve("certificate of a node's component")
}

fn judge_serving(requester: &str, request: &Request, observed: &Observed) -> Verdict {
    let Some(names) = &observed.node_names else {
        return Verdict::Wait("the Node object is not there yet");
    };
    let known = |name: &str| name == requester || names.iter().any(|n| n == name);
    let known_address = |address: &IpAddr| names.iter().any(|n| n.parse() == Ok(*address));
    let strange: Vec<String> = request
        .dns_names
        .iter()
        .filter(|n| !known(n))
        .cloned()
        .chain(request.addresses.iter().filter(|a| !known_address(a)).map(IpAddr::to_string))
        .collect();
    if strange.is_empty() {
        return Verdict::Approve("serving certificate with the node's own names");
    }
    if names.is_empty() {
        return Verdict::Wait("the Node object has no addresses yet");
    }
    deny(
        "WrongNames",
        format!(
            "node {requester} asks for a serving certificate of {}, which its Node object does not have",
            strange.join(", ")
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(signer: &str, user: &str) -> CertificateSigningRequestSpec {
        CertificateSigningRequestSpec {
            signer_name: signer.into(),
            username: Some(user.into()),
            groups: Some(vec![if user.starts_with(NODE_USER) { NODES_GROUP.into() } else { "g".into() }]),
            ..CertificateSigningRequestSpec::default()
        }
    }

    fn node_request(name: &str) -> Request {
        Request {
            common_name: format!("{NODE_USER}{name}"),
            organizations: vec![NODES_GROUP.into()],
            ..Request::default()
        }
    }

    fn token() -> Token {
        Token {
            id: "abc".into(),
            node_name: "w1".into(),
            may_replace: false,
            expires: None,
            used_by: None,
            used_by_this: false,
        }
    }

    fn reason(verdict: Verdict) -> &'static str {
        match verdict {
            Verdict::Approve(_) => "approve",
            Verdict::Deny(reason, _) => reason,
            Verdict::Wait(_) => "wait",
            Verdict::LeaveToPeople => "people",
        }
    }

    #[test]
    fn token_is_good_once_for_its_own_free_name() {
        let cases: [(&str, Option<Token>, bool, &str); 9] = [
            ("w1", Some(token()), false, "approve"),
            ("w2", Some(token()), false, "TokenOfAnotherNode"),
            ("w1", None, false, "wait"),
            ("w1", Some(Token { used_by: Some("x".into()), ..token() }), false, "TokenUsed"),
            ("w1", Some(Token { used_by: Some("x".into()), used_by_this: true, ..token() }), false, "approve"),
            ("w1", Some(Token { expires: Some(Timestamp::UNIX_EPOCH), ..token() }), false, "TokenExpired"),
            ("w1", Some(token()), true, "NodeIsAlive"),
            ("w1", Some(Token { may_replace: true, ..token() }), true, "approve"),
            ("w1", Some(Token { node_name: String::new(), ..token() }), false, "TokenWithoutNode"),
        ];
        for (name, token, node_is_alive, wanted) in cases {
            let observed = Observed { token: token.clone(), node_is_alive, node_names: None };
            let verdict = judge(
                &spec(KUBELET_CLIENT, "system:bootstrap:abc"),
                &node_request(name),
                &observed,
                Timestamp::from_second(1000).unwrap(),
            );
            assert_eq!(reason(verdict), wanted, "{name} {token:?}");
        }
    }

    #[test]
    fn nodes_get_their_own_certificates_only() {
        let component = |name: &str| Request { common_name: name.into(), ..Request::default() };
        let serving = |name: &str, address: &str| Request {
            addresses: vec![address.parse().unwrap()],
            dns_names: vec![name.into()],
            ..node_request(name)
        };
        let names = Some(vec!["10.0.0.1".to_owned()]);
        let cases = [
            (CLIENT, component("kimg:overlay"), None, "approve"),
            (CLIENT, component("kubernetes-admin"), None, "WrongSubject"),
            (KUBELET_CLIENT, node_request("w1"), None, "approve"),
            (KUBELET_CLIENT, node_request("w2"), None, "WrongSubject"),
            (KUBELET_SERVING, serving("w1", "10.0.0.1"), names.clone(), "approve"),
            (KUBELET_SERVING, serving("w1", "10.0.0.2"), names, "WrongNames"),
            (KUBELET_SERVING, serving("w1", "10.0.0.1"), None, "wait"),
            (KUBELET_SERVING, serving("w2", "10.0.0.1"), None, "WrongSubject"),
        ];
        for (signer, request, node_names, wanted) in cases {
            let observed = Observed { node_names, ..Observed::default() };
            let verdict = judge(&spec(signer, "system:node:w1"), &request, &observed, Timestamp::UNIX_EPOCH);
            assert_eq!(reason(verdict), wanted, "{signer} {}", request.common_name);
        }
    }
}
