//! Who may be connected, or asks: a client with many connections or questions leaves the others theirs.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// After a failure to accept, as when descriptors run out.
const BREATH: Duration = Duration::from_millis(100);

/// A server's places for connections, or for questions in flight.
#[derive(Clone, Debug)]
pub struct Places {
    /// In all, and of one client.
    most: usize,
    of_one: usize,
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One of a client's; counted until it is dropped.
#[derive(Debug)]
pub struct Place(Places, IpAddr);

impl Places {
    /// So many in all, and so many of one client.
    pub fn new(most: usize, of_one: usize) -> Places {
        Places { most, of_one, taken: Arc::default() }
    }

    /// The next connection that there is a place for; one that comes while all are taken is closed at once.
    pub async fn accept(&self, listener: &TcpListener) -> (TcpStream, Place) {
        loop {
            match listener.accept().await {
                Ok((stream, client)) => {
                    if let Some(place) = self.take(client.ip()) {
                        return (stream, place);
                    }
                }
                Err(error) => {
                    tracing::warn!("accepting a connection: {error}");
                    tokio::time::sleep(BREATH).await;
                }
            }
        }
    }

    /// A place for this client; none where it or all have too many.
    pub fn take(&self, client: IpAddr) -> Option<Place> {
        let mut taken = self.taken();
        let own = taken.get(&client).copied().unwrap_or(0);
        if own >= self.of_one || taken.values().sum::<usize>() >= self.most {
            return None;
        }
        taken.insert(client, own + 1);
        Some(Place(self.clone(), client))
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.0.taken();
        match taken.get_mut(&self.1) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(taken.remove(&self.1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_with_many_connections_leaves_the_others_theirs() {
        let places = Places::new(256, 16);
        let client = |n: u8| IpAddr::from([10, 200, 0, n]);
        let of_one: Vec<Place> = std::iter::from_fn(|| places.take(client(1))).collect();
        assert_eq!(of_one.len(), 16);
        let mut others: Vec<Place> = (2..=255).filter_map(|n| places.take(client(n))).collect();
        assert_eq!(others.len(), 256 - 16);
        drop(of_one);
        others.extend(places.take(client(1)));
        drop(others);
        assert!(places.taken().is_empty(), "closed connections are counted: {places:?}");
    }
}
