//! What the views have made of a record: their positions, their letters, and their rows of its key.

use futures_util::future::join_all;
use serde::Deserialize;
use time::{OffsetDateTime, PrimitiveDateTime};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::postgres::{Database, SqlError, in_time, quoted, text_as};
use crate::search::record::Record;
use crate::settings::ViewRow;

/// What a view has made of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewState {
    pub view: String,
    pub state: State,
    /// The event is a letter since a replay, which had it from views that had applied it before.
    pub is_of_replay: bool,
    /// The view's row of the record's key now, where the settings name a table with one.
    pub row: Option<ViewRowNow>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// The view's position is above the record.
    Applied,
    /// It was applied, and the position was set back: it is applied again soon.
    AppliedAndReplayed,
    /// So many offsets have to be read before it, itself included.
    Waiting(i64),
    /// Nobody has claimed the partition yet.
    Unread,
    /// It could not be applied.
    Dead {
        letter: i64,
        reason: String,
        at: OffsetDateTime,
        retries: i32,
    },
    /// It waits behind the letter `first` of its key.
    Parked {
        letter: i64,
        first: Option<i64>,
        at: OffsetDateTime,
    },
    /// An operator gave it up.
    Discarded {
        letter: i64,
        at: OffsetDateTime,
        reason: Option<String>,
    },
    /// The view is kept no further for now.
    ViewPaused(String),
    /// The partition is not read for now.
    PartitionPaused(String),
}

/// A view's row of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewRowNow {
    pub table: String,
    /// `None`: the view has no row of the key.
    pub version: Option<i64>,
    /// When the view took up the newest event of the row, in UTC.
    pub applied: Option<OffsetDateTime>,
    /// Whether that event is the one that is traced.
    pub is_of_this_event: bool,
}

/// What a view's row says of the newest event of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RowOfKey {
    pub version: i64,
    /// The event was committed then or later: milliseconds since 1970.
    pub changed_ms: Option<i64>,
}

/// What the builder knows of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KnownOfKey {
    /// Everything before it is applied, or a letter.
    pub next_offset: Option<i64>,
    /// The offset of the newest letter of the key that waits.
    pub newest_letter: Option<i64>,
}

const POSITIONS: &str = "
    select source.view, held.next_offset, held.highest_offset, held.paused, pause.reason as pause_reason, pause.view is not null as is_paused,
        at_pause.next_offset as pause_offset
    from view_sources as source
    left join view_positions as held on held.topic = source.topic and held.partition = $2
    left join view_pauses as pause on pause.view = source.view
    left join view_pause_positions as at_pause
        on at_pause.view = source.view and at_pause.topic = source.topic and at_pause.partition = $2
    where source.topic = $1
    order by source.view";

const LETTER: &str = "
    select letter.id, letter.reason, letter.arrived_at, letter.retries, letter.discarded_at,
        to_jsonb(letter) ->> 'discard_reason' as discard_reason,
        coalesce((to_jsonb(letter) ->> 'applied_before')::boolean, false) as applied_before,
        (select first.id from view_dead_letters as first
         where first.topic = letter.topic and first.partition = letter.partition and first.key = letter.key and first.discarded_at is null
            and first.record_offset < letter.record_offset
         order by first.record_offset limit 1) as first
    from view_dead_letters as letter
    where topic = $1 and partition = $2 and record_offset = $3";

/// What each view of the record's topic has made of it.
///
/// # Errors
/// The views' database does not answer, or refuses.
pub(super) async fn states_of(
    database: &Database,
    view_rows: &[ViewRow],
    record: &Record,
) -> Result<Vec<ViewState>, SqlError> {
    let key = record.key.as_deref().and_then(|key| std::str::from_utf8(key).ok());
    let version = record.value.as_deref().and_then(version_in);
    let of_topic: Vec<&ViewRow> = view_rows.iter().filter(|row| row.topic == record.topic).collect();
    let rows = join_all(of_topic.iter().map(|row| async move {
        match key {
            Some(key) => read_row(database, row, key).await,
            None => Ok(None),
        }
    }));
    let place: [&(dyn tokio_postgres::types::ToSql + Sync); 3] = [&record.topic, &record.partition, &record.offset];
    let (positions, letters, rows) = tokio::join!(
        database.query(POSITIONS, &place[..2]),
        database.query(LETTER, &place),
        rows
    );
    let letters = letters?;
    let is_of_replay = letters.first().is_some_and(|letter| letter.get("applied_before"));
    let letter = letters.first().map(state_of_letter);
    let mut states = Vec::new();
    for position in positions? {
        let view: String = position.get("view");
        let row = of_topic.iter().zip(&rows).find(|(known, _)| known.view == view);
        // A table that cannot be read takes nothing from what is known of the position.
        let row = row.and_then(|(known, read)| {
            let read = read.as_ref().ok()?;
            Some(ViewRowNow {
                table: known.table.clone(),
                version: read.as_ref().map(|read| read.version),
                applied: read.as_ref().and_then(|read| read.applied),
                is_of_this_event: version.is_some() && read.as_ref().map(|read| read.version) == version,
            })
        });
        let state = match &letter {
            Some(letter) => letter.clone(),
            None => state_of_position(&position, record.offset),
        };
        states.push(ViewState {
            view,
            state,
            is_of_replay,
            row,
        });
    }
    Ok(states)
}

fn state_of_letter(row: &Row) -> State {
    let (letter, at) = (row.get("id"), row.get("arrived_at"));
    if let Some(at) = row.get("discarded_at") {
        let reason = row.get("discard_reason");
        return State::Discarded { letter, at, reason };
    }
    match row.get("reason") {
        Some(reason) => State::Dead {
            letter,
            reason,
            at,
            retries: row.get("retries"),
        },
        None => State::Parked {
            letter,
            first: row.get("first"),
            at,
        },
    }
}

fn state_of_position(row: &Row, offset: i64) -> State {
    if row.get("is_paused")
        && row
            .get::<_, Option<i64>>("pause_offset")
            .is_none_or(|end| end <= offset)
    {
        return State::ViewPaused(row.get::<_, Option<String>>("pause_reason").unwrap_or_default());
    }
    let next: Option<i64> = row.get("next_offset");
    if next.is_some_and(|next| next > offset) {
        return State::Applied;
    }
    if row
        .get::<_, Option<i64>>("highest_offset")
        .is_some_and(|highest| highest > offset)
    {
        return State::AppliedAndReplayed;
    }
    if let Some(reason) = row.get("paused") {
        return State::PartitionPaused(reason);
    }
    match next {
        Some(next) => State::Waiting(offset - next + 1),
        None => State::Unread,
    }
}

/// What a view's table says of a key.
struct RowRead {
    version: i64,
    changed: Option<OffsetDateTime>,
    applied: Option<OffsetDateTime>,
}

async fn read_row(database: &Database, view_row: &ViewRow, key: &str) -> Result<Option<RowRead>, SqlError> {
    let column = |name: Option<&String>| name.map_or_else(|| "null::timestamp".to_owned(), |name| quoted_column(name));
    let sql = format!(
        "select {}::bigint, {}, {} from {} where {} = $1 limit 1",
        quoted_column(&view_row.version),
        column(view_row.changed.as_ref()),
        column(view_row.applied.as_ref()),
        quoted(&view_row.table),
        quoted_column(&view_row.key),
    );
    let (client, statement) = database.prepare(&sql).await?;
    let Some(key) = statement.params().first().and_then(|wanted| text_as(key, wanted)) else {
        return Ok(None);
    };
    let rows = in_time(client.query(&statement, &[&*key])).await?;
    Ok(rows.first().and_then(|row| {
        Some(RowRead {
            version: row.get::<_, Option<i64>>(0)?,
            changed: time_in(row, 1),
            applied: time_in(row, 2),
        })
    }))
}

/// A name of one part: a dot in it is part of the name.
fn quoted_column(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A column with a time: with a zone, or without one in UTC.
pub(super) fn time_in(row: &Row, index: usize) -> Option<OffsetDateTime> {
    match *row.columns()[index].type_() {
        Type::TIMESTAMPTZ => row.get(index),
        Type::TIMESTAMP => row
            .get::<_, Option<PrimitiveDateTime>>(index)
            .map(PrimitiveDateTime::assume_utc),
        _ => None,
    }
}

/// What the first view's row of the key says, of those that the settings name with a time.
///
/// # Errors
/// The views' database does not answer, or refuses.
pub(super) async fn row_of_key(
    database: &Database,
    view_rows: &[ViewRow],
    topic: &str,
    key: &str,
) -> Result<Option<RowOfKey>, SqlError> {
    let mut with_time = view_rows
        .iter()
        .filter(|row| row.topic == topic && row.changed.is_some());
    let Some(view_row) = with_time.next() else {
        return Ok(None);
    };
    Ok(read_row(database, view_row, key).await?.map(|read| RowOfKey {
        version: read.version,
        changed_ms: read
            .changed
            .and_then(|at| i64::try_from(at.unix_timestamp_nanos().div_euclid(1_000_000)).ok()),
    }))
}

/// The position of a key's partition, and the key's newest letter.
///
/// # Errors
/// The views' database does not answer, or refuses.
pub(super) async fn known_of_key(
    database: &Database,
    topic: &str,
    partition: i32,
    key: &[u8],
) -> Result<KnownOfKey, SqlError> {
    let sql = "
        select held.next_offset,
            (select letter.record_offset from view_dead_letters as letter
             where letter.topic = $1 and letter.partition = $2 and letter.key = $3 and letter.discarded_at is null
             order by letter.record_offset desc limit 1) as newest_letter
        from view_positions as held
        where held.topic = $1 and held.partition = $2";
    let rows = database.query(sql, &[&topic, &partition, &key]).await?;
    let row = rows.first();
    Ok(KnownOfKey {
        next_offset: row.and_then(|row| row.get("next_offset")),
        newest_letter: row.and_then(|row| row.get("newest_letter")),
    })
}

/// The version that an event says that it has.
pub(super) fn version_in(value: &[u8]) -> Option<i64> {
    #[derive(Deserialize)]
    struct Versioned {
        version: i64,
    }
    serde_json::from_slice::<Versioned>(value)
        .ok()
        .map(|event| event.version)
}
