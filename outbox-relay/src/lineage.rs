//! The proof of continuity: whether the stream that the slot will send begins at or before the checkpoint, in the same history.
//!
//! Postgres never tells of a gap. It takes a start position that is older than the slot and moves it forward in silence, it hands out a
//! recreated slot without a word, and it waits for ever at a position that a restored database has not reached. So each of these is
//! looked for here, before anything is confirmed.

use crate::checkpoint::{Checkpoint, key};
use crate::lsn::Lsn;
use crate::stop::Stop;
use crate::timeline::{History, is_continued};

/// What the server says of itself and of the slot, once this relay owns the slot.
#[derive(Clone, Debug)]
pub struct Source {
    pub system_identifier: String,
    pub timeline: u32,
    /// Where that timeline comes from; absent for the first, and where the server has it not.
    pub history: Option<History>,
    pub database: String,
    /// End of the server's flushed WAL.
    pub wal_end: Lsn,
    /// Absent where there is no slot of the name.
    pub slot: Option<Slot>,
    /// Oid of the publication's entry for the outbox table.
    pub publication_entry: u32,
}

/// A row of `pg_replication_slots`.
#[derive(Clone, Debug)]
pub struct Slot {
    pub plugin: String,
    pub database: String,
    /// Up to where the server may have forgotten. Compared instead of `restart_lsn`, which lags behind it.
    pub confirmed: Lsn,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: String,
    /// Whether it is a failover slot, of which standbys keep a copy (PostgreSQL 17 and later).
    pub is_failover: bool,
}

/// Names for messages.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    pub slot: &'a str,
    pub publication: &'a str,
    pub checkpoint_topic: &'a str,
}

/// Proves that going on from the checkpoint loses and repeats nothing.
///
/// # Errors
/// The [`Stop`] that says what cannot be proven.
pub fn verify<'c>(
    source: &Source,
    checkpoint: Option<&'c Checkpoint>,
    names: Names<'_>,
) -> Result<&'c Checkpoint, Stop> {
    let slot_name = names.slot.to_owned();
    let topic = names.checkpoint_topic.to_owned();
    let key = key(&source.database, names.slot);
    let (slot, checkpoint) = match (&source.slot, checkpoint) {
        (None, None) => {
            return Err(Stop::NotInitialised {
                slot: slot_name,
                database: source.database.clone(),
                topic,
            });
        }
        (Some(slot), None) => {
            usable(slot, source, names)?;
            return Err(Stop::CheckpointMissing {
                slot: slot_name,
                topic,
                key,
            });
        }
        (slot, Some(checkpoint)) => {
            same_history(source, checkpoint, names)?;
            let Some(slot) = slot else {
                return Err(Stop::SlotGone {
                    slot: slot_name,
                    topic,
                    key,
                    checkpoint: checkpoint.published.lsn,
                });
            };
            (slot, checkpoint)
        }
    };
    usable(slot, source, names)?;
    if checkpoint.state == crate::checkpoint::State::Initialising {
        return Err(Stop::CheckpointMissing {
            slot: slot_name,
            topic,
            key,
        });
    }
    let published = checkpoint.published.lsn;
    if source.timeline != checkpoint.lineage.timeline && !slot.is_failover {
        return Err(Stop::OtherTimeline {
            expected: checkpoint.lineage.timeline,
            found: source.timeline,
            missing: format!(
                "slot `{slot_name}` is no failover slot: a copy that the promoted server did not keep in step may lack the catalog rows to decode with"
            ),
        });
    }
    if slot.wal_status == "lost" {
        return Err(Stop::SlotInvalidated {
            slot: slot_name,
            reason: "wal_status is lost".to_owned(),
            checkpoint: published,
        });
    }
    if source.wal_end < published {
        return Err(Stop::ServerBehind {
            server: source.wal_end,
            checkpoint: published,
        });
    }
    if slot.confirmed > published {
        return Err(Stop::SlotAhead {
            slot: slot_name,
            slot_lsn: slot.confirmed,
            checkpoint: published,
        });
    }
    if source.publication_entry != checkpoint.lineage.publication_entry {
        return Err(Stop::Publication {
            publication: names.publication.to_owned(),
            what: "it, or the outbox table in it, was made anew since the checkpoint, and what was written meanwhile is in no stream".to_owned(),
        });
    }
    Ok(checkpoint)
}

fn same_history(source: &Source, checkpoint: &Checkpoint, names: Names<'_>) -> Result<(), Stop> {
    let lineage = &checkpoint.lineage;
    if source.system_identifier != lineage.system_identifier {
        return Err(Stop::OtherCluster {
            topic: names.checkpoint_topic.to_owned(),
            expected: lineage.system_identifier.clone(),
            found: source.system_identifier.clone(),
        });
    }
    is_continued(
        lineage.timeline,
        checkpoint.published,
        source.timeline,
        source.history.as_ref(),
    )
    .map_err(|missing| Stop::OtherTimeline {
        expected: lineage.timeline,
        found: source.timeline,
        missing,
    })
}

fn usable(slot: &Slot, source: &Source, names: Names<'_>) -> Result<(), Stop> {
    if slot.plugin == "pgoutput" && slot.database == source.database {
        return Ok(());
    }
    Err(Stop::SlotUnusable {
        slot: names.slot.to_owned(),
        database: source.database.clone(),
        found: format!("plugin {}, database {}", slot.plugin, slot.database),
    })
}

#[cfg(test)]
mod tests {
    use super::{History, Names, Slot, Source, verify};
    use crate::checkpoint::{Checkpoint, State, tests::example};
    use crate::lsn::Lsn;

    const NAMES: Names<'static> = Names {
        slot: "users_relay",
        publication: "outbox",
        checkpoint_topic: "checkpoints",
    };

    fn source() -> Source {
        let checkpoint = example();
        Source {
            system_identifier: checkpoint.lineage.system_identifier,
            timeline: 1,
            history: None,
            database: "users_db".to_owned(),
            wal_end: Lsn(checkpoint.published.lsn.0 + 1000),
            slot: Some(Slot {
                plugin: "pgoutput".to_owned(),
                database: "users_db".to_owned(),
                confirmed: checkpoint.published.lsn,
                wal_status: "reserved".to_owned(),
                is_failover: false,
            }),
            publication_entry: checkpoint.lineage.publication_entry,
        }
    }

    fn exit_code(source: &Source, checkpoint: Option<&Checkpoint>) -> u8 {
        verify(source, checkpoint, NAMES).map_or_else(|stop| stop.exit_code(), |_| 0)
    }

    #[test]
    fn a_slot_at_or_behind_the_checkpoint_continues() {
        assert_eq!(exit_code(&source(), Some(&example())), 0);
        let mut rewound = source();
        rewound.slot.as_mut().unwrap().confirmed = Lsn(1);
        assert_eq!(
            exit_code(&rewound, Some(&example())),
            0,
            "a rewound slot repeats, and repeats are skipped"
        );
    }

    #[test]
    fn every_broken_lineage_has_its_own_exit_code() {
        let checkpoint = example();
        let broken = |change: fn(&mut Source)| {
            let mut source = source();
            change(&mut source);
            exit_code(&source, Some(&checkpoint))
        };
        assert_eq!(broken(|source| source.slot = None), 10);
        assert_eq!(
            broken(|source| source.slot.as_mut().unwrap().wal_status = "lost".to_owned()),
            11
        );
        assert_eq!(
            broken(|source| source.slot.as_mut().unwrap().plugin = "test_decoding".to_owned()),
            12
        );
        assert_eq!(broken(|source| source.slot.as_mut().unwrap().confirmed.0 += 1), 13);
        assert_eq!(broken(|source| source.system_identifier = "1".to_owned()), 16);
        assert_eq!(broken(|source| source.timeline = 2), 17);
        assert_eq!(broken(|source| source.wal_end.0 -= 1001), 18);
        assert_eq!(broken(|source| source.publication_entry = 1), 20);
    }

    #[test]
    fn a_promotion_is_followed_where_the_slot_came_along_and_nothing_published_is_lacking() {
        let checkpoint = example();
        let promoted = |left_at: &str| {
            let mut source = source();
            source.timeline = 2;
            source.history = Some(History::parse(&format!("1 {left_at} promoted")).unwrap());
            source.slot.as_mut().unwrap().is_failover = true;
            source
        };
        let whole = promoted("0/1529001");
        assert_eq!(exit_code(&whole, Some(&checkpoint)), 0);
        let lacking = promoted("0/1529000");
        assert_eq!(
            exit_code(&lacking, Some(&checkpoint)),
            17,
            "the partial transaction's commit is not in it"
        );
        let mut without_slot = whole.clone();
        without_slot.slot = None;
        assert_eq!(exit_code(&without_slot, Some(&checkpoint)), 10);
        let mut of_another_kind = whole.clone();
        of_another_kind.slot.as_mut().unwrap().is_failover = false;
        assert_eq!(exit_code(&of_another_kind, Some(&checkpoint)), 17);
        let mut made_anew = whole.clone();
        made_anew.slot.as_mut().unwrap().confirmed.0 += 1;
        assert_eq!(exit_code(&made_anew, Some(&checkpoint)), 13);
        let mut former = source();
        former.timeline = 1;
        let mut later = checkpoint;
        later.lineage.timeline = 2;
        assert_eq!(exit_code(&former, Some(&later)), 17, "a former primary");
    }

    #[test]
    fn without_a_checkpoint_nothing_is_assumed() {
        let mut source = source();
        assert_eq!(exit_code(&source, None), 14);
        let unfinished = Checkpoint {
            state: State::Initialising,
            ..example()
        };
        assert_eq!(exit_code(&source, Some(&unfinished)), 14);
        source.slot = None;
        assert_eq!(exit_code(&source, None), 3);
    }
}
