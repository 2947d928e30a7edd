//! Two relays for one outbox: the second one waits, and takes over when the first one dies.

use std::time::Duration;

use stack::program::Readiness;
use stack::{eventually, port};

use super::ledger::{Outbox, assert_published};
use super::{rows, shared};
use rig::Workload;
use rig::rest::{Rest, id, user};

const DEADLINE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_second_relay_waits_and_takes_over_when_the_first_is_killed() {
    let pipeline = shared::builder().start().await;
    let pipeline = pipeline.unwrap_or_else(|err| panic!("the pipeline does not start: {err:#}"));
    let rest = Rest::of(&pipeline);
    let port = port::free().expect("a port");
    let listen = format!("127.0.0.1:{port}");
    let standby = pipeline
        .users_relay
        .another("users-relay-standby", port)
        .env("ADMIN_LISTEN", &listen);
    standby.start().expect("a second relay");
    let client = reqwest::Client::new();
    let reasons = eventually(DEADLINE, "the second relay says that it waits", || async {
        match standby.readiness(&client).await {
            Ok(Readiness::NotReady(reasons)) if reasons.contains("slot") => Some(reasons),
            _ => None,
        }
    })
    .await;
    assert!(
        standby.process().is_some_and(|process| process.is_running()),
        "it waits: {reasons}"
    );
    let first = rest
        .create_user(&user("정약용", "실학", "ACTIVE"))
        .await
        .expect("a user");
    rows::wait_for_view(&pipeline, id(&first), 1, DEADLINE).await;

    let workload = Workload::start(&Rest::of(&pipeline), 100);
    eventually(DEADLINE, "the clients work", || {
        std::future::ready((workload.answered() > 100).then_some(()))
    })
    .await;
    pipeline.users_relay.kill_hard().await;
    standby.wait_ready(DEADLINE).await.expect("a relay that took over");
    let second = rest
        .create_user(&user("정약전", "실학", "ACTIVE"))
        .await
        .expect("a user");
    rows::wait_for_view(&pipeline, id(&second), 1, DEADLINE).await;
    workload.stop().await;
    rows::assert_view_equals_users(&pipeline, DEADLINE).await;
    assert_published(&pipeline, Outbox::Users, DEADLINE).await;
}
