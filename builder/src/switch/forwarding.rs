//! Where frames go: a learning table, and flooding of what is not in it.

use super::frame::{Mac, ends};
use std::collections::HashMap;

/// More addresses than any test has; a machine that sends under random ones cannot fill the memory.
const TABLE_LIMIT: usize = 4096;

/// Which machine is behind which port.
#[derive(Debug, Default)]
pub struct Forwarding {
    table: HashMap<Mac, usize>,
}

impl Forwarding {
    /// Learns the frame's source and returns the ports, of `ports` many, that it goes to.
    pub fn route(&mut self, frame: &[u8], from: usize, ports: usize) -> Vec<usize> {
        let Some((destination, source)) = ends(frame) else {
            return Vec::new();
        };
        if !source.is_group() && (self.table.len() < TABLE_LIMIT || self.table.contains_key(&source)) {
            self.table.insert(source, from);
        }
        match self.table.get(&destination) {
            Some(port) if *port == from => Vec::new(),
            Some(port) => vec![*port],
            None => (0..ports).filter(|port| *port != from).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learns_and_floods() {
        let frame = |to: u8, from: u8| {
            let mut f = vec![2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from];
            f.extend([8, 0]);
            f
        };
        let mut table = Forwarding::default();
        assert_eq!(table.route(&frame(1, 0), 0, 3), [1, 2]);
        assert_eq!(table.route(&frame(0, 1), 1, 3), [0]);
        assert_eq!(table.route(&frame(1, 0), 0, 3), [1]);
        // The machine moved to another port.
        assert_eq!(table.route(&frame(0, 1), 2, 3), [0]);
        assert_eq!(table.route(&frame(1, 0), 0, 3), [2]);
        // To itself: dropped. Not a frame: dropped.
        assert!(table.route(&frame(0, 0), 0, 3).is_empty());
        assert!(table.route(&[1], 0, 3).is_empty());
    }
}
