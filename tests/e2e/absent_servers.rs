//! PostgreSQL or Kafka is not there. Each program waits and says so, and comes up when the server does.

use std::time::Duration;

use stack::program::Readiness;
use stack::{Pipeline, Program};

use super::{rows, shared};
use rig::rest::{Rest, id, user};

const DEADLINE: Duration = Duration::from_secs(60);
/// By then a program must say that a server is gone. It includes time for a busy machine.
const NOTICE_DEADLINE: Duration = Duration::from_secs(15);

#[tokio::test]
async fn programs_wait_for_an_absent_server_say_so_and_come_up_with_it() {
    let pipeline = shared::builder().prepare().await;
    let pipeline = pipeline.unwrap_or_else(|err| panic!("the pipeline does not start: {err:#}"));
    assert_programs_start_before_postgres(&pipeline).await;
    pipeline.stop_programs().await.expect("clean ends");
    assert_programs_start_before_kafka(&pipeline).await;
    assert_programs_outlive_a_crash_of_kafka(&pipeline).await;
    assert_programs_outlive_a_crash_of_postgres(&pipeline).await;
}

async fn assert_programs_start_before_postgres(pipeline: &Pipeline) {
    let postgres = pipeline.postgres().expect("postgres");
    postgres.stop_fast().await.expect("a stop");
    start_programs(pipeline);
    for program in pipeline.programs() {
        assert_waits_for("postgres", program, DEADLINE).await;
    }
    postgres.start_again().await.expect("a start");
    assert_works(pipeline).await;
}

/// The APIs need no Kafka. All other programs wait for it.
async fn assert_programs_start_before_kafka(pipeline: &Pipeline) {
    let kafka = pipeline.kafka().expect("kafka");
    kafka.stop().await.expect("a stop");
    start_programs(pipeline);
    for program in [&pipeline.users_relay, &pipeline.posts_relay, &pipeline.view_builder] {
        assert_waits_for("kafka", program, DEADLINE).await;
    }
    for program in [&pipeline.user_api, &pipeline.post_api] {
        program.wait_ready(DEADLINE).await.expect("an API that needs no kafka");
    }
    kafka.start_again().await.expect("a start");
    assert_works(pipeline).await;
}

async fn assert_programs_outlive_a_crash_of_kafka(pipeline: &Pipeline) {
    let kafka = pipeline.kafka().expect("kafka");
    kafka.kill_hard().await;
    for program in [&pipeline.users_relay, &pipeline.posts_relay, &pipeline.view_builder] {
        assert_waits_for("kafka", program, NOTICE_DEADLINE).await;
    }
    let rest = Rest::of(pipeline);
    rest.create_user(&user("문익점", "목화", "ACTIVE"))
        .await
        .expect("user-api never waits for kafka");
    kafka.start_again().await.expect("a start");
    assert_works(pipeline).await;
}

async fn assert_programs_outlive_a_crash_of_postgres(pipeline: &Pipeline) {
    let postgres = pipeline.postgres().expect("postgres");
    postgres.kill_hard().await;
    for program in pipeline.programs() {
        assert_waits_for("postgres", program, NOTICE_DEADLINE).await;
    }
    postgres.start_again().await.expect("a start");
    assert_works(pipeline).await;
}

fn start_programs(pipeline: &Pipeline) {
    for program in pipeline.programs() {
        program.start().expect("a start");
    }
}

/// Asserts that the program answers 503 with a reason that names the server, and goes on running.
async fn assert_waits_for(server: &str, program: &Program, deadline: Duration) {
    let client = reqwest::Client::new();
    let what = format!("it waits for {server}");
    let waits = stack::eventually_ok(deadline, &what, || async {
        match program.readiness(&client).await? {
            Readiness::NotReady(reasons) if reasons.to_lowercase().contains(server) => Ok(()),
            other => anyhow::bail!("it answers {other:?}"),
        }
    });
    waits
        .await
        .unwrap_or_else(|err| panic!("{}: {err:#}\n{}", program.name(), program.log_tail(10)));
    let process = program.process().expect("a started program");
    assert!(
        process.is_running(),
        "{} waits: {}",
        program.name(),
        program.log_tail(5)
    );
}

/// Asserts that every program is ready, and that a new user arrives in the view.
async fn assert_works(pipeline: &Pipeline) {
    for program in pipeline.programs() {
        program
            .wait_ready(DEADLINE)
            .await
            .unwrap_or_else(|err| panic!("{err:#}"));
    }
    let rest = Rest::of(pipeline);
    let created = rest
        .create_user(&user("장영실", "측우기", "ACTIVE"))
        .await
        .expect("a user");
    rows::wait_for_view(pipeline, id(&created), 1, DEADLINE).await;
    rows::assert_view_equals_users(pipeline, DEADLINE).await;
}
