//! Finds a record in a topic by what is known of it, so that few records have to be looked at. Blocks.

use std::time::{Duration, Instant};

use outbox_router::partition_of_key;

use super::outbox::OutboxRow;
use super::views::{KnownOfKey, RowOfKey, version_in};
use crate::search::filter::Filter;
use crate::search::reader::{Read, Reader, Visit, Window};
use crate::search::record::{ID_HEADER, Record, Seen};
use crate::search::request::Order;
use crate::search::scan::{End, Wanted, scan};
use crate::search::topic::Topic;
use crate::settings::Outbox;

/// A trace looks for so long at most. A page answers within a second.
const TIME_LIMIT: Duration = Duration::from_millis(700);
/// From the time of an event on, so many records are looked at before a trace gives up: other transactions may have committed at the same time.
const RECORDS_MAX: u64 = 200_000;

/// What was found.
pub(super) enum Found {
    Record(Box<Record>),
    /// A sentence that says where was looked.
    Nothing(String),
}

/// Where a row's record has to be.
pub(super) struct Hint {
    /// The most likely topic first.
    topics: Vec<String>,
    key: Vec<u8>,
    id: String,
    /// The record's time is this one or later: milliseconds since 1970.
    from_ms: i64,
}

impl Hint {
    pub(super) fn of_row(outbox: &Outbox, row: &OutboxRow) -> Self {
        let mut topics = outbox.topics.clone();
        // The usual route names the topic after the aggregate. Others are looked at behind it.
        topics.sort_by_key(|topic| !topic.contains(&row.aggregate_type));
        let from = row.committed_at.unwrap_or(row.created_at);
        Self {
            topics,
            key: row.aggregate_id.as_bytes().to_vec(),
            id: row.id.clone(),
            from_ms: i64::try_from(from.unix_timestamp_nanos().div_euclid(1_000_000)).unwrap_or(0),
        }
    }
}

/// The record of an outbox row.
///
/// # Errors
/// Kafka does not answer.
pub(super) fn by_row(reader: &Reader, hint: &Hint) -> anyhow::Result<Found> {
    let deadline = Instant::now() + TIME_LIMIT;
    let mut is_cut_short = false;
    for topic in &hint.topics {
        let Some(count) = reader.partition_count(topic)? else {
            continue;
        };
        let partition = partition_of_key(&hint.key, count);
        let id = hint.id.as_bytes();
        let is_wanted = |seen: &Seen<'_>| seen.header(ID_HEADER).is_some_and(|has| has.eq_ignore_ascii_case(id));
        match first_from(reader, topic, partition, hint.from_ms, deadline, &is_wanted)? {
            First::Record(record) => return Ok(Found::Record(record)),
            First::Nothing => {}
            First::CutShort => is_cut_short = true,
        }
    }
    let topics = hint.topics.join(", ");
    Ok(Found::Nothing(if is_cut_short {
        format!(
            "More records follow the commit in {topics} than a trace looks at. A search by the id from that time on goes further."
        )
    } else {
        format!(
            "From its commit on, no record in {topics} has this id. So the relay has not published it yet, or the topic's compaction or retention has removed it."
        )
    }))
}

enum First {
    Record(Box<Record>),
    Nothing,
    /// There is more than a trace looks at.
    CutShort,
}

/// The first wanted record of this time or later in a partition.
fn first_from(
    reader: &Reader,
    topic: &str,
    partition: i32,
    from_ms: i64,
    deadline: Instant,
    is_wanted: &dyn Fn(&Seen<'_>) -> bool,
) -> anyhow::Result<First> {
    let offsets = reader.offsets_at(topic, &[partition], from_ms)?;
    let Some(from) = offsets.get(&partition).copied() else {
        return Ok(First::Nothing);
    };
    let (mut found, mut looked_at) = (None, 0);
    // The partition's end comes by itself.
    let window = Window {
        partition,
        from,
        to: i64::MAX,
    };
    let read = reader.read(topic, &[window], deadline, &mut |seen| {
        looked_at += 1;
        if is_wanted(seen) {
            found = Some(Box::new(seen.to_record(topic)));
        }
        if found.is_some() || looked_at >= RECORDS_MAX {
            Visit::Stop
        } else {
            Visit::GoOn
        }
    })?;
    Ok(match (found, read) {
        (Some(record), _) => First::Record(record),
        (None, Read::All) => First::Nothing,
        (None, _) => First::CutShort,
    })
}

/// What a search for the latest event of a key begins with.
pub(super) struct LatestOfKey {
    pub topic: String,
    pub partition: i32,
    pub key: Vec<u8>,
    /// `None`: the views' database did not tell.
    pub known: Option<KnownOfKey>,
    /// What a view's row says of the newest event applied.
    pub row: Option<RowOfKey>,
}

/// The latest event of a key. It is the first of these that exists:
/// 1. the newest one behind the views' position, which no view has got yet;
/// 2. the newest dead letter of the key, behind which its events wait;
/// 3. the event whose version the view's row has, found from the row's time on;
/// 4. the newest one from the partition's end back, as far as the time suffices.
///
/// # Errors
/// Kafka does not answer.
pub(super) fn latest_of_key(reader: &Reader, latest: &LatestOfKey) -> anyhow::Result<Found> {
    let deadline = Instant::now() + TIME_LIMIT;
    let bounds = reader.bounds(&latest.topic, latest.partition)?;
    let position = latest
        .known
        .as_ref()
        .and_then(|known| known.next_offset)
        .map(|next| next.max(bounds.from));
    if let Some(position) = position {
        let behind = Window {
            from: position,
            ..bounds
        };
        match newest_in(reader, latest, behind, deadline)? {
            First::Record(record) => return Ok(Found::Record(record)),
            First::CutShort => {
                return Ok(Found::Nothing(format!(
                    "The views are {} records behind in partition {}, which is more than a trace looks at. A search by the key looks further.",
                    bounds.to - position,
                    latest.partition
                )));
            }
            First::Nothing => {}
        }
        let letter = latest.known.as_ref().and_then(|known| known.newest_letter);
        if let Some(offset) = letter
            && let Some(record) = reader.record_at(&latest.topic, latest.partition, offset)?
            && record.offset == offset
        {
            return Ok(Found::Record(Box::new(record)));
        }
        if let Some(RowOfKey {
            version,
            changed_ms: Some(changed_ms),
        }) = latest.row
        {
            let is_wanted = |seen: &Seen<'_>| {
                seen.key == Some(latest.key.as_slice()) && seen.value.and_then(version_in) == Some(version)
            };
            if let First::Record(record) = first_from(
                reader,
                &latest.topic,
                latest.partition,
                changed_ms,
                deadline,
                &is_wanted,
            )? {
                return Ok(Found::Record(record));
            }
        }
    }
    Ok(match newest_in(reader, latest, bounds, deadline)? {
        First::Record(record) => Found::Record(record),
        First::Nothing => Found::Nothing(format!(
            "Partition {} of {}, where records of this key go, has none of it.",
            latest.partition, latest.topic
        )),
        First::CutShort => Found::Nothing(format!(
            "No view's row says when the key changed last, and the newest records of partition {} have none of it. A search by the key looks further back.",
            latest.partition
        )),
    })
}

/// The newest record of the key in a window.
fn newest_in(reader: &Reader, latest: &LatestOfKey, window: Window, deadline: Instant) -> anyhow::Result<First> {
    if window.from >= window.to {
        return Ok(First::Nothing);
    }
    let filter = Filter {
        key: Some(latest.key.clone()),
        ..Filter::default()
    };
    let wanted = Wanted {
        topic: &latest.topic,
        filter: &filter,
        order: Order::NewestFirst,
        count: 1,
        deadline,
    };
    let found = scan(
        &Topic {
            reader,
            name: &latest.topic,
        },
        &[window],
        &wanted,
    )?;
    let is_cut_short = found.end == End::TimeOver;
    Ok(match found.records.into_iter().next() {
        Some(record) => First::Record(Box::new(record)),
        None if is_cut_short => First::CutShort,
        None => First::Nothing,
    })
}
