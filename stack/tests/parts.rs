//! How the crate starts, kills and restarts PostgreSQL and Kafka.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use stack::{Isolation, Kafka, KafkaOptions, Postgres, PostgresOptions};

#[tokio::test]
async fn postgres_keeps_what_was_committed_over_kill_and_restart() {
    let options = PostgresOptions {
        version: Some(18),
        ..PostgresOptions::default()
    };
    let postgres = Postgres::start(options).await.expect("postgres");
    let query = async |sql: &str| postgres.query("postgres", sql).await.expect("an answer");
    query("create table t (n int); insert into t values (1), (2)").await;

    postgres.kill_hard().await;
    assert!(postgres.connect("postgres", "postgres").await.is_err());
    postgres.start_again().await.expect("a restart");
    assert_eq!(query("select sum(n) from t").await, [[Some("3".to_owned())]]);

    postgres.stop_fast().await.expect("a stop");
    postgres.start_again().await.expect("a restart");
    assert_eq!(
        query("select current_setting('wal_level'), sum(n) from t").await,
        [[Some("logical".to_owned()), Some("3".to_owned())]]
    );
    assert_eq!(
        postgres.psql("postgres", "select max(n) from t").await.expect("psql"),
        "2"
    );
}

#[tokio::test]
async fn kafka_answers_and_keeps_its_topics_over_kill_and_restart() {
    let kafka = Kafka::start(KafkaOptions::default()).await.expect("kafka");
    let create = ["--create", "--topic", "t", "--partitions", "3"];
    kafka.topic_tool(&create).await.expect("a topic");
    let compacted = ["--create", "--topic", "u", "--config", "cleanup.policy=compact"];
    kafka.topic_tool(&compacted).await.expect("a topic");
    kafka.delete_records("t", 0, -1).await.expect("nothing to delete");
    let refused = kafka.delete_records("u", 0, -1).await;
    assert!(refused.is_err(), "the tool itself ends with 0 when the broker refuses");
    kafka.kill_hard().await;
    kafka.start_again().await.expect("a restart");
    assert_eq!(kafka.topics().await.expect("topics"), ["t", "u"]);
    let consumer = kafka.consumer("t", Isolation::Committed).expect("a consumer");
    assert_eq!(consumer.records().expect("records"), []);
    kafka.stop().await.expect("a stop");
}

#[test]
fn nothing_outlives_a_parent_that_is_killed() {
    let directory = tempfile::tempdir().expect("a directory");
    let told = directory.path().join("told");
    let mut parent = Command::new(env!("CARGO_BIN_EXE_with-postgres"))
        .args(["18", "sh", "-c", "echo $$ $TEST_DATABASE_URL >\"$0\"; sleep 1000"])
        .arg(&told)
        .spawn()
        .expect("a parent");
    let text = within(Duration::from_secs(60), || {
        let text = std::fs::read_to_string(&told).ok()?;
        text.ends_with('\n').then_some(text)
    });
    let (child, url) = text.trim().split_once(' ').expect("pid and URL");
    let (_, port) = url.rsplit_once(':').expect("a port");
    let port: u16 = port.trim_end_matches("/postgres").parse().expect("a port");
    let data = data_of_server_on(port);
    assert!(!stack::port::is_free(port));
    parent.kill().expect("a running parent");
    parent.wait().expect("its end");
    within(Duration::from_secs(20), || {
        let gone = is_gone(child) && stack::port::is_free(port) && !data.exists();
        gone.then_some(())
    });
}

/// Finds the data directory in the server's command line, where it follows `-D`.
fn data_of_server_on(port: u16) -> PathBuf {
    let setting = format!("port={port}");
    let processes = std::fs::read_dir("/proc").expect("/proc");
    processes
        .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("cmdline")).ok())
        .find_map(|line| {
            let arguments: Vec<&str> = line.split('\0').collect();
            let data = arguments.iter().position(|argument| *argument == "-D")? + 1;
            arguments
                .contains(&setting.as_str())
                .then(|| PathBuf::from(arguments[data]))
        })
        .expect("a server with that port")
}

/// A zombie counts as gone. Its new parent has only not collected it yet.
fn is_gone(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.map_or(true, |stat| {
        stat.rsplit(')').next().is_some_and(|rest| rest.trim().starts_with('Z'))
    })
}

fn within<T>(deadline: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < deadline, "not within {deadline:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
