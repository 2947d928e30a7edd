//! Reads the letters that wait, for the commands.

use anyhow::Context as _;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, Row};

use super::report::stopped;
use crate::contract::batch::Part;
use crate::contract::place::TopicPartition;
use crate::contract::place::place;
use crate::process::failure::Failure;

/// The columns that are read of each letter.
pub(super) const COLUMNS: &str =
    "id, topic, partition, record_offset, key, value, headers::text as headers, record_time::text as record_time, reason,
    arrived_at::text as arrived_at, retries, discarded_at::text as discarded_at, former_topic_id, discard_reason";

/// A letter that waits.
#[derive(Clone)]
pub(super) struct Waiting {
    pub(super) id: i64,
    pub(super) place: TopicPartition,
    pub(super) offset: i64,
    pub(super) key: Option<Vec<u8>>,
    pub(super) value: Vec<u8>,
    /// The id of the topic that its record was in, if that topic was made anew since. Letters of a former topic wait only behind letters of the
    /// same one.
    pub(super) former_topic_id: Option<String>,
}

/// Some of the waiting letters, sorted by topic, partition and offset.
pub(super) struct Piece {
    pub(super) letters: Vec<Waiting>,
    /// The place of the last of them. The next piece begins after it, even if this letter has gone meanwhile.
    pub(super) last: (TopicPartition, i64),
}

impl Waiting {
    /// Reads a row with [`COLUMNS`].
    pub(super) fn from_row(row: &Row) -> Self {
        Self {
            id: row.get("id"),
            place: place(row.get("topic"), row.get("partition")),
            offset: row.get("record_offset"),
            key: row.get("key"),
            value: row.get("value"),
            former_topic_id: row.get("former_topic_id"),
        }
    }

    /// The letter as people read it: id, place and offset.
    pub(super) fn for_people(&self) -> String {
        format!("{} ({} offset {})", self.id, self.place, self.offset)
    }

    /// Whether both have the same key of the same partition, so that one waits behind the other.
    pub(super) fn has_key_of(&self, other: &Self) -> bool {
        self.key.is_some() && self.key == other.key && self.place == other.place
    }

    /// The table that holds the letter.
    pub(super) const fn table(&self) -> &'static str {
        match self.former_topic_id {
            None => "only view_dead_letters",
            Some(_) => "view_former_dead_letters",
        }
    }

    /// A part of a batch for this letter, without events.
    pub(super) fn part(&self) -> Part {
        Part {
            place: self.place.clone(),
            epoch: 0,
            from: self.offset,
            to: self.offset + 1,
            read: None,
            events: Vec::new(),
            letters: Vec::new(),
        }
    }

    /// Loads the first letter of its key.
    pub(super) async fn load_first_of_key(&self, client: &Client) -> Result<Self, Failure> {
        if self.key.is_none() {
            return Ok(self.clone());
        }
        let first = self.load_of_key_after(client, -1).await?;
        first
            .context("the dead letter is gone meanwhile")
            .map_err(Failure::from)
    }

    /// Loads the next letter of its key.
    pub(super) async fn load_next_of_key(&self, client: &Client) -> Result<Option<Self>, Failure> {
        if self.key.is_none() {
            return Ok(None);
        }
        self.load_of_key_after(client, self.offset).await
    }

    async fn load_of_key_after(&self, client: &Client, offset: i64) -> Result<Option<Self>, Failure> {
        let sql = format!(
            "select * from {}
             where discarded_at is null and topic = $1 and partition = $2 and key = $3 and record_offset > $4
                and former_topic_id is not distinct from $5
             order by record_offset limit 1",
            self.table()
        );
        let parameters: [&(dyn ToSql + Sync); 5] = [
            &&*self.place.topic,
            &self.place.partition,
            &self.key,
            &offset,
            &self.former_topic_id,
        ];
        let mut next = read_letters(client, &sql, &parameters).await.map_err(stopped)?;
        Ok(next.pop())
    }
}

/// How many letters wait.
pub(super) async fn count(client: &Client) -> Result<i64, Error> {
    let sql = "select count(*) from only view_dead_letters where discarded_at is null";
    Ok(client.query_one(sql, &[]).await?.get(0))
}

/// How many letters of former topics wait.
pub(super) async fn count_former(client: &Client) -> Result<i64, Error> {
    let sql = "select count(*) from view_former_dead_letters where discarded_at is null";
    Ok(client.query_one(sql, &[]).await?.get(0))
}

/// Loads the next piece after `after`, in the order of topic, partition and offset. It has `letters_max` letters at most. It ends with the letter
/// that brings its records to `bytes_max` or beyond.
pub(super) async fn load_piece(
    client: &Client,
    after: Option<&(TopicPartition, i64)>,
    letters_max: i64,
    bytes_max: i64,
) -> Result<Option<Piece>, Error> {
    let (topic, partition, offset) = after.map_or(("", -1, -1), |(place, offset)| {
        (&*place.topic, place.partition, *offset)
    });
    // The limit is part of the text. As a parameter, the session's generic plan would read and sort the whole table.
    let sql = format!(
        "select {SIZE} from only view_dead_letters as letter
         where discarded_at is null and (topic, partition, record_offset) > ($1, $2, $3)
         order by topic, partition, record_offset limit {letters_max}"
    );
    read_piece(client, &sql, &[&topic, &partition, &offset], bytes_max).await
}

/// What is read of letters to find out how many of them are a piece.
const SIZE: &str =
    "letter.id, octet_length(letter.value)::bigint as bytes, letter.topic, letter.partition, letter.record_offset";

/// Reads the letters of which the query `which` selects [`SIZE`], up to the letter that brings their records to `bytes_max` or beyond. `None`: there are none.
async fn read_piece(
    client: &Client,
    which: &str,
    parameters: &[&(dyn ToSql + Sync)],
    bytes_max: i64,
) -> Result<Option<Piece>, Error> {
    // An index has the letters in this order. But while there are no statistics, Postgres may prefer another index and sort all letters.
    client
        .batch_execute("begin; set local enable_sort = off; set local enable_incremental_sort = off")
        .await?;
    let next = client.query(which, parameters).await?;
    client.batch_execute("commit").await?;
    let mut room = bytes_max;
    let fitting = next.iter().take_while(|row| {
        let fits = room > 0;
        room -= row.get::<_, i64>("bytes");
        fits
    });
    let fitting: Vec<&Row> = fitting.collect();
    let Some(last) = fitting.last() else {
        return Ok(None);
    };
    let last = (
        place(last.get("topic"), last.get("partition")),
        last.get("record_offset"),
    );
    let ids: Vec<i64> = fitting.iter().map(|row| row.get("id")).collect();
    let sql = "select * from only view_dead_letters where id = any($1)";
    let letters = read_letters(client, sql, &[&ids]).await?;
    Ok(Some(Piece { letters, last }))
}

/// Loads the next piece of the letters with this reason that are the first of their keys, with limits as [`load_piece`]. Letters of former topics are left
/// out.
pub(super) async fn load_first_with_reason(
    client: &Client,
    reason: &str,
    after: Option<&(TopicPartition, i64)>,
    letters_max: i64,
    bytes_max: i64,
) -> Result<Option<Piece>, Error> {
    let (topic, partition, offset) = after.map_or(("", -1, -1), |(place, offset)| {
        (&*place.topic, place.partition, *offset)
    });
    let sql = format!(
        "select {SIZE} from only view_dead_letters as letter
         where discarded_at is null and reason = $1 and (topic, partition, record_offset) > ($2, $3, $4) and not exists (
            select from only view_dead_letters as earlier
            where earlier.topic = letter.topic and earlier.partition = letter.partition and earlier.key = letter.key
                and earlier.record_offset < letter.record_offset and earlier.discarded_at is null)
         order by topic, partition, record_offset limit {letters_max}"
    );
    read_piece(client, &sql, &[&reason, &topic, &partition, &offset], bytes_max).await
}

/// Reads the letters that the query `which` selects.
async fn read_letters(client: &Client, which: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Waiting>, Error> {
    let sql = format!("select {COLUMNS} from ({which}) as letter order by topic, partition, record_offset");
    let rows = client.query(&sql, parameters).await?;
    Ok(rows.iter().map(Waiting::from_row).collect())
}
