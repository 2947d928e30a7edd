//! What one pass over the checkpoint topic finds for one relay. Pure.

use crate::continuity::checkpoint::Checkpoint;
use crate::continuity::progress::Published;
use crate::kafka::client::Delivery;
use crate::process::stop::Stop;

/// A record of the checkpoint topic.
#[derive(Clone, Debug)]
pub struct StoredCheckpoint {
    pub checkpoint: Checkpoint,
    pub offset: i64,
    /// When it was written, by the relay's clock, in milliseconds since 1970.
    pub written_ms: Option<i64>,
}

/// What one pass over the topic found for one relay. The last record counts: it is also the one that the topic's compaction keeps.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// The last checkpoint that could be read.
    pub last: Option<StoredCheckpoint>,
    /// The furthest checkpoint since the last tombstone. It is kept when a later record cannot be read, or is an older checkpoint.
    pub furthest: Option<StoredCheckpoint>,
    /// Why the relay must not go on from the last record. `None`: it may.
    pub unusable: Option<Stop>,
}

impl Reading {
    /// The last and the furthest checkpoint, where there are such.
    fn readable(&self) -> impl Iterator<Item = &Checkpoint> {
        let stored = [&self.last, &self.furthest].into_iter().flatten();
        stored.map(|stored| &stored.checkpoint)
    }

    /// The next generation: one above that of every checkpoint that could be read. 1 if there is no such checkpoint.
    #[must_use]
    pub fn next_generation(&self) -> u64 {
        self.readable()
            .map(|checkpoint| checkpoint.generation)
            .max()
            .unwrap_or(0)
            + 1
    }

    /// By how many bytes positions are raised at most, see [`crate::continuity::positions`]. 0 if no checkpoint could be read: none has raised them.
    #[must_use]
    pub fn positions_raised_by(&self) -> u64 {
        let raised = self.readable().map(|checkpoint| checkpoint.lineage.positions_raised_by);
        raised.max().unwrap_or(0)
    }

    /// System identifiers of the database clusters whose checkpoints could be read.
    pub fn system_identifiers(&self) -> impl Iterator<Item = &String> {
        self.readable().map(|checkpoint| &checkpoint.lineage.system_identifier)
    }

    /// Finds the checkpoint of this generation.
    #[must_use]
    pub fn of_generation(&self, generation: u64) -> Option<&Checkpoint> {
        self.readable().find(|checkpoint| checkpoint.generation == generation)
    }

    /// The checkpoint that a relay goes on from.
    ///
    /// Without Kafka transactions, a relay that was held up may write an older checkpoint behind its successor's. The furthest one is right then.
    /// With transactions Kafka refuses such a relay, so an older checkpoint was written by somebody else.
    ///
    /// # Errors
    /// Why a relay must not go on from the last record.
    pub fn into_usable(self, delivery: Delivery) -> Result<Option<StoredCheckpoint>, Stop> {
        match self.unusable {
            None => Ok(self.last),
            Some(Stop::CheckpointWentBack { .. }) if delivery == Delivery::AtLeastOnce => Ok(self.furthest),
            Some(stop) => Err(stop),
        }
    }

    /// Takes in the next record of the relay's key.
    pub(super) fn with_next_record(self, topic: &str, key: &str, offset: i64, value: Option<&[u8]>) -> Self {
        // A tombstone is how an operator deletes a checkpoint.
        let Some(value) = value else { return Self::default() };
        let checkpoint = match Checkpoint::from_json(value) {
            Ok(checkpoint) => checkpoint,
            Err(what) => {
                let unusable = Some(Stop::CheckpointGarbled {
                    key: key.to_owned(),
                    topic: topic.to_owned(),
                    offset,
                    what,
                });
                return Self { unusable, ..self };
            }
        };
        let found = StoredCheckpoint {
            checkpoint,
            offset,
            written_ms: None,
        };
        match self.furthest {
            Some(furthest) if found.ascending() < furthest.ascending() => Self {
                unusable: Some(Stop::CheckpointWentBack {
                    key: key.to_owned(),
                    topic: topic.to_owned(),
                    offset,
                    expected: furthest.checkpoint.published.lsn,
                    found: found.checkpoint.published.lsn,
                }),
                last: Some(found),
                furthest: Some(furthest),
            },
            _ => Self {
                last: Some(found.clone()),
                furthest: Some(found),
                unusable: None,
            },
        }
    }
}

impl StoredCheckpoint {
    /// Each checkpoint's value of this is at least that of the checkpoint before it.
    fn ascending(&self) -> (u64, Published) {
        (self.checkpoint.generation, self.checkpoint.published)
    }
}

#[cfg(test)]
mod tests {
    use super::Reading;
    use crate::continuity::checkpoint::{Checkpoint, tests::example};
    use pg_replication::Lsn;

    fn at(lsn: u64, generation: u64) -> Option<String> {
        let mut checkpoint = Checkpoint {
            generation,
            ..example()
        };
        checkpoint.published.lsn = Lsn(lsn);
        checkpoint.published.partial = None;
        Some(checkpoint.to_json())
    }

    /// LSNs of the last and the furthest checkpoint, and the exit code.
    fn read(values: &[Option<String>]) -> (Option<u64>, Option<u64>, Option<u8>) {
        let reading = (0..).zip(values).fold(Reading::default(), |reading, (offset, value)| {
            reading.with_next_record("checkpoints", "d/s", offset, value.as_deref().map(str::as_bytes))
        });
        (
            reading.last.map(|found| found.checkpoint.published.lsn.0),
            reading.furthest.map(|found| found.checkpoint.published.lsn.0),
            reading.unusable.map(|stop| stop.exit_code()),
        )
    }

    #[test]
    fn the_last_checkpoint_counts() {
        assert_eq!(read(&[]), (None, None, None));
        assert_eq!(read(&[at(1, 0), at(2, 0), at(2, 0)]), (Some(2), Some(2), None));
        assert_eq!(read(&[at(1, 0), None]), (None, None, None), "a tombstone deletes");
        assert_eq!(read(&[at(9, 0), None, at(1, 0)]), (Some(1), Some(1), None));
    }

    #[test]
    fn a_last_checkpoint_that_is_no_good_is_told_and_the_furthest_is_kept() {
        let garbage = Some("garbage".to_owned());
        assert_eq!(read(&[at(1, 0), garbage.clone()]), (Some(1), Some(1), Some(15)));
        assert_eq!(read(&[at(1, 0), garbage, at(2, 0)]), (Some(2), Some(2), None));
        assert_eq!(read(&[at(5, 0), at(3, 0)]), (Some(3), Some(5), Some(21)));
        assert_eq!(read(&[at(5, 0), at(3, 0), at(6, 0)]), (Some(6), Some(6), None));
    }

    #[test]
    fn only_an_operator_sets_a_checkpoint_back() {
        assert_eq!(read(&[at(5, 0), at(3, 1), at(4, 1)]), (Some(4), Some(4), None));
        assert_eq!(read(&[at(5, 1), at(6, 0)]), (Some(6), Some(5), Some(21)));
    }

    #[test]
    fn the_next_generation_is_above_every_one_that_can_be_read() {
        assert_eq!(Reading::default().next_generation(), 1);
        let reading = |values: &[Option<String>]| {
            let reading = Reading::default();
            (0..).zip(values).fold(reading, |reading, (offset, value)| {
                reading.with_next_record("checkpoints", "d/s", offset, value.as_deref().map(str::as_bytes))
            })
        };
        assert_eq!(reading(&[at(5, 2)]).next_generation(), 3);
        assert_eq!(
            reading(&[at(5, 4), at(6, 2)]).next_generation(),
            5,
            "the last one went back"
        );
    }
}
