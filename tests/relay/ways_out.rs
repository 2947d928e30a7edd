//! After a stop, the command that the relay's last line names brings the relay back: nothing is lost, nothing comes twice. `docs/exit-codes.md`
//! says which test shows this for which exit code. This file has the steps that several of these tests share, and the test that depends on
//! PostgreSQL's version. The other tests are in `once/ways_out`.

use rig::{Ledger, Rig, relay_exit};

use super::tampering::published_and_stopped;

/// Runs `outbox-relay recover --yes` with further arguments. Panics if it fails.
pub(super) async fn run_recover(rig: &Rig, arguments: &[&str]) {
    let all: Vec<&str> = ["recover", "--yes"].iter().chain(arguments).copied().collect();
    rig.relay.run(&all).await.unwrap_or_else(|err| panic!("{err:#}"));
}

/// Asserts that the relay stops with this exit code and names `outbox-relay recover`, and that this command brings it back, as [`assert_goes_on`]
/// says.
pub(super) async fn assert_recovers_after(rig: &Rig, exit_code: i32) -> Ledger {
    rig.assert_stops(exit_code, &["`outbox-relay recover`"]).await;
    run_recover(rig, &[]).await;
    assert_goes_on(rig).await
}

/// Starts the relay, and asserts that all rows and three new ones are published exactly once.
pub(super) async fn assert_goes_on(rig: &Rig) -> Ledger {
    rig.start().await;
    rig.insert_each(3).await;
    let ledger = rig.assert_exactly_once().await;
    rig.finish().await.expect("a clean end");
    ledger
}

/// The text between `after` and `before` in the relay's last lines.
pub(super) fn text_in_log_between(rig: &Rig, after: &str, before: &str) -> String {
    let log = rig.relay.log_tail(3);
    let told = log.split(after).nth(1).and_then(|rest| rest.split(before).next());
    told.unwrap_or_else(|| panic!("nothing between `{after}` and `{before}`: {log}"))
        .to_owned()
}

#[tokio::test]
async fn after_a_publication_was_dropped_its_line_tells_how_to_make_it_and_recover_publishes_what_was_hidden() {
    let rig = published_and_stopped("way_out_20_dropped").await;
    rig.insert_each(1).await;
    rig.sql("drop publication outbox").await;
    rig.insert_each(2).await;
    rig.assert_stops(relay_exit::PUBLICATION_WRONG, &["`outbox-relay recover`"])
        .await;
    let statement = text_in_log_between(&rig, "it does not exist; ", "; once that is done");
    rig.sql(&statement).await;
    let ledger = assert_recovers_after(&rig, 20).await;
    assert_eq!(ledger.rows, 11);
}
