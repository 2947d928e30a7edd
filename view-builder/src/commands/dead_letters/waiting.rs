//! The letters that wait, as the commands read them.

use anyhow::Context as _;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, Row};

use super::report::stopped;
use crate::contract::batch::Part;
use crate::contract::place::TopicPartition;
use crate::contract::place::place;
use crate::process::failure::Failure;

/// What is read of each letter.
pub(super) const COLUMNS: &str =
    "id, topic, partition, record_offset, key, value, headers::text as headers, record_time::text as record_time, reason,
    arrived_at::text as arrived_at, retries, discarded_at::text as discarded_at, former_topic_id";

/// A letter that waits.
#[derive(Clone)]
pub(super) struct Waiting {
    pub(super) id: i64,
    pub(super) place: TopicPartition,
    pub(super) offset: i64,
    pub(super) key: Option<Vec<u8>>,
    pub(super) value: Vec<u8>,
    /// The topic's id where its record is not in the topic any more. The letters of such a topic are lines of their own.
    pub(super) former_topic_id: Option<String>,
}

/// Some letters, in the order of their topics.
pub(super) struct Piece {
    pub(super) letters: Vec<Waiting>,
    /// Where the last of them was, also where it is gone meanwhile.
    pub(super) last: (TopicPartition, i64),
}

impl Waiting {
    /// Of a row with [`COLUMNS`].
    pub(super) fn of(row: &Row) -> Self {
        Self {
            id: row.get("id"),
            place: place(row.get("topic"), row.get("partition")),
            offset: row.get("record_offset"),
            key: row.get("key"),
            value: row.get("value"),
            former_topic_id: row.get("former_topic_id"),
        }
    }

    /// For people: id, place and offset.
    pub(super) fn described(&self) -> String {
        format!("{} ({} offset {})", self.id, self.place, self.offset)
    }

    /// Whether both wait for the same letter: both are of one key of one partition.
    pub(super) fn is_of_key_of(&self, other: &Self) -> bool {
        self.key.is_some() && self.key == other.key && self.place == other.place
    }

    /// The table that has it.
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

    /// The first letter of its key.
    pub(super) async fn first_of_key(&self, client: &Client) -> Result<Self, Failure> {
        if self.key.is_none() {
            return Ok(self.clone());
        }
        let first = self.next_of_key(client, -1).await?;
        first
            .context("the dead letter is gone meanwhile")
            .map_err(Failure::from)
    }

    /// The next letter of its key.
    pub(super) async fn behind(&self, client: &Client) -> Result<Option<Self>, Failure> {
        if self.key.is_none() {
            return Ok(None);
        }
        self.next_of_key(client, self.offset).await
    }

    async fn next_of_key(&self, client: &Client, offset: i64) -> Result<Option<Self>, Failure> {
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
        let mut next = read(client, &sql, &parameters).await.map_err(stopped)?;
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

/// The letters that come behind `after` in the order of topic, partition and offset: at most `letters`, and at most `bytes` of records
/// but for the first one.
pub(super) async fn piece(
    client: &Client,
    after: Option<&(TopicPartition, i64)>,
    letters: i64,
    bytes: i64,
) -> Result<Option<Piece>, Error> {
    let (topic, partition, offset) = after.map_or(("", -1, -1), |(place, offset)| {
        (&*place.topic, place.partition, *offset)
    });
    // The limit stands in the text, or the session's generic plan would read and sort the whole table.
    let sql = format!(
        "select id, octet_length(value)::bigint as bytes, topic, partition, record_offset from only view_dead_letters
         where discarded_at is null and (topic, partition, record_offset) > ($1, $2, $3)
         order by topic, partition, record_offset limit {letters}"
    );
    // The index has them in this order; while there are no statistics another one and a sort of all of them look as good.
    client
        .batch_execute("begin; set local enable_sort = off; set local enable_incremental_sort = off")
        .await?;
    let next = client.query(&sql, &[&topic, &partition, &offset]).await?;
    client.batch_execute("commit").await?;
    let mut room = bytes;
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
    let letters = read(client, sql, &[&ids]).await?;
    Ok(Some(Piece { letters, last }))
}

async fn read(client: &Client, which: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Waiting>, Error> {
    let sql = format!("select {COLUMNS} from ({which}) as letter order by topic, partition, record_offset");
    let rows = client.query(&sql, parameters).await?;
    Ok(rows.iter().map(Waiting::of).collect())
}
