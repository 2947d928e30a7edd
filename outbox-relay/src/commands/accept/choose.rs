//! Step 3 of `init --accept-…`: chooses the position at which the relay goes on. Asks no server.

use super::acceptance::Acceptance;
use crate::continuity::checkpoint::{Checkpoint, Lineage};
use crate::continuity::progress::Published;
use crate::continuity::source::Source;
use pg_replication::Lsn;

/// Where the relay goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NewPosition {
    /// Where the checkpoint says.
    Checkpoint(Published),
    /// At the slot's confirmed position.
    SlotConfirmed(Lsn),
    /// At the end of the WAL. The slot is moved there.
    WalEnd(Lsn),
    /// Where the stream of a new slot begins.
    NewSlot,
}

/// How far an acceptance takes the relay away from its checkpoint. If several things are accepted, the one that takes it furthest away counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Departure {
    Stay,
    ToSlot,
    ToWalEnd,
    ToNewSlot,
}

/// Chooses the position. `base` is the best checkpoint that can be read, `source` what the server says now.
pub(super) fn choose_position(source: &Source, base: Option<&Checkpoint>, accepted: &[Acceptance]) -> NewPosition {
    let lineage = base.map(|base| &base.lineage);
    let departures = accepted
        .iter()
        .map(|acceptance| departure(*acceptance, lineage, source));
    let furthest = departures.max().unwrap_or(Departure::Stay);
    let confirmed = source.slot.as_ref().map_or(Lsn::INVALID, |slot| slot.confirmed);
    match (furthest, base) {
        (Departure::ToNewSlot, _) => NewPosition::NewSlot,
        // The slot's position is all that is known. It was confirmed, so everything before it was published.
        (Departure::Stay | Departure::ToSlot | Departure::ToWalEnd, None) => NewPosition::SlotConfirmed(confirmed),
        (Departure::ToWalEnd, Some(_)) => NewPosition::WalEnd(source.wal_end),
        (Departure::ToSlot, Some(_)) => NewPosition::SlotConfirmed(confirmed),
        (Departure::Stay, Some(base)) => NewPosition::Checkpoint(base.published),
    }
}

/// Without a wildcard: a new acceptance must say here where the relay goes on, or the relay would silently go on at the checkpoint.
fn departure(acceptance: Acceptance, lineage: Option<&Lineage>, source: &Source) -> Departure {
    match acceptance {
        Acceptance::NewSlot => Departure::ToNewSlot,
        // A slot cannot be decoded from a position before its publication was made: the server refuses that (up to 17) or silently skips (18).
        Acceptance::Publication if lineage.is_some_and(|lineage| was_made_anew(lineage, source)) => Departure::ToWalEnd,
        // The slot cannot send the rows between the checkpoint and its own position.
        Acceptance::SlotGap
        // The checkpoint's position belongs to another history. In this server's WAL the same number is another place.
        | Acceptance::OlderDatabase
        | Acceptance::Cluster => Departure::ToSlot,
        // The checkpoint's position still means what it meant.
        Acceptance::Publication
        | Acceptance::CheckpointLoss
        | Acceptance::GarbledCheckpoint
        | Acceptance::Timeline
        | Acceptance::Server
        | Acceptance::Partitions
        | Acceptance::TopicRecreated
        | Acceptance::ParkedLoss
        | Acceptance::UnfinishedRecovery => Departure::Stay,
    }
}

/// Whether the publication was dropped and made again, and not only altered. Its version begins with its oid.
fn was_made_anew(lineage: &Lineage, source: &Source) -> bool {
    let oid = |version: &str| version.split(':').next().map(str::to_owned);
    let pinned = lineage.publication_version.as_deref();
    pinned.is_none_or(|pinned| oid(pinned) != oid(&source.publication_version))
}

#[cfg(test)]
mod tests {
    use super::{NewPosition, choose_position};
    use crate::commands::accept::acceptance::Acceptance;
    use crate::continuity::checkpoint::{Checkpoint, tests::example};
    use crate::continuity::source::Source;
    use pg_replication::Lsn;

    fn source(base: &Checkpoint) -> Source {
        Source {
            system_identifier: base.lineage.system_identifier.clone(),
            timeline: base.lineage.timeline,
            history: None,
            started_us: None,
            database: base.lineage.database.clone(),
            wal_end: Lsn(900),
            slot: None,
            publication_entry: base.lineage.publication_entry,
            publication_version: "7:1:8:1".to_owned(),
            outbox: None,
            counted_rows: String::new(),
        }
    }

    #[test]
    fn the_acceptance_that_departs_furthest_from_the_checkpoint_counts() {
        let mut base = example();
        let chosen = |base: &Checkpoint, accepted: &[Acceptance]| choose_position(&source(base), Some(base), accepted);
        let at_checkpoint = NewPosition::Checkpoint(base.published);
        assert_eq!(
            chosen(&base, &[Acceptance::Timeline, Acceptance::Server]),
            at_checkpoint
        );
        let gap = [Acceptance::Timeline, Acceptance::SlotGap];
        assert_eq!(chosen(&base, &gap), NewPosition::SlotConfirmed(Lsn::INVALID));
        let all = [Acceptance::SlotGap, Acceptance::Publication, Acceptance::NewSlot];
        assert_eq!(chosen(&base, &all), NewPosition::NewSlot);

        base.lineage.publication_version = Some("7:2:8:1".to_owned());
        assert_eq!(
            chosen(&base, &[Acceptance::Publication]),
            at_checkpoint,
            "it was altered"
        );
        base.lineage.publication_version = Some("6:1:8:1".to_owned());
        assert_eq!(
            chosen(&base, &all[..2]),
            NewPosition::WalEnd(Lsn(900)),
            "it was dropped and made again"
        );
    }

    #[test]
    fn without_a_checkpoint_the_relay_goes_on_at_the_slot() {
        let source = source(&example());
        for accepted in [Acceptance::CheckpointLoss, Acceptance::Publication] {
            let chosen = choose_position(&source, None, &[accepted]);
            assert_eq!(chosen, NewPosition::SlotConfirmed(Lsn::INVALID));
        }
    }
}
