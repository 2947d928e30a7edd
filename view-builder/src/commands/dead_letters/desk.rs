//! Applies dead letters again, or discards them. Both *end* a letter.
//!
//! One transaction ends one or more letters:
//! 1. it locks their partitions' positions as a batch does, and so waits for the batch under way. It also raises `letters_version`, which makes a
//!    rebuild look at the letters again;
//! 2. it applies the events, or marks the letters as discarded.
//!
//! A command that is killed has ended all letters of a transaction or none. [`super::retry`] ends many letters in one transaction.

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

/// `discard` applies so many letters in one transaction, at most.
const LETTERS_PER_TRANSACTION: usize = 100;

/// A connection to the views' database that can end letters.
pub(super) struct Desk {
    pub(super) session: Session,
    views: Vec<View>,
    contracts: Contracts,
}

/// How letters are to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending<'d> {
    Apply,
    /// With the operator's reason, if there is one.
    Discard(Option<&'d str>),
}

/// What became of letters.
enum Outcome {
    /// All of them are applied, or discarded.
    Ended,
    /// Nothing is changed: one of them cannot be applied. This is the reason.
    Dead(String),
    /// Nothing is changed: somebody else has ended one of them.
    Gone,
    /// Nothing is changed: one of them waits behind a letter of the same key that is still dead. This is that letter's id.
    Behind(i64),
    /// Nothing is changed: this paused view reads one of their topics, and it would never get the event.
    Paused(String),
}

/// Why letters were not ended.
enum Hindrance {
    Database(Error),
    /// The catalog has changed since this command read it.
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
        report.finish(ended)
    }

    async fn retry_these(&mut self, ids: &[i64], report: &mut Report) -> Result<(), Failure> {
        for first in self.load_first_letters(ids).await? {
            self.retry_from(first, report).await?;
        }
        Ok(())
    }

    /// Gives up the letters with these ids, and applies those behind them. `reason` is kept with them. Returns what to print, and whether some still
    /// wait.
    pub(super) async fn discard(&mut self, ids: &[i64], reason: Option<&str>) -> Result<(String, bool), Failure> {
        if ids.is_empty() {
            return Err(Failure::Setting(
                "name the dead letters to discard by their ids".to_owned(),
            ));
        }
        let mut report = Report::default();
        let ended = self.discard_these(ids, reason, &mut report).await;
        report.finish(ended)
    }

    async fn discard_these(&mut self, ids: &[i64], reason: Option<&str>, report: &mut Report) -> Result<(), Failure> {
        let letters = self.load_first_letters(ids).await?;
        // All of them are discarded before any letter behind them is applied. Otherwise one that is to be discarded too could be applied first.
        for letter in &letters {
            let single = std::slice::from_ref(letter);
            if !matches!(self.end_letters(single, Ending::Discard(reason)).await?, Outcome::Ended) {
                report.gone(&letter.for_people());
                continue;
            }
            tracing::warn!(letter = letter.id, place = %letter.place, offset = letter.offset, "an operator gives up a dead letter");
            report.discarded(&letter.for_people());
        }
        let mut next: Vec<Waiting> = Vec::new();
        for letter in &letters {
            // The letters behind a letter of a former topic are older than what the view has got since. They are applied only if an operator asks
            // for them.
            if letter.former_topic_id.is_some() {
                continue;
            }
            let Some(behind) = letter.load_next_of_key(&self.session.client).await? else {
                continue;
            };
            // Only the first letter of a key is kept: applying it leads to the later ones.
            match next.iter_mut().find(|known| known.has_key_of(&behind)) {
                Some(known) if known.offset > behind.offset => *known = behind,
                Some(_) => {}
                None => next.push(behind),
            }
        }
        self.retry_in_layers(next, report).await
    }

    /// Applies these letters, of which no two are of one key, and those behind them, up to the first of each key that is still dead.
    pub(super) async fn retry_in_layers(&self, mut next: Vec<Waiting>, report: &mut Report) -> Result<(), Failure> {
        while !next.is_empty() {
            // In the order in which a builder would apply them.
            next.sort_by(|left, right| (&left.place, left.offset).cmp(&(&right.place, right.offset)));
            let mut behind = Vec::new();
            for letters in next.chunks(LETTERS_PER_TRANSACTION) {
                behind.extend(self.retry_and_find_next(letters, report).await?);
            }
            next = behind;
        }
        Ok(())
    }

    /// Applies these letters, of which no two are of one key. Returns the letters that stand behind those that were applied.
    async fn retry_and_find_next(&self, letters: &[Waiting], report: &mut Report) -> Result<Vec<Waiting>, Failure> {
        let still_dead = self.retry_layer(letters, report).await?;
        let mut behind = Vec::new();
        for letter in letters.iter().filter(|letter| !still_dead.contains(&letter.id)) {
            behind.extend(letter.load_next_of_key(&self.session.client).await?);
        }
        Ok(behind)
    }

    /// Applies these letters, of which no two are of one key: all together, or one by one if that fails. Returns the ids of those that are still
    /// dead or still wait behind a dead one.
    ///
    /// Each transaction waits for the builder's batch under way. So beside a busy builder, one transaction for each letter would take minutes.
    pub(super) async fn retry_layer(&self, letters: &[Waiting], report: &mut Report) -> Result<HashSet<i64>, Failure> {
        let mut still_dead = HashSet::new();
        let is_applied = self.retry_together(letters).await?;
        for letter in letters {
            if is_applied {
                report.applied(&letter.for_people());
            } else if !self.retry_and_report(letter, report).await? {
                still_dead.insert(letter.id);
            }
        }
        Ok(still_dead)
    }

    /// Applies this letter and those behind it, up to the first that is still dead.
    async fn retry_from(&mut self, first: Waiting, report: &mut Report) -> Result<(), Failure> {
        let mut next = Some(first);
        while let Some(letter) = next {
            if !self.retry_and_report(&letter, report).await? {
                return Ok(());
            }
            next = letter.load_next_of_key(&self.session.client).await?;
        }
        Ok(())
    }

    /// Applies this letter. Returns whether the letters behind it can be applied now: false if it is still dead, or still waits behind a dead one.
    async fn retry_and_report(&self, letter: &Waiting, report: &mut Report) -> Result<bool, Failure> {
        match self.retry_one(letter).await? {
            Outcome::Ended => report.applied(&letter.for_people()),
            Outcome::Dead(reason) => {
                report.still_dead(&letter.for_people(), &reason);
                return Ok(false);
            }
            Outcome::Behind(first) => {
                report.behind(&letter.for_people(), first);
                return Ok(false);
            }
            Outcome::Gone | Outcome::Paused(_) => {}
        }
        Ok(true)
    }

    /// Loads the letters with these ids. Refuses one that waits behind another letter of its key, unless that one is named before it.
    async fn load_first_letters(&self, ids: &[i64]) -> Result<Vec<Waiting>, Failure> {
        let client = &self.session.client;
        let mut letters = Vec::with_capacity(ids.len());
        for id in ids {
            let row = find(client, *id).await?;
            if row.get::<_, Option<&str>>("discarded_at").is_some() {
                return Err(Failure::Setting(format!("dead letter {id} was discarded already")));
            }
            let letter = Waiting::from_row(&row);
            let first = letter.load_first_of_key(client).await?;
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

    /// Applies all of these in one transaction, as a builder applies a batch. If one of them cannot be applied, it returns false and nothing is
    /// changed. Then the caller tries each letter alone to find out which one fails and why.
    async fn retry_together(&self, letters: &[Waiting]) -> Result<bool, Failure> {
        if letters.is_empty() {
            return Ok(true);
        }
        Ok(matches!(
            self.end_letters(letters, Ending::Apply).await?,
            Outcome::Ended
        ))
    }

    /// Applies this letter. If it is still dead, its retries are counted and the new reason is stored.
    ///
    /// # Errors
    /// Postgres does not answer; a view that reads the letter's topic is paused.
    async fn retry_one(&self, letter: &Waiting) -> Result<Outcome, Failure> {
        let outcome = self.end_letters(std::slice::from_ref(letter), Ending::Apply).await?;
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

    /// Ends all of these letters, or none, in one transaction that locks their partitions' positions. No two of them may be of one key, and all
    /// must be in the same table.
    async fn end_letters(&self, letters: &[Waiting], ending: Ending<'_>) -> Result<Outcome, Failure> {
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

    async fn end_in_transaction(&self, letters: &[Waiting], ending: Ending<'_>) -> Result<Outcome, Hindrance> {
        let client = &self.session.client;
        let mut parts: BTreeMap<TopicPartition, Part> = BTreeMap::new();
        for letter in letters {
            let part = parts.entry(letter.place.clone()).or_insert_with(|| letter.part());
            part.to = letter.offset + 1;
        }
        for place in parts.keys() {
            lock_position(client, place).await?;
        }
        let ids: Vec<i64> = letters.iter().map(|letter| letter.id).collect();
        let table = letters.first().map_or("only view_dead_letters", Waiting::table);
        let sql = format!("select from {table} where id = any($1) and discarded_at is null for update");
        let open = client.query(&sql, &[&ids]).await?;
        if open.len() != ids.len() {
            return Ok(Outcome::Gone);
        }
        if !self.has_current_views().await? {
            return Err(Hindrance::OtherViews);
        }
        if let Ending::Discard(reason) = ending {
            let sql =
                format!("update {table} set discarded_at = clock_timestamp(), discard_reason = $2 where id = any($1)");
            client.execute(&sql, &[&ids, &reason]).await?;
            return Ok(Outcome::Ended);
        }
        if let Some(first) = find_dead_letter_before(client, table, &ids).await? {
            return Ok(Outcome::Behind(first));
        }
        for place in parts.keys() {
            if let Some(view) = pauses::find_paused_reader(client, &place.topic).await? {
                return Ok(Outcome::Paused(view));
            }
        }
        for letter in letters {
            match (self.parse_event(letter), parts.get_mut(&letter.place)) {
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

    /// Whether the catalog still has the views that this command has read. The positions are locked, so this stays so until the transaction ends.
    async fn has_current_views(&self) -> Result<bool, Error> {
        let kept = KeptViews::load(&self.session.client).await?.views;
        let mut pairs = kept.iter().zip(&self.views);
        Ok(kept.len() == self.views.len() && pairs.all(|(kept, known)| kept.has_sql_of(known)))
    }

    fn parse_event(&self, letter: &Waiting) -> Result<Event, Unappliable> {
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

/// The id of a letter that is still dead and that one of these waits behind, since it has the same key and is earlier. The positions must be
/// locked.
async fn find_dead_letter_before(client: &Client, table: &str, ids: &[i64]) -> Result<Option<i64>, Error> {
    let sql = format!(
        "select min(earlier.id) from {table} as letter
         join {table} as earlier on earlier.topic = letter.topic and earlier.partition = letter.partition and earlier.key = letter.key
            and earlier.record_offset < letter.record_offset
            and earlier.former_topic_id is not distinct from letter.former_topic_id
         where letter.id = any($1) and earlier.discarded_at is null"
    );
    Ok(client.query_one(&sql, &[&ids]).await?.get(0))
}

/// Locks the partition's position as a batch does, and so waits for the batch under way. Raises `letters_version`, since the letters change.
async fn lock_position(client: &Client, place: &TopicPartition) -> Result<(), Error> {
    client
        .execute(
            "update view_positions set letters_version = letters_version + 1 where topic = $1 and partition = $2",
            &[&&*place.topic, &place.partition],
        )
        .await?;
    Ok(())
}
