//! A relay that cannot prove where it stopped publishes nothing, confirms nothing, and says what to do.

use std::time::Duration;

use stack::pipeline::USERS_DATABASE;
use stack::{Pipeline, Postgres, PostgresOptions, Program, eventually, port};
use tokio::sync::OnceCell;

use super::{rows, shared};
use rig::relay_exit;
use rig::rest::user;

const DEADLINE: Duration = Duration::from_secs(60);

/// Why a relay stops: its exit code, and the words of its last line.
struct StopReason {
    exit_code: i32,
    cause: &'static str,
    remedy: &'static str,
}

const SLOT_AHEAD: StopReason = StopReason {
    exit_code: relay_exit::SLOT_AHEAD,
    cause: "ahead of the checkpoint",
    remedy: "publishes what is missing",
};
const CHECKPOINT_MISSING: StopReason = StopReason {
    exit_code: relay_exit::CHECKPOINT_MISSING,
    cause: "has no checkpoint",
    remedy: "`outbox-relay recover`",
};
const OTHER_CLUSTER: StopReason = StopReason {
    exit_code: relay_exit::OTHER_CLUSTER,
    cause: "is from database cluster",
    remedy: "give another --checkpoint-topic",
};

/// A pipeline whose relays do not run. Each test brings a relay, a slot and a checkpoint topic of its own.
async fn pipeline() -> &'static Pipeline {
    static PIPELINE: OnceCell<Pipeline> = OnceCell::const_new();
    PIPELINE
        .get_or_init(|| async {
            let pipeline = shared::builder().prepare().await;
            let pipeline = pipeline.unwrap_or_else(|err| panic!("the pipeline does not start: {err:#}"));
            pipeline.user_api.start().expect("user-api");
            pipeline.user_api.wait_ready(DEADLINE).await.expect("user-api");
            pipeline
        })
        .await
}

#[tokio::test]
async fn a_slot_that_was_dropped_and_made_again_stops_the_relay() {
    let pipeline = pipeline().await;
    let relay = start_publish_and_stop(pipeline, "recreated").await;
    rows::in_users(pipeline, "select pg_drop_replication_slot('recreated')").await;
    change_users(pipeline).await;
    rows::in_users(
        pipeline,
        "select pg_create_logical_replication_slot('recreated', 'pgoutput')",
    )
    .await;
    assert_stops_and_confirms_nothing(pipeline, &relay, "recreated", &SLOT_AHEAD).await;
}

#[tokio::test]
async fn a_checkpoint_topic_that_was_deleted_stops_the_relay() {
    let pipeline = pipeline().await;
    let relay = start_publish_and_stop(pipeline, "forgotten").await;
    let kafka = pipeline.kafka().expect("kafka");
    kafka
        .topic_tool(&["--delete", "--topic", "checkpoints-forgotten"])
        .await
        .expect("a deletion");
    change_users(pipeline).await;
    assert_stops_and_confirms_nothing(pipeline, &relay, "forgotten", &CHECKPOINT_MISSING).await;
}

#[tokio::test]
async fn a_checkpoint_from_another_cluster_stops_the_relay() {
    let pipeline = pipeline().await;
    let relay = start_publish_and_stop(pipeline, "foreign").await;
    let other = other_cluster(pipeline).await;
    let relay = relay.with_env("DATABASE_URL", &other.url("outbox_relay", USERS_DATABASE));
    // The relay of the other cluster writes its first checkpoint into another topic. So it then finds the checkpoint of the first cluster.
    let elsewhere = relay
        .with_env("DATABASE_URL", &other.url("postgres", USERS_DATABASE))
        .env("CHECKPOINT_TOPIC", "checkpoints-elsewhere");
    elsewhere
        .run(&["init", "--topic", "user-events:8"])
        .await
        .expect("an init");
    let confirmed = confirmed_position(&other, "foreign").await;
    assert_stops(&relay, &OTHER_CLUSTER).await;
    assert_eq!(confirmed_position(&other, "foreign").await, confirmed);
}

/// Starts a relay with the slot `name` and the topic `checkpoints-name`, has it publish some changes, and stops it. Returns the stopped relay.
async fn start_publish_and_stop(pipeline: &Pipeline, name: &str) -> Program {
    let port = port::free().expect("a port");
    let relay = pipeline
        .users_relay
        .another(&format!("relay-{name}"), port)
        .env("ADMIN_LISTEN", &format!("127.0.0.1:{port}"))
        .env("OUTBOX_SLOT", name)
        .env("CHECKPOINT_TOPIC", &format!("checkpoints-{name}"));
    let initialized = pipeline.init_relay(&relay, USERS_DATABASE, "user-events:8").await;
    initialized.unwrap_or_else(|err| panic!("init fails: {err:#}"));
    relay.start().expect("a relay");
    relay.wait_ready(DEADLINE).await.unwrap_or_else(|err| panic!("{err:#}"));
    let postgres = pipeline.postgres().expect("postgres");
    let before = confirmed_position(postgres, name).await;
    change_users(pipeline).await;
    eventually(DEADLINE, "the relay confirms what it has published", || async {
        (confirmed_position(postgres, name).await != before).then_some(())
    })
    .await;
    relay.stop().await.expect("a clean end");
    relay
}

async fn change_users(pipeline: &Pipeline) {
    let rest = rig::rest::Rest::of(pipeline);
    for _ in 0..3 {
        rest.create_user(&user("장보고", "청해진", "ACTIVE"))
            .await
            .expect("a user");
    }
}

async fn assert_stops_and_confirms_nothing(pipeline: &Pipeline, relay: &Program, slot: &str, why: &StopReason) {
    let postgres = pipeline.postgres().expect("postgres");
    let confirmed = confirmed_position(postgres, slot).await;
    assert_stops(relay, why).await;
    assert_eq!(
        confirmed_position(postgres, slot).await,
        confirmed,
        "a relay that stops confirms nothing"
    );
}

async fn assert_stops(relay: &Program, why: &StopReason) {
    let logged = relay.log_text().len();
    relay.start().expect("a start");
    let status = relay.exited(DEADLINE).await.unwrap_or_else(|err| panic!("{err:#}"));
    let log = relay.log_text()[logged..].to_owned();
    assert_eq!(status.code(), Some(why.exit_code), "{log}");
    assert!(log.contains(why.cause), "it says why: {log}");
    assert!(log.contains(why.remedy), "it says what to do: {log}");
}

async fn confirmed_position(postgres: &Postgres, slot: &str) -> String {
    let sql = format!("select confirmed_flush_lsn from pg_replication_slots where slot_name = '{slot}'");
    let rows = postgres.query(USERS_DATABASE, &sql).await.expect("the slot");
    rows::single(&rows).to_owned()
}

/// Another PostgreSQL with the same databases, roles and tables.
async fn other_cluster(pipeline: &Pipeline) -> Postgres {
    let options = PostgresOptions {
        version: Some(18),
        ..PostgresOptions::default()
    };
    let other = Postgres::start(options).await.expect("another cluster");
    other
        .run_script(&stack::checkout::root().join("sql/cluster.sql"))
        .await
        .expect("the roles");
    let migrator = pipeline
        .user_api
        .with_env("DATABASE_URL", &other.url("postgres", USERS_DATABASE));
    migrator.run(&["migrate"]).await.expect("the tables");
    other
}
