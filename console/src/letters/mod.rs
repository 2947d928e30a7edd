//! The dead letters, as the views' database has them. Nothing is changed here: that is what the commands of view-builder do.

use time::OffsetDateTime;
use tokio_postgres::Row;

use crate::postgres::{Database, SqlError};
use crate::search::record::Header;

/// A page shows so many letters.
pub const LETTERS_MAX: i64 = 100;
/// So many different reasons are counted at most.
const REASONS_MAX: i64 = 50;
/// What waits behind a letter is counted up to this number.
pub const BEHIND_MAX: i64 = 1_000;

/// The letters with the letters of former topics, which have a table of their own.
const ALL: &str = "(
    select id, topic, partition, record_offset, key, value, headers, record_time, reason, arrived_at, retries, discarded_at, former_topic_id,
        case when discarded_at is not null then to_jsonb(letter) ->> 'discard_reason' end as discard_reason
    from only public.view_dead_letters as letter
    union all
    select id, topic, partition, record_offset, key, value, headers, record_time, reason, arrived_at, retries, discarded_at, former_topic_id,
        case when discarded_at is not null then to_jsonb(letter) ->> 'discard_reason' end as discard_reason
    from public.view_former_dead_letters as letter)";

/// What a list has of each letter. The event itself may be large, so it is read of one letter only.
const LISTED: &str = "letter.id, letter.topic, letter.partition, letter.record_offset, letter.key, letter.reason, letter.arrived_at, letter.retries,
    letter.discarded_at, letter.former_topic_id, letter.discard_reason";

/// Which letters are listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Which {
    /// Those that could not be applied.
    #[default]
    Dead,
    /// Those that wait behind another one of their key.
    Parked,
    /// Those that an operator has given up.
    Discarded,
    /// Those of topics that were made anew.
    Former,
}

/// A letter, without what its event says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    pub id: i64,
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub key: Option<Vec<u8>>,
    /// Why it cannot be applied. `None`: nothing is wrong with it, it waits behind an earlier one of its key.
    pub reason: Option<String>,
    pub arrived_at: OffsetDateTime,
    pub retries: i32,
    pub discarded_at: Option<OffsetDateTime>,
    pub discard_reason: Option<String>,
    /// The id of the topic that its record was in, where that topic was made anew since.
    pub former_topic_id: Option<String>,
    /// How many events wait behind it, up to [`BEHIND_MAX`].
    pub behind: i64,
    /// The letter of the same key that has to come first. `None`: this one is the first.
    pub first: Option<i64>,
}

/// A letter with its event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WholeLetter {
    pub letter: Letter,
    pub value: Vec<u8>,
    pub headers: Vec<Header>,
    pub record_time: Option<OffsetDateTime>,
}

/// How many letters have a reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReasonCount {
    /// `None`: those that wait behind another one.
    pub reason: Option<String>,
    pub letters: i64,
    pub oldest: OffsetDateTime,
}

/// A letter's place, behind which the next page begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct After {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
}

impl Which {
    /// The name in an address.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Dead => "dead",
            Self::Parked => "parked",
            Self::Discarded => "discarded",
            Self::Former => "former",
        }
    }

    /// The one of this name; [`Which::Dead`] for any other name.
    #[must_use]
    pub fn named(name: &str) -> Self {
        let all = [Self::Parked, Self::Discarded, Self::Former];
        all.into_iter().find(|which| which.name() == name).unwrap_or_default()
    }

    /// A query of the ids of a page: `$1` is the reason or null, `$2` to `$4` the place behind which the page begins. The limit comes before anything is computed of a letter,
    /// so that a page costs the same among a million of them.
    fn page(self) -> String {
        let (letters, condition) = match self {
            Self::Dead => ("only public.view_dead_letters", "discarded_at is null and reason is not null"),
            Self::Parked => ("only public.view_dead_letters", "discarded_at is null and reason is null"),
            Self::Former => ("public.view_former_dead_letters", "discarded_at is null"),
            Self::Discarded => (
                "(select id, topic, partition, record_offset, reason, discarded_at from only public.view_dead_letters
                  union all
                  select id, topic, partition, record_offset, reason, discarded_at from public.view_former_dead_letters)",
                "discarded_at is not null",
            ),
        };
        format!(
            "select id from {letters} as listed
             where {condition} and ($1::text is null or reason = $1) and (topic, partition, record_offset) > ($2, $3, $4)
             order by topic, partition, record_offset limit {LETTERS_MAX}"
        )
    }
}

/// How many letters wait for each reason, the most frequent first.
///
/// # Errors
/// The database does not answer, or refuses.
pub async fn count_by_reason(database: &Database) -> Result<Vec<ReasonCount>, SqlError> {
    let sql = format!(
        "select reason, count(*) as letters, min(arrived_at) as oldest from only public.view_dead_letters
         where discarded_at is null group by reason order by letters desc, reason limit {REASONS_MAX}"
    );
    let rows = database.query(&sql, &[]).await?;
    let counts = rows.iter().map(|row| ReasonCount {
        reason: row.get("reason"),
        letters: row.get("letters"),
        oldest: row.get("oldest"),
    });
    Ok(counts.collect())
}

/// How many letters of former topics wait, up to [`BEHIND_MAX`].
///
/// # Errors
/// The database does not answer, or refuses.
pub async fn count_former(database: &Database) -> Result<i64, SqlError> {
    let sql = format!(
        "select count(*) as letters from (
            select from public.view_former_dead_letters where discarded_at is null limit {BEHIND_MAX}) as waiting"
    );
    let rows = database.query(&sql, &[]).await?;
    Ok(rows.first().map_or(0, |row| row.get("letters")))
}

/// Letters in the order of topic, partition and offset, behind `after`; those of one reason if one is given.
///
/// # Errors
/// The database does not answer, or refuses.
pub async fn list(
    database: &Database,
    which: Which,
    reason: Option<&str>,
    after: &After,
) -> Result<Vec<Letter>, SqlError> {
    // Postgres has no text with a zero byte, so no letter has it either.
    if reason.is_some_and(|reason| reason.contains('\0')) || after.topic.contains('\0') {
        return Ok(Vec::new());
    }
    let sql = format!(
        "select {LISTED}, {BEHIND}, {FIRST} from {ALL} as letter where id = any (array({}))
         order by topic, partition, record_offset",
        which.page()
    );
    let rows = database
        .query(&sql, &[&reason, &after.topic, &after.partition, &after.offset])
        .await?;
    Ok(rows.iter().map(letter).collect())
}

/// How many open letters of the same key and topic have a higher offset.
const BEHIND: &str = "
    (select count(*) from (
        select from only public.view_dead_letters as later
        where letter.former_topic_id is null and later.topic = letter.topic and later.partition = letter.partition and later.key = letter.key
            and later.record_offset > letter.record_offset and later.discarded_at is null
        limit 1000) as waiting) as behind";
/// The first open letter of the same key and topic, where it is another one.
const FIRST: &str = "
    (select earlier.id from only public.view_dead_letters as earlier
     where letter.former_topic_id is null and earlier.topic = letter.topic and earlier.partition = letter.partition and earlier.key = letter.key
        and earlier.record_offset < letter.record_offset and earlier.discarded_at is null
     order by earlier.record_offset limit 1) as first";

/// The letter of this id, with its event.
///
/// # Errors
/// The database does not answer, or refuses.
pub async fn find(database: &Database, id: i64) -> Result<Option<WholeLetter>, SqlError> {
    let sql = format!("select letter.*, {BEHIND}, {FIRST} from {ALL} as letter where id = $1");
    let rows = database.query(&sql, &[&id]).await?;
    Ok(rows.first().map(|row| WholeLetter {
        letter: letter(row),
        value: row.get("value"),
        headers: headers(&row.get("headers")),
        record_time: row.get("record_time"),
    }))
}

/// The letters that wait behind this one, in their order.
///
/// # Errors
/// The database does not answer, or refuses.
pub async fn behind(database: &Database, first: &Letter) -> Result<Vec<Letter>, SqlError> {
    let sql = format!(
        "select {LISTED}, {BEHIND}, {FIRST} from (
            select {LISTED} from {ALL} as letter
            where former_topic_id is not distinct from $5 and topic = $1 and partition = $2 and key = $3 and record_offset > $4
                and discarded_at is null
            order by record_offset limit {LETTERS_MAX}) as letter
         order by record_offset"
    );
    let rows = database
        .query(
            &sql,
            &[
                &first.topic,
                &first.partition,
                &first.key,
                &first.offset,
                &first.former_topic_id,
            ],
        )
        .await?;
    Ok(rows.iter().map(letter).collect())
}

fn letter(row: &Row) -> Letter {
    Letter {
        id: row.get("id"),
        topic: row.get("topic"),
        partition: row.get("partition"),
        offset: row.get("record_offset"),
        key: row.get("key"),
        reason: row.get("reason"),
        arrived_at: row.get("arrived_at"),
        retries: row.get("retries"),
        discarded_at: row.get("discarded_at"),
        discard_reason: row.get("discard_reason"),
        former_topic_id: row.get("former_topic_id"),
        behind: row.get("behind"),
        first: row.get("first"),
    }
}

/// Headers as view-builder stores them: `[["name", "value in hex"], ["name", null]]`. What is stored otherwise, somebody has edited: it is shown as it is.
fn headers(stored: &serde_json::Value) -> Vec<Header> {
    let parsed: Result<Vec<(String, Option<String>)>, _> = serde_json::from_value(stored.clone());
    match parsed {
        Ok(pairs) => pairs
            .into_iter()
            .map(|(name, value)| Header {
                name: name.into_bytes(),
                value: value.map(|hex| unhex(&hex).unwrap_or_else(|| hex.into_bytes())),
            })
            .collect(),
        Err(_) => vec![Header {
            name: b"headers".to_vec(),
            value: Some(stored.to_string().into_bytes()),
        }],
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) {
        return None;
    }
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Which, headers};

    #[test]
    fn stored_headers_become_bytes_again() {
        let found = headers(&json!([["id", "3766"], ["none", null], ["odd", "zz"]]));
        let pairs: Vec<_> = found
            .iter()
            .map(|header| (header.name.as_slice(), header.value.as_deref()))
            .collect();
        assert_eq!(
            pairs,
            [(&b"id"[..], Some(&b"7f"[..])), (b"none", None), (b"odd", Some(b"zz"))]
        );
        assert_eq!(headers(&json!({"a": 1}))[0].value.as_deref(), Some(&br#"{"a":1}"#[..]));
    }

    #[test]
    fn which_letters_is_known_by_a_name() {
        for which in [Which::Dead, Which::Parked, Which::Discarded, Which::Former] {
            assert_eq!(Which::named(which.name()), which);
        }
        assert_eq!(Which::named("<script>"), Which::Dead);
    }
}
