//! How many dead letters wait. To count them needs a look at each, so it is done seldom.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio_postgres::Row;

use crate::postgres::{Database, SqlError};

/// How many dead letters wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Letters {
    /// Events that cannot be applied.
    pub dead: i64,
    /// Events that wait behind one of them.
    pub behind: i64,
}

/// Counts, and keeps what it counted last.
#[derive(Debug, Default)]
pub struct LettersAsker {
    /// Dead letters that wait, by topic.
    pub counted: BTreeMap<String, Letters>,
    /// Why they could not be counted when that was last tried, in words for people.
    pub failure: Option<String>,
    last: Option<Count>,
}

/// When they were counted last.
#[derive(Clone, Copy, Debug)]
struct Count {
    at: Instant,
    took: Duration,
    /// How many changes the server had counted in their tables before.
    changes: i64,
}

/// They are counted at least this often.
const INTERVAL_MAX: Duration = Duration::from_mins(1);
/// Where they have changed, they are counted anew after this many times the time that it took.
const REST: u32 = 20;

const CHANGES: &str = "
    select coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0)::bigint as changes from pg_stat_all_tables
    where schemaname = 'public' and relname in ('view_dead_letters', 'view_former_dead_letters')";

const LETTERS: &str = "
    select topic, count(*) filter (where reason is not null) as dead, count(*) filter (where reason is null) as behind
    from (select topic, reason from only public.view_dead_letters where discarded_at is null
          union all select topic, reason from public.view_former_dead_letters where discarded_at is null) as letter
    group by topic";

impl LettersAsker {
    /// Counts anew where that is due. What cannot be counted keeps its last figures.
    pub(super) async fn ask(&mut self, database: &Database) {
        self.failure = match self.count(database).await {
            Ok(true) => None,
            Ok(false) => self.failure.take(),
            Err(err) => Some(err.to_string()),
        };
    }

    /// Whether it was due.
    async fn count(&mut self, database: &Database) -> Result<bool, SqlError> {
        let changes = database.query(CHANGES, &[]).await?;
        let changes = changes.first().map_or(0, |row| row.get("changes"));
        let at = Instant::now();
        if !is_due(self.last, changes, at) {
            return Ok(false);
        }
        let counted = database.query(LETTERS, &[]).await;
        self.last = Some(Count {
            at,
            took: at.elapsed(),
            changes,
        });
        self.counted = counted?
            .iter()
            .map(|row| (row.get("topic"), Letters::of(row)))
            .collect();
        Ok(true)
    }
}

/// Whether to count anew.
fn is_due(last: Option<Count>, changes: i64, now: Instant) -> bool {
    let Some(last) = last else { return true };
    let since = now.duration_since(last.at);
    since >= INTERVAL_MAX || (changes != last.changes && since >= last.took * REST)
}

impl Letters {
    fn of(row: &Row) -> Self {
        Self {
            dead: row.get("dead"),
            behind: row.get("behind"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Count, is_due};

    #[test]
    fn letters_are_counted_when_they_have_changed_and_otherwise_once_a_minute() {
        let at = Instant::now();
        let last = Some(Count {
            at,
            took: Duration::from_millis(500),
            changes: 7,
        });
        assert!(is_due(None, 0, at));
        let after = |seconds: u64, changes: i64| is_due(last, changes, at + Duration::from_secs(seconds));
        assert!(!after(59, 7) && after(60, 7));
        // It took half a second, so there is a rest of ten.
        assert!(!after(9, 8) && after(10, 8));
    }
}
