//! From each stop to "nothing lost, nothing twice", by the command that the stop's line names.

use rig::rig::READY_DEADLINE;
use rig::{Isolation, Ledger, Rig, servers};
use stack::Postgres;

use crate::relay::lineage::older_database;
use crate::relay::tampering::{
    accept, assert_refused, checkpoints, ids, last_checkpoint, publish_and_stop, published_and_stopped, recreate_slot,
    times_published, write_checkpoint,
};
use crate::relay::ways_out::{assert_recovers_after, goes_on, recover, told_between};

/// Postgres refuses for a while, as it does while it starts or an administrator works on it: no stop has a code for that.
#[tokio::test]
async fn after_an_error_that_has_no_code_of_its_own_the_same_command_goes_on() {
    let rig = published_and_stopped("way_out_1").await;
    rig.drop_slot().await;
    rig.insert_each(2).await;
    let before = checkpoints(&rig).await.len();
    let allow = async |allowed: bool| {
        let alter = format!("alter database {} with allow_connections {allowed}", rig.name());
        rig.servers
            .postgres
            .query("postgres", &alter)
            .await
            .expect("an alteration");
    };
    let commands: [&[&str]; 4] = [
        &["status"],
        &["recover", "--yes"],
        &["replay", "--key", "k1", "--yes"],
        &["init", "--accept-new-slot", "--existing-rows", "skip"],
    ];
    allow(false).await;
    for arguments in commands {
        let status = rig.relay.run_for_status(arguments).await.expect("an end");
        let last = rig.relay.log_tail(1);
        assert_eq!(status.code(), Some(1), "{arguments:?}: {last}");
        assert!(
            last.contains("is not currently accepting connections"),
            "{arguments:?}: {last}"
        );
    }
    allow(true).await;
    assert_eq!(checkpoints(&rig).await.len(), before, "nothing was written");
    recover(&rig, &[]).await;
    let ledger = goes_on(&rig).await;
    assert_eq!(ledger.rows, 10);
}

#[tokio::test]
async fn after_a_wrong_setting_the_right_one_goes_on() {
    let rig = published_and_stopped("way_out_2").await;
    rig.insert_each(2).await;
    let wrong = rig.relay.with_env("TOPIC_CONFIG", "no setting");
    let status = wrong.run_for_status(&["run"]).await.expect("a run");
    assert_eq!(status.code(), Some(2), "{}", wrong.log_tail(3));
    assert!(wrong.log_tail(3).contains("--topic-config"), "{}", wrong.log_tail(3));
    goes_on(&rig).await;
}

#[tokio::test]
async fn where_init_was_not_done_it_publishes_the_rows_that_are_there() {
    let rig = Rig::new("way_out_3").await;
    rig.sql("create publication outbox for table outbox with (publish = 'insert', publish_via_partition_root = true)")
        .await;
    rig.insert_each(4).await;
    rig.assert_stops(3, &["run `outbox-relay init` once"]).await;
    rig.init(&[]).await;
    goes_on(&rig).await;
}

#[tokio::test]
async fn where_slot_and_checkpoint_are_both_lost_recover_publishes_only_what_no_topic_has() {
    let rig = published_and_stopped("way_out_3_lost").await;
    delete_checkpoint_topic(&rig).await;
    rig.drop_slot().await;
    rig.insert_each(2).await;
    assert_recovers_after(&rig, 3).await;
}

#[tokio::test]
async fn after_a_slot_of_another_kind_was_dropped_recover_makes_the_right_one() {
    let rig = published_and_stopped("way_out_12").await;
    rig.drop_slot().await;
    let name = rig.name();
    rig.sql(&format!("select pg_create_physical_replication_slot('{name}')"))
        .await;
    rig.insert_each(2).await;
    rig.assert_stops(12, &["`outbox-relay recover`"]).await;
    let statement = told_between(&rig, "of no use to anybody, `", "`");
    rig.sql(&statement).await;
    recover(&rig, &[]).await;
    goes_on(&rig).await;
}

#[tokio::test]
async fn where_another_database_has_the_slots_name_recover_goes_on_under_another() {
    let mut rig = published_and_stopped("way_out_12_other").await;
    rig.drop_slot().await;
    let name = rig.name().to_owned();
    let slot = format!("select pg_create_logical_replication_slot('{name}', 'pgoutput')");
    rig.servers.postgres.query("postgres", &slot).await.expect("a slot");
    rig.insert_each(2).await;
    rig.assert_stops(12, &["`outbox-relay recover --slot OTHER_NAME`"])
        .await;
    let other = format!("{name}_too");
    recover(&rig, &["--slot", &other]).await;
    rig.relay = rig.relay.with_env("OUTBOX_SLOT", &other);
    goes_on(&rig).await;
    let drop = format!("select pg_drop_replication_slot('{other}')");
    stack::eventually_ok(rig::rig::READY_DEADLINE, "the other slot is dropped", || async {
        rig.servers.postgres.query("postgres", &drop).await
    })
    .await
    .expect("a drop");
}

#[tokio::test]
async fn after_a_slot_was_made_again_recover_publishes_what_it_skipped() {
    let rig = published_and_stopped("way_out_13").await;
    rig.insert_each(2).await;
    recreate_slot(&rig).await;
    rig.insert_each(3).await;
    assert_recovers_after(&rig, 13).await;
}

#[tokio::test]
async fn after_the_checkpoint_topic_was_deleted_recover_makes_it_and_repeats_nothing() {
    let rig = published_and_stopped("way_out_14").await;
    rig.insert_each(2).await;
    delete_checkpoint_topic(&rig).await;
    let ledger = assert_recovers_after(&rig, 14).await;
    assert_eq!(ledger.rows, 10);
}

#[tokio::test]
async fn after_the_checkpoint_was_deleted_by_a_tombstone_recover_repeats_nothing() {
    let rig = published_and_stopped("way_out_14_tombstone").await;
    write_checkpoint(&rig, None).await;
    rig.insert_each(2).await;
    assert_recovers_after(&rig, 14).await;
}

#[tokio::test]
async fn after_a_checkpoint_that_cannot_be_read_recover_writes_one_of_a_later_generation() {
    let rig = published_and_stopped("way_out_15").await;
    write_checkpoint(&rig, Some(b"garbage".to_vec())).await;
    rig.insert_each(2).await;
    assert_recovers_after(&rig, 15).await;
    let last = last_checkpoint(&rig).await;
    assert_eq!(last["generation"], 2, "{last}");
}

#[tokio::test]
async fn after_a_checkpoint_that_went_back_recover_repeats_nothing() {
    let rig = published_and_stopped("way_out_21").await;
    let old = checkpoints(&rig).await.pop().and_then(|record| record.value);
    publish_and_stop(&rig).await;
    write_checkpoint(&rig, old).await;
    rig.insert_each(2).await;
    assert_recovers_after(&rig, 21).await;
}

#[tokio::test]
async fn after_another_timeline_recover_compares_and_goes_on() {
    let rig = published_and_stopped("way_out_17").await;
    let mut elsewhere = last_checkpoint(&rig).await;
    elsewhere["lineage"]["timeline"] = 7.into();
    write_checkpoint(&rig, Some(elsewhere.to_string().into_bytes())).await;
    rig.insert_each(2).await;
    assert_recovers_after(&rig, 17).await;
}

/// The positions of the new cluster are lower, and a reader that drops repeats by them must not drop new events: the ledger's `reordered` has
/// records whose position is not above the one before.
#[tokio::test]
async fn after_a_move_to_another_cluster_recover_goes_on_above_the_published_positions_and_the_former_relay_stops() {
    let rig = Rig::initialised("way_out_16").await;
    for _ in 0..3 {
        rig.insert_each(1).await;
        rig.sql("select pg_switch_wal()").await;
    }
    rig.start().await;
    rig.insert_each(5).await;
    rig.assert_exactly_once().await;
    let rows = rig.value("select json_agg(o)::text from outbox o").await;
    let other = Postgres::start(servers::postgres_options())
        .await
        .expect("another cluster");
    let name = rig.name().to_owned();
    let create = format!("create database {name}");
    other.query("postgres", &create).await.expect("a database");
    let restore = format!(
        "{}; create sequence numbers start 100;
         create publication outbox for table outbox with (publish = 'insert', publish_via_partition_root = true);
         insert into outbox select * from json_populate_recordset(null::outbox, $rows${rows}$rows$)",
        rig::rig::OUTBOX
    );
    other.query(&name, &restore).await.expect("the outbox");
    let insert = rig.insert_statement(2, 7);
    other.query(&name, &insert).await.expect("rows");

    let moved = rig
        .another_relay("moved")
        .env("DATABASE_URL", &other.url("postgres", &name));
    let run = moved.run_for_status(&["run"]).await.expect("a run");
    assert_eq!(run.code(), Some(16), "{}", moved.log_tail(3));
    assert!(
        moved.log_tail(3).contains("`outbox-relay recover`"),
        "{}",
        moved.log_tail(3)
    );
    // The former relay still runs, against advice.
    moved
        .run(&["recover", "--yes"])
        .await
        .unwrap_or_else(|err| panic!("{err:#}"));
    rig.insert_each(1).await;
    let ended = rig
        .relay
        .exited(rig::rig::READY_DEADLINE)
        .await
        .expect("the former relay ends");
    // Fenced, it looks at the checkpoint: while recover is at work that is unfinished, and afterwards another cluster's.
    assert!(matches!(ended.code(), Some(16 | 42)), "{}", rig.relay.log_tail(5));
    rig.assert_stops(16, &["the checkpoint in topic"]).await;
    moved.start().expect("a start");
    other.query(&name, &insert).await.expect("rows");
    let rows = rig.rows_on(&other).await;
    let ledger = stack::eventually_ok(rig::rig::ARRIVAL_DEADLINE, "everything is published", || async {
        let ledger = Ledger::compare(&rows, &rig.records(Isolation::Committed).await?);
        anyhow::ensure!(ledger.lost.is_empty(), "{ledger}");
        Ok(ledger)
    });
    let ledger = ledger
        .await
        .unwrap_or_else(|err| panic!("{err:#}\n{}", moved.log_tail(20)));
    assert!(ledger.is_exact() && ledger.rows == 12, "{ledger}");
    moved.stop().await.expect("a clean end");
    rig.drop_slot().await;
}

#[tokio::test]
async fn after_a_restore_of_an_older_backup_recover_goes_on_above_the_published_positions() {
    let rig = older_database("way_out_18").await;
    rig.insert_each(2).await;
    rig.assert_stops(18, &["`outbox-relay recover`"]).await;
    // Its WAL grows beyond the checkpoint, and what it has written meanwhile must not count as published.
    rig.sql("create table regrown as select repeat('x', 1000) from generate_series(1, 12000)")
        .await;
    rig.insert_each(2).await;
    rig.assert_stops(18, &["`outbox-relay recover`"]).await;
    recover(&rig, &[]).await;
    rig.start().await;
    rig.insert_each(3).await;
    assert_only_the_lost_rows_are_invented(&rig, 5).await;
    rig.finish().await.expect("a clean end");
}

/// As an exact ledger, but for the records of rows that went with the newer state of the database.
async fn assert_only_the_lost_rows_are_invented(rig: &Rig, lost_rows: usize) {
    let ledger = rig.settled(rig::rig::ARRIVAL_DEADLINE).await;
    let mut ledger = ledger.unwrap_or_else(|err| panic!("{err:#}"));
    assert_eq!(ledger.invented.len(), lost_rows, "{ledger}");
    ledger.invented.clear();
    assert!(ledger.is_exact(), "{ledger}\n{}", rig.relay.log_tail(20));
}

#[tokio::test]
async fn after_an_alteration_of_the_publication_recover_publishes_what_it_hid() {
    let rig = published_and_stopped("way_out_20").await;
    rig.insert_each(1).await;
    rig.sql("alter publication outbox set (publish = 'update')").await;
    rig.insert_each(2).await;
    rig.assert_stops(20, &["`outbox-relay recover`"]).await;
    let statement = told_between(&rig, "so events are in no stream; ", "; once that is done");
    rig.sql(&statement).await;
    rig.insert_each(1).await;
    assert_recovers_after(&rig, 20).await;
}

#[tokio::test]
async fn after_the_table_was_unlogged_recover_publishes_what_it_hid_although_no_trace_of_it_is_left() {
    let rig = Rig::new("way_out_20_unlogged").await;
    rig.sql("create publication outbox for all tables with (publish = 'insert', publish_via_partition_root = true)")
        .await;
    rig.init(&[]).await;
    publish_and_stop(&rig).await;
    rig.sql("alter table outbox set unlogged").await;
    rig.insert_each(2).await;
    rig.assert_stops(20, &["`outbox-relay recover --compare-anyway`"]).await;
    let statement = told_between(&rig, "so its rows are in no stream; ", " (of a partitioned");
    rig.sql(&statement).await;
    recover(&rig, &["--compare-anyway"]).await;
    goes_on(&rig).await;
}

#[tokio::test]
async fn after_a_topic_was_missing_it_is_made_and_run_goes_on() {
    let mut rig = Rig::new("way_out_32").await;
    rig.relay = rig.relay.with_env("CREATE_TOPICS", "false");
    rig.relay.run(&["init"]).await.unwrap_or_else(|err| panic!("{err:#}"));
    rig.insert_each(5).await;
    rig.assert_stops(32, &["`outbox-relay run` goes on"]).await;
    let topic = rig.topic();
    let created = rig
        .servers
        .kafka
        .topic_tool(&["--create", "--topic", &topic, "--partitions", "4"])
        .await;
    created.expect("a topic");
    goes_on(&rig).await;
}

async fn delete_checkpoint_topic(rig: &Rig) {
    let topic = rig.checkpoint_topic();
    let deleted = rig.servers.kafka.topic_tool(&["--delete", "--topic", &topic]).await;
    deleted.expect("a deletion");
}

/// `recover` makes up for the slot alone, and `init --accept-partitions` for the partitions alone.
#[tokio::test]
async fn partitions_that_were_added_while_the_slot_was_lost_are_accepted_by_recover() {
    let rig = published_and_stopped("way_out_10_19").await;
    rig.insert_each(2).await;
    rig.drop_slot().await;
    add_partitions(&rig, &rig.topic(), 6).await;
    rig.insert_each(2).await;
    rig.assert_stops(10, &["`outbox-relay recover`"]).await;
    let before = checkpoints(&rig).await.len();
    let says = "`outbox-relay recover --accept-partitions`";
    assert_recover_stops(&rig, &[], 19, says).await;
    assert_refused(&rig, &["--accept-partitions"], 10, "`outbox-relay recover`").await;
    assert_eq!(checkpoints(&rig).await.len(), before, "nothing was written");
    recover(&rig, &["--accept-partitions"]).await;
    let plan = rig.relay.log_text();
    let said = ["has 6 partitions and had 4", "4 rows that are in no topic"];
    assert!(said.iter().all(|words| plan.contains(words)), "{plan}");
    let nothing = "there is nothing of the kind to accept";
    assert_recover_stops(&rig, &["--accept-partitions", "--compare-anyway"], 2, nothing).await;
    assert_each_row_once(&rig, 12).await;
}

#[tokio::test]
async fn partitions_that_were_added_behind_a_killed_recover_are_accepted_by_the_next_one() {
    let rig = published_and_stopped("way_out_42_19").await;
    rig.insert_each(2).await;
    rig.drop_slot().await;
    kill_recover_before_its_end(&rig, "first", &[]).await;
    add_partitions(&rig, &rig.topic(), 6).await;
    rig.insert_each(2).await;
    rig.assert_stops(42, &["`outbox-relay recover`"]).await;
    let says = "`outbox-relay recover --accept-partitions`";
    assert_recover_stops(&rig, &[], 19, says).await;
    kill_recover_before_its_end(&rig, "second", &["--accept-partitions"]).await;
    rig.assert_stops(42, &["`outbox-relay recover`"]).await;
    // It has accepted them before it was killed; the same command goes on as well.
    kill_recover_before_its_end(&rig, "third", &[]).await;
    recover(&rig, &["--accept-partitions"]).await;
    assert_each_row_once(&rig, 12).await;
}

#[tokio::test]
async fn where_the_checkpoints_topic_has_more_partitions_recover_goes_on_with_another() {
    let mut rig = published_and_stopped("way_out_19_checkpoints").await;
    rig.insert_each(2).await;
    add_partitions(&rig, &rig.checkpoint_topic(), 2).await;
    let says = "`outbox-relay recover --checkpoint-topic OTHER_TOPIC`";
    rig.assert_stops(19, &[says]).await;
    assert_recover_stops(&rig, &[], 19, says).await;
    let other = format!("{}-too", rig.checkpoint_topic());
    recover(&rig, &["--checkpoint-topic", &other]).await;
    rig.relay = rig.relay.with_env("CHECKPOINT_TOPIC", &other);
    goes_on(&rig).await;
}

async fn add_partitions(rig: &Rig, topic: &str, partitions: u32) {
    let partitions = partitions.to_string();
    let alter = ["--alter", "--topic", topic, "--partitions", &partitions];
    let altered = rig.servers.kafka.topic_tool(&alter).await;
    altered.expect("more partitions");
}

/// Runs `outbox-relay recover --yes` with further arguments, which must end with this code and say `says`.
async fn assert_recover_stops(rig: &Rig, arguments: &[&str], exit_code: i32, says: &str) {
    let logged = rig.relay.log_text().len();
    let all: Vec<&str> = ["recover", "--yes"].iter().chain(arguments).copied().collect();
    let status = rig.relay.run_for_status(&all).await.expect("an end");
    let log = rig.relay.log_text()[logged..].to_owned();
    assert_eq!(status.code(), Some(exit_code), "{log}");
    assert!(log.contains(says), "it says `{says}`: {log}");
}

/// Kills it when all is published but the last transaction's end, which has the checkpoint of the new slot.
pub(super) async fn kill_recover_before_its_end(rig: &Rig, name: &str, arguments: &[&str]) {
    let all: Vec<&str> = ["recover", "--yes"].iter().chain(arguments).copied().collect();
    let dies = rig
        .relay
        .with_binary("outbox-relay-faults")
        .with_env("OUTBOX_RELAY_FAILPOINT", "commit.before=kill@2")
        .with_env("OUTBOX_RELAY_FAILPOINT_HITS", &rig.logs().join(name).to_string_lossy())
        .command_of(name, &all);
    dies.start().expect("a start");
    let status = dies
        .exited(READY_DEADLINE)
        .await
        .unwrap_or_else(|err| panic!("{err:#}"));
    assert_eq!(status.code(), None, "{}", dies.log_tail(10));
    rig.slot_is_free().await;
}

/// Starts the relay: all rows of before and three more are published once. A ledger would tell of each key that has changed its partition.
async fn assert_each_row_once(rig: &Rig, rows: usize) {
    rig.start().await;
    rig.insert_each(3).await;
    let ids = ids(rig).await;
    assert_eq!(ids.len(), rows);
    assert_eq!(times_published(rig, &ids, &ids).await, vec![1; rows]);
    rig.finish().await.expect("a clean end");
}

/// For an outbox without a table, of which `recover` can compare nothing.
#[tokio::test]
async fn where_nothing_can_be_compared_a_recovery_that_is_needed_is_accepted() {
    let rig = published_and_stopped("way_out_42_accepted").await;
    let mut last = last_checkpoint(&rig).await;
    last["state"] = "recovering".into();
    last["generation"] = 1.into();
    write_checkpoint(&rig, Some(last.to_string().into_bytes())).await;
    rig.insert_each(2).await;
    rig.assert_stops(42, &["outbox-relay recover", "--accept-unfinished-recovery"])
        .await;
    accept(&rig, &["--accept-unfinished-recovery"]).await;
    rig.start().await;
    rig.insert_each(3).await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("a clean end");
}
