//! One round: new users are changed in turn at a fixed rate, and the latencies of those without poison are measured.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use stack::pipeline::{USERS_DATABASE, VIEWS_DATABASE};
use stack::{Pipeline, eventually_ok, postgres};
use tokio_postgres::{Client, Statement};
use user_api::statements;

use super::Kind;
use super::plan::{Plan, poison_payload};
use super::sampler::{TimesInView, ViewSampler};
use crate::arguments::DeadLetters;
use crate::latency::{ARRIVAL_DEADLINE, WARM_UP_SECONDS};
use crate::statistics::{latency_histogram, record_latency};
use crate::topic::now_us;
use crate::{pace, view_drain};

/// $1 key, $2 payload.
const INSERT_POISON: &str = "insert into outbox (aggregatetype, aggregateid, type, payload)
    values ('user', $1::text, 'USER_UPDATED', $2::text::jsonb)";
/// When each version was committed at the source, of the users with ids from $1 to $2, unless that was before $3; microseconds since 1970.
const COMMIT_TIMES: &str = "select id, version, committed_us
    from (
        select aggregateid::bigint as id, (payload ->> 'version')::bigint as version,
            (extract(epoch from pg_xact_commit_timestamp(xmin)) * 1000000)::bigint as committed_us
        from outbox where payload -> 'user' ->> 'name' is not null
    ) as event
    where id between $1 and $2 and committed_us >= $3";
/// Exit code of `view-builder dead-letters` if others still wait behind the ones that were discarded.
const OTHERS_WAIT: i32 = 6;

/// What one round has measured.
pub(super) struct Round {
    pub(super) kind: Kind,
    /// Events per second that were made.
    pub(super) achieved_rate: f64,
    /// Latencies of the users that get no poison.
    pub(super) latencies_us: Histogram<u64>,
    /// Events that came into the view together with the next one of their user, or were not seen alone.
    pub(super) merged_events: u64,
    /// Events in `view_dead_letters` at the end.
    pub(super) dead_letters: u64,
}

/// The users of a round: all ids from `first` to `last`.
#[derive(Clone, Copy)]
pub(super) struct Users {
    pub(super) first: i64,
    pub(super) last: i64,
}

impl Users {
    /// The number of the user with this id, counted from 0.
    fn number_of(self, id: i64) -> u64 {
        (id - self.first).unsigned_abs()
    }
}

/// Measures one round. The steps:
///
/// 1. Create users, and wait until the view has them.
/// 2. Change them in turn, first to warm up and then to measure. A sampler reads the view meanwhile.
/// 3. Wait until the view has every change of the users without poison, and compute the latencies.
/// 4. Discard the dead letters, and wait until the view has everything: the next round begins as this one did.
///
/// Rounds with the same number have the same plan.
///
/// # Errors
/// A part failed, or a change did not arrive.
pub(super) async fn measure(
    pipeline: &Pipeline,
    options: &DeadLetters,
    number: u64,
    kind: Kind,
) -> anyhow::Result<Round> {
    let source = postgres::connect(&pipeline.database_url(USERS_DATABASE)?).await?;
    let views = postgres::connect(&pipeline.database_url(VIEWS_DATABASE)?).await?;
    let keys = u64::from(options.keys);
    let users = create_users(pipeline, &source, &views, options.keys).await?;
    let rate = u64::from(options.rate);
    let (warm_up, measured) = (rate * u64::from(WARM_UP_SECONDS), rate * u64::from(options.seconds));
    let plan = Plan::new(number, options.poison, keys, warm_up + measured);
    let mut writers = connect_writers(pipeline, options.connections).await?;
    let sampler = ViewSampler::start(pipeline, options, users).await?;

    let make_event = async |writer: &mut Writer, index: u64| {
        let id = users.first + i64::try_from(index % keys)?;
        if kind == Kind::WithPoison && plan.is_poison(index) {
            writer.insert_poison(id, index).await
        } else {
            writer.change_user(id, index).await
        }
    };
    let warming_up = async |writer: &mut Writer, index: u64| make_event(writer, index).await;
    pace::change_at_rate(&mut writers, options.rate, WARM_UP_SECONDS, warming_up).await?;
    let begin_us = now_us();
    let measuring = async |writer: &mut Writer, index: u64| make_event(writer, warm_up + index).await;
    let achieved_rate = pace::change_at_rate(&mut writers, options.rate, options.seconds, measuring).await?;

    let is_held_back = |id: i64| kind == Kind::WithPoison && plan.gets_poison(users.number_of(id));
    wait_until_view_is_equal(&source, &views, users, is_held_back).await?;
    let times = sampler.end().await?;
    let (latencies_us, merged_events) = compute_latencies(&source, users, &plan, &times, begin_us).await?;
    let wanted = plan.good_events(warm_up, measured);
    ensure!(
        latencies_us.len() == wanted,
        "{wanted} events of good keys were committed, {} are in the outbox",
        latencies_us.len()
    );

    let dead_letters = match kind {
        Kind::WithPoison => discard_dead_letters(pipeline, &views, plan.poisoned_users()).await?,
        Kind::WithoutPoison => 0,
    };
    wait_until_view_is_equal(&source, &views, users, |_| false).await?;
    Ok(Round {
        kind,
        achieved_rate,
        latencies_us,
        merged_events,
        dead_letters,
    })
}

/// Creates users, and waits until the view has all of them.
async fn create_users(pipeline: &Pipeline, source: &Client, views: &Client, count: u32) -> anyhow::Result<Users> {
    let row = source.query_one("select coalesce(max(id), 0) from users", &[]).await?;
    let before: i64 = row.get(0);
    view_drain::create_users(pipeline, before.unsigned_abs(), u64::from(count)).await?;
    let users = Users {
        first: before + 1,
        last: before + i64::from(count),
    };
    wait_until_view_is_equal(source, views, users, |_| false).await?;
    Ok(users)
}

/// A connection with its prepared statements.
struct Writer {
    client: Client,
    change: Statement,
    poison: Statement,
}

async fn connect_writers(pipeline: &Pipeline, connections: u32) -> anyhow::Result<Vec<Writer>> {
    let mut writers = Vec::new();
    for _ in 0..connections {
        let client = postgres::connect(&pipeline.database_url(USERS_DATABASE)?).await?;
        writers.push(Writer {
            change: client
                .prepare(&statements::UPDATE.replace("$7", "gen_random_uuid()"))
                .await?,
            poison: client.prepare(INSERT_POISON).await?,
            client,
        });
    }
    Ok(writers)
}

impl Writer {
    async fn insert_poison(&self, id: i64, index: u64) -> anyhow::Result<()> {
        let (key, payload) = (id.to_string(), poison_payload(id, index));
        self.client.execute(&self.poison, &[&key, &payload]).await?;
        Ok(())
    }

    async fn change_user(&self, id: i64, index: u64) -> anyhow::Result<()> {
        let email = format!("gildong.hong.{id}@example.com");
        let department = format!("부서{}", index % 8);
        let any_version = None::<Vec<i64>>;
        self.client
            .query_one(
                &self.change,
                &[&"홍길동", &email, &department, &"ACTIVE", &id, &any_version],
            )
            .await?;
        Ok(())
    }
}

/// Waits until the view has the version of every user, except the users that `is_held_back` names.
async fn wait_until_view_is_equal(
    source: &Client,
    views: &Client,
    users: Users,
    is_held_back: impl Fn(i64) -> bool,
) -> anyhow::Result<()> {
    let versions = async |client: &Client, sql: &str| {
        let rows = client.query(sql, &[&users.first, &users.last]).await?;
        let versions = rows.iter().map(|row| (row.get(0), row.get(1)));
        anyhow::Ok(
            versions
                .filter(|(id, _)| !is_held_back(*id))
                .collect::<BTreeMap<i64, i64>>(),
        )
    };
    let wanted = versions(source, "select id, version from users where id between $1 and $2").await?;
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

/// The latencies of the users that get no poison, from the commit at the source to the commit in the view. The second value is how many events
/// came into the view together with a later event of their user; such an event counts until that commit.
async fn compute_latencies(
    source: &Client,
    users: Users,
    plan: &Plan,
    times: &TimesInView,
    begin_us: i64,
) -> anyhow::Result<(Histogram<u64>, u64)> {
    let mut latencies_us = latency_histogram()?;
    let mut merged_events = 0;
    let rows = source
        .query(COMMIT_TIMES, &[&users.first, &users.last, &begin_us])
        .await?;
    for row in rows {
        let (id, version, committed_us): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
        if plan.gets_poison(users.number_of(id)) {
            continue;
        }
        let versions = times.get(&id).context("a user that the view has not had")?;
        let (version_in_view, applied_us) = versions
            .range(version..)
            .next()
            .context("a change that the view has not had")?;
        merged_events += u64::from(*version_in_view > version);
        record_latency(&mut latencies_us, committed_us, *applied_us);
    }
    Ok((latencies_us, merged_events))
}

/// Discards all dead letters, so that the events behind them are applied. Returns how many there were.
async fn discard_dead_letters(pipeline: &Pipeline, views: &Client, poisoned_users: usize) -> anyhow::Result<u64> {
    let count = "select count(*), count(distinct key) from view_dead_letters where discarded_at is null";
    let row = views.query_one(count, &[]).await?;
    let (dead_letters, keys): (i64, i64) = (row.get(0), row.get(1));
    ensure!(
        usize::try_from(keys)? == poisoned_users,
        "{poisoned_users} keys had a poison event, {keys} have dead letters"
    );
    let first_of_each_key =
        "select distinct on (topic, partition, key) id from view_dead_letters where discarded_at is null
        order by topic, partition, key, record_offset";
    loop {
        let rows = views.query(first_of_each_key, &[]).await?;
        if rows.is_empty() {
            return Ok(dead_letters.unsigned_abs());
        }
        let ids: Vec<String> = rows.iter().map(|row| row.get::<_, i64>(0).to_string()).collect();
        let arguments: Vec<&str> = ["dead-letters", "discard"]
            .into_iter()
            .chain(ids.iter().map(String::as_str))
            .collect();
        let command = pipeline.view_builder.command_of("dead-letters", &[]);
        let status = command.run_for_status(&arguments).await?;
        ensure!(
            matches!(status.code(), Some(0 | OTHERS_WAIT)),
            "dead letters cannot be discarded ({status}):\n{}",
            command.log_tail(15)
        );
    }
}
