//! Filling a generation: events from the topic's beginning up to where the live view has been, and no further.
//!
//! **How far.** A view has every event below the highest position that its partition has ever had, called *reached* here: a position that is set
//! back takes nothing from the view. `view_positions` keeps that height beside the position (`highest_offset`). A generation is filled up to
//! reached and never to the position alone, since the difference would be missing from the new view until the replay has come by. The swap leaves
//! the positions as they are, and builders apply the rest of the replay to the generation, where versions that it has or that are older change
//! nothing. Case by case:
//! - *A replay that is ordered before the rebuild, or goes on while it fills*: the position moves below reached. Reached stays, so nothing that a
//!   reader has seen goes away.
//! - *A replay that is ordered after the swap*: the new view is filled up to reached, as the old one was, and the same holds for it.
//! - *The group is set back by Kafka's tools*: the builder that finds it sets the position back itself, which keeps the height like a replay.
//! - *A builder adds a view*: the positions of its topics become null, and the height stays. The other views have everything below it. The new
//!   one has only what is below the position; by a rebuild of its own it gets all up to reached at once, which is later than what its readers
//!   had and never earlier.
//! - *Nothing was ever applied*: position and height are null. The generation is empty, and builders begin at the beginning.
//! - *Another rebuild*: it changes no position but by the epochs, so reached is the same for both.
//!
//! - *A topic that was made anew with fewer partitions*: the positions of those that are gone stay in `view_positions`, and have no part in a
//!   generation, since nobody has their events.
//!
//! Reached never goes back, unless somebody deletes the row of a topic that was made anew. A generation that is already beyond it has events of
//! the former topic, and is given up.
//!
//! **Which of them.** Every event below reached has been decided: it is applied, or it waits in the dead letters, or it was discarded. The
//! generation gets exactly the first kind (see [`super::letters`] about events of which both is true). Where dead letters are retried meanwhile,
//! what was left out is read again from the first of them on.
//!
//! Positions of the generation move in the transaction that applies the events, so that a fill that was killed goes on where it was.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Context as _;
use kafka_client::Reader;
use rdkafka::consumer::Consumer;
use tokio_postgres::{Client, Error};

use super::filled::Filled;
use super::letters::Letters;
use super::reached::Existing;
use super::reading::Reading;
use super::trouble::Trouble;
use crate::continuity::offsets;
use crate::contract::place::TopicPartition;
use crate::contract::place::place;
use crate::contract::{self, Contracts};
use crate::kafka::servers::Kafka;
use crate::kafka::{self, Observer};
use crate::process::failure::Failure;
use crate::views::database::Session;
use crate::views::view::View;

/// How far the events of a topic were applied.
enum Reached {
    Limits,
    /// An event was left out because of its key's hash, and has no letter. It is read again.
    WrongHash,
}

/// A generation's way through its topics.
pub(super) struct Fill {
    /// One client for each topic, as a reader reads one.
    pub(super) consumers: BTreeMap<String, Observer>,
    pub(super) contracts: Contracts,
    pub(super) partitions: BTreeMap<TopicPartition, Filled>,
    pub(super) letters: Letters,
    /// Where partitions begin whose earlier events are gone, as was accepted.
    beginnings: BTreeMap<TopicPartition, i64>,
    pub(super) existing: Existing,
}

impl Fill {
    pub(super) fn new(servers: &Kafka, view: &View) -> Result<Self, Failure> {
        let mut consumers = BTreeMap::new();
        for topic in &view.topics {
            let consumer = kafka::observer_with(
                servers,
                &[
                    ("enable.partition.eof", "true"),
                    ("auto.offset.reset", "error"),
                    ("queued.max.messages.kbytes", "8192"),
                    ("fetch.queue.backoff.ms", "5"),
                ],
            )?;
            consumers.insert(topic.clone(), consumer);
        }
        Ok(Self {
            consumers,
            contracts: contract::contracts_of(&view.topics),
            partitions: BTreeMap::new(),
            letters: Letters::new(&view.topics),
            beginnings: BTreeMap::new(),
            existing: Existing::default(),
        })
    }

    /// Reads how far the generation is, and takes what the live view has reached as the limits. Passes over events that are gone where that
    /// is accepted; says whether there were any.
    pub(super) async fn resume(
        &mut self,
        client: &Client,
        view: &View,
        takes_truncated: bool,
    ) -> Result<bool, Trouble> {
        self.load(client, view).await?;
        self.refuse_other_topics(client, view).await?;
        self.update_limits_and_letters(client, view).await?;
        self.pass_over_removed(takes_truncated)
    }

    /// Refuses where a topic is another one than the positions are of, which no builder may have noticed yet. What is read between two of
    /// these looks is of one topic, as an id does not come again.
    ///
    /// # Errors
    /// It is, or Kafka does not tell.
    pub(super) async fn refuse_other_topics(&self, client: &Client, view: &View) -> Result<(), Trouble> {
        let Some(asking) = self.consumers.values().next() else {
            return Ok(());
        };
        let facts = tokio::task::block_in_place(|| kafka_client::facts_by(asking, self.consumers.keys()))?;
        let rows = client
            .query(
                "select topic, topic_id, min(partition) as partition from view_positions
                 where topic = any($1) and topic_id is not null group by topic, topic_id",
                &[&view.topics],
            )
            .await?;
        for row in &rows {
            let (topic, known): (&str, &str) = (row.get("topic"), row.get("topic_id"));
            let partition: i32 = row.get("partition");
            let facts = facts.get(topic);
            let id = facts.and_then(|facts| facts.id.as_deref());
            // Positions of partitions that are gone are of the topic of before, and stay so.
            let is_there = facts.is_none_or(|facts| partition < facts.partitions);
            if is_there && id.is_some_and(|id| id != known) {
                return Err(Failure::Setting(format!(
                    "{topic} was made anew, and no builder has taken up {topic}/{partition} since: see view-builder status whether it waits for \
                     kafka, or start view-builder run; and then view-builder rebuild {0} --abandon, and rebuild",
                    view.name
                ))
                .into());
            }
        }
        Ok(())
    }

    /// Takes over how far the generation is, as its last transaction says.
    async fn load(&mut self, client: &Client, view: &View) -> Result<(), Error> {
        let rows = client
            .query(
                "select topic, partition, next_offset, letters_version, left_out_from, breaks
                 from view_rebuild_positions where view = $1",
                &[&view.name],
            )
            .await?;
        self.partitions = rows
            .iter()
            .map(|row| {
                let filled = Filled {
                    next: row.get("next_offset"),
                    limit: row.get("next_offset"),
                    letters_version: row.get("letters_version"),
                    left_out_from: row.get("left_out_from"),
                    breaks: row.get("breaks"),
                };
                (place(row.get("topic"), row.get("partition")), filled)
            })
            .collect();
        Ok(())
    }

    fn pass_over_removed(&mut self, takes_truncated: bool) -> Result<bool, Trouble> {
        let mut passed = false;
        let mut bounds = BTreeMap::new();
        for (topic, consumer) in &self.consumers {
            let of_topic = self.partitions.keys().filter(|place| *place.topic == **topic);
            bounds.extend(tokio::task::block_in_place(|| {
                offsets::bounds(consumer, of_topic, Reader::Committed)
            })?);
        }
        for (place, filled) in &mut self.partitions {
            let (beginning, _) = offsets::known(&bounds, place)?;
            let first = beginning.min(filled.limit);
            if first <= filled.next {
                continue;
            }
            if !takes_truncated {
                return Err(Failure::Setting(format!(
                    "{place} begins at offset {beginning}: the events from offset {} on are gone, and rows that only they tell of would \
                     be missing in the new generation; to go on all the same: --accept-truncated",
                    filled.next
                ))
                .into());
            }
            tracing::warn!(%place, beginning, "the events before this offset are gone: the new generation is made without them");
            filled.next = first;
            self.beginnings.insert(place.clone(), first);
            passed = true;
        }
        Ok(passed)
    }

    /// The client that reads this topic.
    pub(super) fn consumer(&self, topic: &str) -> Option<&Observer> {
        self.consumers.get(topic)
    }

    /// How many offsets are between the generation's positions and the limits.
    pub(super) fn events_left(&self) -> u64 {
        let left = self.partitions.values().map(|filled| filled.limit - filled.next);
        left.filter_map(|left| u64::try_from(left).ok()).sum()
    }

    /// Applies everything up to the limits, each batch in a transaction of its own; before the `deadline`, where there is one.
    pub(super) async fn apply_up_to_limits(
        &mut self,
        session: &Session,
        view: &View,
        deadline: Option<Instant>,
        progress: impl Fn(u64),
    ) -> Result<(), Trouble> {
        let topics: Vec<String> = self.consumers.keys().cloned().collect();
        for topic in topics {
            loop {
                match self.apply_topic(&topic, session, view, deadline, &progress).await {
                    // Each key is corrected once, so this ends.
                    Ok(Reached::WrongHash) => {}
                    // Each event is left out once, so this ends.
                    Err(Trouble::MustLeaveOut(place, offset)) => {
                        tracing::info!(%place, offset, "the new generation refuses an event that has a dead letter: it is left out");
                        self.letters.leave_out(&session.client, place, offset).await?;
                        self.load(&session.client, view).await?;
                        self.update_limits_and_letters(&session.client, view).await?;
                        for (place, beginning) in &self.beginnings {
                            if let Some(filled) = self.partitions.get_mut(place) {
                                filled.next = filled.next.max(*beginning);
                            }
                        }
                    }
                    Ok(Reached::Limits) => break,
                    Err(trouble) => return Err(trouble),
                }
            }
        }
        Ok(())
    }

    /// Applies the events of one topic up to the limits, or up to a batch in which an event was wrongly left out.
    async fn apply_topic(
        &mut self,
        topic: &str,
        session: &Session,
        view: &View,
        deadline: Option<Instant>,
        progress: &impl Fn(u64),
    ) -> Result<Reached, Trouble> {
        let Some(mut reading) = Reading::start(&self.consumers[topic], topic, &self.partitions)? else {
            return Ok(Reached::Limits);
        };
        while !reading.is_done() {
            let before = self.partitions.clone();
            let (contracts, partitions, letters) = (&self.contracts, &mut self.partitions, &self.letters);
            let batch = tokio::task::block_in_place(|| reading.batch(contracts, letters, partitions, deadline))?;
            let corrected = self
                .letters
                .correct_those_without_letter(&session.client, reading.left_out());
            if corrected.await? {
                self.partitions = before;
                return Ok(Reached::WrongHash);
            }
            self.commit(session, view, batch).await?;
            progress(self.events_left());
        }
        drop(reading);
        // Nobody needs the records that librdkafka has fetched beyond the limits, so it drops them.
        self.consumers[topic]
            .unassign()
            .context("partitions cannot be given back")?;
        Ok(Reached::Limits)
    }

    pub(super) async fn save(&self, client: &Client, view: &View) -> Result<(), Error> {
        let (mut topic, mut partition, mut next) = (Vec::new(), Vec::new(), Vec::new());
        let (mut version, mut left_out, mut breaks) = (Vec::new(), Vec::new(), Vec::new());
        for (place, filled) in &self.partitions {
            topic.push(&*place.topic);
            partition.push(place.partition);
            next.push(filled.next);
            version.push(filled.letters_version);
            left_out.push(filled.left_out_from);
            breaks.push(filled.breaks);
        }
        client
            .execute(
                "insert into view_rebuild_positions (view, topic, partition, next_offset, letters_version, left_out_from, breaks)
                 select $1, * from unnest($2::text[], $3::integer[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[])
                 on conflict (view, topic, partition) do update set
                    next_offset = excluded.next_offset,
                    letters_version = excluded.letters_version,
                    left_out_from = excluded.left_out_from",
                &[&view.name, &topic, &partition, &next, &version, &left_out, &breaks],
            )
            .await?;
        Ok(())
    }
}
