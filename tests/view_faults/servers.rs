//! Servers go down while the builder works: PostgreSQL in the middle of a COMMIT, with both outcomes, and Kafka.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use rustix::process::Signal;
use stack::{Postgres, eventually, eventually_ok};

use super::lane::Lane;
use super::oracle::Complete::EachEvent;
use super::site::Site;

const RECOVERY: Duration = Duration::from_secs(90);
const ROUNDS: usize = 3;
/// So many writes in a row are not all what the builder notes beside its batches.
const TRIES_MAX: usize = 5;
/// The builder must be behind by so many offsets, so that it surely has events to apply.
const BEHIND_MIN: i64 = 100;
/// The statement that ends a batch.
const COMMIT: &str = "commit";
/// What the builder says about a COMMIT whose answer it never got.
const HAPPENED: &str = "the connection was lost, and the batch has been committed";
const NOTHING_HAPPENED: &str = "the connection was lost, and nothing of the batch has been committed";

#[tokio::test]
async fn restarts_of_postgres_and_kafka_lose_and_double_nothing() {
    let site = Arc::new(Site::start().await);
    let lane = Lane::new(&site, "restarts", EachEvent).await;
    let builder = lane.builder("builder", true);
    builder.start().expect("a start");
    assert_exact(&lane).await;
    let postgres = site.pipeline.postgres().expect("our own postgres");
    let times_said = |words: &str| builder.log_text().matches(words).count();

    for round in 1..=ROUNDS {
        // The COMMIT has not written its record yet. After the restart the transaction is gone.
        lane.query("insert into slow_commits values (30)").await.expect("a row");
        assert_eq!(wait_at(&lane, "PgSleep").await, COMMIT);
        lane.query("delete from slow_commits").await.expect("no row");
        restart_immediately(postgres).await;
        wait_until_applied_again(&lane).await;
        assert_eq!(times_said(NOTHING_HAPPENED), round, "{}", builder.log_tail(20));
    }
    assert_exact(&lane).await;

    for round in 1..=ROUNDS {
        // The COMMIT has written its record, and waits for a standby that never comes. After the restart the transaction is there.
        let mut tries = 1;
        while hold_a_write(&lane, postgres).await != COMMIT {
            assert!(tries < TRIES_MAX, "the builder's writes are not its batches");
            tries += 1;
            // It is what the builder notes once a second beside its batches. It goes on, and the next write is another one.
            alter_system(postgres, "reset synchronous_standby_names").await;
        }
        let alter = "alter system reset synchronous_standby_names";
        site.query("postgres", alter).await.expect("a setting");
        restart_immediately(postgres).await;
        wait_until_applied_again(&lane).await;
        assert_eq!(times_said(HAPPENED), round, "{}", builder.log_tail(20));
    }
    assert_exact(&lane).await;

    let kafka = site.pipeline.kafka().expect("our own kafka");
    for is_killed in [true, false] {
        if is_killed {
            kafka.kill_hard().await;
        } else {
            kafka.stop().await.expect("a clean end");
        }
        kafka.start_again().await.expect("a restart");
        wait_until_applied_again(&lane).await;
    }
    assert_exact(&lane).await;
    builder.stop().await.expect("a clean end");
    site.pipeline.stop().await.expect("a clean end");
}

async fn assert_exact(lane: &Lane) {
    lane.check_exact().await.unwrap_or_else(|err| panic!("{err:#}"));
}

/// Makes the builder's next write wait for a standby that never comes. Returns its statement.
async fn hold_a_write(lane: &Lane, postgres: &Postgres) -> String {
    // The clients will wait as well, so there must be events before.
    lane.query("insert into slow_commits values (1)").await.expect("a row");
    eventually(RECOVERY, "the builder is behind", || async {
        (lane.behind().await? > BEHIND_MIN).then_some(())
    })
    .await;
    alter_system(postgres, "set synchronous_standby_names = 'nobody'").await;
    lane.query("set synchronous_commit = local; delete from slow_commits")
        .await
        .expect("no row");
    wait_at(lane, "SyncRep").await
}

/// Waits until a statement of the builder's waits at this wait event of PostgreSQL. Returns the statement.
async fn wait_at(lane: &Lane, wait_event: &str) -> String {
    let sql = format!(
        "select query from pg_stat_activity where datname = '{}' and usename = 'view_builder' and wait_event = '{wait_event}'",
        lane.name
    );
    let waiting = eventually_ok(RECOVERY, wait_event, || lane.value(&sql));
    waiting
        .await
        .unwrap_or_else(|err| panic!("{err:#}\n{}", lane.log_tails()))
}

/// Changes a setting of the server by `alter system`.
async fn alter_system(postgres: &Postgres, setting: &str) {
    let client = postgres.connect("postgres", "postgres").await.expect("a connection");
    client
        .batch_execute(&format!("alter system {setting}"))
        .await
        .expect("a setting");
    client.batch_execute("select pg_reload_conf()").await.expect("a reload");
}

/// Stops PostgreSQL by its immediate shutdown, and starts it again.
async fn restart_immediately(postgres: &Postgres) {
    let process = postgres.process().expect("a running server");
    process.signal(Signal::QUIT);
    process.exited().await;
    postgres.start_again().await.expect("a restart");
}

/// Waits until the clients have made some changes, and the builder has applied new events.
async fn wait_until_applied_again(lane: &Lane) {
    let site = &lane.site;
    let changes = site.load.changes();
    eventually(RECOVERY, "the clients go on", || {
        std::future::ready((site.load.changes() > changes + 5).then_some(()))
    })
    .await;
    let last = "select coalesce(max(id), 0) from applied_events";
    let applied: i64 = lane.value(last).await.expect("a number").parse().expect("a number");
    let flow = eventually_ok(RECOVERY, "events are applied again", || async {
        let now: i64 = lane.value(last).await?.parse()?;
        ensure!(now > applied, "none since event {applied}");
        Ok(())
    });
    if let Err(err) = flow.await {
        let relays = [&site.pipeline.users_relay, &site.pipeline.posts_relay].map(|relay| relay.log_tail(25));
        let behind = lane.behind().await;
        panic!(
            "{err:#}; behind: {behind:?}\n{}--- relays\n{}",
            lane.log_tails(),
            relays.join("\n---\n")
        );
    }
}
