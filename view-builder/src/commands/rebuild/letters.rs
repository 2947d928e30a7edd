//! The dead letters as a fill has to see them: the events that the live view has not applied.
//!
//! A letter can also be of an event that the views had applied before (`applied_before`). This happens in a replay, when a view that is new, or
//! whose SQL has changed, refuses the event. The other views have the event. So a generation gets it, and the events that are parked behind it, as
//! if there were no letter. But if the generation's own SQL refuses it, this view is the one that lacks the event: then the generation leaves it
//! out, as with any other letter.
//!
//! **Memory.** A letter takes 16 bytes, as it does in a builder ([`Known`]). So a million letters take 16 MB. All letters are read at the
//! beginning. They are read again only if an operator has taken letters away (`letters_version`), or if [`NEW_MAX`] new ones have come. In all
//! other cases only the new letters are read, by their ids.
//!
//! **Two keys with one hash.** What is known of a letter is a hash of its key. So an event may look as if it waited, although only another key of the
//! same hash waits. The live view has applied it then, and it has no letter of its own. So each event that is left out because of a hash is looked up
//! in the table, before the positions pass it ([`Letters::correct_those_without_letter`]).
//!
//! **Why an id tells which letters are new.** Ids are given in order, but a transaction with a lower id can commit after one with a higher id.
//! Whoever writes a letter has first changed a position in the same transaction. So while the positions are locked, no such transaction is open,
//! and no letter with an id up to the highest one of that moment can come later.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use tokio_postgres::{Client, Error};

use crate::contract::letter::Fate;
use crate::contract::place::TopicPartition;
use crate::contract::place::place;
use crate::letters::{Known, store};
use crate::postgres::refusal;
use crate::views::epochs;

/// All letters. The columns are those that [`store::gather`] reads, and `applied_before`.
const ALL_LETTERS: &str = "
    select held.topic, held.partition, held.letters_version, letter.record_offset, letter.key,
        letter.discarded_at is not null as is_discarded, letter.applied_before
    from view_positions as held
    left join only view_dead_letters as letter using (topic, partition)
    where held.topic = any($1)";

/// The same columns, but only of letters with an id above `$2`, and at most `$3` of them.
const NEW_LETTERS: &str = "
    select held.topic, held.partition, held.letters_version, letter.record_offset, letter.key, letter.is_discarded, letter.applied_before
    from view_positions as held
    left join (
        select topic, partition, record_offset, key, discarded_at is not null as is_discarded, applied_before
        from only view_dead_letters where id > $2 and topic = any($1)
        order by id limit $3
    ) as letter using (topic, partition)
    where held.topic = any($1)";

/// Of these events, those without a letter, each with the offset of the first letter that its key waits behind, if there is one.
const WITHOUT_LETTER: &str = "
    select topic, partition, key,
        (select min(letter.record_offset) from only view_dead_letters as letter
         where letter.topic = event.topic and letter.partition = event.partition and letter.key = event.key
            and letter.discarded_at is null and not letter.applied_before) as first_letter
    from unnest($1::text[], $2::integer[], $3::bigint[], $4::bytea[]) as event(topic, partition, record_offset, key)
    where not exists (
        select from only view_dead_letters as letter
        where letter.topic = event.topic and letter.partition = event.partition and letter.record_offset = event.record_offset)";

/// An event that a fill has left out, since a hash says that its key waits.
pub(super) struct LeftOut {
    pub(super) place: TopicPartition,
    pub(super) offset: i64,
    pub(super) key: Bytes,
}

/// If so many letters are new, all letters are read again. The rows of the new letters are held together in memory, and the others are not.
const NEW_MAX: u16 = 10_000;
/// How long builders may have to wait while the highest id is read.
const LOCK_TIMEOUT: &str = "set local lock_timeout = '1s'";

/// What a fill knows of its topics' dead letters.
pub(super) struct Letters {
    topics: Vec<String>,
    by_partition: BTreeMap<TopicPartition, Known>,
    /// Events that the views had applied before, but that the generation refuses.
    refused_by_generation: HashSet<(TopicPartition, i64)>,
    /// Every letter with an id up to this one is in `by_partition`. `None`: all letters have to be read.
    last_known_id: Option<i64>,
    /// Counts how often all letters were read.
    pub(super) readings: u64,
}

impl Letters {
    /// No letters are read yet.
    pub(super) fn new(topics: &[String]) -> Self {
        Self {
            topics: topics.to_vec(),
            by_partition: BTreeMap::new(),
            refused_by_generation: HashSet::new(),
            last_known_id: None,
            readings: 0,
        }
    }

    /// The letters up to this id were there when all were read. `None`: it is not known which ones were there.
    pub(super) const fn last_known_id(&self) -> Option<i64> {
        self.last_known_id
    }

    /// The partition's `letters_version` at the time when its letters were read.
    pub(super) fn version(&self, place: &TopicPartition) -> i64 {
        self.by_partition.get(place).map_or(0, |known| known.version)
    }

    /// What the live view has done with the record at `offset`, if the record is an event.
    pub(super) fn fate(&self, place: &TopicPartition, offset: i64, key: Option<&[u8]>) -> Fate {
        self.by_partition
            .get(place)
            .map_or(Fate::Applied, |known| known.fate_if_applicable(offset, key))
    }

    /// Whether the live view lacks this letter's event. Other letters are ignored.
    fn holds_back(&self, place: &TopicPartition, offset: i64, was_applied_before: bool) -> bool {
        let is_applied = was_applied_before && !self.refused_by_generation.contains(&(place.clone(), offset));
        !is_applied || planted::ignores_applied_before()
    }

    /// Notes the highest id of a letter, while no letter can be under way. A reading that begins after this sees every letter up to this id. If the
    /// lock is not granted in time, no id is noted, and the next look reads all letters again.
    pub(super) async fn note_highest_id(&mut self, client: &Client) -> Result<(), Error> {
        self.last_known_id = None;
        client.batch_execute("begin").await?;
        let highest_id = async {
            client.batch_execute(LOCK_TIMEOUT).await?;
            client.batch_execute(epochs::LOCK).await?;
            let sql = "select coalesce(max(id), 0) from only view_dead_letters";
            Ok(client.query_one(sql, &[]).await?.get(0))
        };
        let highest_id: Result<i64, Error> = highest_id.await;
        client.batch_execute("rollback").await?;
        self.last_known_id = match highest_id {
            Ok(id) => Some(id),
            Err(err) if refusal::is_lock_timeout(&err) => None,
            Err(err) => return Err(err),
        };
        Ok(())
    }

    /// Reads all letters, one after the other. The former ones are dropped first, so that memory never holds both.
    pub(super) async fn read_all(&mut self, client: &Client) -> Result<(), Error> {
        self.by_partition.clear();
        self.readings += 1;
        let holds_back = |place: &TopicPartition, offset, row: &tokio_postgres::Row| {
            self.holds_back(place, offset, row.get("applied_before"))
        };
        let all = store::gather(client, ALL_LETTERS, &[&self.topics], holds_back).await?;
        self.by_partition = all.into_iter().collect();
        Ok(())
    }

    /// Adds the letters that have come since all were read. Returns false, and changes nothing, if all have to be read again.
    pub(super) async fn try_add_new(&mut self, client: &Client) -> Result<bool, Error> {
        let Some(last_known_id) = self.last_known_id.filter(|_| !planted::reads_all_each_time()) else {
            return Ok(false);
        };
        let rows = client
            .query(NEW_LETTERS, &[&self.topics, &last_known_id, &i64::from(NEW_MAX)])
            .await?;
        let letters = rows
            .iter()
            .filter(|row| row.get::<_, Option<i64>>("record_offset").is_some());
        if letters.clone().count() >= usize::from(NEW_MAX) {
            return Ok(false);
        }
        for row in &rows {
            let known = self.by_partition.get(&place(row.get("topic"), row.get("partition")));
            if known.is_none_or(|known| known.version != row.get::<_, i64>("letters_version")) {
                return Ok(false);
            }
        }
        if letters.clone().any(|row| row.get("is_discarded")) {
            // Discarding a letter raises `letters_version`, which was compared above. But without a row of the position there is no version to
            // raise.
            return Ok(false);
        }
        for row in letters {
            let (place, offset) = (place(row.get("topic"), row.get("partition")), row.get("record_offset"));
            if !self.holds_back(&place, offset, row.get("applied_before")) {
                continue;
            }
            if let (Some(key), Some(known)) = (row.get::<_, Option<&[u8]>>("key"), self.by_partition.get_mut(&place)) {
                known.open(key, offset);
            }
        }
        Ok(true)
    }

    /// Looks the events up that were left out because of a hash. A key whose event has no letter of its own is corrected, and its events have to be read
    /// again. Returns whether there is such a key.
    pub(super) async fn correct_those_without_letter(
        &mut self,
        client: &Client,
        left_out: &[LeftOut],
    ) -> Result<bool, Error> {
        if left_out.is_empty() {
            return Ok(false);
        }
        let topics: Vec<&str> = left_out.iter().map(|event| &*event.place.topic).collect();
        let partitions: Vec<i32> = left_out.iter().map(|event| event.place.partition).collect();
        let offsets: Vec<i64> = left_out.iter().map(|event| event.offset).collect();
        let keys: Vec<&[u8]> = left_out.iter().map(|event| &*event.key).collect();
        let rows = client
            .query(WITHOUT_LETTER, &[&topics, &partitions, &offsets, &keys])
            .await?;
        for row in &rows {
            let place = place(row.get("topic"), row.get("partition"));
            let key: &[u8] = row.get("key");
            if let Some(known) = self.by_partition.get_mut(&place) {
                known.correct(Bytes::copy_from_slice(key), row.get("first_letter"), &[]);
            }
        }
        Ok(!rows.is_empty())
    }

    /// Whether only a hash tells that the event of this key waits.
    pub(super) fn knows_only_hash_of(&self, place: &TopicPartition, key: &[u8]) -> bool {
        self.by_partition
            .get(place)
            .is_some_and(|known| known.knows_only_hash_of(key))
    }

    /// The generation refuses the event at `offset`. So the event stays a dead letter, and later events of its key wait behind it.
    pub(super) async fn leave_out(&mut self, client: &Client, place: TopicPartition, offset: i64) -> Result<(), Error> {
        let row = client
            .query_opt(
                "select key from only view_dead_letters
                 where topic = $1 and partition = $2 and record_offset = $3 and discarded_at is null and key is not null",
                &[&&*place.topic, &place.partition, &offset],
            )
            .await?;
        match (row, self.by_partition.get_mut(&place)) {
            (Some(row), Some(known)) => known.open(row.get(0), offset),
            // The letter was discarded or taken away meanwhile.
            _ => self.last_known_id = None,
        }
        self.refused_by_generation.insert((place, offset));
        Ok(())
    }
}

/// Whether the event has a letter, but views had applied it before that.
pub(super) async fn was_applied(client: &Client, place: &TopicPartition, offset: i64) -> Result<bool, Error> {
    let row = client
        .query_one(
            "select exists (
                select from only view_dead_letters
                where topic = $1 and partition = $2 and record_offset = $3 and applied_before)",
            &[&&*place.topic, &place.partition, &offset],
        )
        .await?;
    Ok(row.get(0))
}

/// The planted bugs of this module. They exist only with the feature `faults`.
mod planted {
    use crate::process::faults::{self, Bug};

    pub(super) fn ignores_applied_before() -> bool {
        faults::is_planted(Bug::LetterIsNeverApplied)
    }

    pub(super) fn reads_all_each_time() -> bool {
        faults::is_planted(Bug::ReadAllLettersEachTime)
    }
}
