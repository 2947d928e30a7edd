//! Writes down where claimed partitions begin, and which of them are paused.

use tokio_postgres::types::ToSql;

use crate::builder::claim::{Claim, Start};
use crate::continuity::start::Lost;
use crate::continuity::topic_ids::Topic;
use crate::letters::{Known, store};
use crate::process::faults::{self, Bug};
use crate::views::database::Database;

/// Where the reading of a partition begins, and what is written down with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beginning {
    pub start: Start,
    /// The id that Kafka tells for the topic now.
    pub topic_id: Option<String>,
    /// Whether the topic was deleted and made anew since the position was written.
    pub is_anew: bool,
    /// For a while the topic ended at this offset, below the position. Events from here on are new.
    pub ended_at: Option<i64>,
    pub notice: Option<Notice>,
}

/// What an operator has to know, although the partition is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub kind: &'static str,
    pub text: String,
}

impl Beginning {
    /// A beginning in the topic of the position, without anything to write down.
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

    /// The partition begins at `next_offset`, in a topic that for a while ended at `ended_at`, below the position.
    #[must_use]
    pub fn after_lost_end(claim: Claim, topic_id: Option<&str>, next_offset: i64, ended_at: i64) -> Self {
        let place = &claim.place;
        // An end can only be below a position, so the claim has one.
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
            topic_id: topic_id.map(str::to_owned),
            is_anew: false,
            ended_at: Some(ended_at),
            notice: Some(notice),
        }
    }

    /// The claimed partition begins at `next_offset` of the topic that Kafka has now. `beginning` is the first offset that this topic still has.
    #[must_use]
    pub fn of(claim: Claim, topic: Topic, topic_id: Option<&str>, next_offset: i64, beginning: i64) -> Self {
        let place = claim.place.clone();
        let is_anew = topic == Topic::MadeAnew;
        let is_truncated = (is_anew || claim.next_offset.is_none()) && beginning > 0;
        let notice = if is_anew {
            let (former, now) = (claim.ids.now.as_deref().unwrap_or("-"), topic_id.unwrap_or("-"));
            // Without a position, the whole topic was to be read.
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
            is_truncated.then(|| Notice {
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
            topic_id: topic_id.map(str::to_owned),
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
    /// Writes down where the partitions begin, with the ids of their topics. Puts the letters of a topic that was made anew aside. A partition that
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
        self.execute_until_answered(
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
    }

    /// Reads the letters of these partitions again, into `starts`. Waits for as long as Postgres is away.
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

    /// Writes down, for people, why these partitions are not read. Also writes down the lowest end that Kafka told below a position. Waits for as
    /// long as Postgres is away.
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
        self.execute_until_answered(
            "update view_positions as held set
                paused = wanted.reason, paused_reason = wanted.name, paused_end = least(held.paused_end, wanted.low_end)
             from unnest($1::text[], $2::integer[], $3::bigint[], $4::text[], $5::bigint[], $6::text[])
                 as wanted(topic, partition, epoch, reason, low_end, name)
             where held.topic = wanted.topic and held.partition = wanted.partition and held.epoch = wanted.epoch",
            &[&topic, &partition, &epoch, &reason, &end, &name],
        )
        .await;
    }

    /// Runs a statement that may run twice. Waits for as long as Postgres is away, and then runs it again.
    async fn execute_until_answered(&mut self, statement: &str, parameters: &[&(dyn ToSql + Sync)]) {
        loop {
            let client = &self.session().await.client;
            match client.execute(statement, parameters).await {
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

/// The letters of a topic that was made anew: none. Their version is the one to which `begin_view_positions` counts up. If an operator has counted it
/// up meanwhile, the two versions differ, and the letters are read again. The planted bug keeps the letters of the former topic.
fn letters_of_topic_made_anew(former: Known) -> Known {
    if faults::is_planted(Bug::KeepFormerLetters) {
        former
    } else {
        Known::at(former.version + 1)
    }
}
