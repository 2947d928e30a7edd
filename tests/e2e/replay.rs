//! Replays: in the end the views are right, and no program stops. And events can be looked at without changing anything.

use std::process::Stdio;
use std::time::Duration;

use stack::pipeline::VIEWS_DATABASE;
use stack::{Pipeline, checkout, eventually_ok};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use rig::rest::{Rest, user};

const DEADLINE: Duration = Duration::from_secs(60);
const USERS: u32 = 40;

async fn query_views(pipeline: &Pipeline, statement: &str) -> Vec<Vec<Option<String>>> {
    let postgres = pipeline.postgres().expect("postgres");
    postgres.query(VIEWS_DATABASE, statement).await.expect("an answer")
}

async fn count_users(pipeline: &Pipeline) -> String {
    let rows = query_views(pipeline, "select count(*) from user_view where name like '고쳐%'").await;
    rows[0][0].clone().expect("a count")
}

async fn wait_until_view_has_all_users(pipeline: &Pipeline) {
    eventually_ok(DEADLINE, "the view has all users", || async {
        let there = count_users(pipeline).await;
        anyhow::ensure!(there == USERS.to_string(), "{there}");
        Ok(())
    })
    .await
    .expect("the view is whole");
}

/// Runs the replay script with `answer` on its standard input. Returns its exit code and its standard output.
pub(crate) async fn run_script(pipeline: &Pipeline, arguments: &[&str], answer: &str) -> (Option<i32>, String) {
    let url = pipeline.database_url(VIEWS_DATABASE).expect("a URL");
    let mut child = Command::new(checkout::root().join("scripts/kafka-replay.sh"))
        .args(["-s", pipeline.bootstrap_servers()])
        .args(arguments)
        .env("DATABASE_URL", url)
        .env(
            "VIEW_BUILDER",
            checkout::programs_directory().expect("binaries").join("view-builder"),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .expect("the script starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    // If the script needs no answer, it may have ended already.
    let _ = stdin.write_all(answer.as_bytes()).await;
    drop(stdin);
    let output = child.wait_with_output().await.expect("it ends");
    (output.status.code(), String::from_utf8(output.stdout).expect("text"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replays_mend_the_view_while_everything_runs_and_by_the_documented_procedure() {
    let pipeline = super::shared::builder().start().await.expect("a pipeline");
    let rest = Rest::of(&pipeline);
    for number in 0..USERS {
        rest.create_user(&user(&format!("고쳐 {number}"), "개발팀", "ACTIVE"))
            .await
            .expect("a user");
    }
    wait_until_view_has_all_users(&pipeline).await;
    assert_looking_at_events_changes_nothing(&pipeline).await;
    assert_replay_brings_rows_back_while_everything_runs(&pipeline).await;
    assert_documented_procedure_mends_rows(&pipeline).await;
    assert_failed_replay_says_so(&pipeline).await;
    pipeline.stop().await.expect("a clean end");
}

async fn assert_looking_at_events_changes_nothing(pipeline: &Pipeline) {
    let positions = "select topic, partition, next_offset, epoch from view_positions order by 1, 2";
    let before = query_views(pipeline, positions).await;
    let (code, printed) = run_script(pipeline, &[], "").await;
    assert_eq!(code, Some(0));
    let events: Vec<&str> = printed.lines().filter(|line| line.contains("고쳐")).collect();
    assert_eq!(events.len(), USERS as usize, "{printed}");
    let (key, value) = events[0].split_once(": ").expect("key and value");
    let value: serde_json::Value = serde_json::from_str(value).expect("the event's JSON");
    assert_eq!(value["userId"].to_string(), key);
    assert_eq!(query_views(pipeline, positions).await, before);
}

async fn assert_replay_brings_rows_back_while_everything_runs(pipeline: &Pipeline) {
    query_views(pipeline, "delete from user_view").await;
    assert_eq!(
        run_script(pipeline, &["-r", "view-builder"], "n").await,
        (Some(0), "Operation cancelled.\n".to_owned())
    );
    assert_eq!(count_users(pipeline).await, "0");
    let (code, said) = run_script(pipeline, &["-t", "user-events", "-r", "view-builder"], "y").await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("NEW-OFFSET") && said.contains("Reset complete"), "{said}");
    wait_until_view_has_all_users(pipeline).await;
}

/// Stops the builder, resets the group by Kafka's own tool, and starts the builder.
async fn assert_documented_procedure_mends_rows(pipeline: &Pipeline) {
    query_views(pipeline, "update user_view set name = 'x' where user_id % 2 = 0").await;
    eventually_ok(DEADLINE, "the group has committed", || async {
        let kafka = pipeline.kafka()?;
        let told = kafka.group_tool(&["--describe", "--group", "view-builder"]).await?;
        anyhow::ensure!(told.contains("user-events"), "{told}");
        Ok(())
    })
    .await
    .expect("the group shows");
    pipeline.view_builder.stop().await.expect("a clean end");
    let kafka = pipeline.kafka().expect("kafka");
    let reset = [
        "--group",
        "view-builder",
        "--topic",
        "user-events",
        "--reset-offsets",
        "--to-earliest",
        "--execute",
    ];
    kafka.group_tool(&reset).await.expect("the group is reset");
    pipeline.view_builder.start().expect("a start");
    wait_until_view_has_all_users(pipeline).await;
}

/// The script prints no line of success, and its exit code is not 0.
async fn assert_failed_replay_says_so(pipeline: &Pipeline) {
    let (code, said) = run_script(pipeline, &["-t", "no-events", "-r", "view-builder", "-y"], "").await;
    assert_eq!((code, said.contains("complete")), (Some(1), false), "{said}");
    let (code, _) = run_script(pipeline, &["-t"], "").await;
    assert_eq!(code, Some(1));
}
