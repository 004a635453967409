//! How far a log was sent, and what of it went before it was. Pure.
//!
//! A log is a file that grows and is put aside as `.log.1`, in place of the one before. So what waits for a target that is
//! away is bounded by the log's own bounds, and its oldest bytes go first.

use serde::{Deserialize, Serialize};

/// A file of a log, as it was seen last. Numbers of inodes are used again at once; the time of birth tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Number of its inode.
    pub inode: u64,
    /// When it was made, in nanoseconds since 1970; 0 where the file system does not say.
    pub born: u64,
    /// Bytes.
    pub size: u64,
}

impl Seen {
    /// Whether both are the same file.
    pub fn is(&self, other: &Seen) -> bool {
        (self.inode, self.born) == (other.inode, other.born)
    }
}

/// The place in a log up to which it was sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// What is not sent yet begins in the first of them. Oldest first.
    pub files: Vec<Seen>,
    /// Where in the first one.
    pub position: u64,
    /// Bytes before this place that went unsent, and that nobody was told of yet.
    #[serde(default)]
    pub gap: u64,
}

impl Cursor {
    /// Takes in which files there are now, oldest first; gives how many bytes have gone unsent.
    pub fn look(&mut self, now: &[Seen]) -> u64 {
        let mut gone = 0u64;
        while let Some(first) = self.files.first() {
            if let Some(at) = now.iter().position(|file| file.is(first)) {
                self.files = now.get(at..).unwrap_or_default().to_vec();
                // Cut short by somebody.
                self.position = self.position.min(self.files.first().map_or(0, |file| file.size));
                self.gap += gone;
                return gone;
            }
            gone += first.size.saturating_sub(self.position);
            self.position = 0;
            self.files.remove(0);
        }
        self.files = now.to_vec();
        self.gap += gone;
        gone
    }

    /// Bytes that wait.
    pub fn waiting(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum::<u64>().saturating_sub(self.position)
    }

    /// So many bytes were sent.
    pub fn advance(&mut self, bytes: u64) {
        self.position += bytes;
        // What is not the last one does not grow any more.
        while let [first, _, ..] = self.files.as_slice()
            && self.position >= first.size
        {
            self.position -= first.size;
            self.files.remove(0);
        }
    }
}

/// How many of these bytes are whole lines. A line that is longer than `most` is not waited for.
pub fn whole_lines(bytes: &[u8], most: usize) -> usize {
    match bytes.iter().rposition(|byte| *byte == b'\n') {
        Some(end) => end + 1,
        None if bytes.len() >= most => bytes.len(),
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(inode: u64, size: u64) -> Seen {
        Seen { inode, born: inode * 10, size }
    }

    #[test]
    fn a_log_is_followed_over_its_files() {
        let mut cursor = Cursor::default();
        assert_eq!((cursor.look(&[file(1, 10)]), cursor.waiting()), (0, 10));
        cursor.advance(4);
        assert_eq!((cursor.look(&[file(1, 12)]), cursor.waiting()), (0, 8));
        // Put aside after it has grown once more.
        assert_eq!((cursor.look(&[file(1, 15), file(2, 5)]), cursor.waiting()), (0, 16));
        cursor.advance(13);
        assert_eq!((cursor.files.as_slice(), cursor.position), (&[file(2, 5)][..], 2));
        assert_eq!(
            (cursor.look(&[file(1, 15), file(2, 5)]), cursor.waiting()),
            (0, 3),
            "what was sent is not sent again"
        );
        cursor.advance(3);
        assert_eq!((cursor.look(&[file(2, 5)]), cursor.waiting()), (0, 0));
    }

    #[test]
    fn what_goes_unsent_is_counted() {
        let mut cursor = Cursor::default();
        cursor.look(&[file(1, 10), file(2, 7)]);
        cursor.advance(4);
        // The first is gone.
        assert_eq!((cursor.look(&[file(2, 9), file(3, 1)]), cursor.waiting(), cursor.gap), (6, 10, 6));
        // Both are.
        assert_eq!((cursor.look(&[file(4, 2)]), cursor.waiting(), cursor.gap), (10, 2, 16));
        // A number that is used again is another file.
        let again = Seen { born: 999, ..file(4, 50) };
        assert_eq!((cursor.look(&[again]), cursor.waiting(), cursor.position), (2, 50, 0));
        assert_eq!((cursor.look(&[]), cursor.waiting()), (50, 0));
    }

    #[test]
    fn a_file_that_was_cut_short_does_no_harm() {
        let mut cursor = Cursor::default();
        cursor.look(&[file(1, 10)]);
        cursor.advance(10);
        assert_eq!((cursor.look(&[file(1, 3)]), cursor.waiting()), (0, 0));
        assert_eq!((cursor.look(&[file(1, 5)]), cursor.waiting()), (0, 2));
    }

    #[test]
    fn lines_are_waited_for_within_reason() {
        for (text, wanted) in [("", 0), ("ab", 0), ("a\nb", 2), ("a\nb\n", 4), ("abcdefgh", 8)] {
            assert_eq!(whole_lines(text.as_bytes(), 8), wanted, "{text:?}");
        }
    }
}
