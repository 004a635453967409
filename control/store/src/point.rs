//! Moments at which a test may stop the engine: each is a place where a crash could hurt.

/// A named moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Point {
    /// A batch is about to be written to the log.
    CommitAppend,
    /// It is written and not yet synced.
    CommitSync,
    /// It is durable, and nobody has seen it.
    CommitShow,
    /// Readers and watchers have seen it, and no writer has its answer.
    CommitAnswer,
    /// Some writers have their answers.
    CommitAnswered,
    /// A fresh log is about to be made beside the log.
    CheckpointCreate,
    /// A part of the picture is written to it.
    CheckpointWrite,
    /// All of the picture is written and not yet synced.
    CheckpointSync,
    /// The picture is durable, and the writer does not know yet.
    CheckpointDone,
    /// What was written since the picture is about to be written to the fresh log.
    CompactionTail,
    /// It is written and not yet synced.
    CompactionSync,
    /// The fresh log is about to take the log's place.
    CompactionRename,
    /// It has the name, which is not durable yet.
    CompactionName,
    /// The name is durable.
    CompactionDone,
    /// A snapshot is about to be made.
    SnapshotCreate,
    /// A part of it is written.
    SnapshotWrite,
    /// All of it is written and not yet synced.
    SnapshotSync,
    /// It is about to get its name.
    SnapshotRename,
    /// It has the name, which is not durable yet.
    SnapshotName,
    /// It is durable, and who asked has no answer.
    SnapshotAnswer,
    /// A new store is about to get its name.
    OpenCreate,
    /// The log was read, and a torn tail is about to be cut.
    OpenCut,
}

impl Point {
    /// Every point, with its name.
    pub const ALL: [(Point, &'static str); 22] = [
        (Point::CommitAppend, "commit-append"),
        (Point::CommitSync, "commit-sync"),
        (Point::CommitShow, "commit-show"),
        (Point::CommitAnswer, "commit-answer"),
        (Point::CommitAnswered, "commit-answered"),
        (Point::CheckpointCreate, "checkpoint-create"),
        (Point::CheckpointWrite, "checkpoint-write"),
        (Point::CheckpointSync, "checkpoint-sync"),
        (Point::CheckpointDone, "checkpoint-done"),
        (Point::CompactionTail, "compaction-tail"),
        (Point::CompactionSync, "compaction-sync"),
        (Point::CompactionRename, "compaction-rename"),
        (Point::CompactionName, "compaction-name"),
        (Point::CompactionDone, "compaction-done"),
        (Point::SnapshotCreate, "snapshot-create"),
        (Point::SnapshotWrite, "snapshot-write"),
        (Point::SnapshotSync, "snapshot-sync"),
        (Point::SnapshotRename, "snapshot-rename"),
        (Point::SnapshotName, "snapshot-name"),
        (Point::SnapshotAnswer, "snapshot-answer"),
        (Point::OpenCreate, "open-create"),
        (Point::OpenCut, "open-cut"),
    ];

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        Point::ALL.iter().find(|(p, _)| *p == self).map_or("", |(_, name)| name)
    }

    /// The point of a name.
    pub fn parse(name: &str) -> Option<Point> {
        Point::ALL.iter().find(|(_, n)| *n == name).map(|(p, _)| *p)
    }
}

#[cfg(test)]
mod tests {
    use super::Point;

    #[test]
    fn names_are_unique_and_parse_back() {
        for (point, name) in Point::ALL {
            assert_eq!((point.name(), Point::parse(name)), (name, Some(point)));
        }
        assert_eq!(Point::parse("nowhere"), None);
    }
}
