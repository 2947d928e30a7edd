//! One comparison: a first look at everything, then further looks at what differed. [`crate::commands::verify`] argues why.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::commands::verify::arrival::{Arrival, Arrived, Behind};
use crate::commands::verify::merge::{Input, MergeError, merge};
use crate::commands::verify::side::{Bucket, Row, Side};
use crate::process::failure::Failure;

/// At most so many differing rows are held for further looks.
const HELD_MAX: usize = 50_000;
/// At most so many buckets are held. If more buckets differ, the rows of all buckets are compared.
const BUCKETS_MAX: usize = 10_000;

/// What a comparison found.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The buckets that differed at the first look, or all buckets if the caller asked for all. Sorted by name.
    pub buckets: Vec<BucketLine>,
    /// How many further buckets there are. [`Outcome::buckets`] holds 10,000 at most.
    pub buckets_more: u64,
    pub rows_source: i64,
    pub rows_view: i64,
    /// Sorted by key.
    pub differences: Vec<Difference>,
    /// Rows that differed at first and are equal now.
    pub caught_up: u64,
    /// Rows that differ, but whose events may still be on their way to the view.
    pub undecided: u64,
    /// Rows that differed at the first look and are more than the 50,000 that are held for further looks.
    pub not_looked_at_again: u64,
    /// How far the view is behind, which is why rows are undecided. `None`: rows are undecided since they kept changing, or no row is.
    pub behind: Option<Behind>,
}

/// One bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketLine {
    pub bucket: Option<String>,
    /// Rows at the first look.
    pub rows_source: i64,
    pub rows_view: i64,
    pub state: State,
}

/// How the rows of a bucket compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Was equal at the first look.
    Equal,
    /// Differed at the first look, and is equal now.
    CaughtUp,
    /// Has rows that differ, but whose events may still be on their way to the view.
    Undecided,
    Different,
}

/// A row that is not what its source says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub key: i64,
    /// `None`: the view has the row and should not have it.
    pub source: Option<Row>,
    /// `None`: the row is missing in the view.
    pub view: Option<Row>,
}

/// What the first look at all buckets and rows found.
#[derive(Default)]
struct FirstLook {
    buckets: Vec<BucketLine>,
    buckets_more: u64,
    rows_source: i64,
    rows_view: i64,
    differing: Vec<Difference>,
    /// How many more rows differ than `differing` holds.
    differing_more: u64,
}

/// Compares two queries. `arrival` waits for the events that are on their way to the view, for `wait` at most.
/// Without `arrival`, both sides are in one database and are read in one snapshot, so every row that differs is a difference.
/// `all`: the outcome also lists the buckets that are equal.
///
/// # Errors
/// Postgres or Kafka does not answer; a query's rows are not as they must be.
pub async fn compare<A: Arrival>(
    source: &Side,
    view: &Side,
    arrival: Option<&mut A>,
    wait: Duration,
    all: bool,
) -> Result<Outcome, Failure> {
    let snapshots = if arrival.is_none() {
        Snapshots::Shared
    } else {
        Snapshots::Separate
    };
    let mut look = first_look(source, view, snapshots, all).await?;
    let mut outcome = Outcome::default();
    let mut undecided = Vec::new();
    match arrival {
        None => outcome.differences = std::mem::take(&mut look.differing),
        Some(_) if look.differing.is_empty() => {}
        Some(arrival) => {
            let deadline = Instant::now() + wait;
            if look.differing_more > 0 {
                tracing::info!(
                    "more rows differ than can be held: waiting for the view, then looking at everything again"
                );
                arrival.arrived(deadline).await?;
                look = first_look(source, view, Snapshots::Separate, all).await?;
            }
            let keys = look.differing.iter().map(|row| row.key).collect();
            (outcome, undecided) = look_again(source, view, arrival, deadline, keys).await?;
        }
    }
    outcome.not_looked_at_again = look.differing_more;
    outcome.rows_source = look.rows_source;
    outcome.rows_view = look.rows_view;
    outcome.buckets_more = look.buckets_more;
    outcome.buckets = look.buckets;
    set_bucket_states(&mut outcome, &look.differing, &undecided);
    Ok(outcome)
}

/// Whether the two queries read the same snapshot.
#[derive(Clone, Copy)]
enum Snapshots {
    Shared,
    Separate,
}

/// Compares all buckets, and then the rows of the buckets that differ.
async fn first_look(source: &Side, view: &Side, snapshots: Snapshots, all: bool) -> Result<FirstLook, Failure> {
    match snapshots {
        Snapshots::Shared => {
            let snapshot = source.begin_shared().await?;
            view.begin_at(&snapshot).await?;
        }
        Snapshots::Separate => {
            source.begin().await?;
            view.begin().await?;
        }
    }
    let mut look = FirstLook::default();
    let mut differing_buckets = Vec::new();
    let mut differing_buckets_more = 0_u64;
    let (of_source, of_view) = tokio::try_join!(source.stream_buckets(), view.stream_buckets())?;
    let merged = merge(
        of_source,
        of_view,
        |bucket, in_source: Option<Bucket>, in_view: Option<Bucket>| {
            let rows = |side: &Option<Bucket>| side.as_ref().map_or(0, |bucket| bucket.rows);
            look.rows_source += rows(&in_source);
            look.rows_view += rows(&in_view);
            // A bucket that differs counts as caught up until a further look finds otherwise, see `set_bucket_states`.
            let state = if in_source == in_view {
                State::Equal
            } else {
                State::CaughtUp
            };
            if state != State::Equal {
                if differing_buckets.len() < BUCKETS_MAX {
                    differing_buckets.push(bucket.clone());
                } else {
                    differing_buckets_more += 1;
                }
            }
            if all || state != State::Equal {
                if look.buckets.len() < BUCKETS_MAX {
                    let (rows_source, rows_view) = (rows(&in_source), rows(&in_view));
                    look.buckets.push(BucketLine {
                        bucket,
                        rows_source,
                        rows_view,
                        state,
                    });
                } else {
                    look.buckets_more += 1;
                }
            }
        },
    );
    merged.await.map_err(|err| explain_merge_error(err, source, view))?;
    if !differing_buckets.is_empty() {
        tracing::info!(
            buckets = differing_buckets.len(),
            "buckets differ: looking for the rows"
        );
        let buckets = (differing_buckets_more == 0).then_some(&*differing_buckets);
        let (of_source, of_view) = tokio::try_join!(source.stream_rows(buckets), view.stream_rows(buckets))?;
        let merged = merge(of_source, of_view, |key, source: Option<Row>, view: Option<Row>| {
            if source == view {
                return;
            }
            if look.differing.len() < HELD_MAX {
                look.differing.push(Difference { key, source, view });
            } else {
                look.differing_more += 1;
            }
        });
        merged.await.map_err(|err| explain_merge_error(err, source, view))?;
    }
    source.end().await?;
    view.end().await?;
    Ok(look)
}

/// Says of a merge that ended early which query is to blame.
fn explain_merge_error(err: MergeError<Failure>, source: &Side, view: &Side) -> Failure {
    match err {
        MergeError::StreamFailed(failure) => failure,
        MergeError::NotAscending(Input::Source) => source.repeated_key().into(),
        MergeError::NotAscending(Input::View) => view.repeated_key().into(),
    }
}

/// Looks at these rows again and again, until each is decided (equal, or a difference) or the time is up.
/// Returns what was found, and the keys that stay undecided.
async fn look_again<A: Arrival>(
    source: &Side,
    view: &Side,
    arrival: &mut A,
    deadline: Instant,
    mut undecided: Vec<i64>,
) -> Result<(Outcome, Vec<i64>), Failure> {
    let mut outcome = Outcome::default();
    // After the first look at the view: what is gone from the source now was gone for good, see the module's comment.
    let mut before = source.load_rows(&undecided).await?;
    loop {
        tracing::info!(
            rows = undecided.len(),
            "rows differ: waiting until the view has every event up to now"
        );
        let arrived = arrival.arrived(deadline).await?;
        let shown = view.load_rows(&undecided).await?;
        let after = source.load_rows(&undecided).await?;
        let may_judge = arrived == Arrived::All;
        undecided.retain(
            |key| match judge(before.get(key), shown.get(key), after.get(key), may_judge) {
                Verdict::Equal => {
                    outcome.caught_up += 1;
                    false
                }
                Verdict::Different => {
                    outcome.differences.push(Difference {
                        key: *key,
                        source: after.get(key).cloned(),
                        view: shown.get(key).cloned(),
                    });
                    false
                }
                Verdict::Undecided => true,
            },
        );
        if let Arrived::Behind(behind) = arrived {
            outcome.behind = (!undecided.is_empty()).then_some(behind);
        }
        if undecided.is_empty() || !may_judge || Instant::now() >= deadline {
            outcome.undecided = undecided.len() as u64;
            outcome.differences.sort_by_key(|row| row.key);
            return Ok((outcome, undecided));
        }
        before = after;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Equal,
    Different,
    Undecided,
}

/// Decides about one row by three reads in this order: the source (`before`), the view (`shown`), the source again (`after`).
/// `may_judge`: the view had every event up to the first read. Without that, a row that differs may only be late.
fn judge(before: Option<&Row>, shown: Option<&Row>, after: Option<&Row>, may_judge: bool) -> Verdict {
    if shown == before || shown == after {
        Verdict::Equal
    } else if may_judge && before == after {
        Verdict::Different
    } else {
        Verdict::Undecided
    }
}

/// Sets the state of each bucket that differed at the first look to what the further looks found. `undecided` is sorted.
fn set_bucket_states(outcome: &mut Outcome, differing: &[Difference], undecided: &[i64]) {
    fn names<'a>(rows: impl Iterator<Item = &'a Difference>) -> BTreeSet<Option<String>> {
        let sides = rows.flat_map(|row| [&row.source, &row.view]);
        sides.flatten().map(|row| row.bucket.clone()).collect()
    }
    let different = names(outcome.differences.iter());
    let undecided = names(differing.iter().filter(|row| undecided.binary_search(&row.key).is_ok()));
    for line in &mut outcome.buckets {
        if different.contains(&line.bucket) {
            line.state = State::Different;
        } else if line.state != State::Equal && (outcome.not_looked_at_again > 0 || undecided.contains(&line.bucket)) {
            line.state = State::Undecided;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Row, Verdict, judge};

    fn row(version: i64) -> Row {
        Row {
            bucket: None,
            version,
            hash: version,
        }
    }

    #[test]
    fn only_a_row_at_rest_in_a_view_with_every_event_is_a_difference() {
        let (one, two, three) = (row(1), row(2), row(3));
        for (before, shown, after, may_judge, expected) in [
            (Some(&two), Some(&two), Some(&two), false, Verdict::Equal),
            (Some(&two), Some(&two), Some(&three), true, Verdict::Equal),
            (Some(&two), Some(&three), Some(&three), true, Verdict::Equal),
            (Some(&two), Some(&one), Some(&two), true, Verdict::Different),
            (Some(&two), None, Some(&two), true, Verdict::Different),
            (None, Some(&two), None, true, Verdict::Different),
            (Some(&two), Some(&one), Some(&two), false, Verdict::Undecided),
            (Some(&two), Some(&one), Some(&three), true, Verdict::Undecided),
            (Some(&two), Some(&one), None, true, Verdict::Undecided),
        ] {
            assert_eq!(
                judge(before, shown, after, may_judge),
                expected,
                "{before:?} {shown:?} {after:?}"
            );
        }
    }
}
