//! A promotion: proves that a new primary has everything that is published.
//!
//! A promoted standby begins a new timeline at the end of the WAL that it had. Its history file says where each earlier timeline was
//! left (<https://www.postgresql.org/docs/current/continuous-archiving.html#BACKUP-TIMELINES>). If we have published something that was written
//! after that point, the new primary does not have it, and will use its positions again for other rows.

use crate::continuity::progress::Published;
use pg_replication::Lsn;

/// The earlier timelines of a server, and the position at which each was left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History(Vec<Fork>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fork {
    timeline: u32,
    /// End of the WAL of `timeline` that the next one goes on from.
    left_at: Lsn,
}

impl History {
    /// Reads a history file as `TIMELINE_HISTORY` answers with it: lines of timeline, LSN and reason.
    ///
    /// # Errors
    /// A line that is neither that, nor empty, nor a comment.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lines = text.lines().map(str::trim);
        let forks = lines
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| {
                let mut fields = line.split_whitespace();
                let timeline = fields.next().and_then(|field| field.parse().ok());
                let left_at = fields.next().and_then(|field| field.parse().ok());
                match (timeline, left_at) {
                    (Some(timeline), Some(left_at)) => Ok(Fork { timeline, left_at }),
                    _ => Err(format!("`{line}` is no line of a timeline history")),
                }
            });
        forks.collect::<Result<_, _>>().map(Self)
    }

    fn left_at(&self, timeline: u32) -> Option<Lsn> {
        self.0
            .iter()
            .find(|fork| fork.timeline == timeline)
            .map(|fork| fork.left_at)
    }
}

/// Proves that a server on timeline `to` has everything that was `published` from timeline `from`. `history` is that of timeline `to`.
///
/// # Errors
/// Says what the server lacks, or why it cannot be proven.
pub fn ensure_server_has_published(
    from: u32,
    published: Published,
    to: u32,
    history: Option<&History>,
) -> Result<(), String> {
    if to == from {
        return Ok(());
    }
    if to < from {
        return Err(format!(
            "timeline {to} is the earlier one: this is a former primary, or a backup of one, beside the one that was promoted"
        ));
    }
    let history = history.ok_or_else(|| format!("the server has no history file of timeline {to}"))?;
    let left_at = history
        .left_at(from)
        .ok_or_else(|| format!("timeline {to} does not come from timeline {from}"))?;
    if published.lsn > left_at {
        return Err(format!(
            "the new primary left timeline {from} at {left_at}, but everything up to {} is published: it lacks what lies between",
            published.lsn
        ));
    }
    // The new primary has a WAL record whole or not at all. So it is enough to compare the record's beginning.
    match published.partial {
        Some(partial) if partial.commit_lsn >= left_at => Err(format!(
            "the new primary left timeline {from} at {left_at}, but {} rows of the transaction at {} are published, which it lacks",
            partial.rows, partial.commit_lsn
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{History, ensure_server_has_published};
    use crate::continuity::progress::{Partial, Published};
    use pg_replication::Lsn;

    const HISTORY: &str =
        "1\t0/3000000\tno recovery target specified\n\n# a comment\n2\t0/5000000\tbefore 2026-11-24 00:00:00+00\n";

    fn published(lsn: u64) -> Published {
        Published {
            lsn: Lsn(lsn),
            partial: None,
        }
    }

    fn prove(from: u32, published: Published, to: u32) -> Result<(), String> {
        ensure_server_has_published(from, published, to, Some(&History::parse(HISTORY).unwrap()))
    }

    #[test]
    fn what_lies_before_the_promotion_is_continued() {
        assert_eq!(prove(1, published(0x300_0000), 3), Ok(()));
        assert_eq!(prove(2, published(0x500_0000), 3), Ok(()));
        assert_eq!(
            ensure_server_has_published(1, published(9), 1, None),
            Ok(()),
            "the same timeline needs no proof"
        );
    }

    #[test]
    fn what_lies_behind_the_promotion_is_lacking() {
        assert!(
            prove(1, published(0x300_0001), 3)
                .unwrap_err()
                .contains("left timeline 1 at 0/3000000")
        );
        assert!(prove(2, published(0x500_0001), 3).is_err());
    }

    #[test]
    fn a_part_of_a_transaction_counts_by_its_commit() {
        let partial = |commit_lsn: u64| Published {
            lsn: Lsn(0x200_0000),
            partial: Some(Partial {
                commit_lsn: Lsn(commit_lsn),
                rows: 3,
            }),
        };
        assert_eq!(prove(1, partial(0x2ff_ff00), 3), Ok(()));
        assert!(
            prove(1, partial(0x300_0000), 3)
                .unwrap_err()
                .contains("3 rows of the transaction at 0/3000000")
        );
    }

    #[test]
    fn a_former_primary_a_foreign_timeline_and_a_missing_history_prove_nothing() {
        assert!(prove(4, published(1), 3).unwrap_err().contains("former primary"));
        let other = History::parse("2\t0/5000000\tx").unwrap();
        let foreign = ensure_server_has_published(1, published(1), 3, Some(&other));
        assert!(foreign.unwrap_err().contains("does not come from timeline 1"));
        assert!(
            ensure_server_has_published(1, published(1), 2, None)
                .unwrap_err()
                .contains("no history file")
        );
    }

    #[test]
    fn a_garbled_history_is_refused() {
        for text in ["x", "1", "1 nowhere", "1 0/1\nnonsense"] {
            assert!(History::parse(text).is_err(), "{text}");
        }
        assert_eq!(History::parse("\n# nothing\n"), Ok(History::default()));
    }
}
