//! The program of every pod's sandbox: it waits, collects orphaned children, and ends when told to.
//!
//! The 99 bytes below are written by hand, because a pod should not pay for a language runtime to sleep in:
//!
//! ```text
//! start: push 0x14002                            ; the set {SIGINT, SIGTERM, SIGCHLD}
//!        rt_sigprocmask(SIG_BLOCK, rsp, 0, 8)    ; blocked signals stay pending, even for PID 1
//! wait:  rt_sigtimedwait(rsp, 0, 0, 8)
//!        SIGCHLD → reap; SIGINT, SIGTERM → done; else → wait
//! reap:  wait4(-1, 0, WNOHANG, 0); again while > 0, then → wait
//! done:  exit_group(0)
//! ```

const CODE: [u8; 99] = [
    0x68, 0x02, 0x40, 0x01, 0x00, // push 0x14002
    0x31, 0xff, 0x48, 0x89, 0xe6, 0x31, 0xd2, // edi = 0; rsi = rsp; edx = 0
    0x41, 0xba, 0x08, 0x00, 0x00, 0x00, 0xb8, 0x0e, 0x00, 0x00, 0x00, 0x0f, 0x05, // r10d = 8; rt_sigprocmask
    0x48, 0x89, 0xe7, 0x31, 0xf6, 0x31, 0xd2, // wait: rdi = rsp; esi = 0; edx = 0
    0x41, 0xba, 0x08, 0x00, 0x00, 0x00, 0xb8, 0x80, 0x00, 0x00, 0x00, 0x0f, 0x05, // r10d = 8; rt_sigtimedwait
    0x83, 0xf8, 0x11, 0x74, 0x0c, // SIGCHLD: to reap
    0x83, 0xf8, 0x02, 0x74, 0x23, // SIGINT: to done
    0x83, 0xf8, 0x0f, 0x74, 0x1e, // SIGTERM: to done
    0xeb, 0xdb, // to wait
    0xbf, 0xff, 0xff, 0xff, 0xff, 0x31, 0xf6, // reap: edi = -1; esi = 0
    0xba, 0x01, 0x00, 0x00, 0x00, 0x45, 0x31, 0xd2, // edx = WNOHANG; r10d = 0
    0xb8, 0x3d, 0x00, 0x00, 0x00, 0x0f, 0x05, // wait4
    0x85, 0xc0, 0x7f, 0xe6, 0xeb, 0xbf, // again while > 0, else to wait
    0x31, 0xff, 0xb8, 0xe7, 0x00, 0x00, 0x00, 0x0f, 0x05, // done: exit_group(0)
];

const BASE: u64 = 0x40_0000;
const HEADERS: u64 = 64 + 2 * 56;
const PT_LOAD: u32 = 1;
/// Says that the stack need not be executable.
const PT_GNU_STACK: u32 = 0x6474_e551;

/// The program as a static ELF executable.
pub fn program() -> Vec<u8> {
    let size = HEADERS + CODE.len() as u64;
    let mut elf = Vec::new();
    elf.extend(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend(2u16.to_le_bytes()); // executable
    elf.extend(62u16.to_le_bytes()); // x86-64
    elf.extend(1u32.to_le_bytes());
    elf.extend((BASE + HEADERS).to_le_bytes()); // entry
    elf.extend(64u64.to_le_bytes()); // program headers
    elf.extend(0u64.to_le_bytes()); // no sections
    elf.extend(0u32.to_le_bytes());
    for field in [64u16, 56, 2, 64, 0, 0] {
        elf.extend(field.to_le_bytes());
    }
    for (kind, flags, file_size, align) in [(PT_LOAD, 5u32, size, 0x1000u64), (PT_GNU_STACK, 6, 0, 16)] {
        let address = if kind == PT_LOAD { BASE } else { 0 };
        elf.extend(kind.to_le_bytes());
        elf.extend(flags.to_le_bytes());
        for field in [0, address, address, file_size, file_size, align] {
            elf.extend(field.to_le_bytes());
        }
    }
    elf.extend(CODE);
    elf
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    #[test]
    fn it_waits_and_ends_on_sigterm() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pause");
        std::fs::write(&path, program()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut child = loop {
            // Another test's fork may hold the file open for writing for a moment.
            match Command::new(&path).spawn() {
                Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
                other => break other.unwrap(),
            }
        };
        // SIGCHLD is taken and does not end it; SIGTERM does, with status 0 and not by the signal itself,
        // once the mask is set. Until then the default action would kill it.
        while !sleeps(child.id()) {
            assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
            std::thread::yield_now();
        }
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::CHILD).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = child.wait().unwrap();
        assert_eq!((status.code(), status.signal()), (Some(0), None));
    }

    /// The program sleeps in one place only, once its mask is set.
    fn sleeps(pid: u32) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|l| l.starts_with("State:") && l.contains("S (sleeping)"))
    }
}
