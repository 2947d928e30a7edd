//! `view-builder status` and `view-builder views`.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, ensure};
use kafka_client::{PartitionBounds, Reader};
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use service::clock;

use crate::continuity::offsets::{self, Untold};
use crate::continuity::start::TopicIds;
use crate::contract::place::{self, TopicPartition};
use crate::contract::record;
use crate::kafka::{self, Observer};
use crate::postgres::{connection, refusal};
use crate::process::failure::Failure;
use crate::process::measure;
use crate::settings::{StatusConfig, ViewsConfig};
use crate::views::pauses::{self, Paused};
use crate::views::stuck;
use crate::views::view;

/// How long Kafka is asked for the events that come next.
const READ_MAX: Duration = Duration::from_secs(10);
const POLL_TIMEOUT: Duration = Duration::from_millis(200);

/// A partition of which there is a position.
struct Asked {
    place: TopicPartition,
    /// Every event before this offset is in the view.
    applied_up_to: i64,
    ids: TopicIds,
}

/// What Kafka has of a partition.
enum Ahead {
    There {
        end: i64,
        /// When the source committed the first event that is not in the view, microseconds since 1970; none where there is none.
        oldest_us: Option<i64>,
    },
    /// The topic was made anew with so many partitions, and this one is none of them.
    Gone { partitions: i32 },
    /// Kafka does not tell now.
    Untold(Untold),
}

impl Ahead {
    /// What stands in the column of the ends.
    fn end(&self) -> String {
        match self {
            Self::There { end, .. } => end.to_string(),
            Self::Gone { .. } => "gone".to_owned(),
            Self::Untold(_) => "?".to_owned(),
        }
    }

    /// What somebody has to know of a partition that is not there now.
    fn line(&self, place: &TopicPartition) -> Option<String> {
        match self {
            Self::There { .. } => None,
            Self::Gone { partitions } => Some(format!(
                "{place} is {}; rows that only its events told of stay in the views (docs/lost-continuity.md)",
                offsets::gone(*partitions)
            )),
            Self::Untold(untold) => Some(format!("{place} {untold}")),
        }
    }
}

/// What `status` says.
pub struct Status {
    pub text: String,
    has_dead_letters: bool,
    has_paused_views: bool,
    has_paused_partitions: bool,
    has_untold_partitions: bool,
}

impl Status {
    /// # Errors
    /// [`Failure::Continuity`] where a partition is paused, else [`Failure::Paused`] where a view is, else [`Failure::DeadLetters`] where
    /// some wait; else another one where Kafka does not tell of all partitions.
    pub fn verdict(&self) -> Result<(), Failure> {
        if self.has_paused_partitions {
            return Err(Failure::Continuity);
        }
        if self.has_paused_views {
            return Err(Failure::Paused);
        }
        if self.has_dead_letters {
            return Err(Failure::DeadLetters);
        }
        if self.has_untold_partitions {
            return Err(anyhow!("kafka does not tell of all partitions, as the lines say").into());
        }
        Ok(())
    }
}

/// The positions with their topics' ends as a table, paused partitions and views, and batches that fail again and again.
///
/// # Errors
/// Postgres or Kafka does not answer; no builder has run yet.
pub async fn status(config: &StatusConfig) -> Result<Status, Failure> {
    let reason = |err: &tokio_postgres::Error| anyhow::anyhow!("postgres does not answer: {}", refusal::line(err));
    let client = connection::connect(&config.servers.database.0)
        .await
        .map_err(|err| reason(&err))?;
    let rows = client
        .query(
            "select topic, partition, next_offset, coalesce(greatest(next_offset, group_offset), 0), epoch, owner,
                (select count(*) from (select topic, partition, discarded_at from only view_dead_letters
                    union all select topic, partition, discarded_at from view_former_dead_letters) as letter
                 where letter.topic = held.topic and letter.partition = held.partition and discarded_at is null), paused,
                topic_id, former_topic_ids
             from view_positions as held order by topic, partition",
            &[],
        )
        .await
        .map_err(|err| anyhow::anyhow!("no positions, has a builder run yet? {}", refusal::line(&err)))?;
    let notices = client
        .query("select notice from view_notices order by topic, partition, kind", &[])
        .await
        .map_err(|err| reason(&err))?;
    let paused = pauses::load(&client).await.map_err(|err| reason(&err))?;
    let stuck = stuck::lines(&client).await.map_err(|err| reason(&err))?;
    let observer = kafka::observer(&config.servers.kafka)?;
    let positions: Vec<Asked> = rows
        .iter()
        .map(|row| Asked {
            place: place::place(row.get(0), row.get(1)),
            applied_up_to: row.get(3),
            ids: TopicIds {
                now: row.get(8),
                former: row.get(9),
            },
        })
        .collect();
    let ahead = tokio::task::spawn_blocking(move || ahead(&observer, &positions))
        .await
        .context("asking kafka failed")??;
    let mut table = format!(
        "{:<24} {:>9} {:>14} {:>14} {:>10} {:>11} {:>12} {:>6}  {}\n",
        "topic", "partition", "position", "end", "lag", "lag seconds", "dead letters", "epoch", "owner"
    );
    let (mut lag_sum, mut dead_sum, mut seconds_max) = (0, 0, 0.0_f64);
    let now_us = clock::now_us();
    let mut paused_partitions: Vec<&str> = Vec::new();
    let (mut absent, mut has_untold_partitions) = (Vec::new(), false);
    for (row, ahead) in rows.iter().zip(&ahead) {
        let position: Option<i64> = row.get(2);
        let (lag, seconds) = match ahead {
            Ahead::There {
                end,
                oldest_us: Some(oldest_us),
            } => (
                (end - row.get::<_, i64>(3)).max(0),
                measure::seconds(*oldest_us, now_us),
            ),
            // Without an event there are transaction markers at most. What is gone is waited for by nobody.
            Ahead::There { oldest_us: None, .. } | Ahead::Gone { .. } | Ahead::Untold(_) => (0, 0.0),
        };
        let is_untold = matches!(ahead, Ahead::Untold(_));
        let (shown_lag, shown_seconds) = if is_untold {
            ("?".to_owned(), "?".to_owned())
        } else {
            (lag.to_string(), format!("{seconds:.1}"))
        };
        let dead: i64 = row.get(6);
        lag_sum += lag;
        dead_sum += dead;
        seconds_max = seconds_max.max(seconds);
        has_untold_partitions |= is_untold;
        absent.extend(ahead.line(&place::place(row.get(0), row.get(1))));
        // Nobody can go on with a partition that is gone.
        if !matches!(ahead, Ahead::Gone { .. }) {
            paused_partitions.extend(row.get::<_, Option<&str>>(7));
        }
        let _ = writeln!(
            table,
            "{:<24} {:>9} {:>14} {:>14} {shown_lag:>10} {shown_seconds:>11} {dead:>12} {:>6}  {}",
            row.get::<_, &str>(0),
            row.get::<_, i32>(1),
            position.map_or_else(|| "beginning".to_owned(), |position| position.to_string()),
            ahead.end(),
            row.get::<_, i64>(4),
            row.get::<_, &str>(5),
        );
    }
    let _ = writeln!(
        table,
        "lag in all: {lag_sum}, oldest: {seconds_max:.1} s, dead letters: {dead_sum}"
    );
    for line in paused_partitions
        .iter()
        .copied()
        .chain(absent.iter().map(String::as_str))
        .chain(notices.iter().map(|row| row.get(0)))
    {
        let _ = writeln!(table, "{line}");
    }
    for line in paused.iter().map(Paused::line).chain(stuck) {
        let _ = writeln!(table, "{line}");
    }
    Ok(Status {
        text: table,
        has_dead_letters: dead_sum > 0,
        has_paused_views: !paused.is_empty(),
        has_paused_partitions: !paused_partitions.is_empty(),
        has_untold_partitions,
    })
}

fn ahead(observer: &Observer, positions: &[Asked]) -> anyhow::Result<Vec<Ahead>> {
    let facts = kafka_client::facts_by(observer, &offsets::names(positions.iter().map(|asked| &asked.place)))?;
    let bounds = offsets::bounds(observer, positions.iter().map(|asked| &asked.place), Reader::Committed)?;
    let mut all = Vec::new();
    let mut behind: BTreeMap<&str, BTreeMap<i32, i64>> = BTreeMap::new();
    for asked in positions {
        let place = &asked.place;
        let told = if !facts.contains_key(&*place.topic) {
            Ahead::Untold(Untold::NoTopic)
        } else if let Ok(Some(partitions)) = offsets::partitions_without(place, &asked.ids, &facts) {
            Ahead::Gone { partitions }
        } else {
            match bounds.get(place) {
                Some(PartitionBounds::Known { beginning, end, .. }) => {
                    if asked.applied_up_to < *end {
                        let topic = behind.entry(&place.topic).or_default();
                        topic.insert(place.partition, asked.applied_up_to.max(*beginning));
                    }
                    Ahead::There {
                        end: *end,
                        oldest_us: None,
                    }
                }
                Some(PartitionBounds::NoLeader) => Ahead::Untold(Untold::NoLeader),
                Some(PartitionBounds::NoAnswer | PartitionBounds::NotThere) | None => Ahead::Untold(Untold::NoAnswer),
            }
        };
        all.push(told);
    }
    let mut oldest = HashMap::new();
    for (topic, nexts) in behind {
        oldest.extend(oldest_us(observer, topic, nexts)?);
    }
    for (asked, ahead) in positions.iter().zip(&mut all) {
        if let Ahead::There { oldest_us, .. } = ahead {
            *oldest_us = oldest.remove(&asked.place);
        }
    }
    Ok(all)
}

/// When the first event from each of these offsets on was committed; none of a partition with nothing but transaction markers there.
fn oldest_us(
    observer: &Observer,
    topic: &str,
    mut nexts: BTreeMap<i32, i64>,
) -> anyhow::Result<HashMap<TopicPartition, i64>> {
    let places = nexts
        .iter()
        .map(|(partition, next)| (place::place(topic, *partition), *next));
    let places: Vec<(TopicPartition, i64)> = places.collect();
    observer.assign(&kafka::list(places.iter().map(|(place, next)| (place, *next)))?)?;
    let (mut oldest, start) = (HashMap::new(), Instant::now());
    while !nexts.is_empty() {
        ensure!(
            start.elapsed() < READ_MAX,
            "kafka does not send the events that come next in {topic}"
        );
        match observer.poll(POLL_TIMEOUT) {
            None => {}
            Some(Ok(found)) => {
                if let Some(next) = nexts.remove(&found.partition()) {
                    let place = place::place(topic, found.partition());
                    // What follows is of no interest.
                    observer.pause(&kafka::list([(&place, next)].into_iter())?)?;
                    oldest.insert(place, record::committed_us(&found));
                }
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                nexts.remove(&partition);
            }
            Some(Err(err)) => return Err(err).context("kafka reports an error"),
        }
    }
    observer.unassign()?;
    Ok(oldest)
}

/// The views in the directory: name, what it is, topics and tables.
///
/// # Errors
/// A view's folder is incomplete.
pub fn views(config: &ViewsConfig) -> Result<String, Failure> {
    let mut text = String::new();
    for view in view::load_all(&config.folder.views)? {
        let _ = writeln!(
            text,
            "{}: {}\n  topics: {}\n  tables: {}",
            view.name,
            view.summary,
            view.topics.join(", "),
            view.tables().join(", ")
        );
    }
    Ok(text)
}
