//! Trying letters again, and giving them up.
//!
//! Letters are ended in a transaction that takes their partitions' positions as a batch does, and so waits for the batch under way; it applies
//! the events or gives the letters up; it counts up `letters_version`, which makes a rebuild look again. A command that is killed has
//! ended all letters of a transaction or none. [`super::retry`] ends many letters in one.

use std::collections::{BTreeMap, HashSet};

use service::clock;
use tokio_postgres::{Client, Error};

use super::find;
use super::report::{Report, other_views, paused, stopped};
use super::waiting::Waiting;
use crate::apply;
use crate::contract::batch::{Batch, Part};
use crate::contract::event::{Event, Unappliable};
use crate::contract::place::TopicPartition;
use crate::contract::{self, Contracts};
use crate::postgres::connection::connect_for_command;
use crate::postgres::connection::unanswered;
use crate::postgres::refusal;
use crate::postgres::server::ViewsDatabase;
use crate::process::failure::Failure;
use crate::views::catalog::KeptViews;
use crate::views::database::Session;
use crate::views::pauses;
use crate::views::view::View;

/// Most letters that `discard` applies in one transaction.
const LETTERS_TOGETHER: usize = 100;

/// A connection with which letters can be applied.
pub(super) struct Desk {
    pub(super) session: Session,
    views: Vec<View>,
    contracts: Contracts,
}

/// How letters are to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Apply,
    Discard,
}

/// What became of letters.
enum Outcome {
    /// All of them are applied, or given up.
    Ended,
    /// Nothing is changed: one of them cannot be applied, for this reason.
    Dead(String),
    /// Nothing is changed: somebody else has ended one of them.
    Gone,
    /// Nothing is changed: this one, of the same key as one of them, stands before it and is still dead.
    Behind(i64),
    /// Nothing is changed: this view, which is paused, reads a topic of theirs. It would never get the event.
    Paused(String),
}

/// Why letters were not ended.
enum Hindrance {
    Database(Error),
    /// The views are others than this command knows.
    OtherViews,
}

impl From<Error> for Hindrance {
    fn from(err: Error) -> Self {
        Self::Database(err)
    }
}

impl Desk {
    pub(super) async fn open(database: &ViewsDatabase) -> Result<Self, Failure> {
        let client = connect_for_command(&database.0).await?;
        let KeptViews { views, topics } = KeptViews::load(&client).await.map_err(unanswered)?;
        let session = Session::prepare(client, &views).await.map_err(unanswered)?;
        let contracts = contract::contracts_of(&topics);
        Ok(Self {
            session,
            views,
            contracts,
        })
    }

    /// Applies the letters with these ids, and those behind them. Returns what to print, and whether some still wait.
    pub(super) async fn retry(&mut self, ids: &[i64]) -> Result<(String, bool), Failure> {
        let mut report = Report::default();
        let ended = self.retry_these(ids, &mut report).await;
        report.of(ended)
    }

    async fn retry_these(&mut self, ids: &[i64], report: &mut Report) -> Result<(), Failure> {
        for first in self.firsts(ids).await? {
            self.go_through(first, report).await?;
        }
        Ok(())
    }

    /// Gives up the letters with these ids, and applies those behind them. Returns what to print, and whether some still wait.
    pub(super) async fn discard(&mut self, ids: &[i64]) -> Result<(String, bool), Failure> {
        if ids.is_empty() {
            return Err(Failure::Setting(
                "name the dead letters to discard by their ids".to_owned(),
            ));
        }
        let mut report = Report::default();
        let ended = self.discard_these(ids, &mut report).await;
        report.of(ended)
    }

    async fn discard_these(&mut self, ids: &[i64], report: &mut Report) -> Result<(), Failure> {
        let letters = self.firsts(ids).await?;
        // All of them before anything behind them is tried, or one that is to go as well would be applied.
        for letter in &letters {
            let one = std::slice::from_ref(letter);
            if !matches!(self.end(one, Ending::Discard).await?, Outcome::Ended) {
                report.gone(&letter.described());
                continue;
            }
            tracing::warn!(letter = letter.id, place = %letter.place, offset = letter.offset, "an operator gives up a dead letter");
            report.discarded(&letter.described());
        }
        let mut next: Vec<Waiting> = Vec::new();
        for letter in &letters {
            // What stood behind one of a former topic is older than what the view has got since: it is applied on demand alone.
            if letter.former_topic_id.is_some() {
                continue;
            }
            let Some(behind) = letter.behind(&self.session.client).await? else {
                continue;
            };
            // Of two letters of a key the first leads to the other.
            match next.iter_mut().find(|known| known.is_of_key_of(&behind)) {
                Some(known) if known.offset > behind.offset => *known = behind,
                Some(_) => {}
                None => next.push(behind),
            }
        }
        while !next.is_empty() {
            // As a builder would apply them.
            next.sort_by(|one, other| (&one.place, one.offset).cmp(&(&other.place, other.offset)));
            let mut further = Vec::new();
            for some in next.chunks(LETTERS_TOGETHER) {
                further.extend(self.go_a_step(some, report).await?);
            }
            next = further;
        }
        Ok(())
    }

    /// Applies these letters, of which no two are of one key. Returns the letters that stand behind those that were applied.
    async fn go_a_step(&self, letters: &[Waiting], report: &mut Report) -> Result<Vec<Waiting>, Failure> {
        let still_dead = self.retry_layer(letters, report).await?;
        let mut behind = Vec::new();
        for letter in letters.iter().filter(|letter| !still_dead.contains(&letter.id)) {
            behind.extend(letter.behind(&self.session.client).await?);
        }
        Ok(behind)
    }

    /// Applies these letters, of which no two are of one key: together, or else one by one. Returns the ids of those that are still dead, or stand
    /// behind one that is.
    ///
    /// Each transaction waits for the builder's batch under way, so beside a busy builder one for each letter would take minutes.
    pub(super) async fn retry_layer(&self, letters: &[Waiting], report: &mut Report) -> Result<HashSet<i64>, Failure> {
        let mut still_dead = HashSet::new();
        let is_applied = self.retry_together(letters).await?;
        for letter in letters {
            if is_applied {
                report.applied(&letter.described());
            } else if !self.goes_on_after(letter, report).await? {
                still_dead.insert(letter.id);
            }
        }
        Ok(still_dead)
    }

    /// Applies this letter and those behind it, up to the first that is still dead.
    async fn go_through(&mut self, first: Waiting, report: &mut Report) -> Result<(), Failure> {
        let mut next = Some(first);
        while let Some(letter) = next {
            if !self.goes_on_after(&letter, report).await? {
                return Ok(());
            }
            next = letter.behind(&self.session.client).await?;
        }
        Ok(())
    }

    /// Applies this letter; false: it is still dead, or stands behind one that is.
    async fn goes_on_after(&self, letter: &Waiting, report: &mut Report) -> Result<bool, Failure> {
        match self.retry_one(letter).await? {
            Outcome::Ended => report.applied(&letter.described()),
            Outcome::Dead(reason) => {
                report.still_dead(&letter.described(), &reason);
                return Ok(false);
            }
            Outcome::Behind(first) => {
                report.behind(&letter.described(), first);
                return Ok(false);
            }
            Outcome::Gone | Outcome::Paused(_) => {}
        }
        Ok(true)
    }

    /// The letters with these ids, each the first of its key.
    async fn firsts(&self, ids: &[i64]) -> Result<Vec<Waiting>, Failure> {
        let client = &self.session.client;
        let mut letters = Vec::with_capacity(ids.len());
        for id in ids {
            let row = find(client, *id).await?;
            if row.get::<_, Option<&str>>("discarded_at").is_some() {
                return Err(Failure::Setting(format!("dead letter {id} was discarded already")));
            }
            let letter = Waiting::of(&row);
            let first = letter.first_of_key(client).await?;
            if first.id != letter.id && !letters.iter().any(|known: &Waiting| known.id == first.id) {
                return Err(Failure::Setting(format!(
                    "dead letter {id} waits behind {} of the same key: retry or discard {} first",
                    first.id, first.id
                )));
            }
            letters.push(letter);
        }
        Ok(letters)
    }

    /// Applies all of these in one transaction, as a builder applies a batch; false, and nothing is changed, where that cannot be done with
    /// each of them. What is wrong with which letter is found out by trying each.
    async fn retry_together(&self, letters: &[Waiting]) -> Result<bool, Failure> {
        if letters.is_empty() {
            return Ok(true);
        }
        Ok(matches!(self.end(letters, Ending::Apply).await?, Outcome::Ended))
    }

    /// Applies this one. Where it is still dead, that is counted and its reason kept.
    ///
    /// # Errors
    /// Postgres does not answer; a view that reads the letter's topic is paused.
    async fn retry_one(&self, letter: &Waiting) -> Result<Outcome, Failure> {
        let outcome = self.end(std::slice::from_ref(letter), Ending::Apply).await?;
        match &outcome {
            Outcome::Paused(view) => return Err(paused(view)),
            Outcome::Dead(reason) => {
                let table = letter.table();
                let sql = format!("update {table} set retries = retries + 1, reason = $2 where id = $1");
                let counted = self.session.client.execute(&sql, &[&letter.id, reason]).await;
                counted.map_err(stopped)?;
            }
            Outcome::Ended | Outcome::Gone | Outcome::Behind(_) => {}
        }
        Ok(outcome)
    }

    /// Ends all of these letters, or none, in one transaction with their partitions' positions. No two of them are of one key, and all
    /// are of one table.
    async fn end(&self, letters: &[Waiting], ending: Ending) -> Result<Outcome, Failure> {
        let client = &self.session.client;
        client.batch_execute("begin").await.map_err(stopped)?;
        let ended = self.end_in_transaction(letters, ending).await;
        let close = if matches!(ended, Ok(Outcome::Ended)) {
            "commit"
        } else {
            "rollback"
        };
        let closed = client.batch_execute(close).await;
        match ended.and_then(|outcome| Ok(closed.map(|()| outcome)?)) {
            Ok(outcome) => Ok(outcome),
            Err(Hindrance::OtherViews) => Err(other_views()),
            // A constraint that is deferred refuses at the commit.
            Err(Hindrance::Database(err)) if refusal::is_refused(&err) => {
                Ok(Outcome::Dead(refusal::without_values(&err)))
            }
            Err(Hindrance::Database(err)) => Err(stopped(err)),
        }
    }

    async fn end_in_transaction(&self, letters: &[Waiting], ending: Ending) -> Result<Outcome, Hindrance> {
        let client = &self.session.client;
        let mut parts: BTreeMap<TopicPartition, Part> = BTreeMap::new();
        for letter in letters {
            let part = parts.entry(letter.place.clone()).or_insert_with(|| letter.part());
            part.to = letter.offset + 1;
        }
        for place in parts.keys() {
            lock(client, place).await?;
        }
        let ids: Vec<i64> = letters.iter().map(|letter| letter.id).collect();
        let table = letters.first().map_or("only view_dead_letters", Waiting::table);
        let sql = format!("select from {table} where id = any($1) and discarded_at is null for update");
        let open = client.query(&sql, &[&ids]).await?;
        if open.len() != ids.len() {
            return Ok(Outcome::Gone);
        }
        if !self.is_current().await? {
            return Err(Hindrance::OtherViews);
        }
        if ending == Ending::Discard {
            let sql = format!("update {table} set discarded_at = clock_timestamp() where id = any($1)");
            client.execute(&sql, &[&ids]).await?;
            return Ok(Outcome::Ended);
        }
        if let Some(first) = standing_before(client, table, &ids).await? {
            return Ok(Outcome::Behind(first));
        }
        for place in parts.keys() {
            if let Some(view) = pauses::find_paused_reader(client, &place.topic).await? {
                return Ok(Outcome::Paused(view));
            }
        }
        for letter in letters {
            match (self.event(letter), parts.get_mut(&letter.place)) {
                (Ok(event), Some(part)) => part.events.push(event),
                (Err(unappliable), _) => return Ok(Outcome::Dead(unappliable.0)),
                (Ok(_), None) => {}
            }
        }
        let batch = Batch {
            parts: parts.into_values().collect(),
        };
        apply::apply_views(&self.session, &self.views, &self.contracts, &batch).await?;
        let sql = format!("delete from {table} where id = any($1)");
        client.execute(&sql, &[&ids]).await?;
        Ok(Outcome::Ended)
    }

    /// Whether the views are still those that this command has read. Positions are locked, so they stay so until the transaction ends.
    async fn is_current(&self) -> Result<bool, Error> {
        let kept = KeptViews::load(&self.session.client).await?.views;
        let mut pairs = kept.iter().zip(&self.views);
        Ok(kept.len() == self.views.len() && pairs.all(|(kept, known)| kept.has_sql_of(known)))
    }

    fn event(&self, letter: &Waiting) -> Result<Event, Unappliable> {
        let contract = self
            .contracts
            .get(&*letter.place.topic)
            .ok_or_else(|| Unappliable("no view reads its topic any more".to_owned()))?;
        Event::parse(
            contract,
            letter.offset,
            clock::now_us(),
            letter.key.as_deref(),
            &letter.value,
        )
    }
}

/// A letter that is still dead and stands before one of these, of the same key: nothing overtakes it. The positions are locked.
async fn standing_before(client: &Client, table: &str, ids: &[i64]) -> Result<Option<i64>, Error> {
    let sql = format!(
        "select min(earlier.id) from {table} as letter
         join {table} as earlier on earlier.topic = letter.topic and earlier.partition = letter.partition and earlier.key = letter.key
            and earlier.record_offset < letter.record_offset
            and earlier.former_topic_id is not distinct from letter.former_topic_id
         where letter.id = any($1) and earlier.discarded_at is null"
    );
    Ok(client.query_one(&sql, &[&ids]).await?.get(0))
}

/// Takes the partition's position as a batch does, and so waits for the batch under way; counts the change of its letters.
async fn lock(client: &Client, place: &TopicPartition) -> Result<(), Error> {
    client
        .execute(
            "update view_positions set letters_version = letters_version + 1 where topic = $1 and partition = $2",
            &[&&*place.topic, &place.partition],
        )
        .await?;
    Ok(())
}
