//! How far a generation is filled (its limits), and which letters it leaves out. Both are read again and again, since builders move the live view
//! on meanwhile.
//!
//! The limits are read before the letters, so that each letter below the limits is seen. If all letters are read, one more step comes first: the
//! highest id of a letter is noted ([`Letters::note_highest_id`](super::letters::Letters::note_highest_id)). Letters up to this id are below the
//! limits, and letters with a higher id are new.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::fill::Fill;
use super::filled::Filled;
use super::reached::Reached;
use super::trouble::Trouble;
use crate::contract::place::TopicPartition;
use crate::process::failure::Failure;
use crate::views::view::View;

impl Fill {
    /// Reads how far the live view is now, as the new limits, and its dead letters. Returns whether letters have changed, so that what was left
    /// out is read again.
    ///
    /// # Errors
    /// A topic was made anew, or lost events, since the generation was begun: its offsets are not those that were read.
    pub(super) async fn update_limits_and_letters(&mut self, client: &Client, view: &View) -> Result<bool, Trouble> {
        if self.try_update_limits(client, view).await? {
            return Ok(false);
        }
        self.letters.note_highest_id(client).await?;
        let limits = self.limits(client, view).await?;
        self.letters.read_all(client).await?;
        Ok(self.take_limits(limits))
    }

    /// Does the same as [`Fill::update_limits_and_letters`], but only if no letter was taken away and not too many are new. Otherwise it returns
    /// false and changes nothing: then all letters have to be read again.
    pub(super) async fn try_update_limits(&mut self, client: &Client, view: &View) -> Result<bool, Trouble> {
        // Before the letters, so that each letter below the limits is seen.
        let limits = self.limits(client, view).await?;
        let is_enough = self.letters.try_add_new(client).await?;
        if is_enough {
            self.take_limits(limits);
        }
        Ok(is_enough)
    }

    /// Reads how far the live view has been in each partition that exists.
    async fn limits(&mut self, client: &Client, view: &View) -> Result<BTreeMap<TopicPartition, Reached>, Trouble> {
        let limits = self.existing.reached(client, &self.consumers, &view.topics).await?;
        for (place, filled) in &self.partitions {
            let is_broken = limits.get(place).is_some_and(|reached| reached.breaks != filled.breaks);
            if is_broken || self.existing.is_gone(place) {
                return Err(broken(view, place).into());
            }
        }
        self.refuse_made_anew(view, &limits)?;
        Ok(limits)
    }

    /// Sets the limits. Where the letters of a partition have changed, reading goes back to the first event that was left out. Returns whether
    /// letters have changed.
    fn take_limits(&mut self, limits: BTreeMap<TopicPartition, Reached>) -> bool {
        let mut letters_have_changed = false;
        for (place, Reached { limit, breaks, .. }) in limits {
            let letters_version = self.letters.version(&place);
            let filled = self.partitions.entry(place).or_insert_with(|| Filled {
                next: 0,
                limit,
                letters_version,
                left_out_from: None,
                breaks,
            });
            filled.limit = limit;
            if filled.letters_version != letters_version {
                filled.letters_version = letters_version;
                letters_have_changed = true;
                if let Some(from) = filled.left_out_from.take() {
                    filled.next = filled.next.min(from);
                }
            }
        }
        letters_have_changed
    }

    fn refuse_made_anew(&self, view: &View, limits: &BTreeMap<TopicPartition, Reached>) -> Result<(), Failure> {
        let beyond = self
            .partitions
            .iter()
            .find(|(place, filled)| filled.next > limits.get(place).map_or(0, |reached| reached.limit));
        let Some((place, filled)) = beyond else {
            return Ok(());
        };
        Err(Failure::Setting(format!(
            "the new generation of {0} has events of {place} up to offset {1}, and the live view does not: the partition's row in \
             view_positions was deleted since the rebuild began; begin anew: view-builder rebuild {0} --abandon, and then rebuild",
            view.name, filled.next
        )))
    }
}

/// A rebuild that was begun over other events than the topic has now.
fn broken(view: &View, place: &TopicPartition) -> Failure {
    let name = &view.name;
    Failure::Setting(format!(
        "{place} was made anew, or lost events, since the rebuild of {name} was begun: view-builder rebuild {name} --abandon, then begin it again"
    ))
}
