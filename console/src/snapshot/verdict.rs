//! What is wrong with a stage, in one line, and what mends it.
//!
//! The words are those of the programs wherever a program says what is wrong: relay and view-builder in `/readyz`, positions and views in the database.

use super::{Lag, OutboxParts, Part, Snapshot};
use crate::snapshot::builder::BuilderFacts;
use crate::snapshot::outbox::{OutboxFacts, SlotFacts};
use crate::snapshot::views::ViewFacts;

/// How a stage is, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    Good,
    /// The part does not answer, so nobody knows.
    Unknown,
    /// Somebody has to look.
    Warning,
    Bad,
}

/// How a stage is, why, and what mends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub health: Health,
    /// One or two words, such as `not ready`.
    pub word: String,
    /// What is wrong, in one line. Empty: nothing.
    pub line: String,
    pub mend: Option<Mend>,
}

/// What mends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mend {
    /// A command to type.
    Command(String),
    /// A page of the console with the button for it.
    Page { label: &'static str, address: String },
}

/// An event that is older than this and not in the views is worth a look, in seconds.
const LAG_WARNING_SECONDS: f64 = 60.0;
/// A slot without a limit that keeps more than this is worth a look, in bytes.
const RETAINED_WARNING_BYTES: i64 = 1 << 30;
/// As the relay's own guard has it: less than a tenth of the limit is left, or less than this many bytes.
const MARGIN_BYTES_MIN: i64 = 64 << 20;

impl Verdict {
    fn new(health: Health, word: &str, line: impl Into<String>) -> Self {
        Self {
            health,
            word: word.to_owned(),
            line: line.into(),
            mend: None,
        }
    }

    fn good(word: &str) -> Self {
        Self::new(Health::Good, word, "")
    }

    fn away<T>(part: &Part<T>) -> Option<Self> {
        match (&part.away, &part.value) {
            (Some(away), _) => Some(Self::new(
                Health::Unknown,
                "away",
                format!("{} is away: {}", part.name, away.why),
            )),
            (None, None) => Some(Self::new(Health::Unknown, "not asked yet", "")),
            (None, Some(_)) => None,
        }
    }

    fn command(mut self, command: impl Into<String>) -> Self {
        self.mend = Some(Mend::Command(command.into()));
        self
    }

    fn page(mut self, label: &'static str, address: impl Into<String>) -> Self {
        self.mend = Some(Mend::Page {
            label,
            address: address.into(),
        });
        self
    }
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

/// The outbox table.
#[must_use]
pub fn of_outbox(outbox: &OutboxParts) -> Verdict {
    Verdict::away(&outbox.database).unwrap_or_else(|| Verdict::good("writable"))
}

/// The slot of an outbox.
#[must_use]
pub fn of_slot(outbox: &OutboxParts, slot_name: &str) -> Verdict {
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

/// The relay of an outbox.
#[must_use]
pub fn of_relay(outbox: &OutboxParts) -> Verdict {
    let page = || format!("/slots#relay-{}", outbox.name);
    if let Some(away) = Verdict::away(&outbox.relay) {
        return if away.word == "away" {
            away.command("outbox-relay run")
        } else {
            away
        };
    }
    let Some(facts) = &outbox.relay.value else {
        return Verdict::new(Health::Unknown, "not asked yet", "");
    };
    let first =
        |reasons: &std::collections::BTreeMap<String, String>| reasons.values().next().cloned().unwrap_or_default();
    if facts.stopped_exit_code.is_some() {
        return Verdict::new(Health::Bad, "stopped", first(&facts.reasons)).page("Look at the relay", page());
    }
    if facts.is_paused {
        return Verdict::new(Health::Warning, "paused", first(&facts.reasons)).page("Resume", page());
    }
    if !facts.is_ready {
        return Verdict::new(Health::Bad, "not ready", first(&facts.reasons)).page("Check", page());
    }
    if !facts.warnings.is_empty() {
        return Verdict::new(Health::Warning, "works", first(&facts.warnings)).page("Check", page());
    }
    if facts.parked_rows > 0.0 {
        return Verdict::new(
            Health::Warning,
            "works",
            format!("{} rows are parked", facts.parked_rows),
        )
        .command("outbox-relay parked list");
    }
    Verdict::good(if facts.is_leader { "publishing" } else { "on standby" })
}

/// A topic.
#[must_use]
pub fn of_topic(snapshot: &Snapshot, topic: &str) -> Verdict {
    if let Some(away) = Verdict::away(&snapshot.kafka) {
        return away;
    }
    let partitions = snapshot.kafka.value.as_ref().and_then(|kafka| kafka.topics.get(topic));
    let Some(partitions) = partitions else {
        return Verdict::new(Health::Bad, "missing", format!("Kafka has no topic {topic}"))
            .command("outbox-relay check");
    };
    let silent = partitions.iter().find_map(|facts| Some((facts.partition, facts.why?)));
    match silent {
        Some((partition, why)) => Verdict::new(Health::Bad, "partly away", format!("partition {partition} {why}")),
        None => Verdict::good("available"),
    }
}

/// A view-builder.
#[must_use]
pub fn of_builder(builder: &Part<BuilderFacts>) -> Verdict {
    if let Some(away) = Verdict::away(builder) {
        return if away.word == "away" {
            away.command("view-builder run")
        } else {
            away
        };
    }
    let Some(facts) = &builder.value else {
        return Verdict::new(Health::Unknown, "not asked yet", "");
    };
    if let Some(reason) = facts.reasons.values().next().filter(|_| !facts.is_ready) {
        return Verdict::new(Health::Bad, "not ready", reason).command("view-builder status");
    }
    let oldest = facts.lag.values().map(|(_, seconds)| *seconds).fold(0.0, f64::max);
    if oldest > LAG_WARNING_SECONDS {
        let line = format!("the oldest event that is not in the views is {oldest:.0} s old");
        return Verdict::new(Health::Warning, "behind", line).page("Look at the lag", "/groups");
    }
    if let Some(warning) = facts.warnings.values().next() {
        let verdict = Verdict::new(Health::Warning, "works", warning);
        return if warning.contains("dead-letters") {
            verdict.page("Dead letters", "/letters")
        } else {
            verdict.command("view-builder status")
        };
    }
    Verdict::good("applying")
}

/// A view.
#[must_use]
pub fn of_view(snapshot: &Snapshot, view: &ViewFacts) -> Verdict {
    if let Some(away) = Verdict::away(&snapshot.views) {
        return away;
    }
    let address = || format!("/views/{}", view.name);
    if let Some(pause) = &view.pause {
        return Verdict::new(
            Health::Warning,
            "paused",
            format!("paused by {}: {}", pause.by, pause.reason),
        )
        .page("Resume or rebuild", address());
    }
    let letters: i64 = snapshot
        .views
        .value
        .iter()
        .flat_map(|facts| &facts.letters)
        .filter(|(topic, _)| view.topics.contains(topic))
        .map(|(_, letters)| letters.dead + letters.behind)
        .sum();
    if letters > 0 {
        return Verdict::new(
            Health::Warning,
            "lacks events",
            format!("{letters} events of its topics are dead letters"),
        )
        .page("Dead letters", "/letters");
    }
    if view.rebuild.is_some() {
        return Verdict::new(Health::Good, "rebuilding", "").page("See how far", address());
    }
    match freshness(snapshot, view).seconds {
        None => Verdict::new(Health::Unknown, "not known", ""),
        Some(seconds) if seconds > LAG_WARNING_SECONDS => Verdict::new(
            Health::Warning,
            "behind",
            format!("the oldest event that is not in it is {seconds:.0} s old"),
        )
        .page("Look at the lag", "/groups"),
        Some(_) => Verdict::good("fresh"),
    }
}

/// How far a view is: the worst of its topics. A paused view is as old as its pause.
#[must_use]
pub fn freshness(snapshot: &Snapshot, view: &ViewFacts) -> Lag {
    let lags = view.topics.iter().map(|topic| snapshot.lag_of_topic(topic));
    let lag = lags.reduce(|worst, lag| Lag {
        events: worst.events.zip(lag.events).map(|(a, b)| a + b),
        seconds: worst.seconds.zip(lag.seconds).map(|(a, b)| a.max(b)),
        is_upper_bound: worst.is_upper_bound || lag.is_upper_bound,
    });
    let mut lag = lag.unwrap_or_default();
    if let Some(pause) = &view.pause {
        let paused = (time::OffsetDateTime::now_utc() - pause.since).as_seconds_f64();
        lag.seconds = Some(lag.seconds.unwrap_or_default().max(paused));
        lag.events = None;
    }
    lag
}

#[cfg(test)]
mod tests {
    use super::{Health, Mend, of_slot_facts};
    use crate::snapshot::outbox::{OutboxFacts, SlotFacts};

    const MB: i64 = 1 << 20;

    fn verdict(change: impl FnOnce(&mut SlotFacts, &mut OutboxFacts)) -> super::Verdict {
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
