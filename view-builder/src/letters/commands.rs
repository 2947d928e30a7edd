//! `view-builder dead-letters`: looking at what waits in `view_dead_letters`, trying it again, giving it up.
//!
//! Each letter is one transaction: it takes the partition's position as a batch does, and so waits for the batch under way; it applies
//! the event or gives it up; it counts up `letters_version`, which makes a rebuild look again. A command that is killed has
//! changed all of a letter or nothing. [`retry::all`] does so with many letters at once.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Context as _;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

use super::retry;
use super::store::hex;
use crate::batch::{Batch, Part, TopicPartition};
use crate::catalog::Kept;
use crate::config::{Letters, LettersCommand};
use crate::contract::{self, Contract, Contracts};
use crate::database::{Session, connect_for_command, unanswered};
use crate::event::{Event, Unappliable};
use crate::failure::Failure;
use crate::kafka;
use crate::view::View;
use crate::{apply, measure, pause, refusal};

/// Most characters of a reason in a list's line.
const REASON_CHARACTERS_MAX: usize = 100;

const COLUMNS: &str = "id, topic, partition, record_offset, key, value, headers::text, record_time::text, reason,
    arrived_at::text, retries, discarded_at::text, former_topic_id";

/// Runs the command and gives what it prints. The flag says whether letters still wait among those that were asked for.
///
/// # Errors
/// Postgres does not answer; there is no such letter; an earlier one of its key has to come first.
pub async fn execute(command: &LettersCommand) -> Result<(String, bool), Failure> {
    match command {
        LettersCommand::List(asked) => {
            let client = connect_for_command(&asked.database.database_url).await?;
            let rows = client
                .query(
                    &format!(
                        "select {COLUMNS} from view_dead_letters
                         where ($1 or discarded_at is null) and ($2::text is null or topic = $2) and ($3::bytea is null or key = $3)
                         order by topic, partition, record_offset limit $4"
                    ),
                    &[&asked.discarded, &asked.topic, &asked.key.as_deref().map(str::as_bytes), &i64::from(asked.limit)],
                )
                .await
                .map_err(unanswered)?;
            Ok((list(&rows), !rows.is_empty()))
        }
        LettersCommand::Show(asked) => {
            let client = connect_for_command(&asked.database.database_url).await?;
            let row = find(&client, asked.id).await?;
            Ok((show(&row), false))
        }
        LettersCommand::Retry(asked) => Desk::open(&asked.letters).await?.retry(&asked.letters, asked.all).await,
        LettersCommand::Discard(asked) => Desk::open(asked).await?.discard(asked).await,
    }
}

async fn find(client: &Client, id: i64) -> Result<Row, Failure> {
    let row = client
        .query_opt(
            &format!("select {COLUMNS} from view_dead_letters where id = $1"),
            &[&id],
        )
        .await
        .map_err(unanswered)?;
    row.ok_or_else(|| {
        Failure::Setting(format!(
            "there is no dead letter {id}: see view-builder dead-letters list"
        ))
    })
}

/// Bytes as text where they are text.
fn text(bytes: Option<&[u8]>) -> String {
    match bytes.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
        None => "-".to_owned(),
        Some((_, Ok(text))) if !text.contains(char::is_control) => text.to_owned(),
        Some((bytes, _)) => format!("\\x{}", hex(bytes)),
    }
}

fn list(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "no dead letters\n".to_owned();
    }
    let mut table = format!(
        "{:>8}  {:<24} {:>9} {:>12}  {:<20} {}\n",
        "id", "topic", "partition", "offset", "key", "reason"
    );
    for row in rows {
        let reason = match (row.get::<_, Option<&str>>(11), row.get::<_, Option<&str>>(8)) {
            (Some(_), _) => "discarded",
            (None, Some(reason)) => reason,
            (None, None) => "waits behind an earlier one of its key",
        };
        let former = row.get::<_, Option<&str>>(12).map_or("", |_| "of a former topic: ");
        let reason = former.to_owned() + reason;
        let reason: String = reason.chars().take(REASON_CHARACTERS_MAX).collect();
        let _ = writeln!(
            table,
            "{:>8}  {:<24} {:>9} {:>12}  {:<20} {reason}",
            row.get::<_, i64>(0),
            row.get::<_, &str>(1),
            row.get::<_, i32>(2),
            row.get::<_, i64>(3),
            text(row.get(4)),
        );
    }
    table
}

fn show(row: &Row) -> String {
    let mut shown = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(shown, "{name:<12} {value}");
    };
    line("id", &row.get::<_, i64>(0).to_string());
    line(
        "place",
        &format!(
            "{}/{} offset {}",
            row.get::<_, &str>(1),
            row.get::<_, i32>(2),
            row.get::<_, i64>(3)
        ),
    );
    if let Some(former) = row.get::<_, Option<&str>>(12) {
        line("former topic", former);
    }
    line("key", &text(row.get(4)));
    line("record time", row.get::<_, Option<&str>>(7).unwrap_or("-"));
    line("arrived", row.get(9));
    line(
        "reason",
        row.get::<_, Option<&str>>(8)
            .unwrap_or("nothing is wrong with it: it waits behind an earlier one of its key"),
    );
    line("retries", &row.get::<_, i32>(10).to_string());
    if let Some(at) = row.get::<_, Option<&str>>(11) {
        line("discarded", at);
    }
    let headers: Vec<(String, Option<String>)> = serde_json::from_str(row.get(6)).unwrap_or_default();
    for (name, value) in headers {
        let bytes = value.as_deref().and_then(unhex);
        line("header", &format!("{name}: {}", text(bytes.as_deref())));
    }
    let value: &[u8] = row.get(5);
    line("value", &text(Some(value)));
    shown
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

/// A connection with which letters can be applied.
pub(super) struct Desk {
    session: Session,
    views: Vec<View>,
    contracts: Contracts,
}

/// A letter that waits.
#[derive(Clone)]
pub(super) struct Waiting {
    id: i64,
    pub(super) place: TopicPartition,
    pub(super) offset: i64,
    pub(super) key: Option<Vec<u8>>,
    value: Vec<u8>,
    /// The topic's id where its record is not in the topic any more. The letters of such a topic are lines of their own.
    former_topic_id: Option<String>,
}

/// Some letters, in the order of their topics.
pub(super) struct Piece {
    pub(super) letters: Vec<Waiting>,
    /// Where the last of them was, also where it is gone meanwhile.
    pub(super) last: (TopicPartition, i64),
}

/// What became of a letter.
pub(super) enum Outcome {
    Applied,
    Discarded,
    Dead(String),
    Gone,
    /// The views are others than this command knows.
    Outdated,
    /// This view, which is paused, reads the topic: it would never get the event.
    Paused(String),
}

impl Desk {
    async fn open(asked: &Letters) -> Result<Self, Failure> {
        let client = connect_for_command(&asked.database.database_url).await?;
        let Kept { views, topics } = Kept::load(&client).await.map_err(unanswered)?;
        let session = Session::prepare(client, &views).await.map_err(unanswered)?;
        let contracts = contract::of_all(&topics);
        Ok(Self {
            session,
            views,
            contracts,
        })
    }

    async fn retry(&mut self, asked: &Letters, all: bool) -> Result<(String, bool), Failure> {
        if all {
            return retry::all(self).await;
        }
        let (mut said, mut left) = (String::new(), false);
        for first in self.asked(asked).await? {
            left |= !self.go_through(first, &mut said).await?;
        }
        Ok((said, left))
    }

    /// Applies this letter and those behind it, up to the first that is still dead. Whether all went.
    async fn go_through(&mut self, first: Waiting, said: &mut String) -> Result<bool, Failure> {
        let mut next = Some(first);
        while let Some(letter) = next {
            let at = letter.described();
            match self.end(&letter, false).await? {
                Outcome::Applied => {
                    let _ = writeln!(said, "applied {at}");
                }
                Outcome::Dead(reason) => {
                    let _ = writeln!(said, "still dead {at}: {reason}");
                    return Ok(false);
                }
                Outcome::Gone | Outcome::Discarded | Outcome::Outdated | Outcome::Paused(_) => {}
            }
            next = self.behind(&letter).await?;
        }
        Ok(true)
    }

    async fn discard(&mut self, asked: &Letters) -> Result<(String, bool), Failure> {
        if asked.ids.is_empty() {
            return Err(Failure::Setting(
                "name the dead letters to discard by their ids".to_owned(),
            ));
        }
        let letters = self.asked(asked).await?;
        let mut said = String::new();
        // All of them before anything behind them is tried, or one that is to go as well would be applied.
        for letter in &letters {
            if !matches!(self.end(letter, true).await?, Outcome::Discarded) {
                let _ = writeln!(said, "gone meanwhile {}", letter.described());
                continue;
            }
            tracing::warn!(letter = letter.id, place = %letter.place, offset = letter.offset, "an operator gives up a dead letter");
            let _ = writeln!(said, "discarded {}", letter.described());
        }
        let mut left = false;
        for letter in &letters {
            // What stood behind one of a former topic is older than what the view has got since: it is applied on demand alone.
            if letter.former_topic_id.is_none()
                && let Some(next) = self.behind(letter).await?
            {
                left |= !self.go_through(next, &mut said).await?;
            }
        }
        Ok((said, left))
    }

    /// The letters with the ids asked for, each the first of its key.
    async fn asked(&self, asked: &Letters) -> Result<Vec<Waiting>, Failure> {
        let mut letters = Vec::with_capacity(asked.ids.len());
        for id in &asked.ids {
            let row = find(&self.session.client, *id).await?;
            if row.get::<_, Option<&str>>(11).is_some() {
                return Err(Failure::Setting(format!("dead letter {id} was discarded already")));
            }
            let letter = waiting(&row);
            let first = self.first_of(&letter).await?;
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

    /// How many letters wait.
    pub(super) async fn count(&self) -> Result<i64, Failure> {
        let row = self
            .session
            .client
            .query_one(
                "select count(*) from only view_dead_letters where discarded_at is null",
                &[],
            )
            .await;
        Ok(row.map_err(unanswered)?.get(0))
    }

    /// The letters that come behind `after` in the order of topic, partition and offset: at most `letters`, and at most `bytes` of records
    /// but for the first one.
    pub(super) async fn piece(
        &self,
        after: Option<&(TopicPartition, i64)>,
        letters: i64,
        bytes: i64,
    ) -> Result<Option<Piece>, Failure> {
        let (topic, partition, offset) = after.map_or(("", -1, -1), |(place, offset)| {
            (&*place.topic, place.partition, *offset)
        });
        // The limit stands in the text, or the session's generic plan would read and sort the whole table.
        let sql = format!(
            "select id, octet_length(value)::bigint, topic, partition, record_offset from only view_dead_letters
             where discarded_at is null and (topic, partition, record_offset) > ($1, $2, $3)
             order by topic, partition, record_offset limit {letters}"
        );
        let client = &self.session.client;
        // The index has them in this order; while there are no statistics another one and a sort of all of them look as good.
        let read = async {
            client
                .batch_execute("begin; set local enable_sort = off; set local enable_incremental_sort = off")
                .await?;
            let next = client.query(&sql, &[&topic, &partition, &offset]).await?;
            client.batch_execute("commit").await?;
            Ok::<_, tokio_postgres::Error>(next)
        };
        let next = read.await.map_err(unanswered)?;
        let mut room = bytes;
        let fitting = next.iter().take_while(|row| {
            let fits = room > 0;
            room -= row.get::<_, i64>(1);
            fits
        });
        let fitting: Vec<&Row> = fitting.collect();
        let Some(last) = fitting.last() else {
            return Ok(None);
        };
        let last = (kafka::place(last.get(2), last.get(3)), last.get(4));
        let ids: Vec<i64> = fitting.iter().map(|row| row.get(0)).collect();
        let letters = self
            .waiting("select * from only view_dead_letters where id = any($1)", &[&ids])
            .await?;
        Ok(Some(Piece { letters, last }))
    }

    /// Applies all of these in one transaction, as a builder applies a batch; false, and nothing is changed, where one of them is still dead.
    pub(super) async fn apply_all(&mut self, letters: &[Waiting]) -> Result<bool, Failure> {
        let mut parts: BTreeMap<TopicPartition, Part> = BTreeMap::new();
        for letter in letters {
            let Ok(event) = self.event(letter) else {
                return Ok(false);
            };
            let part = parts.entry(letter.place.clone()).or_insert_with(|| part_of(letter));
            part.events.push(event);
            part.to = letter.offset + 1;
        }
        if parts.is_empty() {
            return Ok(true);
        }
        let batch = Batch {
            parts: parts.into_values().collect(),
        };
        let ids: Vec<i64> = letters.iter().map(|letter| letter.id).collect();
        let client = &self.session.client;
        client.batch_execute("begin").await.map_err(unanswered)?;
        let applied = async {
            for part in &batch.parts {
                lock(client, &part.place).await?;
            }
            let open = client
                .query(
                    "select from only view_dead_letters where id = any($1) and discarded_at is null for update",
                    &[&ids],
                )
                .await?;
            if open.len() != ids.len() {
                return Ok(Some(false));
            }
            if !self.is_current().await? {
                return Ok(None);
            }
            for part in &batch.parts {
                // Told by the first letter that is tried alone.
                if pause::reader(client, &part.place.topic).await?.is_some() {
                    return Ok(Some(false));
                }
            }
            apply::apply_views(&self.session, &self.views, &self.contracts, &batch).await?;
            client
                .execute("delete from only view_dead_letters where id = any($1)", &[&ids])
                .await?;
            Ok(Some(true))
        };
        let applied = applied.await;
        let close = if matches!(applied, Ok(Some(true))) {
            "commit"
        } else {
            "rollback"
        };
        let closed = client.batch_execute(close).await;
        match applied {
            Ok(Some(applied)) => {
                closed.map_err(unanswered)?;
                Ok(applied)
            }
            Ok(None) => Err(outdated()),
            // What is wrong with which letter is found out by trying each.
            Err(err) if refusal::is_refused(&err) => Ok(false),
            Err(err) => Err(unanswered(err)),
        }
    }

    async fn first_of(&self, letter: &Waiting) -> Result<Waiting, Failure> {
        if letter.key.is_none() {
            return Ok(letter.clone());
        }
        let mut firsts = self.behind_offset(letter, -1).await?;
        firsts
            .pop()
            .context("the dead letter is gone meanwhile")
            .map_err(Failure::from)
    }

    async fn behind(&self, letter: &Waiting) -> Result<Option<Waiting>, Failure> {
        if letter.key.is_none() {
            return Ok(None);
        }
        Ok(self.behind_offset(letter, letter.offset).await?.pop())
    }

    async fn behind_offset(&self, letter: &Waiting, offset: i64) -> Result<Vec<Waiting>, Failure> {
        self.waiting(
            "select * from view_dead_letters
             where discarded_at is null and topic = $1 and partition = $2 and key = $3 and record_offset > $4
                and former_topic_id is not distinct from $5
             order by record_offset limit 1",
            &[
                &&*letter.place.topic,
                &letter.place.partition,
                &letter.key,
                &offset,
                &letter.former_topic_id,
            ],
        )
        .await
    }

    async fn waiting(&self, which: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Waiting>, Failure> {
        let sql = format!("select {COLUMNS} from ({which}) as letter order by topic, partition, record_offset");
        let rows = self.session.client.query(&sql, parameters).await.map_err(unanswered)?;
        Ok(rows.iter().map(waiting).collect())
    }

    /// Applies the letter's event or gives the letter up, in one transaction with the partition's position.
    pub(super) async fn end(&mut self, letter: &Waiting, discards: bool) -> Result<Outcome, Failure> {
        let event = self.event(letter);
        let client = &self.session.client;
        client.batch_execute("begin").await.map_err(unanswered)?;
        let ended = self.end_in_transaction(letter, discards, event).await;
        let close = if matches!(ended, Ok(Outcome::Applied | Outcome::Discarded)) {
            "commit"
        } else {
            "rollback"
        };
        let closed = client.batch_execute(close).await;
        let reason = match ended {
            Ok(Outcome::Dead(reason)) => reason,
            Ok(Outcome::Outdated) => return Err(outdated()),
            Ok(Outcome::Paused(view)) => return Err(paused(&view)),
            Ok(outcome) => {
                closed.map_err(unanswered)?;
                return Ok(outcome);
            }
            Err(err) if refusal::is_refused(&err) => refusal::without_values(&err),
            Err(err) => return Err(unanswered(err)),
        };
        closed.map_err(unanswered)?;
        client
            .execute(
                "update view_dead_letters set retries = retries + 1, reason = $2 where id = $1",
                &[&letter.id, &reason],
            )
            .await
            .map_err(unanswered)?;
        Ok(Outcome::Dead(reason))
    }

    /// Whether the views are still those that this command has read. Positions are locked, so they stay so until the transaction ends.
    async fn is_current(&self) -> Result<bool, tokio_postgres::Error> {
        let kept = Kept::load(&self.session.client).await?.views;
        let mut pairs = kept.iter().zip(&self.views);
        Ok(kept.len() == self.views.len() && pairs.all(|(kept, known)| kept.has_sql_of(known)))
    }

    fn event(&self, letter: &Waiting) -> Result<Event, Unappliable> {
        let contract: &Contract = self
            .contracts
            .get(&*letter.place.topic)
            .ok_or_else(|| Unappliable("no view reads its topic any more".to_owned()))?;
        Event::parse(
            contract,
            letter.offset,
            measure::now_us(),
            letter.key.as_deref(),
            &letter.value,
        )
    }

    async fn end_in_transaction(
        &self,
        letter: &Waiting,
        discards: bool,
        event: Result<Event, Unappliable>,
    ) -> Result<Outcome, tokio_postgres::Error> {
        let client = &self.session.client;
        lock(client, &letter.place).await?;
        let is_open = client
            .query_opt(
                "select from view_dead_letters where id = $1 and discarded_at is null for update",
                &[&letter.id],
            )
            .await?;
        if is_open.is_none() {
            return Ok(Outcome::Gone);
        }
        if !self.is_current().await? {
            return Ok(Outcome::Outdated);
        }
        if !discards && let Some(view) = pause::reader(client, &letter.place.topic).await? {
            return Ok(Outcome::Paused(view));
        }
        if discards {
            let sql = "update view_dead_letters set discarded_at = clock_timestamp() where id = $1";
            client.execute(sql, &[&letter.id]).await?;
            return Ok(Outcome::Discarded);
        }
        let event = match event {
            Ok(event) => event,
            Err(unappliable) => return Ok(Outcome::Dead(unappliable.0)),
        };
        let mut part = part_of(letter);
        part.events.push(event);
        let batch = Batch { parts: vec![part] };
        apply::apply_views(&self.session, &self.views, &self.contracts, &batch).await?;
        client
            .execute("delete from view_dead_letters where id = $1", &[&letter.id])
            .await?;
        Ok(Outcome::Applied)
    }
}

fn paused(view: &str) -> Failure {
    Failure::Setting(format!(
        "view {view} is paused and reads this topic, so that it would never get the event: view-builder resume {view}, or view-builder drop \
         {view}, and then retry"
    ))
}

fn outdated() -> Failure {
    Failure::Setting(
        "a view was paused, resumed, changed or rebuilt meanwhile: run the command again, it goes on where it is"
            .to_owned(),
    )
}

/// Takes the partition's position as a batch does, and so waits for the batch under way; counts the change of its letters.
async fn lock(client: &Client, place: &TopicPartition) -> Result<(), tokio_postgres::Error> {
    client
        .execute(
            "update view_positions set letters_version = letters_version + 1 where topic = $1 and partition = $2",
            &[&&*place.topic, &place.partition],
        )
        .await?;
    Ok(())
}

/// A part of a batch for this letter, without events.
fn part_of(letter: &Waiting) -> Part {
    Part {
        place: letter.place.clone(),
        epoch: 0,
        from: letter.offset,
        to: letter.offset + 1,
        events: Vec::new(),
        letters: Vec::new(),
    }
}

impl Waiting {
    /// For people: id, place and offset.
    pub(super) fn described(&self) -> String {
        format!("{} ({} offset {})", self.id, self.place, self.offset)
    }
}

fn waiting(row: &Row) -> Waiting {
    Waiting {
        id: row.get(0),
        place: TopicPartition {
            topic: row.get::<_, &str>(1).into(),
            partition: row.get(2),
        },
        offset: row.get(3),
        key: row.get(4),
        value: row.get(5),
        former_topic_id: row.get(12),
    }
}
