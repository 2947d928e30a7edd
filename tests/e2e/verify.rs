//! Runs `view-builder verify` beside the running pipeline, as a role that may only read.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use stack::Pipeline;
use stack::pipeline::VIEWS_DATABASE;

use super::{rows, shared};
use rig::rest::{Rest, id, user};
use rig::{Workload, view_builder_exit};

const DEADLINE: Duration = Duration::from_secs(90);

/// Runs `verify` once. Returns its exit code and its output.
async fn verify(pipeline: &Pipeline, arguments: &[&str]) -> (i32, String) {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let name = format!("verify-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let command = pipeline.verifier(&name, arguments).expect("a command");
    command.start().expect("a start");
    let status = command.exited(DEADLINE).await.expect("an end");
    (status.code().expect("no signal"), command.log_text())
}

async fn assert_equal(pipeline: &Pipeline) {
    let (code, text) = verify(pipeline, &["--all", "--wait", "60"]).await;
    assert_eq!(code, view_builder_exit::SUCCESS, "{text}");
    for compared in [
        "user_view: user_view against the source of user-events",
        "user_view: department_stats against its recomputation",
        "activity: activity against the source of user-events",
        "activity: activity_post against the source of post-events",
        "activity: post_stats against its recomputation",
        "activity: user_activity against its recomputation",
        "activity: department_performance against its recomputation",
    ] {
        assert!(text.contains(compared), "{compared}: {text}");
    }
    assert!(text.ends_with("\nequal\n"), "{text}");
}

#[tokio::test]
async fn a_busy_pipeline_is_never_called_different() {
    let pipeline = shared::pipeline_alone().await;
    let workload = Workload::start(&Rest::of(&pipeline), 300);
    for _ in 0..6 {
        let before = workload.answered();
        let (code, text) = verify(&pipeline, &[]).await;
        assert!(
            code == view_builder_exit::SUCCESS || code == view_builder_exit::LAGGING,
            "{code}: {text}"
        );
        assert!(!text.contains("DIFFERENT"), "{text}");
        assert!(workload.answered() > before, "users changed meanwhile");
    }
    workload.stop().await;
    assert_equal(&pipeline).await;
}

#[tokio::test]
async fn a_stopped_view_builder_is_lag() {
    let pipeline = shared::pipeline_alone().await;
    rows::assert_view_equals_users(&pipeline, DEADLINE).await;
    pipeline.view_builder.stop().await.expect("a clean end");
    let created = Rest::of(&pipeline)
        .create_user(&user("장보고", "청해진", "ACTIVE"))
        .await
        .expect("a user");
    let (code, text) = verify(&pipeline, &["--wait", "5"]).await;
    assert_eq!(code, view_builder_exit::LAGGING, "{text}");
    assert!(text.contains("1 rows not decided: the view is behind by "), "{text}");

    pipeline.view_builder.start().expect("a start");
    pipeline
        .view_builder
        .wait_ready(DEADLINE)
        .await
        .expect("a ready builder");
    rows::wait_for_view(&pipeline, id(&created), 1, DEADLINE).await;
    assert_equal(&pipeline).await;
}

#[tokio::test]
async fn an_event_that_is_only_in_the_outbox_is_lag() {
    let pipeline = shared::pipeline_alone().await;
    rows::assert_view_equals_users(&pipeline, DEADLINE).await;
    pipeline.users_relay.stop().await.expect("a clean end");
    let body = user("이사부", "우산국", "ACTIVE");
    let created = Rest::of(&pipeline).create_user(&body).await.expect("a user");
    let (code, text) = verify(&pipeline, &["--wait", "5"]).await;
    assert_eq!(code, view_builder_exit::LAGGING, "{text}");
    assert!(text.contains("1 rows not decided: the view is behind by "), "{text}");
    assert!(text.contains("and the relay has not confirmed "), "{text}");

    pipeline.users_relay.start().expect("a start");
    pipeline.users_relay.wait_ready(DEADLINE).await.expect("a ready relay");
    rows::wait_for_view(&pipeline, id(&created), 1, DEADLINE).await;
    assert_equal(&pipeline).await;
}

#[tokio::test]
async fn an_edit_by_hand_is_a_difference_until_the_rows_next_event() {
    let pipeline = shared::pipeline_alone().await;
    let rest = Rest::of(&pipeline);
    let mut ids = Vec::new();
    for _ in 0..2 {
        let created = rest
            .create_user(&user("정약용", "규장각", "ACTIVE"))
            .await
            .expect("a user");
        rows::wait_for_view(&pipeline, id(&created), 1, DEADLINE).await;
        ids.push(id(&created));
    }
    let [edited, removed] = ids[..] else {
        panic!("two users")
    };
    let edit = format!(
        "update user_view set email = 'by-hand@example.com' where user_id = {edited};
         delete from user_view where user_id = {removed}"
    );
    let postgres = pipeline.postgres().expect("our own postgres");
    postgres.query(VIEWS_DATABASE, &edit).await.expect("an edit");
    let (code, text) = verify(&pipeline, &["--wait", "60"]).await;
    assert_eq!(code, view_builder_exit::DIFFERENT, "{text}");
    let line = |kind: &str, key: i64, told: &str| format!("  {kind:<9}  {key:>20}  {told}\n");
    assert!(
        text.contains(&line("different", edited, "version 1 of \"규장각\", other content")),
        "{text}"
    );
    assert!(
        text.contains(&line("missing", removed, "version 1 of \"규장각\" is not in the view")),
        "{text}"
    );
    assert!(!text.contains("by-hand") && !text.contains("정약용"), "{text}");

    for id in ids {
        rest.update_user(id, &user("정약전", "규장각", "ACTIVE"))
            .await
            .expect("an update");
        rows::wait_for_view(&pipeline, id, 2, DEADLINE).await;
    }
    assert_equal(&pipeline).await;
}
