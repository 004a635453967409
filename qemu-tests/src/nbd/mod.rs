//! The harness's block server: QEMU's disk over NBD on a unix socket, whose plug can be pulled.
//!
//! ```text
//! guest ─ write ─► QEMU ─ NBD ─► Disk: memory ─ flush ─► sparse file
//!                                     └ plug: a random part of the memory ─► file; the connection is cut
//! ```
//! Requests are answered one after the other, and none once the plug is out: what a client was told is what the
//! disk had done before.

pub mod disk;
mod wire;

pub use disk::{Flushes, Loss};

use anyhow::{Context, Result};
use disk::Disk;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use wire::{Command, Request};

/// `EIO` and `EINVAL` of the protocol.
const IO_ERROR: u32 = 5;
const INVALID: u32 = 22;

/// The plug is pulled within so many requests, or when none has come for so long.
const REQUESTS: usize = 60;
const IDLE: Duration = Duration::from_secs(2);

/// A disk that is served until its plug is pulled or the server is dropped.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    socket: PathBuf,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    power: Mutex<Power>,
    connections: Mutex<Vec<UnixStream>>,
}

#[derive(Debug)]
struct Power {
    /// None once the plug is out.
    disk: Option<Disk>,
    /// How many more requests are answered, once the plug is being pulled.
    requests_left: Option<usize>,
}

impl Shared {
    fn power(&self) -> MutexGuard<'_, Power> {
        self.power.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connections(&self) -> MutexGuard<'_, Vec<UnixStream>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server {
    /// Serves the raw disk in `file` at `socket`.
    ///
    /// # Errors
    /// The file cannot be opened or the socket not be made.
    pub fn start(file: &Path, socket: &Path) -> Result<Server> {
        let opened = std::fs::OpenOptions::new().read(true).write(true).open(file);
        let opened = opened.with_context(|| format!("opening {}", file.display()))?;
        let disk = Disk::new(opened, Flushes::Kept).with_context(|| format!("reading {}", file.display()))?;
        match std::fs::remove_file(socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", socket.display()));
            }
            _ => {}
        }
        let listener = bind(socket).with_context(|| format!("making {}", socket.display()))?;
        let power = Mutex::new(Power { disk: Some(disk), requests_left: None });
        let shared = Arc::new(Shared { power, connections: Mutex::default() });
        let thread = std::thread::spawn({
            let shared = shared.clone();
            move || accept(&listener, &shared)
        });
        Ok(Server { shared, socket: socket.to_owned(), thread: Some(thread) })
    }

    /// What flushes do from now on.
    pub fn set_flushes(&self, flushes: Flushes) {
        if let Some(disk) = self.shared.power().disk.as_mut() {
            disk.set_flushes(flushes);
        }
    }

    /// Pulls the plug in front of one of the next requests: no answer leaves from then on, and of what was not
    /// flushed a random part is lost. A moment would mostly be one at which the disk has nothing to do.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn plug(self, seed: u64) -> Result<Loss> {
        let mut dice = StdRng::seed_from_u64(seed);
        self.shared.power().requests_left = Some(dice.random_range(0..REQUESTS));
        let end = Instant::now() + IDLE;
        while self.shared.power().requests_left != Some(0) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.cut(|disk| disk.lose_power(dice.random()))
    }

    /// Pulls the plug of a disk that has written nothing since the last flush that it did.
    ///
    /// # Errors
    /// None today; a disk that is gone already.
    pub fn plug_with_full_cache(self) -> Result<Loss> {
        self.cut(|disk| Ok(disk.lose_cache()))
    }

    fn cut(self, lose: impl FnOnce(&mut Disk) -> io::Result<Loss>) -> Result<Loss> {
        let mut disk = self.shared.power().disk.take().context("the plug is out already")?;
        self.hang_up();
        lose(&mut disk).context("writing what survives of the disk")
    }

    fn hang_up(&self) {
        for connection in self.shared.connections().drain(..) {
            // One that has ended is what was wanted.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let left = self.shared.power().disk.take();
        self.hang_up();
        // Wakes the thread that accepts; it ends when it sees that there is no disk any more.
        if connect(&self.socket).is_ok()
            && let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the block server's thread has panicked");
        }
        if let Some(mut disk) = left
            && let Err(error) = disk.flush()
        {
            eprintln!("the block server could not keep its disk: {error}");
        }
    }
}

/// The folder's own descriptor keeps the address within its 108 bytes wherever the test lies.
fn at_folder<T>(socket: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    use std::os::fd::AsRawFd;
    let folder = std::fs::File::open(socket.parent().unwrap_or(Path::new(".")))?;
    let name = socket.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    act(&Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name))
}

fn bind(socket: &Path) -> io::Result<UnixListener> {
    at_folder(socket, |path| UnixListener::bind(path))
}

fn connect(socket: &Path) -> io::Result<UnixStream> {
    at_folder(socket, |path| UnixStream::connect(path))
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.power().disk.is_none() {
            return;
        }
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                eprintln!("the block server cannot take a connection: {error}");
                return;
            }
        };
        match stream.try_clone() {
            Ok(other) => shared.connections().push(other),
            Err(error) => {
                eprintln!("the block server cannot keep a connection: {error}");
                continue;
            }
        }
        let shared = shared.clone();
        std::thread::spawn(move || {
            // An end of the connection is how every client and every pulled plug ends it.
            if let Err(error) = serve(stream, &shared)
                && shared.power().disk.is_some()
                && error.kind() != io::ErrorKind::UnexpectedEof
            {
                eprintln!("the block server's client failed: {error}");
            }
        });
    }
}

fn serve(mut stream: UnixStream, shared: &Shared) -> io::Result<()> {
    let Some(size) = shared.power().disk.as_ref().map(Disk::size) else { return Ok(()) };
    if !wire::negotiate(&mut stream, size)? {
        return Ok(());
    }
    loop {
        let request = wire::read_request(&mut stream)?;
        if request.command == Command::Disconnect {
            return Ok(());
        }
        // Held until the answer is sent: pulling the plug waits for it, and then nothing follows.
        let mut power = shared.power();
        match &mut power.requests_left {
            Some(0) => return Ok(()),
            Some(left) => *left -= 1,
            None => {}
        }
        let Some(disk) = power.disk.as_mut() else { return Ok(()) };
        let cookie = request.cookie;
        match answer(disk, request) {
            Ok(data) => wire::write_reply(&mut stream, cookie, 0, &data)?,
            Err(error) => {
                let code = if error.kind() == io::ErrorKind::InvalidInput { INVALID } else { IO_ERROR };
                wire::write_reply(&mut stream, cookie, code, &[])?;
            }
        }
    }
}

fn answer(disk: &mut Disk, request: Request) -> io::Result<Vec<u8>> {
    match request.command {
        Command::Read { length } => {
            let mut data = vec![0; length as usize];
            disk.read(request.offset, &mut data).map(|()| data)
        }
        Command::Write { data, safe } => disk.write(request.offset, &data, safe).map(|()| Vec::new()),
        Command::Flush => disk.flush().map(|()| Vec::new()),
        Command::Trim { length } => disk.trim(request.offset, u64::from(length)).map(|()| Vec::new()),
        Command::Disconnect | Command::Unknown => Err(io::ErrorKind::InvalidInput.into()),
    }
}

#[cfg(test)]
mod tests;
