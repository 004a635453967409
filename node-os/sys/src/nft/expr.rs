//! Rule expressions.

use super::attr::Attrs;

/// A 32-bit register, 0 to 15. A concatenation fills consecutive registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reg(pub u32);

impl Reg {
    /// `NFT_REG32_00` is 8.
    fn number(self) -> u32 {
        8 + self.0
    }
}

/// What happens to a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are netfilter's own")]
pub enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

impl Verdict {
    pub(super) fn encode(&self, data: &mut Attrs) {
        let (code, chain): (i32, Option<&str>) = match self {
            Verdict::Drop => (0, None),
            Verdict::Accept => (1, None),
            Verdict::Jump(c) => (-3, Some(c)),
            Verdict::Goto(c) => (-4, Some(c)),
            Verdict::Return => (-5, None),
        };
        data.nest(2, |v| {
            v.u32(1, code as u32);
            if let Some(chain) = chain {
                v.str(2, chain);
            }
        });
    }
}

/// Packet metadata.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "the names are netfilter's own")]
pub enum MetaKey {
    Mark = 3,
    IifName = 6,
    OifName = 7,
    SkUid = 10,
    NfProto = 15,
    L4Proto = 16,
}

/// Where a payload offset counts from.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "the names are netfilter's own")]
pub enum PayloadBase {
    Link = 0,
    Network = 1,
    Transport = 2,
}

/// Connection tracking fields.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "the names are netfilter's own")]
pub enum CtKey {
    State = 0,
    Status = 2,
}

/// Comparison.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "the names are netfilter's own")]
pub enum CmpOp {
    Eq = 0,
    Ne = 1,
    Lt = 2,
    Le = 3,
    Gt = 4,
    Ge = 5,
}

/// One expression of a rule, evaluated left to right.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "fields are registers and netfilter's own parameters")]
pub enum Expr {
    Meta(MetaKey, Reg),
    SetMark(Reg),
    Payload {
        base: PayloadBase,
        offset: u32,
        len: u32,
        into: Reg,
    },
    Ct(CtKey, Reg),
    /// Type of the destination address (2 is local), as routing sees it.
    FibDaddrType(Reg),
    Cmp(Reg, CmpOp, Vec<u8>),
    /// `reg = reg & mask ^ xor`.
    Bitwise {
        reg: Reg,
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    Immediate(Reg, Vec<u8>),
    /// Set membership; `id` for an anonymous set.
    Lookup {
        set: String,
        id: u32,
        key: Reg,
        invert: bool,
    },
    /// Map lookup into a register.
    Map {
        set: String,
        id: u32,
        key: Reg,
        into: Reg,
    },
    /// Verdict map.
    Vmap {
        set: String,
        id: u32,
        key: Reg,
    },
    Numgen {
        modulus: u32,
        into: Reg,
    },
    /// Adds or refreshes the key in a set that rules may fill.
    Update {
        set: String,
        key: Reg,
        timeout_ms: u64,
    },
    /// The same for a map: key and data come from registers.
    UpdateMap {
        set: String,
        key: Reg,
        data: Reg,
        timeout_ms: u64,
    },
    Dnat {
        v6: bool,
        addr: Reg,
        port: Option<Reg>,
    },
    Snat {
        v6: bool,
        addr: Reg,
    },
    Masquerade,
    /// TCP reset.
    RejectTcp,
    /// ICMP port unreachable, either family.
    RejectPort,
    /// ICMP administratively prohibited, either family.
    RejectAdmin,
    Counter,
    /// Id of the cgroup (v2) `level` steps below the root that owns the socket, 8 bytes.
    SocketCgroup {
        level: u32,
        into: Reg,
    },
    Verdict(Verdict),
}

/// Writes an expression's own attributes.
type Fill<'a> = Box<dyn FnOnce(&mut Attrs) + 'a>;

impl Expr {
    /// Interface name equality, input side.
    pub fn iif(name: &str) -> [Expr; 2] {
        [Expr::Meta(MetaKey::IifName, Reg(0)), Expr::Cmp(Reg(0), CmpOp::Eq, ifname(name))]
    }
    /// Interface name equality, output side.
    pub fn oif(name: &str) -> [Expr; 2] {
        [Expr::Meta(MetaKey::OifName, Reg(0)), Expr::Cmp(Reg(0), CmpOp::Eq, ifname(name))]
    }
    /// IPv4 (2) or IPv6 (10) only.
    pub fn nfproto(proto: u8) -> [Expr; 2] {
        [Expr::Meta(MetaKey::NfProto, Reg(0)), Expr::Cmp(Reg(0), CmpOp::Eq, vec![proto])]
    }
    /// Layer 4 protocol equality.
    pub fn l4proto(proto: u8) -> [Expr; 2] {
        [Expr::Meta(MetaKey::L4Proto, Reg(0)), Expr::Cmp(Reg(0), CmpOp::Eq, vec![proto])]
    }
    /// Destination port equality.
    pub fn dport(port: u16) -> [Expr; 2] {
        [Expr::load_dport(Reg(0)), Expr::Cmp(Reg(0), CmpOp::Eq, port.to_be_bytes().to_vec())]
    }
    /// Loads the destination port (TCP, UDP, SCTP).
    pub fn load_dport(into: Reg) -> Expr {
        Expr::Payload { base: PayloadBase::Transport, offset: 2, len: 2, into }
    }
    /// Loads the IPv4 source address.
    pub fn load_saddr4(into: Reg) -> Expr {
        Expr::Payload { base: PayloadBase::Network, offset: 12, len: 4, into }
    }
    /// Loads the IPv4 destination address.
    pub fn load_daddr4(into: Reg) -> Expr {
        Expr::Payload { base: PayloadBase::Network, offset: 16, len: 4, into }
    }
    /// IPv4 source or destination inside a prefix.
    pub fn in_prefix4(load: Expr, addr: std::net::Ipv4Addr, len: u8, op: CmpOp) -> [Expr; 3] {
        let mask = if len == 0 { 0 } else { u32::MAX << (32 - u32::from(len.min(32))) };
        let value = u32::from(addr) & mask;
        [
            load,
            Expr::Bitwise { reg: Reg(0), mask: mask.to_be_bytes().to_vec(), xor: vec![0; 4] },
            Expr::Cmp(Reg(0), op, value.to_be_bytes().to_vec()),
        ]
    }
    /// Connection in one of these states (bits of `NF_CT_STATE_BIT`: invalid 1, established 2, related 4, new 8).
    pub fn ct_state(bits: u32) -> [Expr; 3] {
        [
            Expr::Ct(CtKey::State, Reg(0)),
            Expr::Bitwise { reg: Reg(0), mask: bits.to_ne_bytes().to_vec(), xor: vec![0; 4] },
            Expr::Cmp(Reg(0), CmpOp::Ne, vec![0; 4]),
        ]
    }
    /// Connection whose destination was translated.
    pub fn ct_dnat() -> [Expr; 3] {
        const IPS_DST_NAT: u32 = 1 << 5;
        [
            Expr::Ct(CtKey::Status, Reg(0)),
            Expr::Bitwise { reg: Reg(0), mask: IPS_DST_NAT.to_ne_bytes().to_vec(), xor: vec![0; 4] },
            Expr::Cmp(Reg(0), CmpOp::Ne, vec![0; 4]),
        ]
    }
    /// Sets bits of the packet mark.
    pub fn mark_or(bits: u32) -> [Expr; 3] {
        [
            Expr::Meta(MetaKey::Mark, Reg(0)),
            Expr::Bitwise { reg: Reg(0), mask: (!bits).to_ne_bytes().to_vec(), xor: bits.to_ne_bytes().to_vec() },
            Expr::SetMark(Reg(0)),
        ]
    }

    pub(super) fn encode(&self, e: &mut Attrs) {
        let (name, fill): (&str, Fill<'_>) = match self {
            Expr::Meta(key, reg) => (
                "meta",
                Box::new(|a| {
                    a.u32(2, *key as u32);
                    a.u32(1, reg.number());
                }),
            ),
            Expr::SetMark(reg) => (
                "meta",
                Box::new(|a| {
                    a.u32(2, MetaKey::Mark as u32);
                    a.u32(3, reg.number());
                }),
            ),
            Expr::Payload { base, offset, len, into } => (
                "payload",
                Box::new(|a| {
                    a.u32(1, into.number());
                    a.u32(2, *base as u32);
                    a.u32(3, *offset);
                    a.u32(4, *len);
                }),
            ),
            Expr::Ct(key, reg) => (
                "ct",
                Box::new(|a| {
                    a.u32(2, *key as u32);
                    a.u32(1, reg.number());
                }),
            ),
            Expr::FibDaddrType(reg) => (
                "fib",
                Box::new(|a| {
                    const RESULT_ADDRTYPE: u32 = 3;
                    const FLAG_DADDR: u32 = 2;
                    a.u32(3, FLAG_DADDR);
                    a.u32(2, RESULT_ADDRTYPE);
                    a.u32(1, reg.number());
                }),
            ),
            Expr::Cmp(reg, op, data) => (
                "cmp",
                Box::new(|a| {
                    a.u32(1, reg.number());
                    a.u32(2, *op as u32);
                    a.nest(3, |d| d.bytes(1, data));
                }),
            ),
            Expr::Bitwise { reg, mask, xor } => (
                "bitwise",
                Box::new(|a| {
                    a.u32(1, reg.number());
                    a.u32(2, reg.number());
                    a.u32(3, mask.len() as u32);
                    a.nest(4, |d| d.bytes(1, mask));
                    a.nest(5, |d| d.bytes(1, xor));
                }),
            ),
            Expr::Immediate(reg, data) => (
                "immediate",
                Box::new(|a| {
                    a.u32(1, reg.number());
                    a.nest(2, |d| d.bytes(1, data));
                }),
            ),
            Expr::Verdict(v) => (
                "immediate",
                Box::new(|a| {
                    a.u32(1, 0);
                    a.nest(2, |d| v.encode(d));
                }),
            ),
            Expr::Lookup { set, id, key, invert } => (
                "lookup",
                Box::new(|a| {
                    lookup(a, set, *id, *key);
                    if *invert {
                        a.u32(5, 1);
                    }
                }),
            ),
            Expr::Map { set, id, key, into } => (
                "lookup",
                Box::new(|a| {
                    lookup(a, set, *id, *key);
                    a.u32(3, into.number());
                }),
            ),
            Expr::Vmap { set, id, key } => (
                "lookup",
                Box::new(|a| {
                    lookup(a, set, *id, *key);
                    a.u32(3, 0);
                }),
            ),
            Expr::Numgen { modulus, into } => (
                "numgen",
                Box::new(|a| {
                    const RANDOM: u32 = 1;
                    a.u32(1, into.number());
                    a.u32(2, *modulus);
                    a.u32(3, RANDOM);
                    a.u32(4, 0);
                }),
            ),
            Expr::Update { set, key, timeout_ms } => (
                "dynset",
                Box::new(|a| {
                    const OP_UPDATE: u32 = 1;
                    a.str(1, set);
                    a.u32(4, key.number());
                    a.u32(3, OP_UPDATE);
                    a.u64(6, *timeout_ms);
                }),
            ),
            Expr::UpdateMap { set, key, data, timeout_ms } => (
                "dynset",
                Box::new(|a| {
                    const OP_UPDATE: u32 = 1;
                    a.str(1, set);
                    a.u32(4, key.number());
                    a.u32(5, data.number());
                    a.u32(3, OP_UPDATE);
                    a.u64(6, *timeout_ms);
                }),
            ),
            Expr::Dnat { v6, addr, port } => ("nat", Box::new(|a| nat(a, 1, *v6, *addr, *port))),
            Expr::Snat { v6, addr } => ("nat", Box::new(|a| nat(a, 0, *v6, *addr, None))),
            Expr::Masquerade => ("masq", Box::new(|_| {})),
            Expr::RejectTcp => ("reject", Box::new(|a| reject(a, 1, 0))),
            Expr::RejectPort => ("reject", Box::new(|a| reject(a, 2, 1))),
            Expr::RejectAdmin => ("reject", Box::new(|a| reject(a, 2, 3))),
            Expr::Counter => ("counter", Box::new(|_| {})),
            Expr::SocketCgroup { level, into } => (
                "socket",
                Box::new(|a| {
                    const CGROUPV2: u32 = 3;
                    a.u32(1, CGROUPV2);
                    a.u32(2, into.number());
                    a.u32(3, *level);
                }),
            ),
        };
        e.str(1, name);
        e.nest(2, fill);
    }
}

fn lookup(a: &mut Attrs, set: &str, id: u32, key: Reg) {
    a.str(1, set);
    a.u32(2, key.number());
    if id != 0 {
        a.u32(4, id);
    }
}

fn nat(a: &mut Attrs, kind: u32, v6: bool, addr: Reg, port: Option<Reg>) {
    a.u32(1, kind);
    a.u32(2, if v6 { 10 } else { 2 });
    a.u32(3, addr.number());
    a.u32(4, addr.number());
    if let Some(port) = port {
        a.u32(5, port.number());
        a.u32(6, port.number());
    }
}

fn reject(a: &mut Attrs, kind: u32, code: u8) {
    a.u32(1, kind);
    a.u8(2, code);
}

fn ifname(name: &str) -> Vec<u8> {
    let mut v = name.as_bytes().to_vec();
    v.resize(16, 0);
    v
}

/// Pads a field of a concatenated key to a multiple of four bytes.
pub fn pad4(field: &[u8]) -> Vec<u8> {
    let mut v = field.to_vec();
    v.resize(field.len().next_multiple_of(4), 0);
    v
}

/// Matches packets whose mark has one of these bits.
pub fn mark_and(bits: u32) -> [Expr; 3] {
    [
        Expr::Meta(MetaKey::Mark, Reg(0)),
        Expr::Bitwise { reg: Reg(0), mask: bits.to_ne_bytes().to_vec(), xor: vec![0; 4] },
        Expr::Cmp(Reg(0), CmpOp::Ne, vec![0; 4]),
    ]
}
