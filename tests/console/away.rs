//! Parts of the pipeline are taken away. The console goes on answering, says what is away and since when, and shows the last figures as old.

use std::time::Duration;

use super::{browser, running};

const DEADLINE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_away_is_named() {
    let pipeline = running::pipeline().await;
    pipeline.users_relay.kill_hard().await;
    let away = browser::run(&pipeline, "away", &[("AWAY", "relay users")]).await;
    pipeline.users_relay.start().expect("a start");
    pipeline.users_relay.wait_ready(DEADLINE).await.expect("a ready relay");
    let back = browser::run(&pipeline, "back", &[("AWAY", "relay users")]).await;
    away.and(back).unwrap_or_else(|report| panic!("{report}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_builder_that_is_away_is_named() {
    let pipeline = running::pipeline().await;
    pipeline.view_builder.kill_hard().await;
    let away = browser::run(&pipeline, "away", &[("AWAY", "view-builder")]).await;
    pipeline.view_builder.start().expect("a start");
    pipeline
        .view_builder
        .wait_ready(DEADLINE)
        .await
        .expect("a ready builder");
    let back = browser::run(&pipeline, "back", &[("AWAY", "view-builder")]).await;
    away.and(back).unwrap_or_else(|report| panic!("{report}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kafka_that_is_away_is_named() {
    let pipeline = running::pipeline().await;
    let kafka = pipeline.kafka().expect("a private kafka");
    kafka.kill_hard().await;
    let away = browser::run(&pipeline, "away", &[("AWAY", "Kafka")]).await;
    kafka.start_again().await.expect("a start");
    let back = browser::run(&pipeline, "back", &[("AWAY", "Kafka")]).await;
    away.and(back).unwrap_or_else(|report| panic!("{report}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_that_is_away_is_named() {
    let pipeline = running::pipeline().await;
    let postgres = pipeline.postgres().expect("a private postgres");
    postgres.kill_hard().await;
    let away = browser::run(&pipeline, "away", &[("AWAY", "database users_db")]).await;
    postgres.start_again().await.expect("a start");
    let back = browser::run(&pipeline, "back", &[("AWAY", "database users_db")]).await;
    away.and(back).unwrap_or_else(|report| panic!("{report}"));
}
