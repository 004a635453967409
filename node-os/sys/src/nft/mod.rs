//! nftables over netlink, as one atomic transaction a change.
//!
//! A [`Batch`] collects changes and commits them together: the kernel takes all of them or none.
//! Attribute numbers are those of Linux's `include/uapi/linux/netfilter/nf_tables.h`;
//! numbers inside attributes are big-endian, data in registers is in network order for packet
//! fields and in host order for what the kernel itself computes (marks, states, `numgen`).

mod attr;
mod expr;
mod socket;

pub use expr::{CmpOp, CtKey, Expr, MetaKey, PayloadBase, Reg, Verdict, mark_and, pad4};
pub use socket::NftError;

use attr::Attrs;

/// Address family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Family {
    /// IPv4 and IPv6 together.
    Inet = 1,
    /// IPv4 only.
    Ip = 2,
}

/// Where a base chain hooks into the packet path.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "the names are netfilter's own")]
pub enum HookPoint {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// What makes a chain a base chain.
#[derive(Debug, Clone, Copy)]
pub struct Hook {
    /// `filter`, `nat` or `route`.
    pub kind: &'static str,
    /// Hook point.
    pub point: HookPoint,
    /// Lower runs earlier.
    pub priority: i32,
    /// Whether packets that reach the end are dropped.
    pub drop_by_default: bool,
}

/// Set flags (`NFT_SET_*`).
pub mod set_flags {
    /// Bound to one rule, without a lasting name.
    pub const ANONYMOUS: u32 = 1;
    /// Elements never change after the rule is bound.
    pub const CONSTANT: u32 = 2;
    /// Elements are ranges.
    pub const INTERVAL: u32 = 4;
    /// Elements carry data.
    pub const MAP: u32 = 8;
    /// Elements may expire.
    pub const TIMEOUT: u32 = 0x10;
    /// Rules may add elements.
    pub const EVAL: u32 = 0x20;
}

/// What a map's elements hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapData {
    /// Not a map.
    None,
    /// A verdict.
    Verdict,
    /// Plain bytes: nft's type id (for listings) and the length in bytes.
    Bytes(u32, u32),
}

/// nft's type ids, so that `nft list` shows readable values.
pub mod types {
    /// IPv4 address.
    pub const IPV4: u32 = 7;
    /// IPv6 address.
    pub const IPV6: u32 = 8;
    /// Layer 4 protocol.
    pub const PROTO: u32 = 12;
    /// Port.
    pub const PORT: u32 = 13;
    /// Mark.
    pub const MARK: u32 = 19;
    /// Host-order integer.
    pub const INTEGER: u32 = 4;
    /// Control group (version 2), its inode.
    pub const CGROUP: u32 = 46;
    /// A concatenation of two types.
    pub const fn concat2(a: u32, b: u32) -> u32 {
        a << 6 | b
    }
    /// A concatenation of three types.
    pub const fn concat3(a: u32, b: u32, c: u32) -> u32 {
        a << 12 | b << 6 | c
    }
}

/// A set or map.
#[derive(Debug, Clone)]
pub struct Set<'a> {
    /// Name; anonymous sets use a pattern such as `__map%d`.
    pub name: &'a str,
    /// Number by which later messages of the same batch refer to an anonymous set; 0 for named ones.
    pub id: u32,
    /// [`set_flags`].
    pub flags: u32,
    /// nft's type id of the key.
    pub key_type: u32,
    /// Key length in bytes, concatenated fields padded to 4 each.
    pub key_len: u32,
    /// Data of a map.
    pub data: MapData,
    /// Milliseconds after which elements expire, where [`set_flags::TIMEOUT`] is set.
    pub timeout_ms: Option<u64>,
}

/// Data of a map element.
#[derive(Debug, Clone)]
pub enum ElemData {
    /// Plain set.
    None,
    /// Bytes.
    Bytes(Vec<u8>),
    /// Verdict.
    Verdict(Verdict),
}

/// One element of a set or map.
#[derive(Debug, Clone)]
pub struct Elem {
    /// Key bytes.
    pub key: Vec<u8>,
    /// Data, for maps.
    pub data: ElemData,
    /// Marks the (exclusive) end of a range in an interval set.
    pub interval_end: bool,
}

impl Elem {
    /// A plain set's element.
    pub fn key(key: impl Into<Vec<u8>>) -> Self {
        Elem { key: key.into(), data: ElemData::None, interval_end: false }
    }
    /// A verdict map's element.
    pub fn verdict(key: impl Into<Vec<u8>>, verdict: Verdict) -> Self {
        Elem { key: key.into(), data: ElemData::Verdict(verdict), interval_end: false }
    }
    /// A data map's element.
    pub fn data(key: impl Into<Vec<u8>>, data: impl Into<Vec<u8>>) -> Self {
        Elem { key: key.into(), data: ElemData::Bytes(data.into()), interval_end: false }
    }
}

/// The two elements that stand for an IPv4 prefix in an interval set.
pub fn prefix_v4(addr: std::net::Ipv4Addr, len: u8) -> Vec<Elem> {
    let size = 1u64 << (32 - u32::from(len.min(32)));
    let start = u64::from(u32::from(addr)) & !(size - 1);
    let mut out = vec![Elem::key((start as u32).to_be_bytes())];
    // A range that ends with the last address has no end element.
    if start + size <= u64::from(u32::MAX) {
        let mut end = Elem::key(((start + size) as u32).to_be_bytes());
        end.interval_end = true;
        out.push(end);
    }
    out
}

const NEWTABLE: u16 = 0;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const DELCHAIN: u16 = 5;
const NEWRULE: u16 = 6;
const DELRULE: u16 = 8;
const NEWSET: u16 = 9;
const DELSET: u16 = 11;
const NEWSETELEM: u16 = 12;
const DELSETELEM: u16 = 14;

const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

/// A transaction under construction.
#[derive(Debug)]
pub struct Batch {
    family: Family,
    table: String,
    messages: Vec<u8>,
    /// What each message does, for error sentences; the index is the sequence number less one.
    labels: Vec<String>,
    next_set_id: u32,
}

impl Batch {
    /// Starts a transaction on one table.
    pub fn new(family: Family, table: &str) -> Self {
        Batch { family, table: table.to_owned(), messages: Vec::new(), labels: Vec::new(), next_set_id: 1 }
    }

    /// True while nothing was added.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    fn message(&mut self, kind: u16, flags: u16, label: String, attrs: Attrs) {
        self.labels.push(label);
        let seq = self.labels.len() as u32;
        socket::message(&mut self.messages, kind, flags, seq, self.family as u8, &attrs.into_bytes());
    }

    fn table_attr(&self) -> Attrs {
        let mut a = Attrs::new();
        a.str(1, &self.table);
        a
    }

    /// Creates the table if it is missing.
    pub fn add_table(&mut self) {
        let attrs = self.table_attr();
        self.message(NEWTABLE, CREATE, format!("table {}", self.table), attrs);
    }

    /// Removes the table and all in it; it must exist (precede by [`Batch::add_table`] to be sure).
    pub fn delete_table(&mut self) {
        let attrs = self.table_attr();
        self.message(DELTABLE, 0, format!("delete table {}", self.table), attrs);
    }

    /// Starts the table from nothing, whatever was there.
    pub fn replace_table(&mut self) {
        self.add_table();
        self.delete_table();
        self.add_table();
    }

    /// Creates a chain if it is missing.
    pub fn add_chain(&mut self, name: &str, hook: Option<Hook>) {
        let mut a = self.table_attr();
        a.str(3, name);
        if let Some(hook) = hook {
            a.nest(4, |n| {
                n.u32(1, hook.point as u32);
                n.u32(2, hook.priority as u32);
            });
            a.str(7, hook.kind);
            a.u32(5, u32::from(!hook.drop_by_default));
        }
        self.message(NEWCHAIN, CREATE, format!("chain {name}"), a);
    }

    /// Removes an empty, unreferenced chain.
    pub fn delete_chain(&mut self, name: &str) {
        let mut a = self.table_attr();
        a.str(3, name);
        self.message(DELCHAIN, 0, format!("delete chain {name}"), a);
    }

    /// Removes all rules of a chain.
    pub fn flush_chain(&mut self, name: &str) {
        let mut a = self.table_attr();
        a.str(2, name);
        self.message(DELRULE, 0, format!("flush chain {name}"), a);
    }

    /// Appends a rule to a chain.
    pub fn add_rule(&mut self, chain: &str, exprs: &[Expr]) {
        let mut a = self.table_attr();
        a.str(2, chain);
        a.nest(4, |list| {
            for e in exprs {
                list.nest(1, |n| e.encode(n));
            }
        });
        self.message(NEWRULE, CREATE | APPEND, format!("rule in chain {chain}"), a);
    }

    /// A number for an anonymous set, unique in this batch.
    pub fn fresh_set_id(&mut self) -> u32 {
        self.next_set_id += 1;
        self.next_set_id
    }

    /// Creates a set or map if it is missing.
    pub fn add_set(&mut self, set: &Set<'_>) {
        let mut a = self.table_attr();
        a.str(2, set.name);
        let map = if set.data == MapData::None { 0 } else { set_flags::MAP };
        a.u32(3, set.flags | map);
        a.u32(4, set.key_type);
        a.u32(5, set.key_len);
        match set.data {
            MapData::None => {}
            MapData::Verdict => {
                a.u32(6, 0xffff_ff00);
                a.u32(7, 0);
            }
            MapData::Bytes(kind, len) => {
                a.u32(6, kind);
                a.u32(7, len);
            }
        }
        a.u32(10, set.id);
        if let Some(ms) = set.timeout_ms {
            a.u64(11, ms);
        }
        self.message(NEWSET, CREATE, format!("set {}", set.name), a);
    }

    /// Removes an unreferenced set.
    pub fn delete_set(&mut self, name: &str) {
        let mut a = self.table_attr();
        a.str(2, name);
        self.message(DELSET, 0, format!("delete set {name}"), a);
    }

    /// Adds elements. `id` is the set's number where it is anonymous, else 0.
    pub fn add_elements(&mut self, set: &str, id: u32, elems: &[Elem]) {
        self.elements(NEWSETELEM, CREATE, set, id, elems);
    }

    /// Removes elements of a named set; each must exist.
    pub fn delete_elements(&mut self, set: &str, elems: &[Elem]) {
        self.elements(DELSETELEM, 0, set, 0, elems);
    }

    /// Removes all elements of a named set.
    pub fn flush_set(&mut self, set: &str) {
        let mut a = self.table_attr();
        a.str(2, set);
        self.message(DELSETELEM, 0, format!("flush set {set}"), a);
    }

    fn elements(&mut self, kind: u16, flags: u16, set: &str, id: u32, elems: &[Elem]) {
        // The nested list's length is 16 bits wide.
        for chunk in elems.chunks(400) {
            let mut a = self.table_attr();
            a.str(2, set);
            if id != 0 {
                a.u32(4, id);
            }
            a.nest(3, |list| {
                for e in chunk {
                    list.nest(1, |n| {
                        n.nest(1, |k| k.bytes(1, &e.key));
                        match &e.data {
                            ElemData::None => {}
                            ElemData::Bytes(b) => n.nest(2, |d| d.bytes(1, b)),
                            ElemData::Verdict(v) => n.nest(2, |d| v.encode(d)),
                        }
                        if e.interval_end {
                            n.u32(3, 1);
                        }
                    });
                }
            });
            let verb = if kind == NEWSETELEM { "add to" } else { "remove from" };
            self.message(kind, flags, format!("{verb} set {set}"), a);
        }
    }

    /// Applies everything, or nothing.
    ///
    /// # Errors
    /// The kernel's error with the first change that it refused.
    pub fn commit(self) -> Result<(), NftError> {
        if self.labels.is_empty() {
            return Ok(());
        }
        socket::commit(&self.messages, &self.labels)
    }
}
