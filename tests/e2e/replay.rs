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

async fn sql(pipeline: &Pipeline, statement: &str) -> Vec<Vec<Option<String>>> {
    let postgres = pipeline.postgres().expect("postgres");
    postgres.query(VIEWS_DATABASE, statement).await.expect("an answer")
}

async fn count(pipeline: &Pipeline) -> String {
    let rows = sql(pipeline, "select count(*) from user_view where name like '고쳐%'").await;
    rows[0][0].clone().expect("a count")
}

async fn wait_for_all(pipeline: &Pipeline) {
    eventually_ok(DEADLINE, "the view has all users", || async {
        let there = count(pipeline).await;
        anyhow::ensure!(there == USERS.to_string(), "{there}");
        Ok(())
    })
    .await
    .expect("the view is whole");
}

/// Runs the replay script with `answer` on its standard input. Returns its exit code and its standard output.
pub(crate) async fn script(pipeline: &Pipeline, arguments: &[&str], answer: &str) -> (Option<i32>, String) {
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
    wait_for_all(&pipeline).await;

    // Looking at events changes nothing.
    let positions = "select topic, partition, next_offset, epoch from view_positions order by 1, 2";
    let before = sql(&pipeline, positions).await;
    let (code, printed) = script(&pipeline, &[], "").await;
    assert_eq!(code, Some(0));
    let events: Vec<&str> = printed.lines().filter(|line| line.contains("고쳐")).collect();
    assert_eq!(events.len(), USERS as usize, "{printed}");
    let (key, value) = events[0].split_once(": ").expect("key and value");
    let value: serde_json::Value = serde_json::from_str(value).expect("the event's JSON");
    assert_eq!(value["userId"].to_string(), key);
    assert_eq!(sql(&pipeline, positions).await, before);

    // Rows that were deleted by hand come back, and no program is stopped.
    sql(&pipeline, "delete from user_view").await;
    assert_eq!(
        script(&pipeline, &["-r", "view-builder"], "n").await,
        (Some(0), "Operation cancelled.\n".to_owned())
    );
    assert_eq!(count(&pipeline).await, "0");
    let (code, said) = script(&pipeline, &["-t", "user-events", "-r", "view-builder"], "y").await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("NEW-OFFSET") && said.contains("Reset complete"), "{said}");
    wait_for_all(&pipeline).await;

    // The documented procedure: stop, reset the group by Kafka's own tool, start.
    sql(&pipeline, "update user_view set name = 'x' where user_id % 2 = 0").await;
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
    wait_for_all(&pipeline).await;

    // If a replay cannot be done, the script says so. It prints no line of success, and its exit code is not 0.
    let (code, said) = script(&pipeline, &["-t", "no-events", "-r", "view-builder", "-y"], "").await;
    assert_eq!((code, said.contains("complete")), (Some(1), false), "{said}");
    let (code, _) = script(&pipeline, &["-t"], "").await;
    assert_eq!(code, Some(1));
    pipeline.stop().await.expect("a clean end");
}
