//! The relay streams from a slot on a standby, and the standby is promoted. The walsender goes on, on another timeline.

use std::sync::Arc;
use std::time::Duration;

use rig::servers::postgres_options;
use rig::{Isolation, Rig, Servers, relay_exit};
use stack::{KafkaOptions, Postgres, eventually_ok};

const DEADLINE: Duration = Duration::from_secs(60);

/// A rig whose relay reads from a slot on a standby, and has published five rows.
async fn on_a_standby(name: &str, bug: Option<&str>) -> (Rig, Postgres) {
    let servers = Servers::start(postgres_options(), KafkaOptions::default()).await;
    let servers = Arc::new(servers.unwrap_or_else(|err| panic!("the servers do not start: {err:#}")));
    let mut rig = Rig::on(servers, name).await;
    // A standby can make neither a publication nor partitions.
    rig.sql("create publication outbox for table outbox with (publish = 'insert', publish_via_partition_root = true)")
        .await;
    let standby = rig.servers.postgres.standby("standby").await;
    let standby = standby.unwrap_or_else(|err| panic!("no standby: {err:#}"));
    rig.relay = rig
        .relay
        .with_env("DATABASE_URL", &standby.url("postgres", name))
        .with_env("LOG", "outbox_relay=debug");
    if let Some(bug) = bug {
        rig.relay = rig
            .relay
            .with_binary("outbox-relay-faults")
            .with_env("OUTBOX_RELAY_BUG", bug);
    }
    // A slot on a standby begins at a certain record, which the primary writes.
    let snapshots = async {
        loop {
            rig.sql("select pg_log_standby_snapshot()").await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::select! {
        () = rig.init(&[]) => {}
        () = snapshots => {}
    }
    rig.start().await;
    rig.insert_each(5).await;
    published(&rig, 5).await;
    (rig, standby)
}

async fn published(rig: &Rig, count: usize) {
    let published = eventually_ok(DEADLINE, "records", || async {
        let records = rig.records(Isolation::Committed).await?.len();
        anyhow::ensure!(records >= count, "{records}\n{}", rig.relay.log_tail(10));
        Ok(())
    });
    published.await.unwrap_or_else(|err| panic!("{err:#}"));
}

#[tokio::test]
async fn a_promotion_under_a_stream_that_survives_it_ends_the_stream_and_the_next_start_decides() {
    let (rig, standby) = on_a_standby("promoted_slot", None).await;
    standby.promote().await.expect("a promotion");
    let status = rig.relay.exited(DEADLINE).await;
    let status = status.unwrap_or_else(|err| panic!("{err:#}\n{}", rig.relay.log_tail(20)));
    let log = rig.relay.log_text();
    assert!(log.contains("the server was promoted"), "{log}");
    assert_eq!(status.code(), Some(relay_exit::OTHER_TIMELINE), "{log}");
    assert!(log.contains("is no failover slot"), "{log}");
    rig.relay.kill_hard().await;
}

#[tokio::test]
async fn without_that_end_the_walsender_goes_on_and_readyz_says_that_nothing_is_confirmed() {
    let (rig, standby) = on_a_standby("promoted_slot_planted", Some("StreamOnAfterPromotion")).await;
    standby.promote().await.expect("a promotion");
    let sql = rig.insert_statement(3, 7);
    standby.query(rig.name(), &sql).await.expect("rows");
    published(&rig, 8).await;
    let says = eventually_ok(DEADLINE, "/readyz says it", || async {
        let answer = reqwest::get(rig.relay.url("/readyz")).await?;
        let (status, body) = (answer.status().as_u16(), answer.text().await?);
        anyhow::ensure!(
            status == 503 && body.contains("nothing is confirmed"),
            "{status} {body}"
        );
        Ok(body)
    });
    let says = says
        .await
        .unwrap_or_else(|err| panic!("{err:#}\n{}", rig.relay.log_tail(20)));
    assert!(says.contains("on timeline 2"), "{says}");
    rig.relay.kill_hard().await;
}
