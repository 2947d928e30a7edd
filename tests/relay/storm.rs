//! A short kill storm. `kill-storm` makes longer ones.

use std::time::Duration;

use rig::storm::{self, Options, Part, Schedule, Verdict};

const SEED: u64 = 20_260_701;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_of_relay_walsender_postgres_and_kafka_lose_double_and_reorder_nothing() {
    let options = Options {
        seed: SEED,
        duration: Duration::from_secs(35),
        rate: 1_000,
        parts: Part::ALL.to_vec(),
        standby: false,
        parking: false,
        rotation: false,
        postgres_version: rig::servers::postgres_version(),
        logs: None,
    };
    let schedule = Schedule::from_seed(SEED, options.duration, &options.parts, 1);
    let outcome = storm::run(&options, &schedule, |_| {}).await;
    let outcome = outcome.unwrap_or_else(|err| panic!("the storm failed: {err:#}"));
    assert_eq!(outcome.verdict(), Verdict::Exact, "{schedule}\n{outcome}");
    assert!(outcome.committed > 5_000, "{outcome}");
}
