//! A way to a server on loopback that can be shut in the middle of what is sent, or cut.

use anyhow::{Result, bail};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How long it may take until something is sent: a debug build takes its time to make and to sum an image.
const PATIENCE: Duration = Duration::from_secs(300);

pub struct Gate {
    pub port: u16,
    state: Arc<(Mutex<State>, Condvar)>,
}

struct State {
    /// Where it leads.
    to: u16,
    /// How many bytes it still lets through toward the server.
    left: u64,
    /// Whether somebody stands before it.
    waits: bool,
    /// The connections, for cutting them.
    open: Vec<TcpStream>,
}

impl Gate {
    /// A gate to a port, open.
    pub fn new(to: u16) -> Result<Gate> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let state = State { to, left: u64::MAX, waits: false, open: Vec::new() };
        let state = Arc::new((Mutex::new(state), Condvar::new()));
        let gate = Gate { port, state: state.clone() };
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // A server that is not there shows itself by the end of the connection.
                let _ = connect(&state, client);
            }
        });
        Ok(gate)
    }

    fn held(&self) -> MutexGuard<'_, State> {
        self.state.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Lets so many bytes through, and then none.
    pub fn shut_after(&self, bytes: u64) {
        self.held().left = bytes;
    }

    /// Waits until somebody stands before it.
    pub fn wait(&self) -> Result<()> {
        let (mut state, end) = (self.held(), Instant::now() + PATIENCE);
        while !state.waits {
            if Instant::now() > end {
                bail!("nobody came to the gate");
            }
            let waited = self.state.1.wait_timeout(state, Duration::from_secs(1));
            state = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Opens it.
    pub fn open(&self) {
        self.held().left = u64::MAX;
        self.state.1.notify_all();
    }

    /// Cuts all connections, and opens it.
    pub fn cut(&self) {
        for stream in self.held().open.drain(..) {
            // One that is closed is what is wanted.
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.open();
    }

    /// From now on it leads elsewhere.
    pub fn lead_to(&self, port: u16) {
        self.held().to = port;
    }
}

fn connect(state: &Arc<(Mutex<State>, Condvar)>, client: TcpStream) -> Result<()> {
    let held = || state.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let to = held().to;
    let server = TcpStream::connect(("127.0.0.1", to))?;
    held().open.extend([client.try_clone()?, server.try_clone()?]);
    let (mut from, mut back) = (server.try_clone()?, client.try_clone()?);
    std::thread::spawn(move || {
        // Whichever side ends it, the other one sees it.
        let _ = std::io::copy(&mut from, &mut back);
        let _ = back.shutdown(Shutdown::Both);
    });
    let state = state.clone();
    std::thread::spawn(move || {
        let (mut client, mut server) = (client, server);
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length) = client.read(&mut buffer) {
            if length == 0 || pass(&state, &mut server, &buffer[..length]).is_err() {
                break;
            }
        }
        let _ = server.shutdown(Shutdown::Write);
    });
    Ok(())
}

fn pass(state: &(Mutex<State>, Condvar), server: &mut TcpStream, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        let mut held = state.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        while held.left == 0 {
            held.waits = true;
            state.1.notify_all();
            held = state.1.wait(held).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        held.waits = false;
        let now = usize::try_from(held.left).unwrap_or(usize::MAX).min(bytes.len());
        if held.left != u64::MAX {
            held.left -= now as u64;
        }
        drop(held);
        server.write_all(&bytes[..now])?;
        bytes = &bytes[now..];
    }
    Ok(())
}
