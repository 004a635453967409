//! Values that a VMware hypervisor keeps for its guest, by the backdoor: an I/O port at which the hypervisor answers.
//! A request opens a channel, sends `info-get KEY` in pieces of four bytes, and reads the reply in the same way.
//! The port's number, the registers and the commands are those of open-vm-tools (`backdoor_def.h`, `guest_msg_def.h`).

use std::io::{Error, ErrorKind, Result};

const MAGIC: u32 = 0x564d_5868;
const VERSION: u32 = 10;
const MESSAGE: u32 = 30;
/// "RPCI", and the flag that asks for cookies.
const PROTOCOL: u32 = 0x4943_5052 | 0x8000_0000;
const SUCCESS: u32 = 0x0001_0000;
const HAS_REPLY: u32 = 0x0002_0000;
/// No value is larger.
const MOST_BYTES: u32 = 256 * 1024;

/// Kinds of messages.
const OPEN: u32 = 0;
const SEND_SIZE: u32 = 1;
const SEND_DATA: u32 = 2;
const REPLY_SIZE: u32 = 3;
const REPLY_DATA: u32 = 4;
const REPLY_DONE: u32 = 5;
const CLOSE: u32 = 6;

/// The registers that go to the hypervisor and come back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the processor's own")]
pub struct Registers {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
    pub esi: u32,
    pub edi: u32,
}

/// The value of `guestinfo.…`, `None` where there is none. Only for machines whose DMI names VMware as their maker.
pub fn get(key: &str) -> Result<Option<Vec<u8>>> {
    port::allow()?;
    ask(port::call, &format!("info-get {key}"))
}

/// The exchange itself; `call` is the hypervisor, which may answer anything.
pub fn ask(call: impl Fn(Registers) -> Registers, command: &str) -> Result<Option<Vec<u8>>> {
    let version = call(Registers { eax: MAGIC, ebx: !MAGIC, ecx: VERSION, ..Registers::default() });
    if version.ebx != MAGIC {
        return Err(Error::new(ErrorKind::NotFound, "no VMware hypervisor answers"));
    }
    let channel = Channel::open(&call)?;
    let reply = channel.exchange(command.as_bytes());
    channel.message(CLOSE, 0);
    let reply = reply?;
    // "1 VALUE", or "0 " and why there is none.
    Ok(reply.strip_prefix(b"1 ").map(<[u8]>::to_vec))
}

struct Channel<'a, F> {
    call: &'a F,
    number: u32,
    cookies: (u32, u32),
}

impl<'a, F: Fn(Registers) -> Registers> Channel<'a, F> {
    fn open(call: &'a F) -> Result<Channel<'a, F>> {
        let answer = call(Registers { eax: MAGIC, ebx: PROTOCOL, ecx: MESSAGE | OPEN << 16, ..Registers::default() });
        if answer.ecx & SUCCESS == 0 {
            return Err(Error::other("the hypervisor opens no channel"));
        }
        Ok(Channel { call, number: answer.edx & 0xffff_0000, cookies: (answer.esi, answer.edi) })
    }

    fn message(&self, kind: u32, data: u32) -> Registers {
        (self.call)(Registers {
            eax: MAGIC,
            ebx: data,
            ecx: MESSAGE | kind << 16,
            edx: self.number,
            esi: self.cookies.0,
            edi: self.cookies.1,
        })
    }

    fn checked(&self, kind: u32, data: u32) -> Result<Registers> {
        let answer = self.message(kind, data);
        if answer.ecx & SUCCESS == 0 {
            return Err(Error::other(format!("the hypervisor refuses message {kind}")));
        }
        Ok(answer)
    }

    fn exchange(&self, request: &[u8]) -> Result<Vec<u8>> {
        let length = u32::try_from(request.len()).map_err(|_| Error::from(ErrorKind::InvalidInput))?;
        self.checked(SEND_SIZE, length)?;
        for part in request.chunks(4) {
            let mut word = [0u8; 4];
            word[..part.len()].copy_from_slice(part);
            self.checked(SEND_DATA, u32::from_le_bytes(word))?;
        }
        let size = self.checked(REPLY_SIZE, 0)?;
        if size.ecx & HAS_REPLY == 0 {
            return Ok(Vec::new());
        }
        if size.ebx > MOST_BYTES {
            return Err(Error::other(format!("the hypervisor's value has {} bytes, more than {MOST_BYTES}", size.ebx)));
        }
        let wanted = size.ebx as usize;
        let kind = size.edx >> 16;
        let mut reply = Vec::with_capacity(wanted);
        while reply.len() < wanted {
            let part = self.checked(REPLY_DATA, kind)?.ebx.to_le_bytes();
            reply.extend_from_slice(&part[..part.len().min(wanted - reply.len())]);
        }
        self.checked(REPLY_DONE, kind)?;
        Ok(reply)
    }
}

#[cfg(target_arch = "x86_64")]
mod port {
    use super::Registers;
    use std::io::{Error, Result};

    const PORT: u16 = 0x5658;

    /// Elsewhere than on VMware the access would end the process, were it not allowed.
    pub(super) fn allow() -> Result<()> {
        // SAFETY: changes this thread's permission for the four bytes of the port, and nothing in memory.
        match unsafe { libc::ioperm(u64::from(PORT), 4, 1) } {
            0 => Ok(()),
            _ => Err(Error::last_os_error()),
        }
    }

    pub(super) fn call(given: Registers) -> Registers {
        let mut answer = given;
        let mut rbx = u64::from(given.ebx);
        // SAFETY: reads an I/O port that `allow` has opened; the hypervisor changes the named registers and no memory.
        // RBX belongs to the compiler, so it is exchanged for the time of the call.
        unsafe {
            std::arch::asm!(
                "xchg {rbx:r}, rbx",
                "in eax, dx",
                "xchg {rbx:r}, rbx",
                rbx = inout(reg) rbx,
                inout("eax") given.eax => answer.eax,
                inout("ecx") given.ecx => answer.ecx,
                inout("edx") given.edx & 0xffff_0000 | u32::from(PORT) => answer.edx,
                inout("esi") given.esi => answer.esi,
                inout("edi") given.edi => answer.edi,
                options(nostack, nomem),
            );
        }
        answer.ebx = (rbx & 0xffff_ffff) as u32;
        answer
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod port {
    use super::Registers;
    use std::io::{ErrorKind, Result};

    pub(super) fn allow() -> Result<()> {
        Err(ErrorKind::Unsupported.into())
    }

    pub(super) fn call(given: Registers) -> Registers {
        given
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    /// A hypervisor that follows the protocol and knows one key.
    #[derive(Default)]
    struct Hypervisor {
        wanted: usize,
        request: Vec<u8>,
        reply: Vec<u8>,
        at: usize,
        closed: bool,
    }

    impl Hypervisor {
        fn call(&mut self, given: Registers) -> Registers {
            let good = Registers { ecx: SUCCESS, ..given };
            if given.ecx == VERSION {
                return Registers { ebx: MAGIC, ..given };
            }
            let in_channel = given.edx == 0x0007_0000 && (given.esi, given.edi) == (11, 12);
            match given.ecx >> 16 {
                OPEN => return Registers { edx: 0x0007_0000, esi: 11, edi: 12, ..good },
                _ if !in_channel => return Registers { ecx: 0, ..given },
                SEND_SIZE => self.wanted = given.ebx as usize,
                SEND_DATA => {
                    self.request.extend(given.ebx.to_le_bytes());
                    if self.request.len() >= self.wanted {
                        self.request.truncate(self.wanted);
                        let known = self.request == b"info-get guestinfo.userdata";
                        self.reply = if known { b"1 #cloud-config\n".to_vec() } else { b"0 No value found".to_vec() };
                    }
                }
                REPLY_SIZE => {
                    let size = u32::try_from(self.reply.len()).unwrap();
                    return Registers { ecx: SUCCESS | HAS_REPLY, ebx: size, edx: 0x0001_0000, ..given };
                }
                REPLY_DATA => {
                    let mut word = [0u8; 4];
                    let rest = &self.reply[self.at..];
                    let length = rest.len().min(4);
                    word[..length].copy_from_slice(&rest[..length]);
                    self.at += 4;
                    return Registers { ebx: u32::from_le_bytes(word), ..good };
                }
                CLOSE => self.closed = true,
                _ => {}
            }
            good
        }
    }

    fn run(command: &str) -> (Result<Option<Vec<u8>>>, bool) {
        let hypervisor = RefCell::new(Hypervisor::default());
        let outcome = ask(|given| hypervisor.borrow_mut().call(given), command);
        let closed = hypervisor.borrow().closed;
        (outcome, closed)
    }

    #[test]
    fn values_are_asked_for_and_read() {
        let (found, closed) = run("info-get guestinfo.userdata");
        assert_eq!(found.unwrap().as_deref(), Some(&b"#cloud-config\n"[..]));
        assert!(closed);
        assert_eq!(run("info-get guestinfo.none").0.unwrap(), None);
    }

    #[test]
    fn other_hypervisors_are_told_by_their_silence() {
        let nothing = |_| Registers { eax: u32::MAX, ebx: u32::MAX, ..Registers::default() };
        assert!(ask(nothing, "info-get x").is_err());
        // One that knows the port and no messages, as QEMU.
        let qemu = |given: Registers| Registers { ebx: MAGIC, ecx: 0, ..given };
        assert!(ask(qemu, "info-get x").is_err());
        // One that never comes to an end.
        let endless = |given: Registers| Registers {
            ebx: if given.ecx == VERSION { MAGIC } else { u32::MAX },
            ecx: SUCCESS | HAS_REPLY,
            ..given
        };
        assert!(ask(endless, "info-get x").is_err());
    }
}
