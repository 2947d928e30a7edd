//! Writing down where claimed partitions begin, and which of them are paused.

use crate::builder::claim::{Claim, Start};
use crate::continuity::start::Lost;
use crate::continuity::topic_ids::Topic;
use crate::letters::{Known, store};
use crate::process::faults::{self, Bug};
use crate::views::database::Database;

/// Where a partition begins, and what is written down with that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beginning {
    pub start: Start,
    /// The topic's id, as Kafka tells it.
    pub topic_id: Option<String>,
    /// The topic is another than the one that the position is of.
    pub is_anew: bool,
    /// The topic had ended here, below the position, for a while: events from here on are new.
    pub ended_at: Option<i64>,
    pub notice: Option<Notice>,
}

/// What an operator has to know although the partition is read: the kind and the whole text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub kind: &'static str,
    pub text: String,
}

impl Beginning {
    /// At this offset of the topic that the position is of.
    #[must_use]
    pub fn at(start: Start) -> Self {
        Self {
            start,
            topic_id: None,
            is_anew: false,
            ended_at: None,
            notice: None,
        }
    }

    /// At `next_offset`, in a topic that had ended at `ended_at` below the position for a while.
    #[must_use]
    pub fn after_lost_end(claim: Claim, told: Option<&str>, next_offset: i64, ended_at: i64) -> Self {
        let place = &claim.place;
        // Only a position can lie beyond an end, so there is one.
        let position = claim.next_offset.max(claim.highest_offset).unwrap_or(0);
        let notice = Notice {
            kind: "end-lost",
            text: format!(
                "{place}: the topic had ended at {ended_at} below the view's position {position} for a while; it is read again from {next_offset}: \
                 events that were there before and are gone stay in the views; `view-builder accept {place}` says that this is known"
            ),
        };
        Self {
            start: claim.starting_after_lost_end(next_offset, ended_at),
            topic_id: told.map(str::to_owned),
            is_anew: false,
            ended_at: Some(ended_at),
            notice: Some(notice),
        }
    }

    /// Where the claimed partition begins: at `next_offset` of the topic that Kafka tells of, which begins at `beginning`.
    #[must_use]
    pub fn of(claim: Claim, topic: Topic, told: Option<&str>, next_offset: i64, beginning: i64) -> Self {
        let place = claim.place.clone();
        let is_anew = topic == Topic::MadeAnew;
        let truncated = (is_anew || claim.next_offset.is_none()) && beginning > 0;
        let notice = if is_anew {
            let (former, now) = (claim.ids.now.as_deref().unwrap_or("-"), told.unwrap_or("-"));
            // None: the whole topic was to be read again.
            let before = claim.next_offset.unwrap_or(0);
            Some(Notice {
                kind: "made-anew",
                text: format!(
                    "{place}: the topic was deleted and made anew (id {former} before, {now} now): its events are applied from offset {next_offset}, \
                     the position before was {before}; rows that only the former topic told of stay; see docs/lost-continuity.md, then: \
                     `view-builder accept {place}`"
                ),
            })
        } else {
            truncated.then(|| Notice {
                kind: "truncated",
                text: format!(
                    "the view of {place} begins at offset {beginning}: the events before had been removed, and rows that only they tell of are \
                     missing; once that is known: `view-builder accept {place}`"
                ),
            })
        };
        let start = if is_anew {
            claim.starting_anew(next_offset)
        } else {
            claim.starting_at(next_offset)
        };
        Self {
            start,
            topic_id: told.map(str::to_owned),
            is_anew,
            ended_at: None,
            notice,
        }
    }
}

/// A partition that its holder does not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paused {
    pub claim: Claim,
    pub lost: Lost,
}

impl Database {
    /// Sets positions to where the partitions begin, with the topics' ids; puts the letters of a topic that was replaced aside. A partition that
    /// another builder has claimed meanwhile stays as it is. Waits for as long as Postgres is away.
    pub async fn begin(&mut self, beginnings: &[Beginning]) {
        if beginnings.is_empty() {
            return;
        }
        let starts = || beginnings.iter().map(|beginning| &beginning.start);
        let topic: Vec<&str> = starts().map(|start| &*start.place.topic).collect();
        let partition: Vec<i32> = starts().map(|start| start.place.partition).collect();
        let epoch: Vec<i64> = starts().map(|start| start.epoch).collect();
        let next_offset: Vec<i64> = starts().map(|start| start.next_offset).collect();
        let topic_id: Vec<Option<&str>> = beginnings.iter().map(|one| one.topic_id.as_deref()).collect();
        let is_anew: Vec<bool> = beginnings.iter().map(|one| one.is_anew).collect();
        let ended_at: Vec<Option<i64>> = beginnings.iter().map(|one| one.ended_at).collect();
        let notices = || beginnings.iter().map(|one| one.notice.as_ref());
        let kind: Vec<Option<&str>> = notices().map(|notice| Some(notice?.kind)).collect();
        let text: Vec<Option<&str>> = notices().map(|notice| Some(notice?.text.as_str())).collect();
        loop {
            let client = &self.session().await.client;
            let begun = client
                .execute(
                    "select begin_view_positions($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                    &[
                        &topic,
                        &partition,
                        &epoch,
                        &next_offset,
                        &topic_id,
                        &is_anew,
                        &ended_at,
                        &kind,
                        &text,
                    ],
                )
                .await;
            match begun {
                Ok(_) => return,
                Err(err) => self.wait(&err).await,
            }
        }
    }

    /// Reads the letters of these partitions again; waits for as long as Postgres is away.
    pub async fn read_letters<'a>(&mut self, starts: impl Iterator<Item = &'a mut Start>) {
        let mut starts: Vec<&mut Start> = starts.collect();
        if starts.is_empty() {
            return;
        }
        let places: Vec<_> = starts.iter().map(|start| start.place.clone()).collect();
        let mut known = loop {
            let client = &self.session().await.client;
            match store::load_known(client, &places).await {
                Ok(known) => break known,
                Err(err) => self.wait(&err).await,
            }
        };
        for start in &mut starts {
            if let Some(known) = known.remove(&start.place) {
                start.known = known;
            }
        }
    }

    /// Writes down why these partitions are not read, for people, and the lowest end that was told below a position. Waits for as long as Postgres
    /// is away.
    pub async fn pause_partitions(&mut self, paused: &[Paused]) {
        if paused.is_empty() {
            return;
        }
        let topic: Vec<&str> = paused.iter().map(|one| &*one.claim.place.topic).collect();
        let partition: Vec<i32> = paused.iter().map(|one| one.claim.place.partition).collect();
        let epoch: Vec<i64> = paused.iter().map(|one| one.claim.epoch).collect();
        let reason: Vec<String> = paused.iter().map(|one| one.lost.advice(&one.claim.place)).collect();
        let end = |one: &Paused| one.lost.low_end().into_iter().chain(one.claim.paused_end).min();
        let end: Vec<Option<i64>> = paused.iter().map(end).collect();
        let name: Vec<&str> = paused.iter().map(|one| one.lost.name()).collect();
        loop {
            let client = &self.session().await.client;
            let written = client
                .execute(
                    "update view_positions as held set
                        paused = wanted.reason, paused_reason = wanted.name, paused_end = least(held.paused_end, wanted.low_end)
                     from unnest($1::text[], $2::integer[], $3::bigint[], $4::text[], $5::bigint[], $6::text[])
                         as wanted(topic, partition, epoch, reason, low_end, name)
                     where held.topic = wanted.topic and held.partition = wanted.partition and held.epoch = wanted.epoch",
                    &[&topic, &partition, &epoch, &reason, &end, &name],
                )
                .await;
            match written {
                Ok(_) => return,
                Err(err) => self.wait(&err).await,
            }
        }
    }
}

impl Claim {
    /// Where the partition begins in a topic that had ended at `ended_at` for a while. Its letters are those from before
    /// [`Database::begin`], which puts some of them aside.
    #[must_use]
    pub fn starting_after_lost_end(self, next_offset: i64, ended_at: i64) -> Start {
        Start {
            new_from: next_offset.max(ended_at),
            group_offset: self.group_offset.map(|offset| offset.min(next_offset)),
            ..self.starting_at(next_offset)
        }
    }

    /// Where the partition begins in a topic that was made anew. Its letters are of the former topic, and no replay is known in it.
    #[must_use]
    pub fn starting_anew(self, next_offset: i64) -> Start {
        Start {
            place: self.place,
            epoch: self.epoch,
            next_offset,
            new_from: next_offset,
            group_offset: None,
            known: letters_of_topic_made_anew(self.known),
        }
    }
}

/// None, at the version to which `begin_view_positions` counts up. Where an operator has counted it up meanwhile, the two differ, and the letters
/// are read again. The planted bug keeps the letters of the former topic.
fn letters_of_topic_made_anew(former: Known) -> Known {
    if faults::is_planted(Bug::KeepFormerLetters) {
        former
    } else {
        Known::at(former.version + 1)
    }
}
