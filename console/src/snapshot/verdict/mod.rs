//! What is wrong with a stage, in one line, and what mends it.
//!
//! The words are those of the programs wherever a program says what is wrong: their commands `status`, relay and view-builder in `/readyz`, positions and views in the
//! database.

mod slot;
mod words;

pub use self::slot::{of_slot, of_slot_facts};
use self::words::in_its_words;
use super::{Lag, OutboxParts, Part, Snapshot};
use crate::snapshot::builder::BuilderFacts;
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

/// The outbox table.
#[must_use]
pub fn of_outbox(outbox: &OutboxParts) -> Verdict {
    let verdict = Verdict::away(&outbox.database).unwrap_or_else(|| Verdict::good("answers"));
    in_its_words(outbox.status.as_ref(), &["outbox"], verdict)
}

/// The relay of an outbox.
#[must_use]
pub fn of_relay(outbox: &OutboxParts) -> Verdict {
    let stages = ["relay", "checkpoint", "parking"];
    in_its_words(outbox.status.as_ref(), &stages, of_relay_alone(outbox))
}

/// By what the relay itself says.
fn of_relay_alone(outbox: &OutboxParts) -> Verdict {
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
pub fn of_builder(snapshot: &Snapshot, builder: &Part<BuilderFacts>) -> Verdict {
    let stages = ["builders", "partitions"];
    in_its_words(snapshot.builder_status.as_ref(), &stages, of_builder_alone(builder))
}

/// By what the builder itself says.
fn of_builder_alone(builder: &Part<BuilderFacts>) -> Verdict {
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
