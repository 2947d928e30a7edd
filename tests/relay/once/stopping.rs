//! SIGTERM in the middle of a load, and a queue that is too small for it.

use std::time::{Duration, Instant};

use rig::Rig;
use rustix::process::Signal;

/// The relay promises to stop within this time after SIGTERM.
const STOPS_WITHIN: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_in_the_middle_of_a_batch_ends_in_time_with_code_0_and_loses_nothing() {
    let rig = Rig::initialised("sigterm").await;
    rig.insert_together(60_000).await;
    for signals in 1..=2 {
        rig.start().await;
        rig.insert_each(300).await;
        let process = rig.relay.process().expect("a relay");
        let told = Instant::now();
        // A second SIGTERM changes nothing.
        for _ in 0..signals {
            process.signal(Signal::TERM);
        }
        let status = rig
            .relay
            .exited(STOPS_WITHIN)
            .await
            .unwrap_or_else(|err| panic!("{err:#}"));
        assert_eq!(status.code(), Some(0), "{}", rig.relay.log_tail(10));
        assert!(told.elapsed() < STOPS_WITHIN);
        rig.insert_together(1_000).await;
    }
    rig.start().await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("a clean end");
}

#[tokio::test]
async fn a_full_queue_holds_the_stream_up_and_drops_nothing() {
    let mut rig = Rig::new("queue_full").await;
    rig.relay = rig
        .relay
        .with_env("KAFKA_PROPERTIES", "queue.buffering.max.messages=50\nlinger.ms=0");
    rig.init(&[]).await;
    rig.start().await;
    rig.insert_together(20_000).await;
    rig.insert_each(500).await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("a clean end");
}
