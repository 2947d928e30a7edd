//! The tables `view_dead_letters` and `view_former_dead_letters`, as a builder writes and reads them.

use std::collections::HashMap;
use std::pin::pin;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error, Row};

use super::known::{Known, Waiting};
use crate::contract::batch::Batch;
use crate::contract::place::{self, TopicPartition};
use crate::process::faults::{self, Bug};

/// All letters as a table. The letters of former topics are included, though nothing waits behind them. It says `only`, since in earlier versions
/// one of the tables inherits from the other, and a command may run before a builder of this version has changed that.
pub(crate) const WITH_FORMER: &str = "(
    select id, topic, partition, record_offset, key, value, headers, record_time, reason, arrived_at, retries, discarded_at, former_topic_id,
        discard_reason
    from only view_dead_letters
    union all
    select id, topic, partition, record_offset, key, value, headers, record_time, reason, arrived_at, retries, discarded_at, former_topic_id,
        discard_reason
    from view_former_dead_letters)";

/// The statement that stores a batch's letters. A record that a replay reads again may be stored already.
pub(crate) const STORE_LETTERS: &str = "select keep_view_letters($1, $2, $3, $4, $5, $6, $7, $8)";

pub(crate) const STORE_LETTERS_PARAMETERS: [Type; 8] = [
    Type::TEXT_ARRAY,
    Type::INT4_ARRAY,
    Type::INT8_ARRAY,
    Type::BYTEA_ARRAY,
    Type::BYTEA_ARRAY,
    Type::TEXT_ARRAY,
    Type::INT8_ARRAY,
    Type::TEXT_ARRAY,
];

/// Parameters of [`STORE_LETTERS`].
pub(crate) struct Columns<'a> {
    pub(crate) topic: Vec<&'a str>,
    partition: Vec<i32>,
    offset: Vec<i64>,
    key: Vec<Option<&'a [u8]>>,
    value: Vec<&'a [u8]>,
    /// Each text is JSON, since Postgres has no array of arrays of different lengths.
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

/// Headers as `[["name", "hex"], ["name", null]]`, in their order. Values are written in hex, since they may be any bytes.
fn headers(headers: &[(String, Option<Bytes>)]) -> String {
    let pairs: Vec<(&str, Option<String>)> = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_deref().map(hex)))
        .collect();
    // The one thing that jsonb cannot hold is U+0000 in a name.
    serde_json::to_string(&pairs)
        .expect("a list of texts can be written as JSON")
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

/// Loads the letters of these partitions.
pub(crate) async fn load_known(
    client: &Client,
    places: &[TopicPartition],
) -> Result<HashMap<TopicPartition, Known>, Error> {
    let topic: Vec<&str> = places.iter().map(|place| &*place.topic).collect();
    let partition: Vec<i32> = places.iter().map(|place| place.partition).collect();
    let letters = letters_that_hold_up();
    let sql = format!(
        "select held.topic, held.partition, held.letters_version, letter.record_offset, letter.key,
            letter.discarded_at is not null as is_discarded
         from view_positions as held
         join unnest($1::text[], $2::integer[]) as wanted(topic, partition) using (topic, partition)
         left join {letters} as letter using (topic, partition)"
    );
    gather(client, &sql, &[&topic, &partition], |_, _, _| true).await
}

/// Runs `sql` and gathers its letters by partition. Its columns are `topic`, `partition` and `letters_version` of the position, and
/// `record_offset`, `key` and `is_discarded` of each letter. The last three are null if the position has no letters.
///
/// It is one statement, so versions and letters are of the same moment. Only letters for which `counts` returns true are taken. The letters come
/// one after the other, so memory holds only what [`Known`] keeps of them.
pub(crate) async fn gather(
    client: &Client,
    sql: &str,
    parameters: &[&(dyn ToSql + Sync)],
    counts: impl Fn(&TopicPartition, i64, &Row) -> bool,
) -> Result<HashMap<TopicPartition, Known>, Error> {
    let rows = client.query_raw(sql, parameters.iter().copied()).await?;
    let mut rows = pin!(rows);
    let mut versions_and_letters: HashMap<TopicPartition, (i64, Waiting)> = HashMap::new();
    let mut place = place::place("", 0);
    while let Some(row) = rows.try_next().await? {
        let (topic, partition): (&str, i32) = (row.get("topic"), row.get("partition"));
        if *place.topic != *topic || place.partition != partition {
            place = place::place(topic, partition);
        }
        let of_place = versions_and_letters.entry(place.clone());
        let (_, waiting) = of_place.or_insert_with(|| (row.get("letters_version"), Waiting::default()));
        let Some(offset) = row.get::<_, Option<i64>>("record_offset") else {
            // The position has no letters.
            continue;
        };
        if !counts(&place, offset, &row) {
            continue;
        }
        if row.get("is_discarded") {
            waiting.discard(offset);
        } else if let Some(key) = row.get::<_, Option<&[u8]>>("key") {
            waiting.open(key, offset);
        }
    }
    let known = versions_and_letters
        .into_iter()
        .map(|(place, (version, waiting))| (place, Known::new(version, waiting)));
    Ok(known.collect())
}

/// What the table says of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LettersOfKey {
    pub place: TopicPartition,
    pub key: Bytes,
    /// The offset of its first open letter. Later events of the key wait behind it.
    pub first: Option<i64>,
    /// The offsets of its letters that were discarded.
    pub discarded: Vec<i64>,
}

/// Loads what the table says of these keys now.
pub(crate) async fn load_letters_of_keys(
    client: &Client,
    keys: &[(TopicPartition, Bytes)],
) -> Result<Vec<LettersOfKey>, Error> {
    let topic: Vec<&str> = keys.iter().map(|(place, _)| &*place.topic).collect();
    let partition: Vec<i32> = keys.iter().map(|(place, _)| place.partition).collect();
    let key: Vec<&[u8]> = keys.iter().map(|(_, key)| &**key).collect();
    let rows = client
        .query(
            "select wanted.number, min(record_offset) filter (where discarded_at is null) as first,
                coalesce(array_agg(record_offset) filter (where discarded_at is not null), '{}') as discarded
             from unnest($1::text[], $2::integer[], $3::bytea[]) with ordinality as wanted(topic, partition, key, number)
             left join only view_dead_letters as letter using (topic, partition, key)
             group by wanted.number",
            &[&topic, &partition, &key],
        )
        .await?;
    let of_key = rows.iter().map(|row| {
        let number: i64 = row.get("number");
        let index = usize::try_from(number - 1).expect("ordinality counts from 1");
        let (place, key) = keys[index].clone();
        LettersOfKey {
            place,
            key,
            first: row.get("first"),
            discarded: row.get("discarded"),
        }
    });
    Ok(of_key.collect())
}

/// The table of the letters that later events wait behind. The offsets of a former topic's letters belong to that topic, so nothing waits behind
/// them. The planted bug makes events wait for them too.
fn letters_that_hold_up() -> &'static str {
    if faults::is_planted(Bug::KeepFormerLetters) {
        WITH_FORMER
    } else {
        "only view_dead_letters"
    }
}
