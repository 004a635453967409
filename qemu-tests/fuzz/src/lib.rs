//! What outsiders' bytes go through, one target a decoder: no input may make it panic, hang or grow without
//! bound, and what it understood it must understand again after writing it.
//!
//! A finding becomes a file in `corpus/TARGET/`, which the unit tests replay.

mod control;
mod node;

/// What an input goes through.
pub type Target = fn(&[u8]);

/// Name and function of each target.
pub fn targets() -> impl Iterator<Item = (&'static str, Target)> {
    control::TARGETS.iter().chain(node::TARGETS).copied()
}

/// CRC-32 (IEEE), bit by bit: chance would never make a right one.
fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { 0xedb8_8320 ^ (c >> 1) } else { c >> 1 })
    })
}
