//! Reads the keys that have dead letters out of Postgres, a page at a time. Of the letters' values only one is in memory at once.

use std::pin::pin;

use futures_util::TryStreamExt as _;
use postgres_protocol::escape::escape_literal;
use tokio_postgres::{Client, Error, Row};

use crate::contract::Contracts;
use crate::contract::place::TopicPartition;
use crate::contract::place::place;

/// So many keys are in a page. A key has 1 kB at most (`record::waiting_key`).
const PAGE_KEYS: usize = 2_000;

/// A key that has dead letters, as it was when Postgres was asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) place: TopicPartition,
    pub(super) key: Vec<u8>,
    /// The offset of the key's first letter.
    first_letter: i64,
    /// The offset of the last letter that counts: the first that is open, or else the last that was discarded.
    pub(super) last_letter: i64,
}

impl Key {
    fn from_row(row: &Row) -> Self {
        Self {
            place: place(row.get("topic"), row.get("partition")),
            key: row.get::<_, &[u8]>("key").to_vec(),
            first_letter: row.get("first"),
            last_letter: row.get("last"),
        }
    }

    /// Whether an event can have this key at all. The key of each event is its id, written as a number.
    fn is_an_id(&self) -> bool {
        let text = std::str::from_utf8(&self.key).ok();
        let id: Option<i64> = text.and_then(|text| text.parse().ok());
        id.is_some_and(|id| id.to_string().as_bytes() == self.key)
    }
}

/// All keys with letters, in the order of their first letters. Postgres holds them in a cursor until they are fetched.
pub(super) struct Pages<'c> {
    client: &'c Client,
}

impl<'c> Pages<'c> {
    /// Opens the cursor. Only letters with an id up to `last_known_id` count.
    pub(super) async fn open(client: &'c Client, topics: &[String], last_known_id: i64) -> Result<Self, Error> {
        let topics: Vec<String> = topics.iter().map(|topic| escape_literal(topic)).collect();
        // The statement `declare` takes no parameters. The cursor is `with hold`, so that no transaction stays open while a topic is read.
        let sql = format!(
            "declare letter_keys no scroll cursor with hold for
             select topic, partition, key, min(record_offset) as first,
                coalesce(min(record_offset) filter (where discarded_at is null), max(record_offset)) as last
             from only view_dead_letters
             where id <= {last_known_id} and topic in ({}) and key is not null
             group by topic, partition, key
             order by topic, partition, min(record_offset)",
            topics.join(", ")
        );
        client.batch_execute(&sql).await?;
        Ok(Self { client })
    }

    /// The next page of keys, or `None` after the last page.
    pub(super) async fn next_page(&self) -> Result<Option<Vec<Key>>, Error> {
        let rows = self
            .client
            .query(&format!("fetch {PAGE_KEYS} from letter_keys"), &[])
            .await?;
        Ok((!rows.is_empty()).then(|| rows.iter().map(Key::from_row).collect()))
    }

    pub(super) async fn close(self) -> Result<(), Error> {
        self.client.batch_execute("close letter_keys").await
    }
}

/// The keys that have letters with an id above `last_known_id`. A key that already had an open letter before them is left out: the new letters
/// only wait behind that one, so nothing has changed for the key.
pub(super) async fn load_changed_keys(
    client: &Client,
    topics: &[String],
    last_known_id: i64,
) -> Result<Vec<Key>, Error> {
    let rows = client
        .query(
            "with new as materialized (
                select topic, partition, key, min(record_offset) as record_offset
                from only view_dead_letters
                where id > $2 and topic = any($1) and key is not null
                group by topic, partition, key
            ), changed as materialized (
                select topic, partition, key from new
                where not exists (
                    select from only view_dead_letters as open
                    where open.topic = new.topic and open.partition = new.partition and open.key = new.key
                        and open.record_offset < new.record_offset and open.discarded_at is null)
            )
            select topic, partition, key, min(record_offset) as first,
                coalesce(min(record_offset) filter (where discarded_at is null), max(record_offset)) as last
            from changed join only view_dead_letters as letter using (topic, partition, key)
            group by topic, partition, key",
            &[&topics, &last_known_id],
        )
        .await?;
    Ok(rows.iter().map(Key::from_row).collect())
}

/// Removes the keys that are safe by themselves: those that no event can have, and those whose only letter that counts is the event with version
/// 1, since nothing was before it. Returns the other keys.
pub(super) async fn remove_keys_without_past(
    client: &Client,
    contracts: &Contracts,
    mut keys: Vec<Key>,
) -> Result<Vec<Key>, Error> {
    keys.retain(Key::is_an_id);
    let (mut topic, mut partition, mut offset, mut indexes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (index, key) in keys
        .iter()
        .enumerate()
        .filter(|(_, key)| key.first_letter == key.last_letter)
    {
        topic.push(&*key.place.topic);
        partition.push(key.place.partition);
        offset.push(key.first_letter);
        indexes.push(i64::try_from(index).expect("there are fewer keys than 2^63"));
    }
    if indexes.is_empty() {
        return Ok(keys);
    }
    let mut has_no_past = vec![false; keys.len()];
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 4] = [&topic, &partition, &offset, &indexes];
    let rows = client
        .query_raw(
            "select wanted.key_index, letter.value
             from unnest($1::text[], $2::integer[], $3::bigint[], $4::bigint[]) as wanted(topic, partition, record_offset, key_index)
             join only view_dead_letters as letter using (topic, partition, record_offset)",
            parameters,
        )
        .await?;
    let mut rows = pin!(rows);
    // One row after the other: all values together may be larger than the memory.
    while let Some(row) = rows.try_next().await? {
        let index = usize::try_from(row.get::<_, i64>(0)).expect("the query returns the indexes that it was given");
        let key = &keys[index];
        let contract = contracts.get(&*key.place.topic);
        has_no_past[index] = contract.is_some_and(|contract| is_version_1(&contract.id, &key.key, row.get(1)));
    }
    let others = keys
        .into_iter()
        .zip(has_no_past)
        .filter(|(_, has_no_past)| !has_no_past);
    Ok(others.map(|(key, _)| key).collect())
}

/// Whether the letter is an event of its key with version 1, whatever else is wrong with it.
fn is_version_1(id_field: &str, key: &[u8], value: &[u8]) -> bool {
    let Ok(serde_json::Value::Object(fields)) = serde_json::from_slice(value) else {
        return false;
    };
    let id = fields.get(id_field).and_then(serde_json::Value::as_i64);
    id.is_some_and(|id| id.to_string().as_bytes() == key)
        && fields.get("version").and_then(serde_json::Value::as_i64) == Some(1)
}

#[cfg(test)]
mod tests {
    use super::{Key, is_version_1};
    use crate::contract::place::place;

    #[test]
    fn a_letter_tells_that_nothing_was_before_it_by_its_own_id_and_version() {
        let is = |value: &str| is_version_1("itemId", b"7", value.as_bytes());
        assert!(is(r#"{"eventType":"?","itemId":7,"version":1}"#));
        for other in [
            r#"{"itemId":7,"version":2}"#,
            r#"{"itemId":8,"version":1}"#,
            r#"{"itemId":7}"#,
            "no event",
        ] {
            assert!(!is(other), "{other}");
        }
    }

    #[test]
    fn only_the_text_of_a_number_can_be_an_events_key() {
        let is = |key: &[u8]| {
            let key = Key {
                place: place("item-events", 0),
                key: key.to_vec(),
                first_letter: 0,
                last_letter: 0,
            };
            key.is_an_id()
        };
        for id in ["0", "7", "-7", "9223372036854775807"] {
            assert!(is(id.as_bytes()), "{id}");
        }
        for other in [
            &b"no event"[..],
            b"",
            b"07",
            b"+7",
            b" 7",
            b"9223372036854775808",
            b"\xff",
        ] {
            assert!(!is(other), "{other:?}");
        }
    }
}
