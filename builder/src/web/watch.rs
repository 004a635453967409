//! An interrupt ends the waiting for what is only read, also where a server says nothing: connections wait in slices, and
//! look at the clock of the call that waits.

use super::retry::{Clock, Interrupted};
use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use ureq::Error;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

/// How soon an interrupt is noticed.
const SLICE: Duration = Duration::from_millis(100);

thread_local! {
    /// The clock of the call that this thread waits for. Connections outlive calls, and clients share them.
    static CLOCK: RefCell<Option<Arc<dyn Clock>>> = const { RefCell::new(None) };
}

/// Does what may be interrupted at any moment; without a clock, what may not.
pub(super) fn by<T>(clock: Option<&Arc<dyn Clock>>, work: impl FnOnce() -> T) -> T {
    let before = CLOCK.replace(clock.cloned());
    let done = work();
    CLOCK.set(before);
    done
}

/// Wraps connections.
#[derive(Debug)]
pub(super) struct Watching;

impl<In: Transport> Connector<In> for Watching {
    type Out = Sliced<In>;

    fn connect(&self, _: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<Sliced<In>>, Error> {
        Ok(chained.map(Sliced))
    }
}

/// A connection that waits in slices.
#[derive(Debug)]
pub(super) struct Sliced<T>(T);

impl<T: Transport> Transport for Sliced<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.0.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.0.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let Some(clock) = CLOCK.with_borrow(Clone::clone) else { return self.0.await_input(timeout) };
        let whole = timeout.for_read();
        let begun = Instant::now();
        loop {
            clock.check().map_err(|_| Error::Io(io::Error::other(Interrupted)))?;
            let left = whole.after.saturating_sub(begun.elapsed());
            let last = left <= SLICE;
            let after = if last { left } else { SLICE };
            match self.0.await_input(NextTimeout { after: after.into(), per_read: None, ..whole }) {
                Err(Error::Timeout(_)) if !last => {}
                done => return done,
            }
        }
    }

    fn is_open(&mut self) -> bool {
        self.0.is_open()
    }

    fn is_tls(&self) -> bool {
        self.0.is_tls()
    }
}
