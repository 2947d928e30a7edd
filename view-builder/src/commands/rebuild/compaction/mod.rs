//! What the topic cannot give again, where compaction has removed events of a key that has dead letters.
//!
//! Compaction removes a key's earlier records in favour of its latest, whatever became of that. Where the latest is a dead letter, open or
//! discarded, the live view has the row of before, and no event in the topic tells it any more: the generation would drop the row. So, before the
//! swap, each key with a letter has to be *safe*:
//! - the topic is not compacted, as Kafka says; or
//! - the key is not the text of a number: no event has such a key, so no row came from it; or
//! - the key's only letter that counts is the event with version 1: nothing was before it; or
//! - an event of the key that is applied was found in the topic *after* the fill had passed the letter.
//!
//! Why the last is a proof. The cleaner removes a key's records in the order of their offsets, so what a topic has of a key are at any moment its
//! last records, without a gap. An event found now was there before, and so were all behind it: the fill, which was earlier, has met
//! every one of them. (That the fill has applied *some* earlier event would be none: the cleaner may have removed the next one before the fill came
//! by.) What lies before the event that was found is superseded by it.
//!
//! A key that was safe stays so until its letters are others: more of them behind an open one change nothing, since they wait as well.
//!
//! What is **no** proof, so that a key which never had a row may need `--accept-compacted`:
//! - *The generation has each row of the live view, by primary key.* A view's SQL is arbitrary. A row may tell of many keys, as a department's
//!   count does: it is there in both, with one user less in the generation. And where the SQL is another than the live view's, rows may differ for
//!   this reason.
//! - *The letter is younger than `min.compaction.lag.ms`, so that the cleaner has not come by.* Kafka tells the setting of today, and not the one
//!   under which the cleaner ran; the record's time is its producer's.
//! - *No record before the letter is missing in the topic.* Markers of transactions take offsets too, and cannot be told from removed records.
//!
//! **Memory.** The keys come in pages, and a batch of them is looked for in the topic: a topic is read once for each [`BATCH_KEYS`] keys for which
//! nothing else speaks. What is remembered is that all keys are safe whose letters the fill knew when it last read all of them; and, one by one,
//! those that have become safe since, of which there are no more than new letters (see [`super::letters`]).

mod keys;
mod topic;

use std::collections::HashSet;

use tokio_postgres::{Client, Error};

use super::fill::Fill;
use super::trouble::Trouble;
use crate::kafka::servers::Kafka;
use crate::process::failure::Failure;
use crate::views::view::View;
use keys::{Key, Pages};

/// So many keys are looked for in one reading of a topic.
const BATCH_KEYS: usize = 20_000;
/// So many keys are named in a refusal, at most.
const NAMED_MAX: usize = 10;

/// Which keys are known to be safe.
pub(super) struct Compaction {
    /// The view's topics that may be compacted.
    compacted: Vec<String>,
    /// An operator has accepted that rows may be missing.
    accepts_missing_rows: bool,
    /// The number of the reading of all letters ([`super::letters::Letters::readings`]) whose keys are all safe.
    safe_reading: Option<u64>,
    /// Keys with letters that came after that reading.
    safe_since: HashSet<Key>,
}

/// Keys that are not proven to be safe.
#[derive(Default)]
struct Doubtful {
    count: usize,
    /// The first of them, which a refusal names.
    named: Vec<Key>,
}

impl Compaction {
    /// Asks Kafka which topics are compacted. If Kafka does not tell of a topic, it counts as compacted.
    pub(super) async fn of(servers: &Kafka, view: &View, accepts_missing_rows: bool) -> Self {
        let mut compacted = planted::topics_to_look_at(view);
        if !compacted.is_empty() {
            let uncompacted = topic::list_uncompacted_topics(servers, &view.topics).await.unwrap_or_else(|err| {
                tracing::debug!(error = %err, "kafka does not tell the topics' settings: they are taken for compacted");
                Default::default()
            });
            compacted.retain(|topic| !uncompacted.contains(topic));
        }
        Self {
            compacted,
            accepts_missing_rows,
            safe_reading: None,
            safe_since: HashSet::new(),
        }
    }

    /// Refuses to go on if the fill has passed the letters of a key that is not safe. The fill must be at its limits.
    pub(super) async fn ensure_keys_are_safe(
        &mut self,
        client: &Client,
        fill: &Fill,
        view: &View,
    ) -> Result<(), Trouble> {
        let Some(last_known_id) = fill.letters.last_known_id().filter(|_| !self.compacted.is_empty()) else {
            return Ok(());
        };
        if self.safe_reading != Some(fill.letters.readings) {
            self.safe_since.clear();
            let doubtful = self.look_at_all(client, fill, last_known_id).await?;
            self.refuse_doubtful(&doubtful, view)?;
            self.safe_reading = Some(fill.letters.readings);
        }
        let changed = self.changed(client, last_known_id).await?;
        let others = keys::remove_keys_without_past(client, &fill.contracts, changed.clone()).await?;
        // The fill has not yet passed the letters of some keys. These keys are looked at in a later round.
        let (passed, later): (Vec<Key>, Vec<Key>) = others.into_iter().partition(|key| has_passed(fill, key));
        let mut doubtful = Doubtful::default();
        doubtful.add_keys_without_event(fill, passed)?;
        self.refuse_doubtful(&doubtful, view)?;
        let later: HashSet<Key> = later.into_iter().collect();
        self.safe_since
            .extend(changed.into_iter().filter(|key| !later.contains(key)));
        Ok(())
    }

    /// Whether there is a key with letters that is not proven to be safe. Looks only at what is new since [`Compaction::ensure_keys_are_safe`].
    pub(super) async fn has_unproven_keys(&self, client: &Client, fill: &Fill) -> Result<bool, Error> {
        if self.compacted.is_empty() {
            return Ok(false);
        }
        match fill.letters.last_known_id() {
            Some(last_known_id) if self.safe_reading == Some(fill.letters.readings) => {
                let changed = self.changed(client, last_known_id).await?;
                let others = keys::remove_keys_without_past(client, &fill.contracts, changed).await?;
                Ok(!others.is_empty())
            }
            _ => Ok(true),
        }
    }

    /// All keys with letters up to the id `last_known_id` that are not proven to be safe.
    async fn look_at_all(&self, client: &Client, fill: &Fill, last_known_id: i64) -> Result<Doubtful, Trouble> {
        let (mut doubtful, mut batch) = (Doubtful::default(), Vec::new());
        let pages = Pages::open(client, &self.compacted, last_known_id).await?;
        while let Some(page) = pages.next_page().await? {
            for key in keys::remove_keys_without_past(client, &fill.contracts, page).await? {
                // All of these letters are below the limits, unless somebody has deleted the partition's row.
                if has_passed(fill, &key) {
                    batch.push(key);
                } else {
                    doubtful.add(key);
                }
            }
            if batch.len() >= BATCH_KEYS {
                doubtful.add_keys_without_event(fill, std::mem::take(&mut batch))?;
            }
        }
        doubtful.add_keys_without_event(fill, batch)?;
        pages.close().await?;
        Ok(doubtful)
    }

    /// The keys whose letters have changed since all were read, without those that are known to be safe.
    async fn changed(&self, client: &Client, last_known_id: i64) -> Result<Vec<Key>, Error> {
        if planted::ignores_later_letters() {
            return Ok(Vec::new());
        }
        let mut keys = keys::load_changed_keys(client, &self.compacted, last_known_id).await?;
        keys.retain(|key| !self.safe_since.contains(key));
        Ok(keys)
    }

    /// Refuses to go on if a key is doubtful, unless an operator has accepted that rows may be missing.
    fn refuse_doubtful(&self, doubtful: &Doubtful, view: &View) -> Result<(), Trouble> {
        if doubtful.count == 0 {
            return Ok(());
        }
        let (count, named) = (doubtful.count, doubtful.names());
        if !self.accepts_missing_rows {
            return Err(Failure::Setting(format!(
                "{count} keys with dead letters may have rows in {0} that the topic cannot give again, since compaction has removed their \
                 earlier events: {named}; the live view is as it was: retry these letters first (view-builder dead-letters list), or, to go \
                 on without the rows: view-builder rebuild {0} --accept-compacted",
                view.name
            ))
            .into());
        }
        tracing::warn!(
            count,
            named,
            "rows of keys with dead letters may be missing in the new generation, as was accepted"
        );
        Ok(())
    }
}

/// Whether the fill has passed the key's letters.
fn has_passed(fill: &Fill, key: &Key) -> bool {
    fill.partitions
        .get(&key.place)
        .is_some_and(|filled| key.last_letter < filled.next)
}

impl Doubtful {
    /// Looks in the topics for an event of each key, and adds the keys that have none. The fill must have passed the keys' letters.
    fn add_keys_without_event(&mut self, fill: &Fill, keys: Vec<Key>) -> anyhow::Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        for key in tokio::task::block_in_place(|| topic::keys_without_event(fill, keys))? {
            self.add(key);
        }
        Ok(())
    }

    fn add(&mut self, key: Key) {
        self.count += 1;
        if self.named.len() < NAMED_MAX {
            self.named.push(key);
        }
    }

    /// The names of the first keys, and how many more there are.
    fn names(&self) -> String {
        let named: Vec<String> = self
            .named
            .iter()
            .map(|key| {
                format!(
                    "{} key {}",
                    key.place,
                    String::from_utf8_lossy(&key.key).escape_default()
                )
            })
            .collect();
        let more = self.count - self.named.len();
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        format!("{}{more}", named.join(", "))
    }
}

/// The planted bugs of this look. Without the feature `faults` none of them is there.
mod planted {
    use super::View;
    use crate::process::faults::{self, Bug};

    pub(super) fn topics_to_look_at(view: &View) -> Vec<String> {
        if faults::is_planted(Bug::IgnoreCompaction) {
            return Vec::new();
        }
        view.topics.clone()
    }

    pub(super) fn ignores_later_letters() -> bool {
        faults::is_planted(Bug::NoLetterComesLater)
    }
}
