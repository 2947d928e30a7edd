//! What dead letters cost the keys that have none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use stack::pipeline::{USERS_DATABASE, VIEWS_DATABASE};
use stack::random::Random;
use stack::{Pipeline, PipelineBuilder, eventually_ok, postgres};
use tokio_postgres::{Client, Statement};
use user_api::statements;

use crate::arguments::DeadLetters;
use crate::latency::{ARRIVAL_DEADLINE, FIRST_WARM_UP_RATE, WARM_UP_SECONDS, fill_the_log};
use crate::report::Report;
use crate::statistics::{latencies, median, quantile_ms, thousands};
use crate::topic::now_us;
use crate::{pace, view_drain};

/// Before the first round, and faster than those: as long as it takes Java to compile the broker.
const FIRST_WARM_UP_SECONDS: u32 = 240;
/// The view is looked at so often while one of its rows can be replaced: what a row was between two looks is not seen.
const LOOKS_PER_TURN: u32 = 4;
const LOOK_INTERVAL_MAX: Duration = Duration::from_millis(500);
/// Of which a view takes no user: an event with it looks good to view-builder, and only PostgreSQL refuses it.
const REFUSED_STATUS: &str = "REFUSED";
/// What the ratio of p99 should not be above.
const RATIO_MAX: f64 = 1.1;
/// $1 key, $2 payload.
const POISON: &str = "insert into outbox (aggregatetype, aggregateid, type, payload)
    values ('user', $1::text, 'USER_UPDATED', $2::text::jsonb)";
/// When each version came into the view, of the rows with ids from $1 to $2; microseconds since 1970.
const IN_VIEW: &str = "select user_id, version, (extract(epoch from pg_xact_commit_timestamp(xmin)) * 1000000)::bigint
    from user_view where user_id between $1 and $2";
/// When each version was committed at the source, of the users with ids from $1 to $2, where that was not before $3; microseconds since 1970.
const COMMITTED: &str = "select id, version, committed_us
    from (
        select aggregateid::bigint as id, (payload ->> 'version')::bigint as version,
            (extract(epoch from pg_xact_commit_timestamp(xmin)) * 1000000)::bigint as committed_us
        from outbox where payload -> 'user' ->> 'name' is not null
    ) as event
    where id between $1 and $2 and committed_us >= $3";

/// Which of a round's events are poison.
struct Plan {
    /// By index.
    poison: BTreeSet<u64>,
    /// Users that get one, counted from 0.
    poisoned: BTreeSet<u64>,
}

/// Version and time in the view, by user.
type Seen = BTreeMap<i64, BTreeMap<i64, i64>>;

/// One round.
struct Round {
    /// Events a second that were made.
    achieved: f64,
    /// Of the good keys.
    latencies_us: Histogram<u64>,
    /// Events that were in the view together with the next one of their key, or were not seen alone.
    merged: u64,
    /// Events in view_dead_letters at the end.
    letters: u64,
}

/// # Errors
/// A part failed, or a change did not arrive.
pub(crate) async fn measure(asked: &DeadLetters, builder: PipelineBuilder) -> anyhow::Result<Report> {
    ensure!(
        asked.runs.is_multiple_of(4),
        "--runs must be a multiple of 4, so that either round comes first as often"
    );
    let pipeline = builder.start().await?;
    refuse_a_status(&pipeline).await?;
    let mut report = Report::begin(
        &pipeline,
        &[
            "poison events",
            "wanted/s",
            "made/s",
            "good events",
            "p50 ms",
            "p99 ms",
            "max ms",
            "ratio of p99",
            "dead letters",
        ],
    )
    .await?;
    report.notes = vec![format!(
        "All good events of {} rounds of each, in pairs whose first takes turns, of {} keys each. From the commit record at the source \
         to the commit record of the view's transaction; both rounds of a pair measure the keys that get no poison. PostgreSQL has files \
         of its log to use again, as one that has been running for a while.",
        asked.runs,
        thousands(f64::from(asked.keys))
    )];
    tracing::info!("warming up");
    fill_the_log(&pipeline).await?;
    let warm_up = DeadLetters {
        rate: FIRST_WARM_UP_RATE,
        seconds: FIRST_WARM_UP_SECONDS,
        ..*asked
    };
    round(&pipeline, &warm_up, 0, false).await?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for number in 1..=asked.runs {
        // What changes with time must not be counted for one of the two: a server that warms up, and what PostgreSQL does every minute or
        // two, which is as long as two or four rounds. So the order is the Thue-Morse sequence, whose parts of such lengths are fair.
        let poison_first = (number - 1).count_ones() % 2 == 1;
        for has_poison in [poison_first, !poison_first] {
            let round = round(&pipeline, asked, u64::from(number), has_poison).await?;
            tracing::info!(
                "  round {number}, {}: p50 {:.1} ms, p99 {:.1} ms, {} dead letters",
                if has_poison { "with poison" } else { "without" },
                quantile_ms(&round.latencies_us, 0.5),
                quantile_ms(&round.latencies_us, 0.99),
                round.letters
            );
            report.runs.push(round.json(has_poison));
            if has_poison { &mut with } else { &mut without }.push(round);
        }
    }
    let (all_without, all_with) = (all(&without)?, all(&with)?);
    let ratio = quantile_ms(&all_with, 0.99) / quantile_ms(&all_without, 0.99);
    for (name, rounds, events, ratio) in [
        ("none".to_owned(), &without, &all_without, String::new()),
        (format!("{} %", asked.poison), &with, &all_with, format!("{ratio:.2}")),
    ] {
        report.table.row(vec![
            name,
            thousands(f64::from(asked.rate)),
            thousands(of(rounds, |round| round.achieved)),
            thousands(events.len() as f64),
            format!("{:.1}", quantile_ms(events, 0.5)),
            format!("{:.1}", quantile_ms(events, 0.99)),
            format!("{:.1}", events.max() as f64 / 1e3),
            ratio,
            thousands(of(rounds, |round| round.letters as f64)),
        ]);
    }
    let all = all_without.len() + all_with.len();
    let merged: u64 = without.iter().chain(&with).map(|round| round.merged).sum();
    report.notes.push(format!(
        "{merged} of {all} events came into the view together with a later one of their key, and count until then."
    ));
    let round_p99 = |rounds: &[Round]| of(rounds, |round| quantile_ms(&round.latencies_us, 0.99));
    report.notes.push(format!(
        "Median of the rounds' p99: {:.1} ms without, {:.1} ms with poison.",
        round_p99(&without),
        round_p99(&with)
    ));
    if ratio > RATIO_MAX {
        report.notes.push(format!("The ratio is above {RATIO_MAX}."));
    }
    pipeline.stop().await?;
    Ok(report)
}

/// The latencies of all rounds' good events.
fn all(rounds: &[Round]) -> anyhow::Result<Histogram<u64>> {
    let mut all = latencies()?;
    for round in rounds {
        all.add(&round.latencies_us)?;
    }
    Ok(all)
}

/// As an operator narrows a view's column: view-builder does not know, and learns it from PostgreSQL's answer to a batch.
async fn refuse_a_status(pipeline: &Pipeline) -> anyhow::Result<()> {
    let views = postgres::connect(&pipeline.database_url(VIEWS_DATABASE)?).await?;
    let sql = format!("alter table user_view add constraint user_view_bench check (status <> '{REFUSED_STATUS}')");
    Ok(views.batch_execute(&sql).await?)
}

fn of(rounds: &[Round], value: impl Fn(&Round) -> f64) -> f64 {
    median(&rounds.iter().map(value).collect::<Vec<_>>())
}

/// A connection, and the statements of a change and of a poison event.
type Writer = (Client, Statement, Statement);

/// Changes new users in turn, and empties the dead letters afterwards. Rounds of one number have the same plan.
async fn round(pipeline: &Pipeline, asked: &DeadLetters, number: u64, has_poison: bool) -> anyhow::Result<Round> {
    let users = postgres::connect(&pipeline.database_url(USERS_DATABASE)?).await?;
    let views = postgres::connect(&pipeline.database_url(VIEWS_DATABASE)?).await?;
    let keys = u64::from(asked.keys);
    let first = new_users(pipeline, &users, &views, keys).await?;
    let last = first + i64::from(asked.keys) - 1;
    let rate = u64::from(asked.rate);
    let warm_up = rate * u64::from(WARM_UP_SECONDS);
    let plan = Plan::of(number, asked.poison, keys, warm_up + rate * u64::from(asked.seconds));
    let mut writers: Vec<Writer> = Vec::new();
    for _ in 0..asked.connections {
        let client = postgres::connect(&pipeline.database_url(USERS_DATABASE)?).await?;
        let (change, poison) = (
            client
                .prepare(&statements::UPDATE.replace("$7", "gen_random_uuid()"))
                .await?,
            client.prepare(POISON).await?,
        );
        writers.push((client, change, poison));
    }
    let write = async |(client, change, poison): &mut Writer, index: u64| {
        let id = first + i64::try_from(index % keys)?;
        if has_poison && plan.poison.contains(&index) {
            client
                .execute(&*poison, &[&id.to_string(), &poison_payload(id, index)])
                .await?;
        } else {
            let email = format!("gildong.hong.{id}@example.com");
            let department = format!("부서{}", index % 8);
            client
                .query_one(
                    &*change,
                    &[&"홍길동", &email, &department, &"ACTIVE", &id, &None::<Vec<i64>>],
                )
                .await?;
        }
        anyhow::Ok(())
    };
    let sampler = Sampler::start(pipeline, asked, first, last).await?;
    pace::keep(
        &mut writers,
        asked.rate,
        WARM_UP_SECONDS,
        async |writer: &mut Writer, index| write(writer, index).await,
    )
    .await?;
    let begin_us = now_us();
    let measured = async |writer: &mut Writer, index: u64| write(writer, warm_up + index).await;
    let achieved = pace::keep(&mut writers, asked.rate, asked.seconds, measured).await?;
    let poisoned = |id: i64| has_poison && plan.poisoned.contains(&(id - first).unsigned_abs());
    wait_until_equal(&users, &views, first, last, poisoned).await?;
    let seen = sampler.end().await?;
    let mut latencies_us = latencies()?;
    let mut merged = 0;
    for row in users.query(COMMITTED, &[&first, &last, &begin_us]).await? {
        let (id, version, committed_us): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
        if plan.poisoned.contains(&(id - first).unsigned_abs()) {
            continue;
        }
        let versions = seen.get(&id).context("a user that the view has not had")?;
        let (reached, applied_us) = versions
            .range(version..)
            .next()
            .context("a change that the view has not had")?;
        merged += u64::from(*reached > version);
        latencies_us.saturating_record(u64::try_from(applied_us - committed_us).unwrap_or(0));
    }
    let wanted = plan.good_events(keys, warm_up, rate * u64::from(asked.seconds));
    ensure!(
        latencies_us.len() == wanted,
        "{wanted} events of good keys were committed, {} are in the outbox",
        latencies_us.len()
    );
    let letters = if has_poison {
        empty_letters(pipeline, &views, plan.poisoned.len()).await?
    } else {
        0
    };
    wait_until_equal(&users, &views, first, last, |_| false).await?;
    Ok(Round {
        achieved,
        latencies_us,
        merged,
        letters,
    })
}

/// The first of so many new users, all of whom are in the view.
async fn new_users(pipeline: &Pipeline, users: &Client, views: &Client, keys: u64) -> anyhow::Result<i64> {
    let row = users.query_one("select coalesce(max(id), 0) from users", &[]).await?;
    let before: i64 = row.get(0);
    view_drain::create_users(pipeline, before.unsigned_abs(), keys).await?;
    let first = before + 1;
    wait_until_equal(users, views, first, before + i64::try_from(keys)?, |_| false).await?;
    Ok(first)
}

/// Waits until the view has the users' versions, but for those of `except`.
async fn wait_until_equal(
    users: &Client,
    views: &Client,
    first: i64,
    last: i64,
    except: impl Fn(i64) -> bool,
) -> anyhow::Result<()> {
    let versions = async |client: &Client, sql: &str| {
        let rows = client.query(sql, &[&first, &last]).await?;
        let versions = rows.iter().map(|row| (row.get(0), row.get(1)));
        anyhow::Ok(versions.filter(|(id, _)| !except(*id)).collect::<BTreeMap<i64, i64>>())
    };
    let wanted = versions(users, "select id, version from users where id between $1 and $2").await?;
    let in_view = "select user_id, version from user_view where user_id between $1 and $2";
    eventually_ok(ARRIVAL_DEADLINE, "the view has all changes", async || {
        ensure!(
            versions(views, in_view).await? == wanted,
            "changes are missing in the view"
        );
        Ok(())
    })
    .await
}

/// Gives up all dead letters, so that what waits behind them is applied; how many there were.
async fn empty_letters(pipeline: &Pipeline, views: &Client, keys: usize) -> anyhow::Result<u64> {
    let sql = "select count(*), count(distinct key) from view_dead_letters where discarded_at is null";
    let row = views.query_one(sql, &[]).await?;
    let found: i64 = row.get(1);
    ensure!(
        usize::try_from(found)? == keys,
        "{keys} keys had a poison event, {found} have dead letters"
    );
    let firsts = "select distinct on (topic, partition, key) id from view_dead_letters where discarded_at is null
        order by topic, partition, key, record_offset";
    loop {
        let rows = views.query(firsts, &[]).await?;
        if rows.is_empty() {
            return Ok(row.get::<_, i64>(0).unsigned_abs());
        }
        let ids: Vec<String> = rows.iter().map(|row| row.get::<_, i64>(0).to_string()).collect();
        let arguments: Vec<&str> = ["dead-letters", "discard"]
            .into_iter()
            .chain(ids.iter().map(String::as_str))
            .collect();
        let command = pipeline.view_builder.command_of("dead-letters", &[]);
        // 6 says that others wait still.
        let status = command.run_for_status(&arguments).await?;
        ensure!(
            matches!(status.code(), Some(0 | 6)),
            "dead letters cannot be discarded ({status}):\n{}",
            command.log_tail(15)
        );
    }
}

impl Plan {
    fn of(seed: u64, percent: u32, keys: u64, events: u64) -> Self {
        let mut random = Random::seeded(seed);
        let poison: BTreeSet<u64> = (0..events).filter(|_| random.below(100) < u64::from(percent)).collect();
        Self {
            poisoned: poison.iter().map(|index| index % keys).collect(),
            poison,
        }
    }

    /// How many of the events after the first `warm_up` are of keys without poison.
    fn good_events(&self, keys: u64, warm_up: u64, events: u64) -> u64 {
        let indexes = warm_up..warm_up + events;
        indexes.filter(|index| !self.poisoned.contains(&(index % keys))).count() as u64
    }
}

/// Looks at the view for as long as a round lasts.
struct Sampler {
    task: tokio::task::JoinHandle<anyhow::Result<Seen>>,
    is_over: Arc<AtomicBool>,
}

impl Sampler {
    async fn start(pipeline: &Pipeline, asked: &DeadLetters, first: i64, last: i64) -> anyhow::Result<Self> {
        let client = postgres::connect(&pipeline.database_url(VIEWS_DATABASE)?).await?;
        let statement = client.prepare(IN_VIEW).await?;
        let turn = Duration::from_secs(1) * asked.keys / asked.rate;
        let interval = (turn / LOOKS_PER_TURN).min(LOOK_INTERVAL_MAX);
        let is_over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&is_over);
        let task = tokio::spawn(async move {
            let mut seen = Seen::new();
            loop {
                // Read before the look, so that the last look comes after the end.
                let is_last = told.load(Ordering::Relaxed);
                for row in client.query(&statement, &[&first, &last]).await? {
                    seen.entry(row.get(0)).or_default().insert(row.get(1), row.get(2));
                }
                if is_last {
                    return Ok(seen);
                }
                tokio::time::sleep(interval).await;
            }
        });
        Ok(Self { task, is_over })
    }

    async fn end(self) -> anyhow::Result<Seen> {
        self.is_over.store(true, Ordering::Relaxed);
        self.task.await?
    }
}

impl Round {
    fn json(&self, has_poison: bool) -> Value {
        json!({
            "has_poison": has_poison,
            "achieved_rate": self.achieved,
            "good_events": self.latencies_us.len(),
            "merged": self.merged,
            "dead_letters": self.letters,
            "p50_ms": quantile_ms(&self.latencies_us, 0.5),
            "p99_ms": quantile_ms(&self.latencies_us, 0.99),
            "max_ms": self.latencies_us.max() as f64 / 1000.0,
        })
    }
}

/// An event with something wrong, one thing after the other; the last one is seen by PostgreSQL alone.
fn poison_payload(id: i64, index: u64) -> String {
    let time = "2026-01-01T00:00:00";
    let user = |status: &str| {
        json!({"id": id, "name": "홍길동", "email": "gildong@example.com", "department": null,
            "status": status, "createdAt": time, "updatedAt": time})
    };
    let update = |version: Value, user: Value| json!({"eventType": "USER_UPDATED", "userId": id, "version": version, "timestamp": time, "user": user});
    let wrong = [
        json!({"eventType": "USER_PROMOTED", "userId": id, "version": 2, "user": null}),
        update(Value::Null, Value::Null),
        update(json!(2), Value::Null),
        json!({"eventType": "USER_UPDATED", "userId": -id, "version": 2, "user": null}),
        // Longer than the view's column takes.
        update(json!(1_000_000_000), user(&"ACTIVE".repeat(10))),
        update(json!(1_000_000_000), user(REFUSED_STATUS)),
    ];
    wrong[usize::try_from(index).unwrap_or(0) % wrong.len()].to_string()
}

#[cfg(test)]
mod tests {
    use super::{Plan, poison_payload};

    #[test]
    fn a_plan_is_the_same_for_both_rounds_of_a_pair() {
        let [one, other] = [7, 7].map(|seed| Plan::of(seed, 1, 1_000, 12_500));
        assert_eq!(one.poison, other.poison);
        assert!((60..200).contains(&one.poison.len()), "{}", one.poison.len());
        assert!(one.poison.iter().all(|index| one.poisoned.contains(&(index % 1_000))));
        let good = (1_000 - one.poisoned.len()) as u64;
        assert_eq!(one.good_events(1_000, 2_500, 10_000), good * 10);
    }

    #[test]
    fn poison_is_json_of_several_kinds() {
        let payloads = [0, 1, 2, 3, 4, 5].map(|index| poison_payload(5, index));
        for payload in &payloads {
            assert!(serde_json::from_str::<serde_json::Value>(payload).is_ok(), "{payload}");
        }
        assert_ne!(payloads[0], payloads[1]);
    }
}
