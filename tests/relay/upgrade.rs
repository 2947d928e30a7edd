//! An outbox from before there were partitions is migrated while its relay runs and its writers write.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rig::rig::READY_DEADLINE;
use rig::{Rig, relay_exit};

/// The first outbox of users_db, which has no partitions.
const BEFORE: &str = include_str!("../../sql/users/0002_outbox.sql");
const BY_DAY: &str = include_str!("../../sql/users/0003_outbox_by_day.sql");
const ROLES: [&str; 3] = ["user_api", "outbox_relay", "outbox_maintainer"];

#[tokio::test]
async fn a_migration_under_load_loses_nothing_and_repeats_nothing() {
    let rig = Arc::new(Rig::new("upgrade_by_day").await);
    for role in ROLES {
        // The tests share the cluster, so another test may have made the role.
        rig.sql(&format!(
            "do $$ begin create role {role}; exception when duplicate_object or unique_violation then null; end $$"
        ))
        .await;
    }
    rig.sql("drop table outbox").await;
    rig.sql(BEFORE).await;
    rig.init(&[]).await;
    rig.start().await;
    rig.insert_each(50).await;
    let (writer, enough) = (Arc::clone(&rig), Arc::new(AtomicBool::new(false)));
    let told = Arc::clone(&enough);
    let writing = tokio::spawn(async move {
        while !told.load(Ordering::Relaxed) {
            writer.insert_each(20).await;
        }
    });
    rig.wait_until_published(READY_DEADLINE).await.expect("it publishes");
    let before = rig.rows().await.len();
    rig.sql(BY_DAY).await;
    let status = rig.relay.exited(READY_DEADLINE).await.expect("it stops by itself");
    let said = rig.relay.log_tail(20);
    assert_eq!(status.code(), Some(relay_exit::PUBLICATION_WRONG), "{said}");
    assert!(said.contains("--accept-publication"), "{said}");
    rig.assert_stops(relay_exit::PUBLICATION_WRONG, &["--accept-publication"])
        .await;
    rig.init(&["--accept-publication"]).await;
    rig.start().await;
    enough.store(true, Ordering::Relaxed);
    writing.await.expect("the writers meet no error");
    let day_after_tomorrow = "alter table outbox alter created_at set default now() + interval '2 days'";
    rig.sql(day_after_tomorrow).await;
    rig.insert_each(50).await;
    let ledger = rig.assert_exactly_once().await;
    let kept = rig.value("select count(*) from only outbox_before_days").await;
    assert_eq!(
        kept,
        (ledger.rows - 50).to_string(),
        "the rows stay where they are, until tomorrow's end"
    );
    assert!(
        ledger.rows > before + 50,
        "the writers wrote all the while: {before}, {ledger}"
    );
    rig.finish().await.expect("a clean end");
}
