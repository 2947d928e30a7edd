//! The proof of continuity: whether the stream that the slot will send begins at or before the checkpoint, in the same history.
//!
//! Postgres never reports a gap. If a start position is older than the slot, Postgres silently moves it forward. It does not say that a slot was dropped and
//! made anew. And it waits for ever at a position that a restored database has not reached. So we check each of these cases here, before anything is
//! confirmed.

use crate::continuity::checkpoint::{Checkpoint, Lineage, State, checkpoint_key};
use crate::continuity::source::{Slot, Source, ensure_slot_is_usable};
use crate::continuity::timeline::ensure_server_has_published;
use crate::process::stop::Stop;

/// What messages call the slot, the publication and the checkpoint topic.
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
    match (find_breaks(source, checkpoint, names).into_iter().next(), checkpoint) {
        (None, Some(checkpoint)) => Ok(checkpoint),
        (Some(stop), _) => Err(stop),
        (None, None) => Err(not_initialised(source, names)),
    }
}

/// Everything that cannot be proven. The stop that says most comes first. Empty if it is safe to go on.
#[must_use]
pub fn find_breaks(source: &Source, checkpoint: Option<&Checkpoint>, names: Names<'_>) -> Vec<Stop> {
    let running = checkpoint.filter(|checkpoint| matches!(checkpoint.state, State::Running | State::Behind));
    let Some(checkpoint) = running else {
        return match (&source.slot, checkpoint) {
            (None, None) => vec![not_initialised(source, names)],
            (slot, Some(unfinished)) if is_init_of_other_cluster(source, unfinished) => {
                let mut breaks = vec![other_cluster(source, &unfinished.lineage, names)];
                match slot {
                    Some(slot) => breaks.extend(ensure_usable(slot, source, names).err()),
                    None => breaks.push(slot_gone(source, unfinished, names)),
                }
                breaks
            }
            (_, Some(unfinished)) if unfinished.state == State::Initialising => vec![Stop::InitUnfinished {
                slot: names.slot.to_owned(),
            }],
            (None, Some(unfinished)) => vec![slot_gone(source, unfinished, names)],
            (Some(_), Some(unfinished)) if unfinished.state == State::Recovering => vec![Stop::RecoveryUnfinished {
                slot: names.slot.to_owned(),
            }],
            (Some(slot), _) => ensure_usable(slot, source, names)
                .err()
                .into_iter()
                .chain([checkpoint_missing(source, names)])
                .collect(),
        };
    };
    let mut breaks: Vec<Stop> = ensure_same_history(source, checkpoint, names)
        .err()
        .into_iter()
        .collect();
    let Some(slot) = &source.slot else {
        breaks.push(slot_gone(source, checkpoint, names));
        return breaks;
    };
    breaks.extend(ensure_usable(slot, source, names).err());
    breaks.extend(ensure_not_lost(slot, checkpoint, names).err());
    if breaks.is_empty() {
        breaks.extend(ensure_slot_was_kept_in_step(source, slot, checkpoint, names).err());
    }
    // Another cluster's positions and objects have nothing in common with the checkpoint's.
    if source.system_identifier == checkpoint.lineage.system_identifier {
        breaks.extend(ensure_positions_fit(source, slot, checkpoint, names).err());
        breaks.extend(ensure_publication_is_pinned(source, &checkpoint.lineage, names).err());
        breaks.extend(ensure_rows_are_counted_as_before(source, checkpoint).err());
    }
    breaks
}

/// Whether an init began in another cluster and did not finish. It cannot be continued here.
fn is_init_of_other_cluster(source: &Source, unfinished: &Checkpoint) -> bool {
    unfinished.state == State::Initialising && unfinished.lineage.system_identifier != source.system_identifier
}

fn other_cluster(source: &Source, lineage: &Lineage, names: Names<'_>) -> Stop {
    Stop::OtherCluster {
        topic: names.checkpoint_topic.to_owned(),
        expected: lineage.system_identifier.clone(),
        found: source.system_identifier.clone(),
    }
}

fn not_initialised(source: &Source, names: Names<'_>) -> Stop {
    Stop::NotInitialised {
        slot: names.slot.to_owned(),
        database: source.database.clone(),
        topic: names.checkpoint_topic.to_owned(),
    }
}

fn checkpoint_missing(source: &Source, names: Names<'_>) -> Stop {
    Stop::CheckpointMissing {
        slot: names.slot.to_owned(),
        topic: names.checkpoint_topic.to_owned(),
        key: checkpoint_key(&source.database, names.slot),
    }
}

fn slot_gone(source: &Source, checkpoint: &Checkpoint, names: Names<'_>) -> Stop {
    Stop::SlotGone {
        slot: names.slot.to_owned(),
        topic: names.checkpoint_topic.to_owned(),
        key: checkpoint_key(&source.database, names.slot),
        checkpoint: checkpoint.published.lsn,
    }
}

fn ensure_not_lost(slot: &Slot, checkpoint: &Checkpoint, names: Names<'_>) -> Result<(), Stop> {
    if slot.wal_status != "lost" {
        return Ok(());
    }
    let reason = match slot.invalidation_reason.as_str() {
        "" => "wal_status is lost".to_owned(),
        reason => format!("wal_status is lost, invalidation_reason is {reason}"),
    };
    Err(Stop::SlotInvalidated {
        slot: names.slot.to_owned(),
        reason,
        checkpoint: checkpoint.published.lsn,
    })
}

/// The slot of a promoted server continues the slot of the checkpoint only if Postgres has kept the two in step.
fn ensure_slot_was_kept_in_step(
    source: &Source,
    slot: &Slot,
    checkpoint: &Checkpoint,
    names: Names<'_>,
) -> Result<(), Stop> {
    if source.timeline == checkpoint.lineage.timeline || slot.is_failover {
        return Ok(());
    }
    Err(Stop::OtherTimeline {
        expected: checkpoint.lineage.timeline,
        found: source.timeline,
        missing: format!(
            "slot `{}` is no failover slot: a copy that the promoted server did not keep in step may lack the catalog rows to decode with",
            names.slot
        ),
    })
}

fn ensure_positions_fit(source: &Source, slot: &Slot, checkpoint: &Checkpoint, names: Names<'_>) -> Result<(), Stop> {
    let published = checkpoint.published.lsn;
    if source.wal_end < published || checkpoint.state == State::Behind {
        return Err(Stop::ServerBehind {
            server: source.wal_end,
            checkpoint: published,
        });
    }
    if slot.confirmed > published {
        return Err(Stop::SlotAhead {
            slot: names.slot.to_owned(),
            slot_lsn: slot.confirmed,
            checkpoint: published,
        });
    }
    Ok(())
}

fn ensure_publication_is_pinned(source: &Source, lineage: &Lineage, names: Names<'_>) -> Result<(), Stop> {
    let what = if source.publication_entry != lineage.publication_entry {
        "it, or the outbox table in it, was made anew since the checkpoint"
    } else if lineage
        .publication_version
        .as_ref()
        .is_some_and(|pinned| *pinned != source.publication_version)
    {
        "it was altered since the checkpoint"
    } else if lineage.outbox.is_some() && lineage.outbox != source.outbox {
        "the outbox table is another one than at the checkpoint, or it was renamed, set unlogged or partitioned since"
    } else {
        return Ok(());
    };
    Err(Stop::PublicationChanged {
        publication: names.publication.to_owned(),
        what: what.to_owned(),
    })
}

/// A transaction that is published in part goes on at the row with the number in the checkpoint. With other settings another row has that number.
fn ensure_rows_are_counted_as_before(source: &Source, checkpoint: &Checkpoint) -> Result<(), Stop> {
    match (checkpoint.published.partial, &checkpoint.lineage.counted_rows) {
        (Some(partial), Some(then)) if *then != source.counted_rows => Err(Stop::RowsCountedOtherwise {
            commit_lsn: partial.commit_lsn,
            rows: partial.rows,
            then: then.clone(),
            now: source.counted_rows.clone(),
        }),
        _ => Ok(()),
    }
}

fn ensure_same_history(source: &Source, checkpoint: &Checkpoint, names: Names<'_>) -> Result<(), Stop> {
    let lineage = &checkpoint.lineage;
    if source.system_identifier != lineage.system_identifier {
        return Err(other_cluster(source, lineage, names));
    }
    ensure_server_has_published(
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

fn ensure_usable(slot: &Slot, source: &Source, names: Names<'_>) -> Result<(), Stop> {
    ensure_slot_is_usable(slot, names.slot, &source.database)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{Names, Slot, Source, find_breaks, verify};
    use crate::continuity::checkpoint::{Checkpoint, State, tests::example};
    use crate::continuity::timeline::History;
    use crate::process::stop::Stop;
    use pg_replication::Lsn;

    pub(crate) const NAMES: Names<'static> = Names {
        slot: "users_relay",
        publication: "outbox",
        checkpoint_topic: "checkpoints",
    };

    /// A server that continues [`example`].
    pub(crate) fn source() -> Source {
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
                invalidation_reason: String::new(),
                active_pid: None,
                is_two_phase: false,
                catalog_xmin: None,
            }),
            publication_entry: checkpoint.lineage.publication_entry,
            publication_version: checkpoint.lineage.publication_version.unwrap_or_default(),
            outbox: checkpoint.lineage.outbox,
            counted_rows: checkpoint.lineage.counted_rows.unwrap_or_default(),
            started_us: checkpoint.lineage.server_started_us,
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
        assert_eq!(broken(|source| source.publication_version += "1"), 20);
    }

    #[test]
    fn a_server_that_was_behind_stays_behind_however_far_its_wal_has_grown_since() {
        let behind = Checkpoint {
            state: State::Behind,
            ..example()
        };
        assert_eq!(exit_code(&source(), Some(&behind)), 18);
    }

    #[test]
    fn a_checkpoint_that_pins_no_state_of_the_publication_is_taken() {
        let mut checkpoint = example();
        checkpoint.lineage.publication_version = None;
        assert_eq!(exit_code(&source(), Some(&checkpoint)), 0);
    }

    #[test]
    fn every_break_is_told_and_not_only_the_first() {
        let mut source = source();
        source.timeline = 2;
        source.slot.as_mut().unwrap().confirmed.0 += 1;
        source.publication_entry = 1;
        let codes = |source: &Source| -> Vec<u8> {
            let checkpoint = example();
            let breaks = find_breaks(source, Some(&checkpoint), NAMES);
            breaks.iter().map(super::Stop::exit_code).collect()
        };
        assert_eq!(codes(&source), [17, 13, 20]);
        source.system_identifier = "1".to_owned();
        assert_eq!(codes(&source), [16], "another cluster's positions say nothing");
        source.slot = None;
        assert_eq!(codes(&source), [16, 10]);
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
        assert_eq!(exit_code(&source, Some(&unfinished)), 3);
        source.slot = None;
        assert_eq!(exit_code(&source, Some(&unfinished)), 3);
        assert_eq!(exit_code(&source, None), 3);
        source.system_identifier = "another".to_owned();
        assert_eq!(
            exit_code(&source, Some(&unfinished)),
            16,
            "init cannot go on with it here"
        );
        let codes: Vec<u8> = find_breaks(&source, Some(&unfinished), NAMES)
            .iter()
            .map(Stop::exit_code)
            .collect();
        assert_eq!(codes, [16, 10], "to be accepted together");
    }
}
