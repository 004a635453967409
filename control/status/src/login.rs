//! Who may look: links that are good for one login, and the sessions they open. Pure; the clock is an argument.
//!
//! A link's token is a ServiceAccount token of `kube-system/kimg-status` for this page alone (its audience), which no API
//! server takes and to which no role is bound. Only who may make such tokens can make a link.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

/// Audience of the tokens.
pub const AUDIENCE: &str = "kimg-status";
/// Their user.
pub const ACCOUNT: &str = "system:serviceaccount:kube-system:kimg-status";
/// How long a token may be made for, seconds: the shortest that the API server gives, and a little more for rounding.
const LIFE_SECS: i64 = 610;
/// How long a session lasts, seconds.
pub const SESSION_SECS: i64 = 3600;
/// So many sessions at a time; the oldest goes.
const MOST_SESSIONS: usize = 16;
/// Tries in a minute, of one address and of all whose token looks right.
const TRIES: u32 = 5;
const TRIES_OF_ALL: u32 = 30;
const MINUTE: i64 = 60;
/// So many addresses are counted at a time; beyond that only all together are.
const MOST_ADDRESSES: usize = 512;

/// Why there is no session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Too many tries.
    Often,
    /// It is no token for this page, or one of too long a life.
    Wrong,
    /// It has ended, or was made before this program started, which does not know whether it was used.
    Old,
    /// It was used before.
    Used,
}

type Hash = [u8; 32];

/// Tokens that were used, sessions, and tries.
#[derive(Debug)]
pub struct Logins {
    started: i64,
    used: HashMap<Hash, i64>,
    sessions: VecDeque<(Hash, i64)>,
    tries: HashMap<IpAddr, u32>,
    tries_of_all: u32,
    minute: i64,
}

#[derive(Deserialize)]
struct Claims {
    aud: Audiences,
    sub: String,
    iat: i64,
    exp: i64,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Many(Vec<String>),
}

impl Logins {
    /// None yet; the program starts at `now`, Unix seconds.
    pub fn new(now: i64) -> Logins {
        Logins {
            started: now,
            used: HashMap::new(),
            sessions: VecDeque::new(),
            tries: HashMap::new(),
            tries_of_all: 0,
            minute: now,
        }
    }

    /// Whether it is worth asking the API server about a token. From now on it counts as used, also for who comes at the
    /// same time.
    ///
    /// # Errors
    /// It is not.
    pub fn begin(&mut self, token: &str, from: IpAddr, now: i64) -> Result<(), Refusal> {
        self.count(from, now)?;
        let claims = claims(token).ok_or(Refusal::Wrong)?;
        let ours = match &claims.aud {
            Audiences::One(one) => one == AUDIENCE,
            Audiences::Many(many) => many.as_slice() == [AUDIENCE],
        };
        if !ours || claims.sub != ACCOUNT || claims.exp.saturating_sub(claims.iat) > LIFE_SECS {
            return Err(Refusal::Wrong);
        }
        if claims.exp <= now || claims.iat < self.started {
            return Err(Refusal::Old);
        }
        self.used.retain(|_, end| *end > now);
        let hash = digest(signed_part(token));
        if self.used.contains_key(&hash) {
            return Err(Refusal::Used);
        }
        // Anybody can write such claims: so many a minute are looked at, and remembered.
        self.tries_of_all += 1;
        if self.tries_of_all > TRIES_OF_ALL {
            return Err(Refusal::Often);
        }
        self.used.insert(hash, claims.exp);
        Ok(())
    }

    /// The API server could not say what the token is worth: it may be tried again.
    pub fn forget(&mut self, token: &str) {
        self.used.remove(&digest(signed_part(token)));
    }

    /// A session, by the value of its cookie.
    pub fn open(&mut self, now: i64) -> String {
        let cookie = hex::encode(rand::random::<[u8; 32]>());
        self.sessions.retain(|(_, end)| *end > now);
        if self.sessions.len() >= MOST_SESSIONS {
            self.sessions.pop_front();
        }
        self.sessions.push_back((digest(&cookie), now.saturating_add(SESSION_SECS)));
        cookie
    }

    /// Whether a cookie is that of a session.
    pub fn knows(&self, cookie: &str, now: i64) -> bool {
        // Of digests, time tells nothing.
        let hash = digest(cookie);
        self.sessions.iter().any(|(known, end)| *known == hash && *end > now)
    }

    /// Ends a session.
    pub fn close(&mut self, cookie: &str) {
        let hash = digest(cookie);
        self.sessions.retain(|(known, _)| *known != hash);
    }

    fn count(&mut self, from: IpAddr, now: i64) -> Result<(), Refusal> {
        if now.saturating_sub(self.minute) >= MINUTE || now < self.minute {
            self.minute = now;
            self.tries.clear();
            self.tries_of_all = 0;
        }
        let from = network(from);
        if !self.tries.contains_key(&from) && self.tries.len() >= MOST_ADDRESSES {
            return Ok(());
        }
        let tries = self.tries.entry(from).or_default();
        *tries += 1;
        if *tries > TRIES { Err(Refusal::Often) } else { Ok(()) }
    }
}

/// A token without its signature, of which there is more than one that fits (ECDSA: s, and the order less s): whoever has
/// seen a token that was used knows another one of it.
fn signed_part(token: &str) -> &str {
    token.rsplit_once('.').map_or(token, |(signed, _)| signed)
}

fn digest(text: &str) -> Hash {
    Sha256::digest(text.as_bytes()).into()
}

/// Whoever has an IPv6 address has 2^64 of them.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_none() => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
        other => other.to_canonical(),
    }
}

fn claims(token: &str) -> Option<Claims> {
    let mut parts = token.split('.');
    let (_, payload, _, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else { return None };
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: i64 = 1_800_000_000;

    fn here() -> IpAddr {
        "192.0.2.1".parse().unwrap()
    }

    fn token(change: Value) -> String {
        let mut claims = json!({"aud": [AUDIENCE], "sub": ACCOUNT, "iat": NOW, "exp": NOW + 600});
        for (key, value) in change.as_object().unwrap() {
            claims[key] = value.clone();
        }
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))
    }

    #[test]
    fn a_link_is_good_once_and_for_its_time() {
        let mut logins = Logins::new(NOW);
        let good = token(json!({}));
        assert_eq!(logins.begin(&good, here(), NOW), Ok(()));
        assert_eq!(logins.begin(&good, here(), NOW), Err(Refusal::Used));
        let signed_again = good.replace("c2ln", "c2lo");
        assert_eq!(logins.begin(&signed_again, here(), NOW), Err(Refusal::Used), "the other signature of the same");
        logins.forget(&good);
        assert_eq!(logins.begin(&good, here(), NOW + 599), Ok(()), "the API server had not answered");
        assert_eq!(logins.begin(&good, here(), NOW + 600), Err(Refusal::Old));
        // A program that has started anew knows nothing of what was used.
        assert_eq!(Logins::new(NOW + 1).begin(&good, here(), NOW + 1), Err(Refusal::Old));
    }

    #[test]
    fn tokens_for_something_else_are_refused_without_asking() {
        for change in [
            json!({"aud": ["https://kubernetes.default.svc"]}),
            json!({"aud": [AUDIENCE, "https://kubernetes.default.svc"]}),
            json!({"aud": "other"}),
            json!({"sub": "system:serviceaccount:default:kimg-status"}),
            json!({"exp": NOW + 86_400}),
            json!({"iat": i64::MIN, "exp": i64::MAX}),
            json!({"exp": "soon"}),
        ] {
            let tried = Logins::new(NOW).begin(&token(change.clone()), here(), NOW);
            assert_eq!(tried, Err(Refusal::Wrong), "{change}");
        }
        for text in ["", "a", "a.b.c", "..", "e30.e30.c2ln", "a.b.c.d"] {
            assert_eq!(Logins::new(NOW).begin(text, here(), NOW), Err(Refusal::Wrong), "{text}");
        }
    }

    #[test]
    fn tries_are_counted_by_address_and_together() {
        let mut logins = Logins::new(NOW);
        for _ in 0..TRIES {
            assert_eq!(logins.begin("x", here(), NOW), Err(Refusal::Wrong));
        }
        assert_eq!(logins.begin(&token(json!({})), here(), NOW), Err(Refusal::Often));
        assert_eq!(logins.begin(&token(json!({})), here(), NOW + MINUTE), Ok(()), "the next minute");

        let mut logins = Logins::new(NOW);
        let from =
            |n: u32| IpAddr::from(std::net::Ipv6Addr::from((0x2001_0db8_u128 << 96) | (u128::from(n) << 64) | 7));
        for n in 0..TRIES_OF_ALL {
            assert_eq!(logins.begin(&token(json!({"iat": NOW + i64::from(n)})), from(n), NOW), Ok(()));
        }
        assert_eq!(logins.begin(&token(json!({"jti": "x"})), from(99), NOW), Err(Refusal::Often));
        assert!(logins.used.len() <= TRIES_OF_ALL as usize);
        for n in 0..2000 {
            assert!(logins.begin("x", from(1000 + n), NOW).is_err());
        }
        assert!(logins.tries.len() <= MOST_ADDRESSES);
        assert_eq!(network(from(3)), network("2001:db8:0:3:ffff::1".parse().unwrap()));
    }

    #[test]
    fn sessions_end() {
        let mut logins = Logins::new(NOW);
        let first = logins.open(NOW);
        assert!(logins.knows(&first, NOW) && logins.knows(&first, NOW + SESSION_SECS - 1));
        assert!(!logins.knows(&first, NOW + SESSION_SECS) && !logins.knows("", NOW) && !logins.knows("x", NOW));
        let second = logins.open(NOW);
        logins.close(&second);
        assert!(!logins.knows(&second, NOW) && logins.knows(&first, NOW));
        for _ in 0..MOST_SESSIONS {
            logins.open(NOW);
        }
        assert!(!logins.knows(&first, NOW), "the oldest has gone");
    }
}
