//! The table `view_dead_letters`, as a builder writes and reads it.

use std::collections::HashMap;

use bytes::Bytes;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error};

use super::Known;
use crate::batch::{Batch, TopicPartition};
use crate::faults::{self, Bug};

/// Puts a batch's letters down. A record that a replay reads again is there already.
pub(crate) const KEEP: &str = "select keep_dead_letters($1, $2, $3, $4, $5, $6, $7, $8)";

pub(crate) const KEEP_PARAMETERS: [Type; 8] = [
    Type::TEXT_ARRAY,
    Type::INT4_ARRAY,
    Type::INT8_ARRAY,
    Type::BYTEA_ARRAY,
    Type::BYTEA_ARRAY,
    Type::TEXT_ARRAY,
    Type::INT8_ARRAY,
    Type::TEXT_ARRAY,
];

/// Parameters of [`KEEP`].
pub(crate) struct Columns<'a> {
    pub(crate) topic: Vec<&'a str>,
    partition: Vec<i32>,
    offset: Vec<i64>,
    key: Vec<Option<&'a [u8]>>,
    value: Vec<&'a [u8]>,
    /// JSON, since an array of arrays of different lengths is no array of Postgres.
    headers: Vec<String>,
    record_time_us: Vec<Option<i64>>,
    reason: Vec<Option<&'a str>>,
}

impl<'a> Columns<'a> {
    pub(crate) fn of(batch: &'a Batch) -> Self {
        let mut columns = Self {
            topic: Vec::new(),
            partition: Vec::new(),
            offset: Vec::new(),
            key: Vec::new(),
            value: Vec::new(),
            headers: Vec::new(),
            record_time_us: Vec::new(),
            reason: Vec::new(),
        };
        for part in &batch.parts {
            for letter in &part.letters {
                columns.topic.push(&part.place.topic);
                columns.partition.push(part.place.partition);
                columns.offset.push(letter.offset);
                columns.key.push(letter.key.as_deref());
                columns.value.push(&letter.value);
                columns.headers.push(headers(&letter.headers));
                columns.record_time_us.push(letter.record_time_us);
                columns.reason.push(letter.reason.as_deref());
            }
        }
        columns
    }

    pub(crate) fn parameters(&self) -> [&(dyn ToSql + Sync); 8] {
        [
            &self.topic,
            &self.partition,
            &self.offset,
            &self.key,
            &self.value,
            &self.headers,
            &self.record_time_us,
            &self.reason,
        ]
    }
}

/// Headers as `[["name", "hex"], ["name", null]]`, in their order: a value may be any bytes.
fn headers(headers: &[(String, Option<Bytes>)]) -> String {
    let pairs: Vec<(&str, Option<String>)> = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_deref().map(hex)))
        .collect();
    // Names with U+0000 are the one thing that jsonb cannot hold.
    serde_json::to_string(&pairs)
        .unwrap_or_default()
        .replace("\\u0000", "\\ufffd")
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// The letters of these partitions as of now.
pub(crate) async fn known(client: &Client, places: &[TopicPartition]) -> Result<HashMap<TopicPartition, Known>, Error> {
    let topic: Vec<&str> = places.iter().map(|place| &*place.topic).collect();
    let partition: Vec<i32> = places.iter().map(|place| place.partition).collect();
    // Letters whose records are not in the topic any more are those of other offsets: they hold nobody up.
    let only = if faults::is_planted(Bug::KeepFormerLetters) {
        ""
    } else {
        "only"
    };
    // One statement, so that versions and letters are of one moment.
    let rows = client
        .query(
            &format!(
                "select held.topic, held.partition, held.letters_version, letter.record_offset, letter.key,
                letter.discarded_at is not null
             from view_positions as held
             join unnest($1::text[], $2::integer[]) as wanted(topic, partition) using (topic, partition)
             left join {only} view_dead_letters as letter using (topic, partition)"
            ),
            &[&topic, &partition],
        )
        .await?;
    let mut all: HashMap<TopicPartition, Known> = HashMap::new();
    for row in &rows {
        let place = TopicPartition {
            topic: row.get::<_, &str>(0).into(),
            partition: row.get(1),
        };
        let known = all.entry(place).or_insert_with(|| Known::at(row.get(2)));
        let Some(offset) = row.get::<_, Option<i64>>(3) else {
            continue;
        };
        if row.get(5) {
            known.discard(offset);
        } else if let Some(key) = row.get::<_, Option<&[u8]>>(4) {
            known.open(Bytes::copy_from_slice(key), offset);
        }
    }
    Ok(all)
}
