//! Holds `docs/exit-codes.md`, `--help` and the texts of the stops against each other and against the command line.

use std::collections::BTreeSet;
use std::path::Path;

use clap::Parser;

use crate::commands::status;
use crate::process::row_name::{RowName, RowPlace, RowPosition};
use crate::process::stop::{CHECKPOINT_PARTITIONS_CURE, PARTITIONS_CURE, RECOVER_PARTITIONS_CURE, Stop};
use crate::settings::Cli;
use pg_replication::Lsn;

const PAGE: &str = include_str!("../../../docs/exit-codes.md");
/// Codes after which there is no single command that goes on: ended as asked, and whatever else may go wrong.
const WITHOUT_COMMAND: [u8; 1] = [0];
/// Stops whose text names a setting or a row to mend, after which the same command goes on.
const MENDED_OUTSIDE: [u8; 7] = [2, 19, 25, 30, 31, 33, 34];

/// One stop of each kind. A new kind does not compile before it is in the `match` below; put it into the list, too.
fn examples() -> Vec<Stop> {
    let text = || "text".to_owned();
    let row = || RowName {
        place: RowPlace::Table,
        id: Some(text()),
    };
    let partitions_changed = |cure| Stop::PartitionsChanged {
        topic: text(),
        expected: 1,
        found: 2,
        cure,
    };
    let examples = vec![
        Stop::Config { what: text() },
        Stop::RowsCountedOtherwise {
            commit_lsn: Lsn(1),
            rows: 2,
            then: text(),
            now: text(),
        },
        Stop::NotInitialised {
            slot: text(),
            database: text(),
            topic: text(),
        },
        Stop::InitUnfinished { slot: text() },
        Stop::SlotGone {
            slot: text(),
            topic: text(),
            key: text(),
            checkpoint: Lsn(1),
        },
        Stop::SlotInvalidated {
            slot: text(),
            reason: text(),
            checkpoint: Lsn(1),
        },
        Stop::SlotUnusable {
            slot: text(),
            database: text(),
            found: text(),
        },
        Stop::SlotAhead {
            slot: text(),
            slot_lsn: Lsn(2),
            checkpoint: Lsn(1),
        },
        Stop::CheckpointMissing {
            slot: text(),
            topic: text(),
            key: text(),
        },
        Stop::CheckpointGarbled {
            key: text(),
            topic: text(),
            offset: 1,
            what: text(),
        },
        Stop::CheckpointWentBack {
            key: text(),
            topic: text(),
            offset: 1,
            expected: Lsn(2),
            found: Lsn(1),
        },
        Stop::OtherCluster {
            topic: text(),
            expected: text(),
            found: text(),
        },
        Stop::OtherTimeline {
            expected: 1,
            found: 2,
            missing: text(),
        },
        Stop::ServerBehind {
            server: Lsn(1),
            checkpoint: Lsn(2),
        },
        partitions_changed(PARTITIONS_CURE),
        partitions_changed(RECOVER_PARTITIONS_CURE),
        partitions_changed(CHECKPOINT_PARTITIONS_CURE),
        Stop::Publication {
            publication: text(),
            what: text(),
        },
        Stop::PublicationChanged {
            publication: text(),
            what: text(),
        },
        Stop::OutboxRenamed {
            table: text(),
            name: text(),
            commit_lsn: Lsn(1),
        },
        Stop::PublishedByAnotherSlot {
            outbox: text(),
            topic: text(),
            other: text(),
            slot: text(),
        },
        Stop::PublishedFromAnotherServer {
            key: text(),
            what: text(),
        },
        Stop::TopicGone {
            topic: text(),
            expected: text(),
            cure: "`outbox-relay recover`",
        },
        Stop::TopicRecreated {
            topic: text(),
            expected: text(),
            found: text(),
            cure: "`outbox-relay recover`",
        },
        Stop::CheckpointTopicUnsafe {
            topic: text(),
            what: text(),
            command: text(),
        },
        Stop::ParkingTopicUnsafe {
            topic: text(),
            what: text(),
            command: text(),
        },
        Stop::Row {
            row: row(),
            what: text(),
        },
        Stop::RecordTooLarge {
            row: row(),
            topic: text(),
            size: 2,
            limit: text(),
        },
        Stop::TopicMissing {
            topic: text(),
            column: text(),
            row: row(),
        },
        Stop::TopicRefused {
            topic: text(),
            what: text(),
            row: Some(row()),
        },
        Stop::TooManyParked {
            position: RowPosition {
                commit_lsn: Lsn(1),
                index: 0,
            },
            what: text(),
        },
        Stop::ParkedRowsMissing {
            topic: text(),
            expected: 2,
            found: 1,
        },
        Stop::TransactionHangs {
            topic: text(),
            partition: 0,
            offset: 1,
            bootstrap_servers: text(),
            allowed_minutes: 15,
        },
        Stop::RowUpdated { commit_lsn: Lsn(1) },
        Stop::NothingToRecover {
            slot: text(),
            checkpoint: Lsn(1),
        },
        Stop::NotConfirmed { what: text() },
        Stop::RecoveryUnfinished { slot: text() },
    ];
    for example in &examples {
        match example {
            Stop::Config { .. }
            | Stop::RowsCountedOtherwise { .. }
            | Stop::NotInitialised { .. }
            | Stop::InitUnfinished { .. }
            | Stop::SlotGone { .. }
            | Stop::SlotInvalidated { .. }
            | Stop::SlotUnusable { .. }
            | Stop::SlotAhead { .. }
            | Stop::CheckpointMissing { .. }
            | Stop::CheckpointGarbled { .. }
            | Stop::CheckpointWentBack { .. }
            | Stop::OtherCluster { .. }
            | Stop::OtherTimeline { .. }
            | Stop::ServerBehind { .. }
            | Stop::PartitionsChanged { .. }
            | Stop::Publication { .. }
            | Stop::PublicationChanged { .. }
            | Stop::OutboxRenamed { .. }
            | Stop::PublishedByAnotherSlot { .. }
            | Stop::PublishedFromAnotherServer { .. }
            | Stop::TopicGone { .. }
            | Stop::TopicRecreated { .. }
            | Stop::CheckpointTopicUnsafe { .. }
            | Stop::ParkingTopicUnsafe { .. }
            | Stop::Row { .. }
            | Stop::RecordTooLarge { .. }
            | Stop::TopicMissing { .. }
            | Stop::TopicRefused { .. }
            | Stop::TooManyParked { .. }
            | Stop::ParkedRowsMissing { .. }
            | Stop::TransactionHangs { .. }
            | Stop::RowUpdated { .. }
            | Stop::NothingToRecover { .. }
            | Stop::NotConfirmed { .. }
            | Stop::RecoveryUnfinished { .. } => {}
        }
    }
    examples
}

/// A line of the page's table.
struct PageRow {
    code: u8,
    /// What to type.
    commands: Vec<String>,
    tests: Vec<String>,
}

fn page_rows() -> Vec<PageRow> {
    let rows = PAGE.lines().filter_map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let code = cells.get(1)?.parse().ok()?;
        assert_eq!(cells.len(), 7, "five cells: {line}");
        Some(PageRow {
            code,
            commands: commands_in(cells[4]),
            tests: between_backticks(cells[5]),
        })
    });
    rows.collect()
}

fn between_backticks(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn commands_in(text: &str) -> Vec<String> {
    let quoted = between_backticks(text).into_iter();
    quoted.filter(|quoted| quoted.starts_with("outbox-relay ")).collect()
}

/// Parses `outbox-relay …` as the program does. A moment in quotes is one word, and a name that the reader fills in gets an example.
fn assert_parses(command: &str) {
    let words = command.replace("'2026-11-28 09:30+01'", "2026-11-28");
    let words = words
        .replace("--slot OTHER_NAME", "--slot other_name")
        .replace("--slot NAME", "--slot name");
    let words = words.split(' ').chain(["--database-url", "postgres://u@h/d"]);
    if let Err(err) = Cli::try_parse_from(words) {
        panic!("`{command}` is no command: {err}");
    }
}

/// The codes in `--help`: numbers at the beginning of a line's columns.
fn codes_in_help() -> BTreeSet<u8> {
    let columns = Stop::EXIT_CODES.lines().filter(|line| line.starts_with("  "));
    let columns = columns.flat_map(|line| line.split("  "));
    columns
        .filter_map(|column| column.split_whitespace().next()?.parse().ok())
        .collect()
}

#[test]
fn the_page_and_help_have_the_exit_code_of_every_stop_and_of_status_once_and_no_other() {
    let examples = examples();
    let codes_of_stops = examples.iter().map(Stop::exit_code);
    let stops: BTreeSet<u8> = codes_of_stops.chain([0, 1, 70]).chain(status::CODES).collect();
    assert_eq!(codes_in_help(), stops, "--help");
    let codes: Vec<u8> = page_rows().iter().map(|row| row.code).collect();
    assert!(
        codes.is_sorted_by(|one, next| one < next),
        "the page's order: {codes:?}"
    );
    assert_eq!(codes.into_iter().collect::<BTreeSet<u8>>(), stops, "docs/exit-codes.md");
}

#[test]
fn every_command_of_the_page_is_one_and_every_code_has_one() {
    for command in commands_in(PAGE).iter().filter(|command| !command.contains('…')) {
        if !command.ends_with("--help") {
            assert_parses(command);
        }
    }
    for row in page_rows() {
        let has_command = !row.commands.is_empty();
        assert_eq!(has_command, !WITHOUT_COMMAND.contains(&row.code), "code {}", row.code);
    }
}

#[test]
fn every_command_in_a_stops_text_is_one_and_every_stop_names_what_goes_on() {
    for stop in examples() {
        let commands = commands_in(&stop.to_string());
        commands.iter().for_each(|command| assert_parses(command));
        let goes_on = !commands.is_empty() || MENDED_OUTSIDE.contains(&stop.exit_code());
        assert!(
            goes_on || matches!(stop, Stop::NotConfirmed { .. }),
            "{} names no command: {stop}",
            stop.exit_code()
        );
    }
}

/// After the stops that `recover` mends, it is the first command that the text names.
fn recover_stops() -> Vec<Stop> {
    let mended_by_recover = |stop: &Stop| {
        matches!(
            stop.exit_code(),
            10 | 11 | 12 | 13 | 14 | 15 | 16 | 17 | 18 | 20 | 21 | 35 | 42
        )
    };
    examples().into_iter().filter(mended_by_recover).collect()
}

#[test]
fn recover_is_the_first_choice_and_the_flags_of_init_the_second() {
    for stop in recover_stops() {
        let commands = commands_in(&stop.to_string());
        let recover = commands
            .iter()
            .position(|command| command.starts_with("outbox-relay recover"));
        let accept = commands.iter().position(|command| command.contains("--accept"));
        assert!(recover.is_some(), "{} does not name recover", stop.exit_code());
        assert!(
            accept.is_none_or(|accept| recover < Some(accept)),
            "{} names a flag before recover",
            stop.exit_code()
        );
    }
}

#[test]
fn every_test_that_the_page_names_exists() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/relay");
    let sources = sources_below(&tests);
    for row in page_rows() {
        for test in row.tests {
            let declared = format!("async fn {test}()");
            assert!(sources.contains(&declared), "code {}: no test {test}", row.code);
        }
    }
}

fn sources_below(folder: &Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            text += &sources_below(&path);
        } else {
            text += &std::fs::read_to_string(&path).unwrap();
        }
    }
    text
}
