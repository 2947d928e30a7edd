//! The limits of a `replay`. And tests of the tests: a replay with a planted bug is caught.

use std::collections::HashSet;

use rig::Rig;
use rig::ledger::Row;
use rig::rig::ARRIVAL_DEADLINE;
use stack::eventually;

use super::replay::{assert_replayed, rig_with_published_rows, unmarked_and_marked};

/// Runs a replay with this bug, beside the rig's relay.
async fn replay_with(rig: &Rig, bug: &str, arguments: &[&str]) {
    let all: Vec<&str> = ["replay", "--yes"].iter().chain(arguments).copied().collect();
    let replay = rig.relay.with_env("OUTBOX_RELAY_BUG", bug);
    replay.run(&all).await.unwrap_or_else(|err| panic!("{err:#}"));
}

async fn created_at(rig: &Rig, row: &Row) -> String {
    let id = &row.id;
    rig.value(&format!("select created_at from outbox where id = '{id}'"))
        .await
}

#[tokio::test]
async fn the_row_of_the_very_moment_of_from_is_replayed_and_that_of_to_is_not() {
    for (name, bug, is_right) in [
        ("replay_bounds", "", true),
        ("replay_bug_bounds", "ReplayToInclusive", false),
    ] {
        let rig = rig_with_published_rows(name, 20).await;
        let mut rows = rig.rows().await;
        rows.sort_by_key(|row| row.n);
        let (from, to) = (created_at(&rig, &rows[5]).await, created_at(&rig, &rows[10]).await);
        replay_with(&rig, bug, &["--from", &from, "--to", &to]).await;
        if is_right {
            assert_replayed(&rig, &rows[5..10]).await;
        } else {
            let (_, marked) = unmarked_and_marked(&rig).await;
            let replayed: HashSet<&str> = marked.iter().filter_map(|record| record.header("id")).collect();
            let expected: HashSet<&str> = rows[5..=10].iter().map(|row| row.id.as_str()).collect();
            assert_eq!(replayed, expected, "it goes unnoticed");
        }
        rig.finish().await.expect("a clean end");
    }
}

/// Here a replay with a bug fails what `a_row_is_not_replayed_before_it_is_published` asserts.
#[tokio::test]
async fn a_replay_that_does_not_wait_for_the_relay_is_caught() {
    let rig = rig_with_published_rows("replay_bug_waits", 5).await;
    rig.relay.kill_hard().await;
    let before = rig.rows().await;
    rig.insert_each(20).await;
    replay_with(&rig, "ReplayUnpublished", &["--from", "2000-01-01"]).await;
    rig.start().await;
    let (unmarked, marked) = eventually(ARRIVAL_DEADLINE, "the relay publishes the rows", || async {
        let (unmarked, marked) = unmarked_and_marked(&rig).await;
        (unmarked.len() == before.len() + 20).then_some((unmarked, marked))
    })
    .await;
    let overtakes = marked.iter().filter(|replayed| {
        let id = replayed.header("id");
        let first = unmarked.iter().find(|record| record.header("id") == id);
        first.is_some_and(|first| first.offset > replayed.offset)
    });
    assert_eq!(overtakes.count(), 20, "it goes unnoticed");
    rig.finish().await.expect("a clean end");
}
