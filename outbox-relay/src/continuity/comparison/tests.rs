//! Tests of the comparison.

use std::collections::HashMap;

use super::{CLOCKS_DIFFER_MS, Comparison, Memory, Row, RowsOfAKey, TRANSACTION_OPEN_MAX_MS};
use crate::continuity::event_ids::EventIds;

/// Rows as (id, key, created_ms, tombstone), those without a record, and what becomes of them: missing, undecided, forgotten.
fn compare(memory: &Memory, rows: &[(&str, &str, i64, bool)], absent: &[&str]) -> (Vec<String>, Vec<String>, u64) {
    compare_in(&[0], memory, rows, absent)
}

/// As [`compare`], where the rows' records would be in one of `partitions`.
fn compare_in(
    partitions: &[i32],
    memory: &Memory,
    rows: &[(&str, &str, i64, bool)],
    absent: &[&str],
) -> (Vec<String>, Vec<String>, u64) {
    compare_rows(RowsOfAKey::CommitAsCreated, partitions, memory, rows, absent)
}

fn compare_rows(
    rows_of_a_key: RowsOfAKey,
    partitions: &[i32],
    memory: &Memory,
    rows: &[(&str, &str, i64, bool)],
    absent: &[&str],
) -> (Vec<String>, Vec<String>, u64) {
    let mut ids = EventIds::default();
    absent.iter().for_each(|id| ids.insert(id));
    let topics = [memory.clone()];
    let mut comparison = Comparison::new(&topics, rows_of_a_key);
    for (id, key, created_ms, is_tombstone) in rows.iter().copied() {
        let key = Some(key.as_bytes());
        comparison.add_row(
            Row {
                id,
                topic: 0,
                partitions,
                key,
                created_ms,
                is_tombstone,
            },
            &ids,
        );
    }
    let verdicts = comparison.decide();
    let those = |ids: &EventIds| {
        let ids = rows.iter().filter(|row| ids.contains(row.0));
        ids.map(|row| row.0.to_owned()).collect()
    };
    (those(&verdicts.missing), those(&verdicts.undecided), verdicts.forgotten)
}

fn compacted() -> Memory {
    Memory {
        compacted_before_ms: Some(100),
        ..Memory::default()
    }
}

#[test]
fn a_topic_that_forgets_nothing_lacks_what_was_not_published() {
    let rows = [("1", "k", 1, false), ("2", "k", 2, false)];
    assert_eq!(
        compare(&Memory::default(), &rows, &["1"]),
        (vec!["1".to_owned()], vec![], 0)
    );
}

#[test]
fn a_row_before_its_keys_last_record_was_compacted_away_and_one_behind_it_is_missing() {
    let rows = [
        ("1", "k", 1, false),
        ("2", "k", 2, false),
        ("3", "k", 3, false),
        ("4", "other", 4, false),
    ];
    assert_eq!(
        compare(&compacted(), &rows, &["1", "3", "4"]),
        (vec!["3".to_owned(), "4".to_owned()], vec![], 1)
    );
}

#[test]
fn a_row_that_is_too_young_to_be_compacted_is_missing_whatever_stands_behind_it() {
    let rows = [("1", "k", 100, false), ("2", "k", 101, false)];
    assert_eq!(compare(&compacted(), &rows, &["1"]), (vec!["1".to_owned()], vec![], 0));
}

#[test]
fn a_tombstone_may_have_wiped_its_key() {
    let rows = [("1", "k", 1, false), ("2", "k", 2, true), ("3", "k", 3, false)];
    assert_eq!(
        compare(&compacted(), &rows, &["1", "2", "3"]),
        (vec!["3".to_owned()], vec!["1".to_owned(), "2".to_owned()], 0)
    );
}

#[test]
fn where_retention_removed_records_a_row_is_missing_only_well_behind_the_first_one_left() {
    let memory = Memory {
        removed_before_ms: HashMap::from([(0, 50_000)]),
        ..Memory::default()
    };
    let rows = [
        ("1", "k", 10_000, false),
        ("2", "other", 40_000, false),
        ("3", "k", 50_000, false),
        // Its commit may have been stamped after the first record's, and stand before it.
        ("4", "third", 50_001, false),
        ("5", "k", 70_000, false),
    ];
    assert_eq!(
        compare(&memory, &rows, &["1", "2", "4", "5"]),
        (vec!["5".to_owned()], vec!["2".to_owned(), "4".to_owned()], 1)
    );
}

#[test]
fn a_row_may_be_forgotten_by_the_partition_where_a_former_number_of_partitions_led() {
    let memory = Memory {
        removed_before_ms: HashMap::from([(1, 50_000)]),
        ..Memory::default()
    };
    let rows = [("1", "k", 10_000, false), ("2", "k", 70_000, false)];
    let absent = ["1", "2"];
    let told = |partitions: &[i32]| compare_in(partitions, &memory, &rows, &absent);
    let both = || vec!["1".to_owned(), "2".to_owned()];
    assert_eq!(told(&[5]), (both(), vec![], 0), "it removed nothing");
    assert_eq!(told(&[5, 1]), (vec!["2".to_owned()], vec!["1".to_owned()], 0));
}

/// The rows of a key need not have committed in the order of their `created_at`, as with `now()`.
#[test]
fn where_rows_of_a_key_commit_in_any_order_only_what_time_proves_is_decided() {
    const DAY_MS: i64 = TRANSACTION_OPEN_MAX_MS;
    let newest_ms = 3 * DAY_MS;
    let memory = Memory {
        compacted_before_ms: Some(i64::MAX),
        newest_ms: Some(newest_ms),
        ..Memory::default()
    };
    let later_ms = newest_ms + CLOCKS_DIFFER_MS;
    let rows = [
        ("forgotten", "k", newest_ms - DAY_MS - 1, false),
        // It may have committed after the row with the record, which was created later.
        ("before", "k", newest_ms - 2, false),
        ("with-record", "k", newest_ms - 1, false),
        // It may have committed before the row with the record, which then had its record removed.
        ("after", "k", later_ms, false),
        ("missing", "k", later_ms + 1, false),
        ("alone", "other", newest_ms - 2 * DAY_MS, false),
        ("tombstone", "third", newest_ms, true),
    ];
    let absent = ["forgotten", "before", "after", "missing", "alone", "tombstone"];
    let told = compare_rows(RowsOfAKey::CommitAfterCreation, &[0], &memory, &rows, &absent);
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    assert_eq!(
        told,
        (
            names(&["missing", "alone"]),
            names(&["before", "after", "tombstone"]),
            1
        )
    );
}

#[test]
fn where_rows_have_no_age_and_no_order_those_of_a_published_key_are_undecided() {
    let memory = Memory {
        newest_ms: Some(3 * TRANSACTION_OPEN_MAX_MS),
        ..compacted()
    };
    let rows = [("1", "k", 0, false), ("2", "k", 0, false)];
    let told = compare_rows(RowsOfAKey::CommitAfterCreation, &[0], &memory, &rows, &["1"]);
    assert_eq!(told, (vec![], vec!["1".to_owned()], 0));
}

#[test]
fn where_records_expire_or_a_tombstone_wiped_them_a_row_after_the_newest_record_may_have_been_published() {
    let later_ms = CLOCKS_DIFFER_MS + 2;
    let expiring = Memory {
        removed_before_ms: HashMap::from([(0, i64::MAX)]),
        newest_ms: Some(1),
        ..Memory::default()
    };
    let rows = [("1", "k", later_ms, false)];
    let told = compare_rows(RowsOfAKey::CommitAfterCreation, &[0], &expiring, &rows, &["1"]);
    assert_eq!(told, (vec![], vec!["1".to_owned()], 0));
    let compacting = Memory {
        compacted_before_ms: Some(i64::MAX),
        newest_ms: Some(1),
        ..Memory::default()
    };
    let rows = [("update", "k", later_ms, false), ("tombstone", "k", later_ms + 1, true)];
    let told = compare_rows(
        RowsOfAKey::CommitAfterCreation,
        &[0],
        &compacting,
        &rows,
        &["update", "tombstone"],
    );
    assert_eq!(told, (vec![], vec!["update".to_owned(), "tombstone".to_owned()], 0));
}

#[test]
fn where_an_application_sets_created_at_only_a_key_without_a_record_is_decided() {
    let memory = Memory {
        newest_ms: Some(3 * TRANSACTION_OPEN_MAX_MS),
        compacted_before_ms: Some(i64::MAX),
        ..Memory::default()
    };
    let rows = [
        ("old", "k", 1, false),
        ("with-record", "k", 2, false),
        ("future", "k", 9 * TRANSACTION_OPEN_MAX_MS, false),
        ("alone", "other", 1, false),
    ];
    let told = compare_rows(
        RowsOfAKey::CommitAtAnyTime,
        &[0],
        &memory,
        &rows,
        &["old", "future", "alone"],
    );
    assert_eq!(
        told,
        (vec!["alone".to_owned()], vec!["old".to_owned(), "future".to_owned()], 0)
    );
}
