//! The NBD protocol's newstyle fixed handshake and simple replies: as much as QEMU asks for.
//! Numbers and layouts are those of the protocol's `doc/proto.md`.

use std::io::{self, Read, Write};

const GREETING: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;

const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;

const EXPORT_NAME: u32 = 1;
const ABORT: u32 = 2;
const INFO: u32 = 6;
const GO: u32 = 7;

const ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const UNSUPPORTED: u32 = 0x8000_0001;
const UNKNOWN_EXPORT: u32 = 0x8000_0006;
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

/// Has flags; flush, FUA and trim are understood.
const EXPORT_FLAGS: u16 = 1 | (1 << 2) | (1 << 3) | (1 << 5);
const FUA: u16 = 1;

/// Longer options than this are not written by an honest client.
const MOST_OPTION_BYTES: u32 = 64 * 1024;
/// The largest read or write that is taken, and told.
pub(super) const MOST_REQUEST_BYTES: u32 = 32 << 20;

/// Name of the one export.
pub const EXPORT: &str = "disk";

/// What a client asks of the disk.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    Read { length: u32 },
    Write { data: Vec<u8>, safe: bool },
    Flush,
    Trim { length: u32 },
    Disconnect,
    Unknown,
}

/// A request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) command: Command,
}

/// Negotiates; false when the client wants no disk after all.
pub(super) fn negotiate(stream: &mut (impl Read + Write), size: u64) -> io::Result<bool> {
    let mut hello = GREETING.to_be_bytes().to_vec();
    hello.extend(OPTION.to_be_bytes());
    hello.extend((FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    stream.write_all(&hello)?;
    let no_zeroes = read_u32(stream)? & u32::from(NO_ZEROES) != 0;
    loop {
        if read_u64(stream)? != OPTION {
            return Err(protocol("an option does not begin with IHAVEOPT"));
        }
        let option = read_u32(stream)?;
        let length = read_u32(stream)?;
        if length > MOST_OPTION_BYTES {
            return Err(protocol("an option is too long"));
        }
        let data = read_bytes(stream, length)?;
        match option {
            EXPORT_NAME if data == EXPORT.as_bytes() => {
                let mut answer = size.to_be_bytes().to_vec();
                answer.extend(EXPORT_FLAGS.to_be_bytes());
                answer.resize(answer.len() + if no_zeroes { 0 } else { 124 }, 0);
                stream.write_all(&answer)?;
                return Ok(true);
            }
            EXPORT_NAME => return Err(protocol("the client asks for another export")),
            INFO | GO if export_of(&data) != Some(EXPORT.as_bytes()) => reply(stream, option, UNKNOWN_EXPORT, &[])?,
            INFO | GO => {
                let mut export = INFO_EXPORT.to_be_bytes().to_vec();
                export.extend(size.to_be_bytes());
                export.extend(EXPORT_FLAGS.to_be_bytes());
                reply(stream, option, REPLY_INFO, &export)?;
                let mut block_size = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
                for number in [super::disk::SECTOR as u32, 4096, MOST_REQUEST_BYTES] {
                    block_size.extend(number.to_be_bytes());
                }
                reply(stream, option, REPLY_INFO, &block_size)?;
                reply(stream, option, ACK, &[])?;
                if option == GO {
                    return Ok(true);
                }
            }
            ABORT => {
                // A client may be gone before it reads this.
                let _ = reply(stream, option, ACK, &[]);
                return Ok(false);
            }
            _ => reply(stream, option, UNSUPPORTED, &[])?,
        }
    }
}

/// The export's name in the data of INFO and GO.
fn export_of(data: &[u8]) -> Option<&[u8]> {
    let length = u32::from_be_bytes(data.get(..4)?.try_into().ok()?);
    data.get(4..4 + usize::try_from(length).ok()?)
}

fn reply(stream: &mut impl Write, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let mut message = OPTION_REPLY.to_be_bytes().to_vec();
    for number in [option, kind, data.len() as u32] {
        message.extend(number.to_be_bytes());
    }
    message.extend(data);
    stream.write_all(&message)
}

/// The next request.
pub(super) fn read_request(stream: &mut impl Read) -> io::Result<Request> {
    let mut head = [0; 28];
    stream.read_exact(&mut head)?;
    let number =
        |at: usize, length: usize| head[at..at + length].iter().fold(0u64, |sum, b| (sum << 8) | u64::from(*b));
    if number(0, 4) != u64::from(REQUEST) {
        return Err(protocol("a request has a wrong magic"));
    }
    let flags = number(4, 2) as u16;
    let length = number(24, 4) as u32;
    let command = match number(6, 2) {
        0 | 1 if length > MOST_REQUEST_BYTES => return Err(protocol("a request is longer than was agreed")),
        0 => Command::Read { length },
        1 => Command::Write { data: read_bytes(stream, length)?, safe: flags & FUA != 0 },
        2 => Command::Disconnect,
        3 => Command::Flush,
        4 => Command::Trim { length },
        _ => Command::Unknown,
    };
    Ok(Request { cookie: number(8, 8), offset: number(16, 8), command })
}

/// Answers a request; `error` is 0 or an errno of the protocol.
pub(super) fn write_reply(stream: &mut impl Write, cookie: u64, error: u32, data: &[u8]) -> io::Result<()> {
    let mut message = REPLY.to_be_bytes().to_vec();
    message.extend(error.to_be_bytes());
    message.extend(cookie.to_be_bytes());
    message.extend(data);
    stream.write_all(&message)
}

fn read_bytes(stream: &mut impl Read, length: u32) -> io::Result<Vec<u8>> {
    let mut data = vec![0; length as usize];
    stream.read_exact(&mut data)?;
    Ok(data)
}

fn read_u32(stream: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

fn read_u64(stream: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}

fn protocol(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("NBD: {what}"))
}
