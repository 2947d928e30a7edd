//! A slot: what WAL it makes Postgres keep, and how near its end is.

use super::words::in_its_words;
use super::{Health, Verdict};
use crate::snapshot::OutboxParts;
use crate::snapshot::outbox::{OutboxFacts, SlotFacts};

/// A slot without a limit that keeps more than this is worth a look, in bytes.
const RETAINED_WARNING_BYTES: i64 = 1 << 30;
/// As the relay's own guard has it: less than a tenth of the limit is left, or less than this many bytes.
const MARGIN_BYTES_MIN: i64 = 64 << 20;

/// The slot of an outbox.
#[must_use]
pub fn of_slot(outbox: &OutboxParts, slot_name: &str) -> Verdict {
    in_its_words(outbox.status.as_ref(), &["slot"], of_slot_alone(outbox, slot_name))
}

/// By what the database says.
fn of_slot_alone(outbox: &OutboxParts, slot_name: &str) -> Verdict {
    if let Some(away) = Verdict::away(&outbox.database) {
        return away;
    }
    let Some(facts) = &outbox.database.value else {
        return Verdict::new(Health::Unknown, "not asked yet", "");
    };
    match &facts.slot {
        None => Verdict::new(
            Health::Bad,
            "missing",
            format!("there is no slot {slot_name}, so nothing is published"),
        )
        .command("outbox-relay recover"),
        Some(slot) => of_slot_facts(slot, facts),
    }
}

/// A slot that exists.
#[must_use]
pub fn of_slot_facts(slot: &SlotFacts, facts: &OutboxFacts) -> Verdict {
    let bad = |word: &str, line: String| Verdict::new(Health::Bad, word, line);
    let retained = bytes_text(slot.retained_bytes);
    if slot.wal_status == "lost" {
        let why = if slot.invalidation_reason.is_empty() {
            ""
        } else {
            &slot.invalidation_reason
        };
        return bad(
            "lost",
            format!("postgres has invalidated the slot {why}, and events behind it must be found in the table"),
        )
        .command("outbox-relay recover");
    }
    if slot.wal_status == "unreserved" {
        return bad(
            "in danger",
            "the slot is lost at the server's next checkpoint".to_owned(),
        )
        .command("outbox-relay check");
    }
    if let (Some(safe), Some(limit)) = (slot.safe_bytes, facts.limit_bytes) {
        let margin = (limit / 10).max(MARGIN_BYTES_MIN).min(limit / 2);
        let left = bytes_text(safe);
        if safe < margin {
            return bad("in danger", format!("the slot is lost after {left} more WAL")).command("outbox-relay check");
        }
        if safe < limit / 4 {
            return Verdict::new(
                Health::Warning,
                "filling",
                format!("{left} of WAL are left until the slot is lost"),
            )
            .command("outbox-relay check");
        }
    }
    if slot.reader.is_none() {
        return Verdict::new(
            Health::Warning,
            "nobody reads it",
            format!("no relay reads the slot, and Postgres keeps all WAL for it: {retained} now"),
        )
        .command("outbox-relay run");
    }
    if facts.limit_bytes.is_none() && slot.retained_bytes > RETAINED_WARNING_BYTES {
        return Verdict::new(
            Health::Warning,
            "growing",
            format!("Postgres keeps {retained} of WAL for the slot, and no limit is set"),
        );
    }
    Verdict::good("healthy")
}

/// As people read it, to a tenth of the unit.
fn bytes_text(bytes: i64) -> String {
    let (bytes, megabyte) = (bytes.max(0) as f64, f64::from(1 << 20));
    if bytes < 1024.0 * megabyte {
        format!("{:.1} MB", bytes / megabyte)
    } else {
        format!("{:.1} GB", bytes / megabyte / 1024.0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Health, Mend, Verdict};
    use super::of_slot_facts;
    use crate::snapshot::outbox::{OutboxFacts, SlotFacts};

    const MB: i64 = 1 << 20;

    fn verdict(change: impl FnOnce(&mut SlotFacts, &mut OutboxFacts)) -> Verdict {
        let mut slot = SlotFacts {
            name: "outbox_relay".to_owned(),
            plugin: "pgoutput".to_owned(),
            database: "users_db".to_owned(),
            reader: Some(1),
            restart_lsn: "0/1".to_owned(),
            confirmed_lsn: "0/1".to_owned(),
            retained_bytes: 100 * MB,
            unconfirmed_bytes: 0,
            safe_bytes: Some(900 * MB),
            wal_status: "reserved".to_owned(),
            invalidation_reason: String::new(),
            is_failover: Some(false),
            is_synced: false,
        };
        let mut facts = OutboxFacts {
            inserted: 0,
            insert_rate: None,
            rows: 0,
            wal_end: "0/1".to_owned(),
            limit_bytes: Some(1_000 * MB),
            slot: None,
            other_slots: Vec::new(),
        };
        change(&mut slot, &mut facts);
        of_slot_facts(&slot, &facts)
    }

    #[test]
    fn a_slot_is_in_danger_before_it_is_lost() {
        assert_eq!(verdict(|_, _| {}).health, Health::Good);
        for (safe, health) in [
            (300 * MB, Health::Good),
            (200 * MB, Health::Warning),
            (90 * MB, Health::Bad),
            (-MB, Health::Bad),
        ] {
            assert_eq!(verdict(|slot, _| slot.safe_bytes = Some(safe)).health, health, "{safe}");
        }
        let lost = verdict(|slot, _| slot.wal_status = "lost".to_owned());
        assert_eq!(
            (lost.health, lost.mend),
            (Health::Bad, Some(Mend::Command("outbox-relay recover".to_owned())))
        );
    }

    #[test]
    fn a_slot_that_nobody_reads_and_one_without_a_limit_are_named() {
        let unread = verdict(|slot, _| slot.reader = None);
        assert_eq!(unread.health, Health::Warning);
        assert!(unread.line.contains("no relay reads the slot"), "{}", unread.line);
        let growing = verdict(|slot, facts| {
            facts.limit_bytes = None;
            slot.safe_bytes = None;
            slot.retained_bytes = 2_000 * MB;
        });
        assert!(growing.line.contains("no limit is set"), "{}", growing.line);
    }
}
