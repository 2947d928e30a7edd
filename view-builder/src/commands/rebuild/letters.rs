//! The dead letters as a fill has to see them: what the live view has not applied.
//!
//! A letter that came in a replay is of an event that the views had applied before: a view that was new, or whose SQL had changed, has refused it then
//! (`applied_before`). The other views have it, so a generation gets it, and what is parked behind it, as if there were no letter. Where the
//! generation's own SQL refuses it, this view is the one that does not have it: then the letter *stands*, as any other.
//!
//! **Memory.** Of each letter 16 bytes are kept, as a builder keeps them ([`Known`]): a million letters take 16 MB. All of them are read at the
//! beginning, and again only where an operator has taken letters away (`letters_version`) or where [`NEW_MAX`] new ones have come. Each other
//! look reads the new ones alone, by their ids.
//!
//! **Why the new ones can be told by their ids.** Ids are given in order, but a transaction with a lower id can commit after one with a higher
//! id. Whoever writes a letter has changed a position in the same transaction before. So while the positions are locked no letter is under way, and all
//! letters up to the highest id that is there then will ever be there.

use std::collections::{BTreeMap, HashSet};

use tokio_postgres::{Client, Error};

use crate::contract::letter::Fate;
use crate::contract::place::TopicPartition;
use crate::contract::place::place;
use crate::letters::{Known, store};
use crate::postgres::refusal;
use crate::views::epochs;

/// As [`store::gather`] takes it, with one column more.
const ALL: &str = "
    select held.topic, held.partition, held.letters_version, letter.record_offset, letter.key,
        letter.discarded_at is not null as is_discarded, letter.applied_before
    from view_positions as held
    left join only view_dead_letters as letter using (topic, partition)
    where held.topic = any($1)";

/// As [`ALL`], with the letters behind an id alone, and so many at most.
const NEW: &str = "
    select held.topic, held.partition, held.letters_version, letter.record_offset, letter.key, letter.is_discarded, letter.applied_before
    from view_positions as held
    left join (
        select topic, partition, record_offset, key, discarded_at is not null as is_discarded, applied_before
        from only view_dead_letters where id > $2 and topic = any($1)
        order by id limit $3
    ) as letter using (topic, partition)
    where held.topic = any($1)";

/// So many new letters are not kept one by one: all letters are read again, which keeps 16 bytes of each.
const NEW_MAX: u16 = 10_000;
/// Time that builders may be kept waiting for the look at the highest id.
const LOCK_TIMEOUT: &str = "set local lock_timeout = '1s'";

/// What a fill knows of its topics' dead letters.
pub(super) struct Letters {
    topics: Vec<String>,
    known: BTreeMap<TopicPartition, Known>,
    /// Events that the views had applied before, and that the generation refuses.
    standing: HashSet<(TopicPartition, i64)>,
    /// Every letter with an id up to this one is in `known`; none: all letters have to be read.
    last_known_id: Option<i64>,
    /// Counts how often all letters were read.
    pub(super) readings: u64,
}

impl Letters {
    /// Nothing is known yet.
    pub(super) fn of(topics: &[String]) -> Self {
        Self {
            topics: topics.to_vec(),
            known: BTreeMap::new(),
            standing: HashSet::new(),
            last_known_id: None,
            readings: 0,
        }
    }

    /// The letters up to this id were there when all were read; none where nobody can tell.
    pub(super) const fn last_known_id(&self) -> Option<i64> {
        self.last_known_id
    }

    /// The `letters_version` of the partition, as of which its letters are known.
    pub(super) fn version(&self, place: &TopicPartition) -> i64 {
        self.known.get(place).map_or(0, |known| known.version)
    }

    /// What has become of the record at `offset` in the live view, where it is an event.
    pub(super) fn fate(&self, place: &TopicPartition, offset: i64, key: Option<&[u8]>) -> Fate {
        self.known
            .get(place)
            .map_or(Fate::Applied, |known| known.fate_if_applicable(offset, key))
    }

    /// Whether the live view has not applied this letter's event.
    fn counts(&self, place: &TopicPartition, offset: i64, was_applied_before: bool) -> bool {
        let is_applied = was_applied_before && !self.standing.contains(&(place.clone(), offset));
        !is_applied || planted::takes_no_letter_for_applied()
    }

    /// Notes the highest id up to which letters can be read. What is read from now on has all of them. Where a lock is not granted in time
    /// there is none, and the next look reads all again.
    pub(super) async fn settle(&mut self, client: &Client) -> Result<(), Error> {
        self.last_known_id = None;
        client.batch_execute("begin").await?;
        let settled = async {
            client.batch_execute(LOCK_TIMEOUT).await?;
            client.batch_execute(epochs::LOCK).await?;
            let sql = "select coalesce(max(id), 0) from only view_dead_letters";
            Ok(client.query_one(sql, &[]).await?.get(0))
        };
        let settled: Result<i64, Error> = settled.await;
        client.batch_execute("rollback").await?;
        self.last_known_id = match settled {
            Ok(id) => Some(id),
            Err(err) if refusal::is_lock_timeout(&err) => None,
            Err(err) => return Err(err),
        };
        Ok(())
    }

    /// Reads all letters, one after the other. What was known before goes first, so that both are never here at once.
    pub(super) async fn read_all(&mut self, client: &Client) -> Result<(), Error> {
        self.known.clear();
        self.readings += 1;
        let counts = |place: &TopicPartition, offset, row: &tokio_postgres::Row| {
            self.counts(place, offset, row.get("applied_before"))
        };
        let all = store::gather(client, ALL, &[&self.topics], counts).await?;
        self.known = all.into_iter().collect();
        Ok(())
    }

    /// Adds the letters that have come since all were read. False, and nothing is changed, where all have to be read again.
    pub(super) async fn add_new(&mut self, client: &Client) -> Result<bool, Error> {
        let Some(last_known_id) = self.last_known_id.filter(|_| !planted::reads_all_each_time()) else {
            return Ok(false);
        };
        let rows = client
            .query(NEW, &[&self.topics, &last_known_id, &i64::from(NEW_MAX)])
            .await?;
        let letters = rows
            .iter()
            .filter(|row| row.get::<_, Option<i64>>("record_offset").is_some());
        if letters.clone().count() >= usize::from(NEW_MAX) {
            return Ok(false);
        }
        for row in &rows {
            let known = self.known.get(&place(row.get("topic"), row.get("partition")));
            if known.is_none_or(|known| known.version != row.get::<_, i64>("letters_version")) {
                return Ok(false);
            }
        }
        if letters.clone().any(|row| row.get("is_discarded")) {
            // One that was discarded since counts the version up, but for one that no position is there for.
            return Ok(false);
        }
        for row in letters {
            let (place, offset) = (place(row.get("topic"), row.get("partition")), row.get("record_offset"));
            if !self.counts(&place, offset, row.get("applied_before")) {
                continue;
            }
            if let (Some(key), Some(known)) = (row.get::<_, Option<&[u8]>>("key"), self.known.get_mut(&place)) {
                known.open(key, offset);
            }
        }
        Ok(true)
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
        match (row, self.known.get_mut(&place)) {
            (Some(row), Some(known)) => known.open(row.get(0), offset),
            // It was discarded, or taken away meanwhile.
            _ => self.last_known_id = None,
        }
        self.standing.insert((place, offset));
        Ok(())
    }
}

/// Whether there is a letter of this event, which the views had applied before.
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

/// The planted bugs of these looks. Without the feature `faults` none of them is there.
mod planted {
    use crate::process::faults::{self, Bug};

    pub(super) fn takes_no_letter_for_applied() -> bool {
        faults::is_planted(Bug::LetterIsNeverApplied)
    }

    pub(super) fn reads_all_each_time() -> bool {
        faults::is_planted(Bug::ReadAllLettersEachTime)
    }
}
