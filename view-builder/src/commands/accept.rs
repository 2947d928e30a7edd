//! `view-builder accept`: an operator's word that a partition goes on although events are lost to it, or that a notice is known.
//!
//! One transaction, under the position's lock: it sets the position, puts the dead letters from there on aside (their offsets may be other
//! records' now) and counts the epoch up, which makes the builder that holds the partition take it over anew within some seconds.

use crate::settings::partition_argument::AcceptFrom;

use anyhow::Context as _;
use tokio_postgres::{Client, Row};

use crate::continuity::offsets::{Bounds, Untold, offsets};
use crate::continuity::start::{Known, Lost, start};
use crate::continuity::topic_ids::TopicIds;
use crate::contract::place::TopicPartition;
use crate::kafka;
use crate::postgres::connection::connect_for_command;
use crate::postgres::connection::unanswered;
use crate::process::failure::Failure;
use crate::settings::AcceptConfig;

/// A position, as it stands under its lock.
struct Held {
    next_offset: Option<i64>,
    highest_offset: Option<i64>,
    ids: TopicIds,
    is_paused: bool,
}

impl Held {
    fn of(row: &Row) -> Self {
        Self {
            next_offset: row.get("next_offset"),
            highest_offset: row.get("highest_offset"),
            ids: TopicIds {
                now: row.get("topic_id"),
                former: row.get("former_topic_ids"),
            },
            is_paused: row.get("is_paused"),
        }
    }

    /// What the view is known to have had of the topic as it is now: events below are a replay.
    fn highest_after(&self, lost: Lost) -> Option<i64> {
        match lost {
            Lost::FormerTopic => None,
            Lost::BelowBeginning { .. } => self.highest_offset,
            Lost::BeyondEnd { end, .. } => Some(self.next_offset.max(self.highest_offset)?.min(end)),
        }
    }
}

/// Has the partition go on from where it is said, or takes its notices as known; tells what was done.
///
/// # Errors
/// Nothing is lost; the offset is not in the topic; Postgres or Kafka does not answer. Nothing is changed then.
pub async fn accept(config: &AcceptConfig) -> Result<String, Failure> {
    let place = &config.partition;
    let observer = kafka::observer(&config.servers.kafka)?;
    let asked = [place.clone()];
    let told = tokio::task::spawn_blocking(move || offsets(&observer, &asked))
        .await
        .context("asking kafka failed")?
        .with_context(|| format!("kafka does not tell of {place}"))?;
    let client = connect_for_command(&config.servers.database.0).await?;
    client.batch_execute("begin").await.map_err(unanswered)?;
    let row = client
        .query_opt(
            "select next_offset, highest_offset, topic_id, former_topic_ids, paused is not null as is_paused from view_positions
             where topic = $1 and partition = $2 for update",
            &[&&*place.topic, &place.partition],
        )
        .await
        .map_err(unanswered)?;
    let Some(held) = row.as_ref().map(Held::of) else {
        return Err(Failure::Setting(format!(
            "no builder has had {place} yet: view-builder status lists the partitions"
        )));
    };
    let bounds = match (told.at(place), config.from) {
        (Ok(bounds), _) => bounds,
        // What somebody has to know of a partition that is gone can be known all the same.
        (Err(Untold::NoPartition { .. } | Untold::NoTopic), None) => {
            let said = take_note(&client, place).await?;
            client.batch_execute("commit").await.map_err(unanswered)?;
            return Ok(said);
        }
        (Err(untold @ (Untold::NoPartition { .. } | Untold::NoTopic)), Some(_)) => {
            return Err(Failure::Setting(format!(
                "{place} {untold}, so that it goes on from nowhere"
            )));
        }
        (Err(untold), _) => return Err(anyhow::anyhow!("nothing is changed: {place} {untold}").into()),
    };
    let known = Known {
        topic: held.ids.compare(bounds.topic_id.as_deref()),
        position: held.next_offset,
        group_recorded: None,
        group: None,
        beginning: bounds.beginning,
        end: bounds.end,
    };
    let said = match (start(known), config.from) {
        (Ok(_), _) if held.is_paused => format!("{place}: nothing is lost any more, its builder goes on within 10 s\n"),
        (Ok(_), Some(_)) => {
            return Err(Failure::Setting(format!(
                "{place} is not paused: to read events again: view-builder replay"
            )));
        }
        (Ok(_), None) => take_note(&client, place).await?,
        (Err(lost), None) => return Err(Failure::Setting(lost.advice(place))),
        (Err(lost), Some(from)) => {
            let next_offset = offset(place, from, bounds)?;
            go_on(&client, place, &held, lost, bounds, next_offset).await?;
            format!("{place} goes on from offset {next_offset}\n")
        }
    };
    client.batch_execute("commit").await.map_err(unanswered)?;
    Ok(said)
}

fn offset(place: &TopicPartition, from: AcceptFrom, bounds: &Bounds) -> Result<i64, Failure> {
    match from {
        AcceptFrom::Beginning => Ok(bounds.beginning),
        AcceptFrom::Offset(offset) if (bounds.beginning..=bounds.end).contains(&offset) => Ok(offset),
        AcceptFrom::Offset(offset) => Err(Failure::Setting(format!(
            "{place} has no offset {offset}: it begins at {} and ends at {}",
            bounds.beginning, bounds.end
        ))),
    }
}

async fn take_note(client: &Client, place: &TopicPartition) -> Result<String, Failure> {
    let rows = client
        .query(
            "delete from view_notices where topic = $1 and partition = $2 returning kind",
            &[&&*place.topic, &place.partition],
        )
        .await
        .map_err(unanswered)?;
    if rows.is_empty() {
        return Err(Failure::Setting(format!("{place} has nothing to accept")));
    }
    let kinds: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    Ok(format!("{place}: {} is known\n", kinds.join(", ")))
}

async fn go_on(
    client: &Client,
    place: &TopicPartition,
    held: &Held,
    lost: Lost,
    bounds: &Bounds,
    next_offset: i64,
) -> Result<(), Failure> {
    let is_other = lost == Lost::FormerTopic;
    let ids = held.ids.clone();
    let told = bounds.topic_id.as_deref();
    let mut ids = ids.followed_by(told, is_other && told.is_some());
    // An operator says that it is the topic now, whatever was before.
    ids.former.retain(|former| Some(former) != ids.now.as_ref());
    client
        .execute(
            "update view_positions set
                next_offset = $3, epoch = epoch + 1, group_offset = null, topic_id = $4, former_topic_ids = $5,
                letters_version = letters_version + 1, breaks = breaks + 1, paused = null,
                paused_end = null, read_to = null, read_epoch = null
             where topic = $1 and partition = $2",
            &[&&*place.topic, &place.partition, &next_offset, &ids.now, &ids.former],
        )
        .await
        .map_err(unanswered)?;
    // A statement of its own: the one before has let the trigger keep a higher offset.
    client
        .execute(
            "update view_positions set highest_offset = $3 where topic = $1 and partition = $2",
            &[&&*place.topic, &place.partition, &held.highest_after(lost)],
        )
        .await
        .map_err(unanswered)?;
    // A paused view that has all of before goes on with the others; one that lacks events has no more than what lies before, and of another
    // topic nothing at all.
    let reached = held.next_offset.max(held.highest_offset);
    client
        .execute(
            "update view_pause_positions set
                lacks = lacks or $4 and next_offset is distinct from $5,
                next_offset = case
                    when $4 or next_offset >= $5 then $3
                    when next_offset is not null then least(next_offset, $3)
                end
             where topic = $1 and partition = $2",
            &[&&*place.topic, &place.partition, &next_offset, &is_other, &reached],
        )
        .await
        .map_err(unanswered)?;
    if is_other && reached > Some(0) {
        // Of a partition that came after the pause it has nothing of the former topic either.
        client
            .execute(
                "insert into view_pause_positions (view, topic, partition, next_offset, lacks)
                 select view, topic, $2, $3, true from view_pauses join view_sources using (view) where topic = $1
                 on conflict do nothing",
                &[&&*place.topic, &place.partition, &next_offset],
            )
            .await
            .map_err(unanswered)?;
    }
    let aside_from = if is_other { 0 } else { next_offset };
    client
        .execute(
            "select put_dead_letters_aside($1, $2, $3, $4)",
            &[&&*place.topic, &place.partition, &aside_from, &held.ids.now],
        )
        .await
        .map_err(unanswered)?;
    tracing::warn!(%place, position.before = held.next_offset, position.now = next_offset, reason = lost.name(),
        "an operator accepts that continuity is lost");
    Ok(())
}
