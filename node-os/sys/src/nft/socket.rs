//! Sends a batch to the kernel and collects its answer.

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// Why a transaction was refused; nothing of it was applied.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The socket itself failed.
    #[error("talking to nftables over netlink")]
    Socket(#[source] std::io::Error),
    /// The kernel refused one of the changes.
    #[error("nftables refused '{what}'")]
    Refused {
        /// The change, in words.
        what: String,
        /// The kernel's error.
        #[source]
        source: std::io::Error,
    },
}

const SUBSYS_NFTABLES: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const HEADER: usize = 16;

fn raw(out: &mut Vec<u8>, kind: u16, flags: u16, seq: u32, family: u8, res_id: u16, attrs: &[u8]) {
    let len = (HEADER + 4 + attrs.len()) as u32;
    out.extend_from_slice(&len.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
    out.extend_from_slice(&seq.to_ne_bytes());
    out.extend_from_slice(&0u32.to_ne_bytes());
    out.push(family);
    out.push(0);
    out.extend_from_slice(&res_id.to_be_bytes());
    out.extend_from_slice(attrs);
}

/// Appends one nftables message.
pub(super) fn message(out: &mut Vec<u8>, kind: u16, flags: u16, seq: u32, family: u8, attrs: &[u8]) {
    raw(out, SUBSYS_NFTABLES << 8 | kind, flags, seq, family, 0, attrs);
}

/// Sends all messages between batch marks. `labels[seq - 1]` says what a message does.
pub(super) fn commit(messages: &[u8], labels: &[String]) -> Result<(), NftError> {
    let mut socket = Socket::new(NETLINK_NETFILTER).map_err(NftError::Socket)?;
    socket.bind_auto().map_err(NftError::Socket)?;
    let mut data = Vec::with_capacity(messages.len() + 40);
    raw(&mut data, BATCH_BEGIN, 0, 0, 0, SUBSYS_NFTABLES, &[]);
    data.extend_from_slice(messages);
    // An answer to the closing mark tells that the kernel has gone through the whole batch.
    raw(&mut data, BATCH_END, NLM_F_ACK, labels.len() as u32 + 1, 0, SUBSYS_NFTABLES, &[]);
    crate::net::grow_send_buffer(&socket, data.len() * 2).map_err(NftError::Socket)?;
    socket.set_non_blocking(true).map_err(NftError::Socket)?;
    socket.send_to(&data, &SocketAddr::new(0, 0), 0).map_err(NftError::Socket)?;
    // The kernel works the batch off inside sendto: what it has to say is queued by now.
    loop {
        let answer = match socket.recv_from_full() {
            Ok((bytes, _)) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
            Err(e) => return Err(NftError::Socket(e)),
        };
        first_error(&answer, labels)?;
    }
}

fn first_error(mut bytes: &[u8], labels: &[String]) -> Result<(), NftError> {
    while let (Some(len), Some(kind), Some(seq)) = (word(bytes, 0), half(bytes, 4), word(bytes, 8)) {
        let code = word(bytes, HEADER).unwrap_or(0) as i32;
        if kind == NLMSG_ERROR && code != 0 {
            let what = labels.get((seq as usize).wrapping_sub(1)).cloned().unwrap_or_else(|| "the batch".into());
            return Err(NftError::Refused { what, source: std::io::Error::from_raw_os_error(-code) });
        }
        let step = (len as usize).next_multiple_of(4).max(HEADER);
        bytes = bytes.get(step..).unwrap_or(&[]);
    }
    Ok(())
}

fn word(b: &[u8], at: usize) -> Option<u32> {
    b.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn half(b: &[u8], at: usize) -> Option<u16> {
    b.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}
