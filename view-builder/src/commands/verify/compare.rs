//! One comparison: a first look at everything, then further looks at what differed. [`crate::commands::verify`] argues why.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::commands::verify::arrival::{Arrival, Arrived, Behind};
use crate::commands::verify::merge::{Broken, merge};
use crate::commands::verify::side::{Bucket, Row, Side};
use crate::process::failure::Failure;

/// Most rows that are held for further looks.
const HELD_MAX: usize = 50_000;
/// Most buckets that are held; where more differ, the rows of all buckets are compared.
const BUCKETS_MAX: usize = 10_000;

/// What a comparison found.
#[derive(Debug, Default)]
pub struct Outcome {
    /// In the order of their names: those that differed at the first look, or all where asked for.
    pub buckets: Vec<BucketLine>,
    /// Buckets beyond [`Outcome::buckets`], which holds 10,000 at most.
    pub buckets_more: u64,
    pub rows_source: i64,
    pub rows_view: i64,
    /// In the order of their keys.
    pub differences: Vec<Difference>,
    /// Rows that differed at first and are equal now.
    pub caught_up: u64,
    /// Rows that differ while their events may be on their way.
    pub open: u64,
    /// Rows beyond the 50,000 that were looked at again.
    pub unexamined: u64,
    /// Why rows are open; none: they kept changing.
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

/// How a bucket stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// At the first look.
    Equal,
    /// Differed at first.
    CaughtUp,
    /// Has rows whose events may be on their way.
    Open,
    Different,
}

/// A row that is not what its source says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub key: i64,
    /// None: the view has it and should not.
    pub source: Option<Row>,
    /// None: it is missing in the view.
    pub view: Option<Row>,
}

/// The first look at everything.
#[derive(Default)]
struct Look {
    buckets: Vec<BucketLine>,
    buckets_more: u64,
    rows_source: i64,
    rows_view: i64,
    differing: Vec<Difference>,
    overflow: u64,
}

/// Compares two queries. `arrival` waits for events on their way, `wait` at most; none: both sides are in one database and are
/// read in one snapshot, so that whatever differs is a difference. `all`: also tell the buckets that are equal.
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
    let mut look = look(source, view, arrival.is_none(), all).await?;
    let mut outcome = Outcome::default();
    let mut open = Vec::new();
    match arrival {
        None => outcome.differences = std::mem::take(&mut look.differing),
        Some(_) if look.differing.is_empty() => {}
        Some(arrival) => {
            let deadline = Instant::now() + wait;
            if look.overflow > 0 {
                tracing::info!(
                    "more rows differ than can be held: waiting for the view, then looking at everything again"
                );
                arrival.arrived(deadline).await?;
                look = self::look(source, view, false, all).await?;
            }
            let keys = look.differing.iter().map(|row| row.key).collect();
            (outcome, open) = look_again(source, view, arrival, deadline, keys).await?;
        }
    }
    outcome.unexamined = look.overflow;
    outcome.rows_source = look.rows_source;
    outcome.rows_view = look.rows_view;
    outcome.buckets_more = look.buckets_more;
    outcome.buckets = look.buckets;
    mark(&mut outcome, &look.differing, &open);
    Ok(outcome)
}

async fn look(source: &Side, view: &Side, one_snapshot: bool, all: bool) -> Result<Look, Failure> {
    if one_snapshot {
        let snapshot = source.begin_shared().await?;
        view.begin_at(&snapshot).await?;
    } else {
        source.begin().await?;
        view.begin().await?;
    }
    let mut look = Look::default();
    let mut differing = Vec::new();
    let mut differing_more = 0_u64;
    let (left, right) = tokio::try_join!(source.buckets(), view.buckets())?;
    let merged = merge(left, right, |bucket, left: Option<Bucket>, right: Option<Bucket>| {
        let rows = |side: &Option<Bucket>| side.as_ref().map_or(0, |bucket| bucket.rows);
        look.rows_source += rows(&left);
        look.rows_view += rows(&right);
        let state = if left == right { State::Equal } else { State::CaughtUp };
        if state != State::Equal {
            if differing.len() < BUCKETS_MAX {
                differing.push(bucket.clone());
            } else {
                differing_more += 1;
            }
        }
        if all || state != State::Equal {
            if look.buckets.len() < BUCKETS_MAX {
                let (rows_source, rows_view) = (rows(&left), rows(&right));
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
    });
    sound(merged.await, source, view)?;
    if !differing.is_empty() {
        tracing::info!(buckets = differing.len(), "buckets differ: looking for the rows");
        let buckets = (differing_more == 0).then_some(&*differing);
        let (left, right) = tokio::try_join!(source.rows(buckets), view.rows(buckets))?;
        let merged = merge(left, right, |key, source: Option<Row>, view: Option<Row>| {
            if source == view {
                return;
            }
            if look.differing.len() < HELD_MAX {
                look.differing.push(Difference { key, source, view });
            } else {
                look.overflow += 1;
            }
        });
        sound(merged.await, source, view)?;
    }
    source.end().await?;
    view.end().await?;
    Ok(look)
}

fn sound(merged: Result<(), Broken<Failure>>, source: &Side, view: &Side) -> Result<(), Failure> {
    merged.map_err(|broken| match broken {
        Broken::Failed(failure) => failure,
        Broken::Repeated { in_source: true } => source.repeated().into(),
        Broken::Repeated { in_source: false } => view.repeated().into(),
    })
}

/// Looks at these rows until each is equal or a difference, or the time is up; also the keys of those that stay open.
async fn look_again<A: Arrival>(
    source: &Side,
    view: &Side,
    arrival: &mut A,
    deadline: Instant,
    mut open: Vec<i64>,
) -> Result<(Outcome, Vec<i64>), Failure> {
    let mut outcome = Outcome::default();
    // After the first look at the view: what is gone from the source now was gone for good, see the module's comment.
    let mut before = source.rows_of(&open).await?;
    loop {
        tracing::info!(
            rows = open.len(),
            "rows differ: waiting until the view has every event up to now"
        );
        let arrived = arrival.arrived(deadline).await?;
        let shown = view.rows_of(&open).await?;
        let after = source.rows_of(&open).await?;
        let may_judge = arrived == Arrived::All;
        open.retain(
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
                Verdict::Open => true,
            },
        );
        if let Arrived::Behind(behind) = arrived {
            outcome.behind = (!open.is_empty()).then_some(behind);
        }
        if open.is_empty() || !may_judge || Instant::now() >= deadline {
            outcome.open = open.len() as u64;
            outcome.differences.sort_by_key(|row| row.key);
            return Ok((outcome, open));
        }
        before = after;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Equal,
    Different,
    Open,
}

/// What a further look says of a row: the source, the view with every event up to then where `may_judge`, the source again.
fn judge(before: Option<&Row>, shown: Option<&Row>, after: Option<&Row>, may_judge: bool) -> Verdict {
    if shown == before || shown == after {
        Verdict::Equal
    } else if may_judge && before == after {
        Verdict::Different
    } else {
        Verdict::Open
    }
}

/// Tells of each bucket that differed at the first look how it stands now; `open` is sorted.
fn mark(outcome: &mut Outcome, differing: &[Difference], open: &[i64]) {
    fn names<'a>(rows: impl Iterator<Item = &'a Difference>) -> BTreeSet<Option<String>> {
        let sides = rows.flat_map(|row| [&row.source, &row.view]);
        sides.flatten().map(|row| row.bucket.clone()).collect()
    }
    let different = names(outcome.differences.iter());
    let open = names(differing.iter().filter(|row| open.binary_search(&row.key).is_ok()));
    for line in &mut outcome.buckets {
        if different.contains(&line.bucket) {
            line.state = State::Different;
        } else if line.state != State::Equal && (outcome.unexamined > 0 || open.contains(&line.bucket)) {
            line.state = State::Open;
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
            (Some(&two), Some(&one), Some(&two), false, Verdict::Open),
            (Some(&two), Some(&one), Some(&three), true, Verdict::Open),
            (Some(&two), Some(&one), None, true, Verdict::Open),
        ] {
            assert_eq!(
                judge(before, shown, after, may_judge),
                expected,
                "{before:?} {shown:?} {after:?}"
            );
        }
    }
}
