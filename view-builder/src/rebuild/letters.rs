//! The dead letters as a fill has to see them: what the live view has not applied.
//!
//! A letter that came in a replay is of an event that the views had applied before: a view that was new, or whose SQL had changed, has refused it then
//! (`applied_before`). The other views have it, so a generation gets it, and what is parked behind it, as if there were no letter. Where the
//! generation's own SQL refuses it, this view is the one that does not have it: then the letter *stands*, as any other.

use std::collections::{HashMap, HashSet};

use tokio_postgres::{Client, Error};

use crate::batch::TopicPartition;
use crate::faults::{self, Bug};
use crate::letters::{Known, store};

/// As [`store::gather`] takes it, with one column more.
const LETTERS: &str = "
    select held.topic, held.partition, held.letters_version, letter.record_offset, letter.key,
        letter.discarded_at is not null, letter.applied_before
    from view_positions as held
    left join only view_dead_letters as letter using (topic, partition)
    where held.topic = any($1)";

/// Events that the views had applied before, and that the generation refuses.
pub(super) type Standing = HashSet<(TopicPartition, i64)>;

/// The letters of these topics as of now.
pub(super) async fn known(
    client: &Client,
    topics: &[String],
    standing: &Standing,
) -> Result<HashMap<TopicPartition, Known>, Error> {
    store::gather(client, LETTERS, &[&topics], |place, offset, row| {
        let is_applied = row.get(6) && !standing.contains(&(place.clone(), offset));
        !is_applied || faults::is_planted(Bug::LetterIsNeverApplied)
    })
    .await
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
