//! `view-builder verify` tells each row of a view that is not what its source says, and no other.

use std::time::Duration;

use view_builder::commands::verify::compare::{BucketLine, Outcome, State, compare};
use view_builder::process::failure::Failure;

use super::support::comparison::{
    DifferingRow, NothingOnTheWay, Undecided, World, assert_every_bucket_is, differing_rows, report, undecided,
};

fn equal_bucket(name: Option<&str>, rows: i64) -> BucketLine {
    BucketLine {
        bucket: name.map(str::to_owned),
        rows_source: rows,
        rows_view: rows,
        state: State::Equal,
    }
}

#[tokio::test]
async fn equal_tables_are_told_as_equal_with_every_bucket() {
    let world = World::equal().await;
    let (source, view) = world.sides_of_user_view().await;
    let outcome = compare(&source, &view, Some(&mut NothingOnTheWay), Duration::ZERO, true)
        .await
        .unwrap();
    assert_eq!(differing_rows(&outcome), []);
    assert_eq!(undecided(&outcome), Undecided::default());
    assert_eq!(
        outcome.buckets,
        [
            equal_bucket(None, 1),
            equal_bucket(Some(""), 1),
            equal_bucket(Some("개발팀"), 2),
            equal_bucket(Some("기획팀"), 1),
        ]
    );
    let report = report(outcome, 20, false);
    assert!(report.verdict().is_ok());
    assert!(report.to_string().ends_with("\nequal\n"), "{report}");
}

#[tokio::test]
async fn the_time_of_processing_is_no_difference() {
    let world = World::equal().await;
    world
        .edit_views("update user_view set last_processed_at = 'epoch' where user_id = 1")
        .await;
    let outcome = world.compare_user_view(&mut NothingOnTheWay).await;
    assert_eq!((outcome.rows_source, outcome.rows_view), (5, 5));
    assert_eq!(differing_rows(&outcome), []);
}

/// A world with a difference of each kind, and how its views compare.
async fn outcome_of_every_kind() -> Outcome {
    let world = World::equal().await;
    world.insert_user(6, 2, Some("기획팀")).await;
    world
        .edit_views(
            "update user_view set email = 'by hand' where user_id = 1;
             update user_view set version = 2 where user_id = 2;
             delete from user_view where user_id = 3;
             update user_view set department = '' where user_id = 4;
             insert into user_view (user_id, name, email, department, status, created_at, updated_at)
             values (-9, 'n', 'e', '개발팀', 'ACTIVE', '2025-01-01', '2025-01-01')",
        )
        .await;
    world.compare_user_view(&mut NothingOnTheWay).await
}

#[tokio::test]
async fn every_kind_of_difference_is_told_once_with_its_key_and_versions() {
    let outcome = outcome_of_every_kind().await;
    assert_eq!(
        differing_rows(&outcome),
        [
            DifferingRow::extra(-9, 1),
            DifferingRow::different(1, 1, 1),
            DifferingRow::different(2, 3, 2),
            DifferingRow::missing(3, 1),
            DifferingRow::different(4, 1, 1),
            DifferingRow::missing(6, 2),
        ]
    );
    assert_eq!(undecided(&outcome), Undecided::default());
    assert_every_bucket_is(&outcome, State::Different);
}

#[tokio::test]
async fn the_report_lists_as_many_differences_as_asked_and_no_values() {
    let report = report(outcome_of_every_kind().await, 2, false);
    assert!(matches!(report.verdict(), Err(Failure::Different)));
    let text = report.to_string();
    assert!(text.contains("4 more rows differ"), "{text}");
    assert!(text.contains("version 1 of \"개발팀\", other content"), "{text}");
    assert!(!text.contains("by hand"), "{text}");
    assert!(!text.contains("not in the view"), "{text}");
}

#[tokio::test]
async fn rows_that_have_changed_their_buckets_with_each_other_are_different() {
    let world = World::equal().await;
    world
        .edit_views("update user_view set department = case user_id when 1 then '기획팀' else '개발팀' end where user_id in (1, 3)")
        .await;
    let outcome = world.compare_user_view(&mut NothingOnTheWay).await;
    assert_eq!(
        differing_rows(&outcome),
        [DifferingRow::different(1, 1, 1), DifferingRow::different(3, 1, 1)]
    );
    let rows: Vec<_> = outcome
        .buckets
        .iter()
        .map(|line| (line.rows_source, line.rows_view))
        .collect();
    assert_eq!(rows, [(2, 2), (1, 1)], "the counts tell nothing");
}

/// More users than a comparison holds, none of them in the view.
async fn outcome_of_an_empty_view() -> Outcome {
    let world = World::empty().await;
    world
        .change_source(
            "insert into users (id, name, email, department, status) overriding system value
             select n, 'n', n::text, n % 3, 'ACTIVE' from generate_series(1, 50002) as n",
        )
        .await;
    world.compare_user_view(&mut NothingOnTheWay).await
}

#[tokio::test]
async fn more_rows_than_can_be_held_are_counted() {
    let outcome = outcome_of_an_empty_view().await;
    assert_eq!((outcome.rows_source, outcome.rows_view), (50_002, 0));
    assert_eq!(outcome.differences.len(), 50_000);
    let two_beyond = Undecided {
        not_looked_at_again: 2,
        ..Undecided::default()
    };
    assert_eq!(undecided(&outcome), two_beyond);
}

#[tokio::test]
async fn the_json_report_has_each_listed_row_and_the_number_of_the_others() {
    let report = report(outcome_of_an_empty_view().await, 1, true);
    let told: serde_json::Value = serde_json::from_str(&report.to_string()).unwrap();
    assert_eq!(told["verdict"], "different");
    assert_eq!(told["compared"][0]["differences_more"], 49_999);
    assert_eq!(
        told["compared"][0]["differences"],
        serde_json::json!([{"key": 1, "kind": "missing", "source": {"bucket": "1", "version": 1}, "view": null}])
    );
}
