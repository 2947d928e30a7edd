//! The real parts: topics that are compacted all the time, two views of them, and builders that are killed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rig::servers::{kafka_options, postgres_options};
use rig::view_rig::{DEADLINE, Event, ViewRig};
use rig::{Isolation, Servers, topic};
use serde_json::json;
use stack::Program;
use tokio_postgres::Client;

use super::reader::Reader;
use super::state::{Body, Key, Letter, ProducedEvent, Row, State};

pub(super) const TOPICS: usize = 2;
const PARTITIONS: i32 = 2;
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// With these settings, a piece of the topic's log is closed and compacted within moments.
const COMPACTED: [(&str, &str); 6] = [
    ("cleanup.policy", "compact"),
    ("segment.ms", "300"),
    ("min.cleanable.dirty.ratio", "0.001"),
    ("min.compaction.lag.ms", "0"),
    ("max.compaction.lag.ms", "500"),
    ("delete.retention.ms", "1000"),
];

const ITEMS: &str = "
    create table if not exists item (
        topic   text   not null,
        id      bigint not null,
        version bigint not null,
        name    text,
        kind    text,
        primary key (topic, id)
    );
    create table if not exists kind_count (kind text primary key, items bigint not null);
    create or replace function refuse_forbidden() returns trigger language plpgsql as $$
    begin
        if exists (select from forbidden where forbidden.name = new.name) then
            raise exception 'this name is forbidden' using errcode = 'check_violation';
        end if;
        return null;
    end
    $$;
    create or replace trigger refuse_forbidden after insert or update on item for each row execute function refuse_forbidden();";

/// This view counts differences. So an event that was applied twice, or left out, shows for ever.
const APPLY_ITEMS: &str = "
with event as materialized (
    select * from unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::jsonb[]) as event(topic, id, version, type, entity)
),
before as materialized (
    select known.topic, known.id, known.kind from item as known join event using (topic, id)
),
applied as (
    insert into item as known (topic, id, version, name, kind)
    select topic, id, version, entity ->> 'name', entity ->> 'kind' from event
    order by topic, id
    on conflict (topic, id) do update set version = excluded.version, name = excluded.name, kind = excluded.kind
    where known.version <= excluded.version
    returning topic, id, kind
)
insert into kind_count as known (kind, items)
select kind, sum(n) from (
    select kind, 1 as n from applied
    union all
    select before.kind, -1 from before join applied using (topic, id)
) as change
where kind is not null
group by kind
having sum(n) <> 0
order by kind
on conflict (kind) do update set items = known.items + excluded.items";

const NAMES: &str = "create table if not exists item_name (topic text not null, id bigint not null, version bigint not null, name text, primary key (topic, id));";
const APPLY_NAMES: &str = "
insert into item_name as known (topic, id, version, name)
select topic, id, version, entity ->> 'name'
from unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::jsonb[]) as event(topic, id, version, type, entity)
order by topic, id
on conflict (topic, id) do update set version = excluded.version, name = excluded.name
where known.version <= excluded.version";

pub(super) struct World {
    pub(super) rig: ViewRig,
    pub(super) topics: [String; TOPICS],
    pub(super) builders: [Program; 2],
    pub(super) running: [bool; 2],
    client: Client,
    /// The end of each partition: one after its last offset.
    ends: [[i64; PARTITIONS as usize]; TOPICS],
    produced: u64,
    reader: Reader,
}

impl World {
    pub(super) async fn start(name: &str) -> anyhow::Result<Self> {
        let kafka = kafka_options().setting("log.cleaner.backoff.ms", "200");
        let servers = Arc::new(Servers::start(postgres_options(), kafka).await?);
        let rig = ViewRig::on(servers, name).await;
        let topics = ["first", "second"].map(|aggregate| rig.topic(aggregate));
        for topic in &topics {
            rig.create_topic(topic, PARTITIONS, &COMPACTED).await?;
        }
        rig.query("create table forbidden (name text primary key); grant all on forbidden to view_builder")
            .await?;
        let head = format!(
            "-- Items, and how many there are of each kind.\n-- topics: {}",
            topics.join(", ")
        );
        rig.write_view("item", ITEMS, &format!("{head}{APPLY_ITEMS}"));
        rig.write_view("item_name", NAMES, &format!("{head}{APPLY_NAMES}"));
        let builders = ["one", "two"].map(|name| rig.builder(name));
        builders[0].start()?;
        builders[0].wait_ready(DEADLINE).await?;
        Ok(Self {
            client: rig.client().await?,
            reader: Reader::start(rig.client().await?),
            rig,
            topics,
            builders,
            running: [true, false],
            ends: [[0; PARTITIONS as usize]; TOPICS],
            produced: 0,
        })
    }

    /// Produces the event. If it is a deletion and a tombstone is asked for, a tombstone follows, which lets Kafka's compaction remove the key.
    pub(super) async fn produce(&mut self, key: Key, version: i64, body: Body) -> anyhow::Result<ProducedEvent> {
        let (topic, id) = (&self.topics[key.0], key.1);
        let partition = i32::try_from(id)? % PARTITIONS;
        let event = match &body {
            Body::Kept { name, group } => Event::of(
                topic,
                partition,
                id,
                version,
                Some(&json!({"name": name, "kind": group})),
            ),
            Body::Deleted => Event::of(topic, partition, id, version, None),
            Body::Garbage => Event {
                partition,
                key: Some(id.to_string()),
                value: Some("no event".to_owned()),
            },
        };
        let offset = self.rig.produce(topic, [event]).await?[0];
        self.ends[key.0][usize::try_from(partition)?] = offset + 1;
        self.produced += 1;
        Ok(ProducedEvent {
            partition,
            offset,
            version,
            body,
        })
    }

    pub(super) async fn forbid(&self, name: &str) -> anyhow::Result<()> {
        self.client
            .execute("insert into forbidden values ($1)", &[&name])
            .await?;
        Ok(())
    }

    pub(super) async fn allow_all(&self) -> anyhow::Result<()> {
        self.client.batch_execute("delete from forbidden").await?;
        Ok(())
    }

    /// Waits until every position is at the end of its partition.
    pub(super) async fn wait_until_applied(&self) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let rows = self
                .client
                .query(
                    "select topic, partition, coalesce(next_offset, 0) from view_positions",
                    &[],
                )
                .await?;
            let position = |topic: &str, partition: usize| {
                let row = rows.iter().find(|row| {
                    row.get::<_, &str>(0) == topic && usize::try_from(row.get::<_, i32>(1)).ok() == Some(partition)
                });
                row.map_or(0, |row| row.get::<_, i64>(2))
            };
            let behind: Vec<String> = (0..TOPICS)
                .flat_map(|topic| (0..PARTITIONS as usize).map(move |partition| (topic, partition)))
                .filter_map(|(topic, partition)| {
                    let (end, at) = (self.ends[topic][partition], position(&self.topics[topic], partition));
                    (at < end).then(|| format!("{}/{partition}: {at} of {end}", self.topics[topic]))
                })
                .collect();
            if behind.is_empty() {
                return Ok(());
            }
            ensure!(start.elapsed() < DEADLINE, "not applied: {}", behind.join(", "));
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Compares everything with the model, in one snapshot.
    pub(super) async fn compare(&self, state: &State) -> anyhow::Result<()> {
        self.client
            .batch_execute("begin isolation level repeatable read read only")
            .await?;
        let compared = self.compare_in_snapshot(state).await;
        self.client.batch_execute("commit").await?;
        compared?;
        ensure!(!self.reader.has_failed(), "the reader has seen the impossible");
        Ok(())
    }

    async fn compare_in_snapshot(&self, state: &State) -> anyhow::Result<()> {
        let rows = self
            .client
            .query("select topic, id, version, name, kind from item", &[])
            .await?;
        let shown = rows.iter().map(|row| {
            Ok(Row {
                key: (self.number(row.get(0))?, row.get(1)),
                version: row.get(2),
                name: row.get(3),
                group: row.get(4),
            })
        });
        let (shown, expected) = (shown.collect::<anyhow::Result<BTreeSet<Row>>>()?, state.rows());
        let missing: Vec<_> = expected.difference(&shown).take(5).collect();
        let wrong: Vec<_> = shown.difference(&expected).take(5).collect();
        ensure!(
            missing.is_empty() && wrong.is_empty(),
            "item: missing {missing:?}, instead {wrong:?}"
        );
        let derived = self
            .client
            .query(
                "(select kind, count(*) from item where kind is not null group by kind
                  except select kind, items from kind_count where items <> 0)
                 union all
                 (select kind, items from kind_count where items <> 0
                  except select kind, count(*) from item where kind is not null group by kind)
                 union all
                 (select 'name of ' || coalesce(item.topic, item_name.topic), coalesce(item.id, item_name.id)
                  from item full join item_name using (topic, id)
                  where (item.version, item.name) is distinct from (item_name.version, item_name.name))",
                &[],
            )
            .await?;
        if let Some(row) = derived.first() {
            bail!(
                "derived: {:?} {:?}",
                row.get::<_, Option<String>>(0),
                row.get::<_, Option<i64>>(1)
            );
        }
        let rows = self
            .client
            .query(
                "select topic, partition, record_offset, discarded_at is not null from view_dead_letters",
                &[],
            )
            .await?;
        let (mut open, mut discarded) = (BTreeSet::new(), BTreeSet::new());
        for row in &rows {
            let letter: Letter = (self.number(row.get(0))?, row.get(1), row.get(2));
            if row.get(3) {
                discarded.insert(letter)
            } else {
                open.insert(letter)
            };
        }
        let expected = state.letters();
        ensure!(
            (&open, &discarded) == (&expected.0, &expected.1),
            "letters: open {open:?}, expected {:?}; discarded {discarded:?}, expected {:?}",
            expected.0,
            expected.1
        );
        Ok(())
    }

    fn number(&self, topic: &str) -> anyhow::Result<usize> {
        self.topics
            .iter()
            .position(|known| known == topic)
            .with_context(|| format!("{topic}?"))
    }

    /// The id of the dead letter.
    pub(super) async fn letter_id(&self, key: Key, letter: &ProducedEvent) -> anyhow::Result<i64> {
        let row = self
            .client
            .query_one(
                "select id from view_dead_letters where topic = $1 and partition = $2 and record_offset = $3",
                &[&self.topics[key.0], &letter.partition, &letter.offset],
            )
            .await?;
        Ok(row.get(0))
    }

    /// Ends the world. Returns how many records compaction has removed, and how often the reader has looked.
    pub(super) async fn end(self) -> anyhow::Result<(u64, u64)> {
        for builder in &self.builders {
            builder.stop().await?;
        }
        let looks = self.reader.end().await?;
        let (bootstrap, topics) = (self.rig.servers.kafka.bootstrap_servers(), self.topics.clone());
        let left = tokio::task::spawn_blocking(move || {
            let mut left = 0;
            for topic in &topics {
                topic::for_each(&bootstrap, topic, Isolation::Committed, |_| left += 1)?;
            }
            anyhow::Ok(left)
        });
        Ok((self.produced - left.await??, looks))
    }

    pub(super) fn log_tails(&self) -> String {
        let tails = self
            .builders
            .iter()
            .map(|builder| format!("--- {}\n{}\n", builder.name(), builder.log_tail(30)));
        tails.collect()
    }
}
