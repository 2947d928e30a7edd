//! Reads a relay's parked rows back from the parking topic.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;

use super::keys::ParkedKeys;
use super::planted;
use super::record::{Because, Entry};
use crate::continuity::checkpoint::Checkpoint;
use crate::continuity::parking_note::ParkingNote;
use crate::kafka::{Delivery, KafkaSettings, KeyedLog, partition_counts};
use crate::process::row_name::RowPosition;
use crate::process::stop::{RelayError, Stop};
use crate::settings::Config;

/// A relay may have at most so many parked rows. This bounds its memory and the time of its start.
const ROWS_MAX: u64 = 250_000;

/// How many rows one relay may have parked at most.
#[must_use]
pub fn rows_max() -> u64 {
    if planted::has_room_for_two_rows() {
        return 2;
    }
    ROWS_MAX
}

/// What a running relay has to know about its parked rows.
#[derive(Clone, Debug, Default)]
pub struct Parked {
    pub keys: ParkedKeys,
    pub rows: u64,
    /// When poison rows were parked, microseconds since 1970.
    pub poison_times_us: Vec<i64>,
    pub needs_table: ParkedRowsNeedTable,
}

/// Whether any parked row needs the outbox table. A value that is too large for the parking topic is in the table alone. The task that removes rows from
/// the table shares this flag. The flag is never set back: no row is retried or discarded while a relay runs.
#[derive(Clone, Debug, Default)]
pub struct ParkedRowsNeedTable(Arc<AtomicBool>);

impl ParkedRowsNeedTable {
    /// Notes that a parked row needs the table. To be called before that row is committed.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether a parked row needs the table.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire) && !planted::removes_parked_rows()
    }
}

/// Reads what a running relay has to know, after fencing. If the checkpoint says that nothing is parked, Kafka is not asked. Blocks.
///
/// # Errors
/// As [`read_entries`].
pub fn read_parked(config: &Config, note: &ParkingNote, gives_up: &dyn Fn() -> bool) -> Result<Parked, RelayError> {
    let mut parked = Parked::default();
    if note.rows == 0 {
        return Ok(parked);
    }
    // Only what we need of each row is kept, since the rows themselves may be large.
    let mut found = BTreeMap::new();
    read_records(config, gives_up, &mut |position, entry| {
        match entry {
            Some(entry) => {
                let needs_table = entry.row.needs_table();
                found.insert(
                    position,
                    (entry.topic_key, entry.parked_because, entry.parked_us, needs_table),
                )
            }
            None => found.remove(&position),
        };
    })?;
    for (position, (topic_key, because, parked_us, needs_table)) in &found {
        if *needs_table {
            parked.needs_table.set();
        }
        if let Some(topic_key) = topic_key {
            parked.keys.add(*topic_key, *position);
        }
        if *because == Because::Poison {
            parked.poison_times_us.push(*parked_us);
        }
    }
    if planted::forgets_parked_keys() {
        parked.keys = ParkedKeys::default();
    }
    parked.rows = found.len() as u64;
    Ok(parked)
}

/// Refuses to go on if the parking topic has fewer rows than the checkpoint counts. `found` is how many the topic has.
///
/// # Errors
/// [`Stop::ParkedRowsMissing`].
pub fn ensure_all_parked_rows_are_there(config: &Config, note: &ParkingNote, found: u64) -> Result<(), Stop> {
    // Without transactions a relay, or a retry, may die after it wrote an entry and before it wrote the checkpoint. Then the counts differ.
    if found >= note.rows || config.sink.delivery == Delivery::AtLeastOnce || planted::goes_on_without_lost_rows() {
        return Ok(());
    }
    Err(Stop::ParkedRowsMissing {
        topic: config.sink.parking_topic.to_string(),
        expected: note.rows,
        found,
    })
}

/// Returns the stop if the parking topic lacks rows that the checkpoint counts. If the checkpoint counts none, Kafka is not asked.
///
/// # Errors
/// As [`read_entries`].
pub(crate) async fn find_missing_parked_rows(
    config: &Config,
    checkpoint: &Checkpoint,
) -> Result<Option<Stop>, RelayError> {
    if checkpoint.parking.rows == 0 {
        return Ok(None);
    }
    let found = read_entries_off_thread(config).await?.len() as u64;
    Ok(ensure_all_parked_rows_are_there(config, &checkpoint.parking, found).err())
}

/// Reads all parked rows of the relay, in the order of their positions. Blocks.
///
/// # Errors
/// [`Stop::Config`] if the topic cannot be a parking topic. Any other error is worth another try.
pub fn read_entries(config: &Config, gives_up: &dyn Fn() -> bool) -> Result<BTreeMap<RowPosition, Entry>, RelayError> {
    let mut found = BTreeMap::new();
    read_records(config, gives_up, &mut |position, entry| {
        match entry {
            Some(entry) => found.insert(position, entry),
            None => found.remove(&position),
        };
    })?;
    Ok(found)
}

/// As [`read_entries`], on a thread of its own.
///
/// # Errors
/// As [`read_entries`].
pub(crate) async fn read_entries_off_thread(config: &Config) -> Result<BTreeMap<RowPosition, Entry>, RelayError> {
    let config = config.clone();
    tokio::task::spawn_blocking(move || read_entries(&config, &|| false))
        .await
        .context("parking task")?
}

/// Makes the parking note for a checkpoint that a command writes anew. The rows are counted in the parking topic, since `earlier` may be lost or stale.
///
/// # Errors
/// As [`read_entries`].
pub(crate) async fn count_parked_rows(
    config: &Config,
    earlier: Option<&Checkpoint>,
) -> Result<ParkingNote, RelayError> {
    Ok(ParkingNote {
        rows: read_entries_off_thread(config).await?.len() as u64,
        stopped: earlier.and_then(|checkpoint| checkpoint.parking.stopped.clone()),
    })
}

/// Gives each record of the relay to `on_record`, in the order of the topic. `None` means that the row is not parked any more.
fn read_records(
    config: &Config,
    gives_up: &dyn Fn() -> bool,
    on_record: &mut dyn FnMut(RowPosition, Option<Entry>),
) -> Result<(), RelayError> {
    if !parking_topic_exists(&config.sink.kafka, &config.sink.parking_topic)? {
        return Ok(());
    }
    let log = KeyedLog {
        settings: &config.sink.kafka,
        topic: &config.sink.parking_topic,
    };
    let prefix = format!("{}/", config.checkpoint_key());
    log.read(&prefix, gives_up, &mut |key, value| {
        // A database's name may contain a slash, so the prefix may fit a key of another relay. What follows the prefix is then no position.
        let Ok(position) = key[prefix.len()..].parse() else {
            return Ok(());
        };
        let entry = value.map(Entry::from_json).transpose().map_err(|what| {
            anyhow::anyhow!(
                "the parked row `{key}` in topic `{}` cannot be read ({what})",
                config.sink.parking_topic
            )
        })?;
        on_record(position, entry);
        Ok(())
    })?;
    Ok(())
}

fn parking_topic_exists(settings: &KafkaSettings, topic: &str) -> Result<bool, RelayError> {
    let names = [topic.to_owned()];
    match partition_counts(settings, &names)?.get(topic) {
        None => Ok(false),
        Some(1) => Ok(true),
        Some(partitions) => Err(has_several_partitions(topic, *partitions).into()),
    }
}

/// The stop for a parking topic that has several partitions. Its records would have no order.
#[must_use]
pub(super) fn has_several_partitions(topic: &str, partitions: i32) -> Stop {
    Stop::Config {
        what: format!("--parking-topic `{topic}` has {partitions} partitions; it must have one"),
    }
}
