//! A second relay for the same slot: how it waits, and how fast it takes over.

use std::time::{Duration, Instant};

use rig::Rig;
use rustix::process::Signal;
use stack::Program;

use super::load::{DEADLINE, Load, metric, wait_until_standby};

/// A waiting standby is watched for so long, unless `WATCHED_S` says otherwise.
const WATCHED: Duration = Duration::from_secs(5);
/// The standby's session on the server uses at most this part of a processor.
const WAITING_CORES_MAX: f64 = 0.05;
/// The time from the death of the leader to the first record of its successor. It includes time for a machine that runs other tests.
const AFTER_KILL_MAX: Duration = Duration::from_secs(5);
const AFTER_STOP_MAX: Duration = Duration::from_millis(2_500);
/// How many take-overs of each kind there are, unless `TAKE_OVERS` says otherwise.
const TAKE_OVERS: usize = 3;

#[tokio::test]
async fn a_standby_waits_without_load_without_a_snapshot_and_without_a_word_in_the_servers_log() {
    let rig = Rig::initialised("waiting").await;
    rig.start().await;
    let standby = rig.another_relay("standby");
    standby.start().expect("a standby");
    wait_until_standby(&standby).await;
    let postgres = &rig.servers.postgres;
    let logged = std::fs::read_to_string(postgres.log()).expect("the server's log").len();
    let sessions = "select pid from pg_stat_activity where datname = 'waiting' and backend_type = 'walsender'
                    and pid not in (select active_pid from pg_replication_slots where slot_name = 'waiting')";
    let pid = rig.value(sessions).await;
    let before = processor_seconds(&pid);
    let since = Instant::now();
    let watched = std::env::var("WATCHED_S").map_or(WATCHED, |text| {
        Duration::from_secs(text.parse().expect("WATCHED_S is a number of seconds"))
    });
    while since.elapsed() < watched {
        let held = rig
            .sql(&format!(
                "select 1 from pg_stat_activity where pid = {pid} and state <> 'active' and (backend_xmin is not null or xact_start is not null)"
            ))
            .await;
        assert!(held.is_empty(), "a standby holds no snapshot between its looks");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let cores = (processor_seconds(&pid) - before) / since.elapsed().as_secs_f64();
    println!("the waiting standby's session uses {cores:.4} cores");
    assert!(cores <= WAITING_CORES_MAX, "{cores} cores for waiting");
    let log = std::fs::read_to_string(postgres.log()).expect("the server's log");
    let lines: Vec<&str> = log[logged..]
        .lines()
        .filter(|line| line.contains("\"waiting\""))
        .collect();
    assert!(lines.is_empty(), "{lines:?}");
    assert_eq!(metric(&standby, "relay_restarts_total").await, Some(0.0));
    standby.stop().await.expect("a clean end");
    rig.finish().await.expect("a clean end");
}

/// User and system time of a process (proc_pid_stat(5)). A tick is 10 ms.
fn processor_seconds(pid: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the session's process");
    let (_, fields) = stat.rsplit_once(')').expect("a name in parentheses");
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = |index: usize| fields[index].parse::<f64>().expect("a number of ticks");
    (ticks(11) + ticks(12)) / 100.0
}

/// `TAKE_OVERS=20 cargo test --release --workspace --test relay -- --nocapture take_overs` prints the times of 20 take-overs of each kind.
#[tokio::test]
async fn take_overs_under_load_are_quick_and_exact() {
    let count = std::env::var("TAKE_OVERS").map_or(TAKE_OVERS, |text| text.parse().expect("TAKE_OVERS is a number"));
    let mut rig = Rig::initialised("take_overs").await;
    rig.start().await;
    let load = Load::start_on(&rig);
    let mut standby = rig.another_relay("standby");
    for (kind, max) in [(Signal::KILL, AFTER_KILL_MAX), (Signal::TERM, AFTER_STOP_MAX)] {
        let mut times = Vec::new();
        for _ in 0..count {
            standby.start().expect("a standby");
            wait_until_standby(&standby).await;
            load.wait_for_more_rows(50).await;
            times.push(take_over(&rig.relay, &standby, kind).await);
            std::mem::swap(&mut rig.relay, &mut standby);
        }
        times.sort_unstable();
        // By the nearest rank: with fewer than a hundred take-overs, the p99 is the slowest one.
        let time_at = |share: usize| times[(times.len() * share).div_ceil(100) - 1].as_millis();
        println!(
            "{} take-overs after {kind:?}: p50 {} ms, p99 {} ms, max {} ms",
            times.len(),
            time_at(50),
            time_at(99),
            time_at(100)
        );
        assert!(
            times.iter().all(|time| *time <= max),
            "{kind:?}: {times:?}\n{}",
            rig.relay.log_tail(20)
        );
    }
    load.stop().await;
    rig.assert_exactly_once().await;
    rig.finish().await.expect("a clean end");
}

/// Sends `signal` to the leader. Returns the time until the successor has published its first record.
async fn take_over(leader: &Program, successor: &Program, signal: Signal) -> Duration {
    let process = leader.process().expect("a running leader");
    let since = Instant::now();
    process.signal(signal);
    loop {
        let published = metric(successor, "relay_published_records_total").await;
        if published.is_some_and(|records| records > 0.0) {
            let took = since.elapsed();
            process.exited().await;
            return took;
        }
        assert!(since.elapsed() < DEADLINE, "no take-over\n{}", successor.log_tail(20));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
