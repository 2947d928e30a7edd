//! Every part is killed while users change. Nothing is lost, doubled or out of order.

use std::time::Duration;

use stack::{Pipeline, eventually};

use super::ledger::{Outbox, assert_answered_changes_are_in_outbox, assert_published};
use super::{rows, shared};
use rig::Workload;
use rig::rest::{Rest, id, user};

const CHANGES_PER_SECOND: u32 = 200;
/// So many changes are tried while a part is away.
const ATTEMPTS_WHILE_AWAY: u64 = 150;
/// So many changes are tried before a program is killed.
const ATTEMPTS_BEFORE_KILL: u64 = 50;
/// So many changes are tried while PostgreSQL is away.
const ATTEMPTS_WITHOUT_POSTGRES: u64 = 20;
/// So many changes must be answered in all.
const ANSWERS_MIN: usize = 500;
/// A new user must be in the view so soon after a part's restart.
const RECOVERY: Duration = Duration::from_secs(90);

#[tokio::test]
async fn sigkill_of_each_program_loses_and_doubles_nothing() {
    let pipeline = start_pipeline().await;
    let workload = Workload::start(&Rest::of(&pipeline), CHANGES_PER_SECOND);
    for round in 0..2 {
        for program in pipeline.programs() {
            wait_for_attempts(&workload, ATTEMPTS_BEFORE_KILL).await;
            program.kill_hard().await;
            // In the second round it comes back at once.
            wait_for_attempts(&workload, if round == 0 { ATTEMPTS_WHILE_AWAY } else { 1 }).await;
            program.start().expect("a restart");
            program
                .wait_ready(RECOVERY)
                .await
                .unwrap_or_else(|err| panic!("{err:#}"));
            assert_new_user_reaches_view(&pipeline).await;
        }
    }
    assert_exact(&pipeline, workload).await;
}

#[tokio::test]
async fn sigkill_of_postgres_and_of_kafka_loses_and_doubles_nothing() {
    let pipeline = start_pipeline().await;
    let workload = Workload::start(&Rest::of(&pipeline), CHANGES_PER_SECOND);
    let (postgres, kafka) = (pipeline.postgres().expect("postgres"), pipeline.kafka().expect("kafka"));
    for _ in 0..2 {
        wait_for_attempts(&workload, ATTEMPTS_WHILE_AWAY).await;
        postgres.kill_hard().await;
        wait_for_attempts(&workload, ATTEMPTS_WITHOUT_POSTGRES).await;
        postgres.start_again().await.expect("a restart");
        assert_new_user_reaches_view(&pipeline).await;

        wait_for_attempts(&workload, ATTEMPTS_WHILE_AWAY).await;
        kafka.kill_hard().await;
        wait_for_attempts(&workload, ATTEMPTS_WHILE_AWAY).await;
        kafka.start_again().await.expect("a restart");
        assert_new_user_reaches_view(&pipeline).await;
    }
    assert_exact(&pipeline, workload).await;
}

async fn start_pipeline() -> Pipeline {
    let pipeline = shared::builder().start().await;
    pipeline.unwrap_or_else(|err| panic!("the pipeline does not start: {err:#}"))
}

/// Waits until the clients have tried `count` more changes.
async fn wait_for_attempts(workload: &Workload, count: u64) {
    let before = workload.attempts();
    eventually(Duration::from_secs(120), "the clients go on", || {
        std::future::ready((workload.attempts() >= before + count).then_some(()))
    })
    .await;
}

/// Creates a user, and waits until the user is in the view.
async fn assert_new_user_reaches_view(pipeline: &Pipeline) {
    let rest = Rest::of(pipeline);
    let created = stack::eventually_ok(RECOVERY, "user-api takes a user", || async {
        rest.create_user(&user("유관순", "확인", "ACTIVE")).await
    });
    let created = created
        .await
        .unwrap_or_else(|err| panic!("{err:#}\n{}", rows::logs(pipeline)));
    let sql = format!("select 1 from user_view where user_id = {}", id(&created));
    let start = std::time::Instant::now();
    while rows::in_views(pipeline, &sql).await.is_empty() {
        assert!(
            start.elapsed() < RECOVERY,
            "events do not flow again\n{}",
            rows::logs(pipeline)
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn assert_exact(pipeline: &Pipeline, workload: Workload) {
    let answers = workload.stop().await;
    assert!(
        answers.len() > ANSWERS_MIN,
        "only {} changes were answered",
        answers.len()
    );
    for program in pipeline.programs() {
        let process = program.process().expect("a started program");
        assert!(
            process.is_running(),
            "{} has ended: {}",
            program.name(),
            program.log_tail(10)
        );
    }
    assert_answered_changes_are_in_outbox(pipeline, &answers).await;
    rows::assert_view_equals_users(pipeline, RECOVERY).await;
    assert_published(pipeline, Outbox::Users, RECOVERY).await;
    assert_published(pipeline, Outbox::Posts, RECOVERY).await;
}
