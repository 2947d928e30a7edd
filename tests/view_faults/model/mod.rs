//! A generated schedule of events, replays, rebuilds, dead letters, kills and compaction. The result is compared with a model.
//!
//! A seed decides the schedule. It cannot decide how the programs run beside each other. `MODEL_SEED` and `MODEL_STEPS` give another or a longer
//! schedule.

mod reader;
mod schedule;
mod state;
mod world;

use schedule::Schedule;

/// The seed that `./test` uses.
const SEED: u64 = 1;
const STEPS: u64 = 10_000;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_in_whatever_order_the_views_are_what_the_model_says() {
    let (seed, steps) = (setting("MODEL_SEED", SEED), setting("MODEL_STEPS", STEPS));
    let mut schedule = Schedule::start("model", seed)
        .await
        .expect("servers, topics and builders");
    for step in 1..=steps {
        if let Err(err) = schedule.step().await {
            panic!(
                "step {step} of seed {seed}: {err:#}\n{}\n{}",
                schedule.last_steps(),
                schedule.world.log_tails()
            );
        }
    }
    if let Err(err) = schedule.wait_and_compare().await {
        panic!(
            "at the end of seed {seed}: {err:#}\n{}\n{}",
            schedule.last_steps(),
            schedule.world.log_tails()
        );
    }
    println!("{steps} steps of seed {seed}: {}", schedule.summary());
    let (compacted, looks) = schedule.world.end().await.expect("a clean end");
    println!("{compacted} records compacted away, {looks} looks by a reader");
    assert!(
        compacted > 100 && looks > 100,
        "{compacted} records compacted away, {looks} looks"
    );
}
