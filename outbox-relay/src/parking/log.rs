//! Reading a relay's parked rows back.

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

/// Most rows that one relay may have parked: what bounds its memory and the time of its start.
const ROWS_MAX: u64 = 250_000;

/// As many parked rows as one relay has room for.
#[must_use]
pub fn rows_max() -> u64 {
    if planted::has_room_for_two_rows() {
        return 2;
    }
    ROWS_MAX
}

/// The parked rows of one relay, as far as a running one has to know them.
#[derive(Clone, Debug, Default)]
pub struct Parked {
    pub keys: ParkedKeys,
    pub rows: u64,
    /// When poison rows were parked, microseconds since 1970.
    pub poison_times_us: Vec<i64>,
    pub needs: TableNeeds,
}

/// Whether a parked row needs the outbox table: a value that is too large for the parking topic is in the table alone. Shared with what removes rows
/// from the table. No row is retried or discarded while a relay runs, so it is never taken back.
#[derive(Clone, Debug, Default)]
pub struct TableNeeds(Arc<AtomicBool>);

impl TableNeeds {
    /// Takes note of a row that needs it, before that is committed.
    pub fn add(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether any row does.
    #[must_use]
    pub fn any(&self) -> bool {
        self.0.load(Ordering::Acquire) && !planted::removes_parked_rows()
    }
}

/// What a running relay has to know, read after fencing. Nothing is asked where the checkpoint says that nothing is parked. Blocks.
///
/// # Errors
/// As [`read_entries`].
pub fn read_parked(config: &Config, note: &ParkingNote, gives_up: &dyn Fn() -> bool) -> Result<Parked, RelayError> {
    let mut parked = Parked::default();
    if note.rows == 0 {
        return Ok(parked);
    }
    // Only this much of each: the rows themselves may be large.
    let mut found = BTreeMap::new();
    read(config, gives_up, &mut |position, entry| {
        match entry {
            Some(entry) => {
                let needs_table = entry.row.needs_table();
                found.insert(
                    position,
                    (entry.lane, entry.parked_because, entry.parked_us, needs_table),
                )
            }
            None => found.remove(&position),
        };
    })?;
    for (position, (lane, because, parked_us, needs_table)) in &found {
        if *needs_table {
            parked.needs.add();
        }
        if let Some(lane) = lane {
            parked.keys.add(*lane, *position);
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

/// Whether the parking topic has every row that the checkpoint counts.
///
/// # Errors
/// [`Stop::ParkedRowsMissing`].
pub fn ensure_all_parked_rows_are_there(config: &Config, note: &ParkingNote, found: u64) -> Result<(), Stop> {
    // Without transactions a relay, or a retry, that died between an entry and the checkpoint leaves another count.
    if found >= note.rows || config.sink.delivery == Delivery::AtLeastOnce || planted::goes_on_without_lost_rows() {
        return Ok(());
    }
    Err(Stop::ParkedRowsMissing {
        topic: config.sink.parking_topic.to_string(),
        expected: note.rows,
        found,
    })
}

/// The stop where the parking topic lacks rows that the checkpoint counts. Nothing is asked where it counts none.
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

/// All parked rows of the relay, in the order of their positions. Blocks.
///
/// # Errors
/// [`Stop::Config`] for a parking topic that is none; anything else is worth another try.
pub fn read_entries(config: &Config, gives_up: &dyn Fn() -> bool) -> Result<BTreeMap<RowPosition, Entry>, RelayError> {
    let mut found = BTreeMap::new();
    read(config, gives_up, &mut |position, entry| {
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

/// What a checkpoint says of parked rows that is written anew by a command: they are counted in their own topic, since `earlier` may be lost, or stale.
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

fn read(
    config: &Config,
    gives_up: &dyn Fn() -> bool,
    each: &mut dyn FnMut(RowPosition, Option<Entry>),
) -> Result<(), RelayError> {
    if !exists(&config.sink.kafka, &config.sink.parking_topic)? {
        return Ok(());
    }
    let log = KeyedLog {
        settings: &config.sink.kafka,
        topic: &config.sink.parking_topic,
    };
    let prefix = format!("{}/", config.checkpoint_key());
    log.read(&prefix, gives_up, &mut |key, value| {
        // The names of a database and a slot may be the beginning of others' only up to the slash, and a position has one of its own.
        let Ok(position) = key[prefix.len()..].parse() else {
            return Ok(());
        };
        let entry = value.map(Entry::from_json).transpose().map_err(|what| {
            anyhow::anyhow!(
                "the parked row `{key}` in topic `{}` cannot be read ({what})",
                config.sink.parking_topic
            )
        })?;
        each(position, entry);
        Ok(())
    })?;
    Ok(())
}

fn exists(settings: &KafkaSettings, topic: &str) -> Result<bool, RelayError> {
    let names = [topic.to_owned()];
    match partition_counts(settings, &names)?.get(topic) {
        None => Ok(false),
        Some(1) => Ok(true),
        Some(partitions) => Err(more_partitions(topic, *partitions).into()),
    }
}

/// The stop of a parking topic whose records have no order.
#[must_use]
pub(super) fn more_partitions(topic: &str, partitions: i32) -> Stop {
    Stop::Config {
        what: format!("--parking-topic `{topic}` has {partitions} partitions; it must have one"),
    }
}
