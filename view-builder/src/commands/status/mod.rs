//! `view-builder status` and `view-builder views`.

mod ahead;

use std::fmt::Write as _;

use anyhow::{Context as _, anyhow};
use service::clock;
use tokio_postgres::{Client, Error, Row};

use self::ahead::{Ahead, look_ahead};
use crate::continuity::topic_ids::TopicIds;
use crate::contract::place::{self, TopicPartition};
use crate::kafka;
use crate::postgres::{connection, refusal};
use crate::process::failure::Failure;
use crate::process::measure;
use crate::settings::{StatusConfig, ViewsConfig};
use crate::views::pauses::{self, Paused};
use crate::views::stuck;
use crate::views::view;

/// A position, as Postgres has it.
#[derive(Clone)]
struct Position {
    place: TopicPartition,
    /// None: the partition is read from its beginning.
    next_offset: Option<i64>,
    /// Every event before this offset is in the view.
    applied_up_to: i64,
    epoch: i64,
    owner: String,
    /// How many dead letters wait, those of former topics too.
    dead_letters: i64,
    /// Why the partition is not read, and what to type.
    paused: Option<String>,
    ids: TopicIds,
}

const POSITIONS: &str = "
    select topic, partition, next_offset, coalesce(greatest(next_offset, group_offset), 0) as applied_up_to, epoch, owner,
        (select count(*) from (select topic, partition, discarded_at from only view_dead_letters
            union all select topic, partition, discarded_at from view_former_dead_letters) as letter
         where letter.topic = held.topic and letter.partition = held.partition and discarded_at is null) as dead_letters,
        paused, topic_id, former_topic_ids
    from view_positions as held order by topic, partition";

impl Position {
    async fn load_all(client: &Client) -> Result<Vec<Self>, Error> {
        let rows = client.query(POSITIONS, &[]).await?;
        Ok(rows.iter().map(Self::of).collect())
    }

    fn of(row: &Row) -> Self {
        Self {
            place: place::place(row.get("topic"), row.get("partition")),
            next_offset: row.get("next_offset"),
            applied_up_to: row.get("applied_up_to"),
            epoch: row.get("epoch"),
            owner: row.get("owner"),
            dead_letters: row.get("dead_letters"),
            paused: row.get("paused"),
            ids: TopicIds {
                now: row.get("topic_id"),
                former: row.get("former_topic_ids"),
            },
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
    let reason = |err: &Error| anyhow!("postgres does not answer: {}", refusal::line(err));
    let client = connection::connect(&config.servers.database.0)
        .await
        .map_err(|err| reason(&err))?;
    let positions = Position::load_all(&client)
        .await
        .map_err(|err| anyhow!("no positions, has a builder run yet? {}", refusal::line(&err)))?;
    let notices = client
        .query("select notice from view_notices order by topic, partition, kind", &[])
        .await
        .map_err(|err| reason(&err))?;
    let paused = pauses::load_paused(&client).await.map_err(|err| reason(&err))?;
    let stuck = stuck::lines(&client).await.map_err(|err| reason(&err))?;
    let observer = kafka::observer(&config.servers.kafka)?;
    let positions_to_look_up = positions.clone();
    let ahead = tokio::task::spawn_blocking(move || look_ahead(&observer, &positions_to_look_up))
        .await
        .context("asking kafka failed")??;
    let (mut text, totals) = table(&positions, &ahead);
    let with_ahead = || positions.iter().zip(&ahead);
    // A partition that is gone cannot go on, so its pause is not shown.
    let can_go_on = with_ahead().filter(|(_, ahead)| !matches!(ahead, Ahead::Gone { .. }));
    let paused_partitions: Vec<&str> = can_go_on
        .filter_map(|(position, _)| position.paused.as_deref())
        .collect();
    let absent: Vec<String> = with_ahead()
        .filter_map(|(position, ahead)| ahead.absence(&position.place))
        .collect();
    for line in paused_partitions
        .iter()
        .copied()
        .chain(absent.iter().map(String::as_str))
        .chain(notices.iter().map(|row| row.get(0)))
    {
        let _ = writeln!(text, "{line}");
    }
    for line in paused.iter().map(Paused::for_people).chain(stuck) {
        let _ = writeln!(text, "{line}");
    }
    Ok(Status {
        text,
        has_dead_letters: totals.dead_letters > 0,
        has_paused_views: !paused.is_empty(),
        has_paused_partitions: !paused_partitions.is_empty(),
        has_untold_partitions: ahead.iter().any(|ahead| matches!(ahead, Ahead::Untold(_))),
    })
}

/// Sums over all partitions.
#[derive(Default)]
struct Totals {
    lag: i64,
    /// Age of the oldest event that is not in its view.
    seconds_max: f64,
    dead_letters: i64,
}

/// A line for each partition, and one for all of them.
fn table(positions: &[Position], ahead: &[Ahead]) -> (String, Totals) {
    let mut table = format!(
        "{:<24} {:>9} {:>14} {:>14} {:>10} {:>11} {:>12} {:>6}  {}\n",
        "topic", "partition", "position", "end", "lag", "lag seconds", "dead letters", "epoch", "owner"
    );
    let mut totals = Totals::default();
    let now_us = clock::now_us();
    for (position, ahead) in positions.iter().zip(ahead) {
        let (lag, seconds) = match ahead {
            Ahead::Exists {
                end,
                oldest_us: Some(oldest_us),
            } => (
                (end - position.applied_up_to).max(0),
                measure::seconds(*oldest_us, now_us),
            ),
            // Where no event is left, only transaction markers can lie ahead. For a partition that is gone nothing will come.
            Ahead::Exists { oldest_us: None, .. } | Ahead::Gone { .. } | Ahead::Untold(_) => (0, 0.0),
        };
        let (shown_lag, shown_seconds) = match ahead {
            Ahead::Untold(_) => ("?".to_owned(), "?".to_owned()),
            Ahead::Exists { .. } | Ahead::Gone { .. } => (lag.to_string(), format!("{seconds:.1}")),
        };
        totals.lag += lag;
        totals.seconds_max = totals.seconds_max.max(seconds);
        totals.dead_letters += position.dead_letters;
        let next_offset = position.next_offset;
        let _ = writeln!(
            table,
            "{:<24} {:>9} {:>14} {:>14} {shown_lag:>10} {shown_seconds:>11} {:>12} {:>6}  {}",
            position.place.topic,
            position.place.partition,
            next_offset.map_or_else(|| "beginning".to_owned(), |offset| offset.to_string()),
            ahead.end_column(),
            position.dead_letters,
            position.epoch,
            position.owner,
        );
    }
    let _ = writeln!(
        table,
        "lag in all: {}, oldest: {:.1} s, dead letters: {}",
        totals.lag, totals.seconds_max, totals.dead_letters
    );
    (table, totals)
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
