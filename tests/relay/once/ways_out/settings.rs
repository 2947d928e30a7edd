//! After a stop that needs no comparison: the same command, another setting, `init`, or a topic.

use rig::{Rig, relay_exit};

use crate::relay::tampering::{checkpoints, published_and_stopped};
use crate::relay::ways_out::{assert_goes_on, run_recover};

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
    let commands: [&[&str]; 3] = [
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
    run_recover(&rig, &[]).await;
    let ledger = assert_goes_on(&rig).await;
    assert_eq!(ledger.rows, 10);
}

#[tokio::test]
async fn after_a_wrong_setting_the_right_one_goes_on() {
    let rig = published_and_stopped("way_out_2").await;
    rig.insert_each(2).await;
    let wrong = rig.relay.with_env("TOPIC_CONFIG", "no setting");
    let status = wrong.run_for_status(&["run"]).await.expect("a run");
    assert_eq!(status.code(), Some(relay_exit::WRONG_SETTING), "{}", wrong.log_tail(3));
    assert!(wrong.log_tail(3).contains("--topic-config"), "{}", wrong.log_tail(3));
    assert_goes_on(&rig).await;
}

#[tokio::test]
async fn where_init_was_not_done_it_publishes_the_rows_that_are_there() {
    let rig = Rig::new("way_out_3").await;
    rig.sql("create publication outbox for table outbox with (publish = 'insert', publish_via_partition_root = true)")
        .await;
    rig.insert_each(4).await;
    rig.assert_stops(relay_exit::NOT_INITIALISED, &["run `outbox-relay init` once"])
        .await;
    rig.init(&[]).await;
    assert_goes_on(&rig).await;
}

#[tokio::test]
async fn after_a_topic_was_missing_it_is_made_and_run_goes_on() {
    let mut rig = Rig::new("way_out_32").await;
    rig.relay = rig.relay.with_env("CREATE_TOPICS", "false");
    rig.relay.run(&["init"]).await.unwrap_or_else(|err| panic!("{err:#}"));
    rig.insert_each(5).await;
    rig.assert_stops(relay_exit::TOPIC_MISSING, &["`outbox-relay run` goes on"])
        .await;
    let topic = rig.topic();
    let created = rig
        .servers
        .kafka
        .topic_tool(&["--create", "--topic", &topic, "--partitions", "4"])
        .await;
    created.expect("a topic");
    assert_goes_on(&rig).await;
}
