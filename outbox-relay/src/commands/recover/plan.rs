//! The plan that the operator reads and confirms before `recover` changes anything.

use std::fmt::Write as _;

use service::clock::now_us;

use super::compare::ComparedOutbox;
use super::loss::describe_loss;
use super::situation::Situation;
use crate::commands::confirm::{ask_for_yes, print_now};
use crate::continuity::comparison::Verdicts;
use crate::process::stop::{RelayError, Stop};
use crate::settings::{Config, RecoverOptions};

/// Prints why there is something to recover, what the comparison found, and what will be done.
///
/// # Errors
/// The output is closed.
pub(super) fn print_plan(
    config: &Config,
    options: &RecoverOptions,
    situation: &Situation,
    compared: &ComparedOutbox,
    oldest_row_ms: Option<i64>,
) -> Result<(), RelayError> {
    let mut text = String::new();
    for (name, value) in plan_lines(config, options, situation, compared, oldest_row_ms) {
        // Writing to a String cannot fail.
        let _infallible = writeln!(text, "{name:<20}{value}");
    }
    print_now(&text)
}

fn plan_lines(
    config: &Config,
    options: &RecoverOptions,
    situation: &Situation,
    compared: &ComparedOutbox,
    oldest_row_ms: Option<i64>,
) -> Vec<(&'static str, String)> {
    let mut lines: Vec<(&str, String)> = situation
        .losses
        .iter()
        .filter_map(describe_loss)
        .map(|loss| ("why", loss))
        .collect();
    if lines.is_empty() {
        lines.push((
            "why",
            "--compare-anyway, although nothing is found to be broken".to_owned(),
        ));
    }
    let wal_end = situation.source.wal_end;
    let checkpoint = match situation.checkpoint() {
        Some(checkpoint) => format!("{}; the server's WAL ends at {wal_end}", checkpoint.published.lsn),
        None => format!("none that can be read; the server's WAL ends at {wal_end}"),
    };
    let topics: Vec<String> = compared
        .records
        .iter()
        .map(|(topic, records)| format!("{topic} ({records} records)"))
        .collect();
    let position = options
        .since_position
        .map(|position| format!("the commit at {position}"));
    let rows = match options.since.as_ref().or(position.as_ref()) {
        None => compared.rows.to_string(),
        Some(since) => format!(
            "{}, those that were created since {since}; older ones count as published",
            compared.rows
        ),
    };
    lines.extend([
        ("checkpoint", checkpoint),
        ("rows to compare", rows),
        ("topics", topics.join(", ")),
        (
            "to be published",
            format!("{} rows that are in no topic", compared.verdicts.missing.len()),
        ),
        (
            "taken as published",
            format!(
                "{} rows whose records a topic has removed since",
                compared.verdicts.forgotten
            ),
        ),
        (
            "undecided",
            format!(
                "{} rows that may have been published or not",
                compared.verdicts.undecided.len()
            ),
        ),
        (
            "the outbox",
            how_far_the_outbox_reaches_back(
                oldest_row_ms,
                situation.known.as_ref().and_then(|found| found.written_ms),
            ),
        ),
        (
            "then",
            format!(
                "slot {} is made anew, what is in no topic at its snapshot is published, and the relay goes on from there",
                config.source.slot
            ),
        ),
    ]);
    lines
}

/// Compares the age of the outbox's oldest row with the age of the last checkpoint.
fn how_far_the_outbox_reaches_back(oldest_row_ms: Option<i64>, checkpoint_ms: Option<i64>) -> String {
    let age_s = |since_ms: i64| (now_us() / 1_000 - since_ms).max(0) / 1_000;
    match (oldest_row_ms, checkpoint_ms) {
        (Some(oldest_ms), Some(checkpoint_ms)) if oldest_ms <= checkpoint_ms => format!(
            "reaches back {} s, beyond the last checkpoint, {} s ago: rows since then are missing only if somebody deleted them",
            age_s(oldest_ms),
            age_s(checkpoint_ms)
        ),
        (Some(oldest_ms), Some(checkpoint_ms)) => format!(
            "reaches back {} s only, the last checkpoint is from {} s ago: rows that were deleted between the two are lost for good, if there were any",
            age_s(oldest_ms),
            age_s(checkpoint_ms)
        ),
        _ => "does not tell how far back it reaches: rows that were deleted unpublished are lost for good, if there were any"
            .to_owned(),
    }
}

/// Fails if rows are undecided and the operator did not say what to do with them.
///
/// # Errors
/// [`Stop::NotConfirmed`] names `--undecided`.
pub(super) fn ensure_every_row_is_decided(verdicts: &Verdicts, options: &RecoverOptions) -> Result<(), Stop> {
    if verdicts.undecided.is_empty() || options.undecided.is_some() {
        return Ok(());
    }
    Err(Stop::NotConfirmed {
        what: format!(
            "{} rows may have been published and removed from their topic since, or not; say `outbox-relay recover --undecided publish` (they may come twice) or `outbox-relay recover --undecided skip` (they may be lost)",
            verdicts.undecided.len()
        ),
    })
}

/// Asks on the terminal, unless `--yes` was given.
///
/// # Errors
/// [`Stop::NotConfirmed`] for every answer but `yes`, and where there is neither a terminal nor `--yes`.
pub(super) async fn ask_operator_to_confirm(options: &RecoverOptions) -> Result<(), RelayError> {
    if options.yes {
        return Ok(());
    }
    ask_for_yes(
        "carry this out? [yes/no] ",
        "there is no terminal to ask on; `outbox-relay recover --yes` carries this out",
        "the answer was not `yes`; `outbox-relay recover` asks again",
    )
    .await
}

#[cfg(test)]
mod tests {
    use super::how_far_the_outbox_reaches_back;

    #[test]
    fn an_outbox_that_does_not_reach_back_to_the_checkpoint_is_said_to_have_lost_what_was_deleted() {
        let reaches = how_far_the_outbox_reaches_back;
        assert!(reaches(Some(1_000), Some(2_000)).contains("beyond the last checkpoint"));
        assert!(reaches(Some(2_000), Some(1_000)).contains("lost for good"));
        assert!(reaches(None, Some(1_000)).contains("does not tell"));
    }
}
