//! What the collectors ask of the databases.

use std::time::Duration;

use console::postgres;
use console::settings::Outbox;
use console::snapshot::letters::LettersAsker;
use console::snapshot::{outbox, views};
use stack::eventually;

use super::support::TestDatabase;

/// What a builder makes at its start.
const POSITIONS: &str = include_str!("../../../view-builder/src/views/positions.sql");

#[tokio::test]
async fn a_database_in_which_no_builder_has_begun_is_told_from_one_without_views() {
    let database = TestDatabase::create().await;
    let asked = postgres::Database::new(database.setting().target);
    assert!(!views::ask(&asked, &mut LettersAsker::default()).await.unwrap().is_made);
    database.sql.batch_execute(POSITIONS).await.unwrap();
    let facts = views::ask(&asked, &mut LettersAsker::default()).await.unwrap();
    assert!(facts.is_made && facts.views.is_empty() && facts.positions.is_empty());
}

#[tokio::test]
async fn views_have_their_state_their_tables_and_their_letters() {
    let database = TestDatabase::create().await;
    database.sql.batch_execute(POSITIONS).await.unwrap();
    // Each by itself: the server counts the rows of a transaction when it has ended.
    for statement in [
        "create table user_view (user_id bigint primary key)",
        "insert into user_view select generate_series(1, 1000)",
        "analyze user_view",
    ] {
        database.sql.batch_execute(statement).await.unwrap();
    }
    database
        .sql
        .batch_execute(
            "insert into view_definitions (view, table_sql, apply_sql, replaced) values
                ('user_view', E'create table if not exists user_view (\\n)', E'-- The users.\\n-- topics: user-events\\nselect 1', '{a,b}'),
                ('activity', 'select 1', 'select 1', '{}');
             insert into view_sources values ('user_view', 'user-events'), ('activity', 'user-events'), ('activity', 'post-events');
             insert into view_positions (topic, partition, next_offset, epoch, owner, claimed_at, group_offset, paused) values
                ('user-events', 0, 12, 3, 'builder', now(), 15, null), ('user-events', 1, null, 1, 'builder', now(), null, 'it ends below');
             insert into view_pauses (view, reason, paused_by, sql_md5) values ('activity', 'a test', 'kim', '');
             insert into view_rebuilds (view, generation, table_sql, apply_sql) values ('user_view', 'user_view_2', '', '');
             insert into view_rebuild_positions (view, topic, partition, next_offset, letters_version) values
                ('user_view', 'user-events', 0, 7, 0), ('user_view', 'user-events', 1, 5, 0);
             insert into view_dead_letters (topic, partition, record_offset, value, headers, reason, discarded_at) values
                ('user-events', 0, 1, '', '[]', 'no JSON', null), ('user-events', 0, 2, '', '[]', null, null),
                ('user-events', 0, 3, '', '[]', 'no JSON', now());
             insert into view_stuck_batches (owner, reason) values ('builder', 'the disk is full');
             insert into view_notices (topic, partition, kind, notice) values ('user-events', 0, 'made-anew', 'it was made anew')",
        )
        .await
        .unwrap();
    let asked = postgres::Database::new(database.setting().target);
    let facts = views::ask(&asked, &mut LettersAsker::default()).await.unwrap();

    let users = facts.view("user_view").unwrap();
    assert_eq!(
        (users.summary(), users.replaced, users.rows()),
        ("The users.", 2, Some(1_000))
    );
    assert!(users.tables[0].bytes > 0 && users.pause.is_none());
    let rebuild = users.rebuild.as_ref().unwrap();
    let filled: Vec<(i32, i64)> = rebuild
        .filled
        .iter()
        .map(|((_, partition), offset)| (*partition, *offset))
        .collect();
    assert_eq!(
        (rebuild.generation.as_str(), filled),
        ("user_view_2", vec![(0, 7), (1, 5)])
    );
    let activity = facts.view("activity").unwrap();
    assert_eq!(activity.topics, ["post-events", "user-events"]);
    assert_eq!(
        activity.pause.as_ref().map(|pause| pause.reason.as_str()),
        Some("a test")
    );
    assert_eq!(activity.rows(), None);

    assert_eq!(
        facts.position("user-events", 0).map(|position| position.applied_up_to),
        Some(15)
    );
    assert_eq!(
        facts
            .position("user-events", 1)
            .and_then(|position| position.paused.as_deref()),
        Some("it ends below")
    );
    assert_eq!(
        (facts.letters["user-events"].dead, facts.letters["user-events"].behind),
        (1, 1)
    );
    assert_eq!(facts.letters_waiting(), 2);
    assert!(facts.stuck[0].contains("the disk is full"), "{:?}", facts.stuck);
    assert_eq!(facts.notices, ["it was made anew"]);

    // A replay: the position goes back, and readers still see all that was applied.
    assert_eq!(facts.position("user-events", 0).unwrap().replay_at, None);
    database
        .sql
        .batch_execute("update view_positions set next_offset = 3 where partition = 0")
        .await
        .unwrap();
    let facts = views::ask(&asked, &mut LettersAsker::default()).await.unwrap();
    let position = facts.position("user-events", 0).unwrap();
    assert_eq!((position.replay_at, position.applied_up_to), (Some(3), 15));
}

#[tokio::test]
async fn an_outbox_has_its_rows_its_slot_and_the_slots_of_others() {
    let database = TestDatabase::create().await;
    let slot = format!("ours_{}", std::process::id());
    database
        .sql
        .batch_execute(
            "create table outbox (id bigint, day date not null) partition by range (day);
             create table outbox_1 partition of outbox for values from ('2026-01-01') to ('2027-01-01');
             create table outbox_default partition of outbox default",
        )
        .await
        .unwrap();
    let outbox = Outbox {
        name: "users".to_owned(),
        database: database.setting(),
        slot: slot.clone(),
        table: "public.outbox".to_owned(),
        topics: vec!["user-events".to_owned()],
        relay: None,
        checkpoint_topic: None,
        command_database: None,
    };
    let asked = postgres::Database::new(database.setting().target);
    let before = outbox::ask(&asked, &outbox).await.unwrap();
    assert_eq!((before.slot.clone(), before.limit_bytes), (None, None));
    for name in [&slot, &format!("theirs_{}", std::process::id())] {
        let sql = format!("select pg_create_logical_replication_slot('{name}', 'pgoutput')");
        database.sql.batch_execute(&sql).await.unwrap();
    }
    database
        .sql
        .batch_execute("insert into outbox select n, date '2026-06-01' from generate_series(1, 500) as n; select pg_stat_force_next_flush()")
        .await
        .unwrap();

    let facts = outbox::ask(&asked, &outbox).await.unwrap();
    let found = facts.slot.as_ref().unwrap();
    assert_eq!(
        (found.name.as_str(), found.plugin.as_str(), found.reader),
        (slot.as_str(), "pgoutput", None)
    );
    assert_eq!(
        (found.database.as_str(), found.wal_status.as_str()),
        (database.name(), "reserved")
    );
    assert!(found.retained_bytes > 0 && found.unconfirmed_bytes > 0, "{found:?}");
    assert!(facts.other_slots.iter().any(|other| other.name.starts_with("theirs_")));
    // The server's statistics come a little later than the rows.
    let counted = "500 rows of the outbox' partitions are counted";
    eventually(Duration::from_secs(10), counted, async || {
        let facts = outbox::ask(&asked, &outbox).await.unwrap();
        (facts.inserted >= 500).then_some(())
    })
    .await;
    let sql = format!(
        "select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = '{}'",
        database.name()
    );
    database.sql.batch_execute(&sql).await.unwrap();
}
