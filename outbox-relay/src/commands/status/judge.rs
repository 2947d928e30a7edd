//! What follows from the figures: the problems, the verdict and the exit code. Pure.

use service::status::{Judgement, Problem, Severity, State, Verdict, table};

use super::figures::Figures;
use crate::continuity::parking_note::StoppedAt;
use crate::findings::sentences;
use crate::process::row_name::{RowName, RowPlace};
use crate::process::stop::Stop;

/// The relay is paused or behind.
pub(crate) const PAUSED_OR_BEHIND: u8 = 50;
/// No relay reads the slot, and nothing keeps one from going on.
pub(crate) const NO_RELAY: u8 = 51;
/// Postgres or Kafka does not answer.
pub(crate) const AWAY: u8 = 52;
/// The codes that only `status` has. It also ends with the codes of the stops.
#[cfg(test)]
pub(crate) const CODES: [u8; 3] = [PAUSED_OR_BEHIND, NO_RELAY, AWAY];

/// A relay whose oldest unpublished row is older is behind, in seconds.
const BEHIND_AFTER_SECONDS: f64 = 10.0;
/// A relay that works writes a checkpoint at least every ten seconds while WAL is written. Where nobody knows how old the oldest row is, a relay is behind
/// whose last checkpoint is older than this, in seconds, ...
const SILENT_AFTER_SECONDS: f64 = 30.0;
/// ... and which has not confirmed more than this, in bytes. A calm server writes less.
const SILENT_FROM_BYTES: i64 = 1 << 20;
/// What a standby says of itself: no problem, since another relay works.
const STANDBY: &str = "warm standby";

/// What was found besides the figures. Each has the sentence that a stop, `check` or `/readyz` has.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    /// With which stops a relay ends, or has ended, by the stage that each concerns.
    pub(super) stops: Vec<(&'static str, Stop)>,
    /// Why the checkpoint cannot be seen, although Kafka answers.
    pub(super) hidden_checkpoint: Option<String>,
    /// Logical messages are published as well, and no table tells of those that wait.
    pub(super) takes_messages: bool,
    /// The row at which the relay stopped, if it has not been passed.
    pub(super) stopped_at: Option<StoppedAt>,
    /// The stop of a publication that cannot be used, in the words of `check`.
    pub(super) publication: Option<String>,
    /// Why the slot may be lost, or sends nothing.
    pub(super) slot_dangers: Vec<String>,
    /// The words of an operator's pause.
    pub(super) pause: Option<String>,
}

/// The stop of a relay that stopped at a row.
fn stop_at(row: &StoppedAt) -> Stop {
    let (position, what) = (row.position, row.reason.clone());
    let name = RowName {
        place: RowPlace::Stream(position),
        id: None,
    };
    let too_many_parked = Stop::TooManyParked {
        position,
        what: what.clone(),
    };
    if row.exit_code == Some(too_many_parked.exit_code()) {
        return too_many_parked;
    }
    Stop::Row { row: name, what }
}

/// What follows from the figures and from what was found.
pub(super) fn judge(figures: &Figures, found: &Found) -> Judgement {
    let mut problems = Vec::new();
    problems.extend(
        figures
            .postgres
            .away_because
            .clone()
            .map(|why| Problem::new("postgres", why)),
    );
    problems.extend(figures.kafka.away_because.clone().map(|why| Problem::new("kafka", why)));
    problems.extend(stops(figures, found));
    problems.extend(under_way(figures, found).map(|text| Problem::new("checkpoint", text)));
    problems.extend(
        found
            .hidden_checkpoint
            .clone()
            .map(|why| Problem::new("checkpoint", why)),
    );
    problems.extend(found.slot_dangers.iter().map(|danger| Problem::new("slot", danger)));
    problems.extend(found.pause.clone().map(|pause| Problem::warning("relay", pause)));
    problems.extend(nobody_reads(figures, &problems));
    problems.extend(said_by_the_relay(figures, &problems));
    problems.extend(is_behind(figures, found));
    problems.extend(unknown_age(figures, found));
    let parked = figures.parking.as_ref().map_or(0, |parking| parking.rows);
    problems.extend((parked > 0).then(|| Problem::warning("parking", sentences::rows_are_parked(parked))));
    let (verdict, exit_code) = verdict(figures, found, &problems);
    Judgement {
        verdict,
        problems,
        exit_code,
    }
}

/// The stops with which a relay has ended, or would end.
fn stops(figures: &Figures, found: &Found) -> Vec<Problem> {
    let mut problems: Vec<Problem> = found
        .stops
        .iter()
        .filter(|(_, stop)| unfinished_command(figures, stop).is_none())
        .map(|(stage, stop)| Problem::new(stage, stop.to_string()).with_exit_code(stop.exit_code()))
        .collect();
    let unusable = Stop::Publication {
        publication: String::new(),
        what: String::new(),
    };
    let publication = found.publication.as_ref();
    problems.extend(publication.map(|text| Problem::new("outbox", text).with_exit_code(unusable.exit_code())));
    // A relay that runs is past the row soon, or stops there again. And an operator may have said what becomes of the row.
    let stopped_at = found.stopped_at.as_ref();
    let stopped_at = stopped_at.filter(|row| !is_read(figures) && !row.park);
    problems.extend(stopped_at.map(|row| {
        let stop = stop_at(row);
        Problem::new("outbox", stop.to_string()).with_exit_code(row.exit_code.unwrap_or_else(|| stop.exit_code()))
    }));
    problems
}

/// The command that makes the slot, or makes it anew, where it has not finished and somebody reads the slot: the command itself, or a relay. No relay has
/// ended for this reason then, and typing the command again would not help.
fn unfinished_command(figures: &Figures, stop: &Stop) -> Option<&'static str> {
    match stop {
        Stop::InitUnfinished { .. } if is_read(figures) => Some("init"),
        Stop::RecoveryUnfinished { .. } if is_read(figures) => Some("recover"),
        _ => None,
    }
}

/// That such a command is under way.
fn under_way(figures: &Figures, found: &Found) -> Option<String> {
    let mut commands = found
        .stops
        .iter()
        .filter_map(|(_, stop)| unfinished_command(figures, stop));
    let command = commands.next()?;
    Some(format!(
        "`{command}` is under way, or was begun and a relay holds the slot; nothing else is published until `{command}` has finished"
    ))
}

/// Whether somebody reads the slot.
fn is_read(figures: &Figures) -> bool {
    figures.slot.as_ref().is_some_and(|slot| slot.is_active)
}

/// Whether a relay ought to publish now.
fn has_to_publish(figures: &Figures, found: &Found) -> bool {
    is_read(figures) && found.pause.is_none()
}

/// Nobody reads the slot, although nothing keeps a relay from it.
fn nobody_reads(figures: &Figures, so_far: &[Problem]) -> Option<Problem> {
    let slot = figures.slot.as_ref().filter(|slot| !slot.is_active)?;
    if so_far.iter().any(|problem| problem.exit_code.is_some()) {
        return None;
    }
    Some(Problem::new(
        "relay",
        format!(
            "no relay reads slot `{}`: nothing is published, and Postgres keeps the WAL; `outbox-relay run` goes on from the checkpoint",
            slot.name
        ),
    ))
}

/// What the relay's process says of itself and nobody has said yet.
fn said_by_the_relay(figures: &Figures, so_far: &[Problem]) -> Vec<Problem> {
    let Some(relay) = &figures.relay else {
        return Vec::new();
    };
    if relay.reasons.values().any(|reason| reason.contains(STANDBY)) {
        return Vec::new();
    }
    let is_new = |text: &str| !so_far.iter().any(|problem| problem.text.contains(text));
    let reasons = relay.reasons.iter().filter(|(_, text)| is_new(text));
    let reasons = reasons.map(|(part, text)| Problem::new("relay", format!("{part}: {text}")));
    // Its pause is told already, from the record itself.
    let warnings = relay.warnings.iter().filter(|(part, _)| *part != "pause");
    let warnings = warnings.map(|(part, text)| Problem::warning("relay", format!("{part}: {text}")));
    reasons.chain(warnings).collect()
}

/// Rows wait for too long, or look as if they did.
fn is_behind(figures: &Figures, found: &Found) -> Option<Problem> {
    if !has_to_publish(figures, found) {
        return None;
    }
    let what = match figures.outbox.oldest_unpublished_age_seconds {
        Some(age) if age > BEHIND_AFTER_SECONDS => {
            format!("the oldest row that is not published is {} old", table::seconds(age))
        }
        Some(_) => return None,
        None => is_silent(figures)?,
    };
    Some(Problem::new(
        "outbox",
        format!("{what}, although a relay reads the slot; `outbox-relay check` tells what may keep it"),
    ))
}

/// A relay that writes no checkpoint although WAL is written.
fn is_silent(figures: &Figures) -> Option<String> {
    let age = figures.checkpoint.as_ref()?.age_seconds?;
    let unconfirmed_bytes = figures.slot.as_ref()?.unconfirmed_bytes;
    (age > SILENT_AFTER_SECONDS && unconfirmed_bytes > SILENT_FROM_BYTES).then(|| {
        format!(
            "the last checkpoint is {} old, and {} of WAL are not confirmed",
            table::seconds(age),
            // Above 0, as just seen.
            table::bytes(unconfirmed_bytes.unsigned_abs())
        )
    })
}

/// Nobody knows whether rows wait, and somebody may mend that. Where messages alone are the outbox, nobody can.
fn unknown_age(figures: &Figures, found: &Found) -> Option<Problem> {
    let why = figures.outbox.unknown_because.as_ref()?;
    let could_be_known = figures.outbox.table.is_some() && figures.checkpoint.is_some();
    (could_be_known && has_to_publish(figures, found))
        .then(|| Problem::warning("outbox", format!("whether rows wait is not known: {why}")))
}

/// Whether everything that was committed is published, as far as the rows of the table tell. Without the commit of a published row, rows that were
/// written before the checkpoint may wait. The table does not tell of messages.
fn is_all_published(figures: &Figures, found: &Found) -> bool {
    let checkpoint = figures.checkpoint.as_ref();
    !found.takes_messages
        && checkpoint.is_some_and(|checkpoint| checkpoint.partial.is_none() && checkpoint.newest_row_at.is_some())
}

fn verdict(figures: &Figures, found: &Found, problems: &[Problem]) -> (Verdict, u8) {
    let with = |state, text: String, exit_code| (Verdict { state, text }, exit_code);
    let is_read = is_read(figures);
    if let Some(code) = problems.iter().find_map(|problem| problem.exit_code) {
        let text = if is_read {
            format!("a relay reads the slot, and cannot go on; it ends with exit code {code}")
        } else {
            format!("no relay can go on; one that is started ends with exit code {code}")
        };
        return with(State::Stopped, text, code);
    }
    let servers = [
        ("Postgres", &figures.postgres.away_because),
        ("Kafka", &figures.kafka.away_because),
    ];
    if let Some(away) = Verdict::away(servers, &still_known(figures)) {
        return (away, AWAY);
    }
    if let (Some(pause), true) = (&figures.pause, found.pause.is_some()) {
        let for_now = table::seconds(pause.paused_seconds);
        let text = format!("an operator has paused the relay for {for_now} now ({})", pause.reason);
        // A pause of which no relay knows is none: nobody reads the slot.
        let code = if is_read { PAUSED_OR_BEHIND } else { NO_RELAY };
        return with(State::Paused, text, code);
    }
    if !is_read {
        return with(State::Stopped, "no relay reads the slot".to_owned(), NO_RELAY);
    }
    if under_way(figures, found).is_some() {
        let text = "the slot is read, and the command that makes it has not finished".to_owned();
        return with(State::Behind, text, PAUSED_OR_BEHIND);
    }
    let oldest = figures.outbox.oldest_unpublished_age_seconds;
    let published = match oldest {
        Some(age) if age > 0.0 => format!("the oldest row that is not published is {} old", table::seconds(age)),
        Some(_) if is_all_published(figures, found) => "everything that was committed is published".to_owned(),
        Some(_) => "no row is known to wait".to_owned(),
        None => "a relay reads the slot; whether rows wait is not known".to_owned(),
    };
    let works = problems.iter().all(|problem| problem.severity == Severity::Warning);
    if works {
        with(State::Well, published, 0)
    } else {
        with(State::Behind, published, PAUSED_OR_BEHIND)
    }
}

/// What is known although a server is away.
fn still_known(figures: &Figures) -> String {
    let slot = figures.slot.as_ref().map(|slot| {
        let read = if slot.is_active {
            "a relay reads the slot"
        } else {
            "no relay reads the slot"
        };
        // The server counts bytes that it has, which are never fewer than 0.
        let kept = table::bytes(u64::try_from(slot.retained_bytes).unwrap_or(0));
        format!("{read}, which keeps {kept} of WAL")
    });
    let checkpoint = figures.checkpoint.as_ref();
    let published = checkpoint.map(|checkpoint| format!("everything up to {} is published", checkpoint.published_lsn));
    let known: Vec<String> = slot.into_iter().chain(published).collect();
    if known.is_empty() {
        "nothing else is known".to_owned()
    } else {
        known.join("; ")
    }
}

#[cfg(test)]
mod tests;
