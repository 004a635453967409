//! SPDY/3 header blocks: name-value lists, deflated with a dictionary over the whole connection.
//!
//! What we read is inflated by hand-fed raw inflate whose window begins with
//! the dictionary. What we write is not compressed: stored blocks in a zlib
//! stream, each followed by the empty block that makes a reader hand it on.

use std::io;

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags::TINFL_FLAG_HAS_MORE_INPUT};

/// Inflated header blocks larger than this are an attack.
const MAX_BLOCK: usize = 64 << 10;
const WINDOW: usize = 32 << 10;

const WORDS: [&str; 61] = [
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
];
const MORE_WORDS: [&str; 4] = ["public", "set-cookie", "keep-alive", "origin"];
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// The dictionary of the SPDY/3 specification.
fn dictionary() -> Vec<u8> {
    let mut out = Vec::with_capacity(1423);
    for word in WORDS.iter().chain(&MORE_WORDS) {
        out.extend_from_slice(&(word.len() as u32).to_be_bytes());
        out.extend_from_slice(word.as_bytes());
    }
    out.extend_from_slice(TAIL.as_bytes());
    out
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("SPDY header block: {what}"))
}

/// Headers by name; names are in lower case.
pub type Headers = Vec<(String, String)>;

/// Reads the header blocks of one connection, in order.
pub struct Inflater {
    state: Box<DecompressorOxide>,
    window: Vec<u8>,
    at: usize,
    /// Bytes of the zlib header that are still to come.
    prelude: Vec<u8>,
    started: bool,
}

impl std::fmt::Debug for Inflater {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Inflater")
    }
}

impl Default for Inflater {
    fn default() -> Self {
        Self { state: Box::default(), window: vec![0; WINDOW], at: 0, prelude: Vec::new(), started: false }
    }
}

impl Inflater {
    /// Inflates and parses one block.
    pub fn read(&mut self, block: &[u8]) -> io::Result<Headers> {
        let mut input = block;
        while !self.started {
            let Some((byte, rest)) = input.split_first() else { return Err(bad("it ends in its zlib header")) };
            self.prelude.push(*byte);
            input = rest;
            self.begin()?;
        }
        let plain = self.inflate(input)?;
        parse(&plain)
    }

    /// Takes the zlib header apart: with a dictionary six bytes, without one two.
    fn begin(&mut self) -> io::Result<()> {
        let [method, flags, ..] = self.prelude[..] else { return Ok(()) };
        if method & 0x0f != 8 || (u16::from(method) << 8 | u16::from(flags)) % 31 != 0 {
            return Err(bad("it is not a zlib stream"));
        }
        let preset = flags & 0x20 != 0;
        if preset && self.prelude.len() < 6 {
            return Ok(());
        }
        if preset {
            let dictionary = dictionary();
            self.window[..dictionary.len()].copy_from_slice(&dictionary);
            self.at = dictionary.len();
        }
        self.started = true;
        Ok(())
    }

    fn inflate(&mut self, mut input: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        loop {
            let (status, read, written) =
                decompress(&mut self.state, input, &mut self.window, self.at, TINFL_FLAG_HAS_MORE_INPUT);
            out.extend_from_slice(&self.window[self.at..self.at + written]);
            self.at = (self.at + written) % WINDOW;
            input = &input[read..];
            if out.len() > MAX_BLOCK {
                return Err(bad("it is too large"));
            }
            match status {
                TINFLStatus::HasMoreOutput => {}
                TINFLStatus::NeedsMoreInput if input.is_empty() => return Ok(out),
                TINFLStatus::NeedsMoreInput if read > 0 || written > 0 => {}
                TINFLStatus::Done => return Ok(out),
                _ => return Err(bad("it cannot be inflated")),
            }
        }
    }
}

fn parse(mut plain: &[u8]) -> io::Result<Headers> {
    fn number(from: &mut &[u8]) -> io::Result<usize> {
        let (head, rest) = from.split_first_chunk::<4>().ok_or_else(|| bad("it is cut off"))?;
        *from = rest;
        Ok(u32::from_be_bytes(*head) as usize)
    }
    fn text(from: &mut &[u8]) -> io::Result<String> {
        let length = number(from)?;
        let (head, rest) = from.split_at_checked(length).ok_or_else(|| bad("it is cut off"))?;
        *from = rest;
        Ok(String::from_utf8_lossy(head).into_owned())
    }
    let count = number(&mut plain)?;
    let mut out = Vec::new();
    for _ in 0..count.min(1000) {
        let (name, value) = (text(&mut plain)?.to_ascii_lowercase(), text(&mut plain)?);
        // One name may have several values, with zero bytes between them.
        out.extend(value.split('\0').map(|v| (name.clone(), v.to_string())));
    }
    Ok(out)
}

/// Writes the header blocks of one connection.
#[derive(Debug, Default)]
pub struct Deflater {
    started: bool,
}

impl Deflater {
    /// One block.
    pub fn write(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for (name, value) in headers {
            for part in [name, value] {
                plain.extend_from_slice(&(part.len() as u32).to_be_bytes());
                plain.extend_from_slice(part.as_bytes());
            }
        }
        let mut out = Vec::new();
        if !self.started {
            out.extend_from_slice(&[0x78, 0x01]);
            self.started = true;
        }
        for piece in plain.chunks(0xffff) {
            let length = piece.len() as u16;
            out.push(0);
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(&(!length).to_le_bytes());
            out.extend_from_slice(piece);
        }
        out.extend_from_slice(&[0, 0, 0, 0xff, 0xff]);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_the_known_one() {
        let dictionary = dictionary();
        let (mut a, mut b) = (1u32, 0u32);
        for byte in &dictionary {
            a = (a + u32::from(*byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!((dictionary.len(), b << 16 | a), (1423, 0xe3c6_a7c2));
    }

    #[test]
    fn reads_what_zlib_writes() {
        // Two blocks of one stream made by zlib with the dictionary, sync-flushed.
        let blocks = [
            (
                "78f9e3c6a7c202e50e703a2b294a4dcc851625aca9a080c652c670211c07000000ffff",
                vec![("streamtype", "error"), ("content-type", "text/plain")],
            ),
            (
                "02a5560c8da0322811529c1781738e8581850190e62c82447f26285b301a00000000ffff",
                vec![("streamtype", "data"), ("port", "8080"), ("requestid", "0")],
            ),
        ];
        let mut inflater = Inflater::default();
        for (block, want) in blocks {
            let headers = inflater.read(&hex::decode(block).expect("hex")).expect("read");
            let want: Headers = want.into_iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
            assert_eq!(headers, want);
        }
    }

    #[test]
    fn own_blocks_can_be_read() {
        let (mut deflater, mut inflater) = (Deflater::default(), Inflater::default());
        for i in 0..100 {
            let id = format!("{i}-{}", "x".repeat(i * 11));
            let block = deflater.write(&[("streamtype", "error"), ("requestid", &id)]);
            let headers = inflater.read(&block).expect("read");
            assert_eq!(headers, [("streamtype".into(), "error".into()), ("requestid".to_string(), id)]);
        }
    }

    #[test]
    fn rubbish_is_refused() {
        for block in [
            &[][..],
            &[0x78],
            &[0xff; 40],
            &[0x78, 0x01, 0x07, 1, 2, 3],
            &[0x78, 0x01, 0, 4, 0, 0xfb, 0xff, 0, 0, 0, 9],
        ] {
            assert!(Inflater::default().read(block).is_err(), "{block:?}");
        }
    }
}
