//! Chooses which rows of the outbox `recover` compares, and from which moment on it reads the topics.
//!
//! **Topics.** The outbox keeps its rows for days, and a topic may keep its records for years. A record's timestamp is the commit of its row, and
//! `created_at` is the insert, which came before. So no record of a row that is still in the outbox is older than the oldest `created_at`, and the
//! topics need not be read from their beginning. An application with a wrong clock or time zone may write `created_at`. So the topics are read from
//! [`CREATED_AT_TRUST_MS`] earlier on, and from their beginning if a row claims to come from the future.
//!
//! **Rows.** All rows are compared, unless the operator gives `--since` or `--since-position`. The checkpoint only says which *commits* are published. A
//! transaction may insert a row long before it commits, so no `created_at` can be derived from the checkpoint.
//!
//! **A position.** A row does not know its position. The topics cannot be searched for one either, since positions need not ascend in a partition: a
//! retry of parked rows writes old ones, a replay writes none, and `--delivery at-least-once` repeats some. So the operator copies the whole header of a
//! record. It has the time of the commit, and Kafka finds the offset of a time. The LSN in it proves more than a time could: the relay publishes in the
//! order of commits, so everything before a record that is in a topic is published or parked. A position above all that is known to be published
//! cannot be from a record, so it is refused.

use anyhow::Context;
use service::clock::now_us;

use crate::continuity::comparison::CLOCKS_DIFFER_MS;
use crate::intake::outbox_snapshot::OutboxSnapshot;
use crate::outbox::rows::first_row;
use crate::process::stop::{RelayError, Stop};
use crate::settings::RecoverOptions;
use pg_replication::Lsn;
use pg_replication::{Connection, PgError, quote_literal};

/// By how much `created_at` may be ahead of the commit, in milliseconds: a day is more than any wrong time zone.
const CREATED_AT_TRUST_MS: i64 = 24 * 60 * 60 * 1_000;

/// Which rows are compared and which records are read. Both are in milliseconds since 1970. `None` means all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scope {
    /// Rows with an older `created_at` are not compared, since the operator knows that they are published.
    pub(super) rows_since_ms: Option<i64>,
    /// Records that are older are not read: no compared row has such a record.
    pub(super) records_since_ms: Option<i64>,
}

impl Scope {
    /// Uses the operator's `--since` or `--since-position`. Without them, compares all rows of `snapshot`.
    ///
    /// # Errors
    /// The operator gave one of them, and the table has no `created_at`; the connection broke.
    pub(super) async fn choose(
        snapshot: &mut OutboxSnapshot,
        operator_since_ms: Option<i64>,
    ) -> Result<Self, RelayError> {
        if let Some(since_ms) = operator_since_ms {
            if !snapshot.has_created_at() {
                return Err(Stop::Config {
                    what: "--since and --since-position: the outbox table has no column created_at that tells which rows are older; leave it out"
                        .to_owned(),
                }
                .into());
            }
            return Ok(Self::since(since_ms));
        }
        let everything = Self {
            rows_since_ms: None,
            records_since_ms: None,
        };
        if !snapshot.has_created_at() || count_rows_with_impossible_created_at(snapshot).await? > 0 {
            return Ok(everything);
        }
        let oldest_ms = oldest_row_ms(snapshot).await?;
        Ok(Self {
            records_since_ms: oldest_ms.map(|oldest_ms| oldest_ms - CREATED_AT_TRUST_MS),
            ..everything
        })
    }

    fn since(since_ms: i64) -> Self {
        let rows_since_ms = since_ms - CLOCKS_DIFFER_MS;
        Self {
            rows_since_ms: Some(rows_since_ms),
            records_since_ms: Some(rows_since_ms - CLOCKS_DIFFER_MS),
        }
    }
}

/// `created_at` of the oldest row, in milliseconds since 1970. `None`: the outbox is empty or has no such column.
///
/// # Errors
/// The connection broke.
pub(super) async fn oldest_row_ms(snapshot: &mut OutboxSnapshot) -> Result<Option<i64>, RelayError> {
    if !snapshot.has_created_at() {
        return Ok(None);
    }
    let oldest = snapshot
        .aggregate("floor(extract(epoch from min(created_at)) * 1000)::bigint")
        .await?;
    Ok(oldest.map(|text| text.parse()).transpose().context("created_at")?)
}

/// Counts the rows whose `created_at` is missing or lies in the future.
async fn count_rows_with_impossible_created_at(snapshot: &mut OutboxSnapshot) -> Result<u64, RelayError> {
    let future_ms = now_us() / 1_000 + CLOCKS_DIFFER_MS;
    let count = snapshot
        .aggregate(&format!(
            "count(*) filter (where created_at is null or extract(epoch from created_at) * 1000 > {future_ms})"
        ))
        .await?;
    Ok(count.context("count")?.parse().context("count")?)
}

/// The moment that the operator names, in milliseconds since 1970: by `--since` as Postgres reads it (`2026-11-28 09:30+01`, `yesterday`), by
/// `--since-position` the commit of a record.
///
/// # Errors
/// [`Stop::Config`] if it is not a moment, or is in the future. Any other error is worth another try.
pub(super) async fn since_ms(connection: &mut Connection, options: &RecoverOptions) -> Result<Option<i64>, RelayError> {
    let Some(position) = options.since_position else {
        return parse_since(connection, options.since.as_deref()).await;
    };
    let since_ms = position.commit_timestamp_us / 1_000;
    if since_ms > now_us() / 1_000 {
        return Err(Stop::Config {
            what: format!(
                "--since-position `{position}`: its commit is in the future; expected the header `position` of a record"
            ),
        }
        .into());
    }
    Ok(Some(since_ms))
}

/// Fails if the position of `--since-position` is above `highest_published`, the highest position that is known to be published. Then the rows before it
/// cannot count as published.
///
/// # Errors
/// [`Stop::Config`] names both.
pub(super) fn ensure_is_published(options: &RecoverOptions, highest_published: Option<u64>) -> Result<(), Stop> {
    let Some(position) = options.since_position else {
        return Ok(());
    };
    let known = match highest_published {
        Some(highest) if position.commit_lsn <= highest => return Ok(()),
        Some(highest) => format!("all that is known to be published, which ends at {}", Lsn(highest)),
        None => "all that is known to be published, which is nothing".to_owned(),
    };
    Err(Stop::Config {
        what: format!(
            "--since-position `{position}`: it is above {known}; expected the header `position` of a record that is in a topic"
        ),
    })
}

/// The moment that `--since` names.
async fn parse_since(connection: &mut Connection, since: Option<&str>) -> Result<Option<i64>, RelayError> {
    let Some(text) = since else { return Ok(None) };
    let sql = format!(
        "select floor(extract(epoch from {}::timestamptz) * 1000)::bigint as since_ms",
        quote_literal(text)
    );
    let refused = |what: String| Stop::Config {
        what: format!("--since `{text}`: {what}; expected a moment like 2026-11-28 09:30+01"),
    };
    let answer = match connection.query(&sql).await {
        Ok(answer) => answer,
        // Class 22: what was given cannot be converted.
        Err(err) if PgError::code_of(&err).is_some_and(|code| code.starts_with("22")) => {
            return Err(refused(format!("{err:#}")).into());
        }
        Err(err) => return Err(err.into()),
    };
    let row = first_row(&answer).context("no answer")?;
    let since_ms: i64 = row.parse("since_ms").context("--since")?;
    if since_ms > now_us() / 1_000 {
        return Err(refused("it is in the future".to_owned()).into());
    }
    Ok(Some(since_ms))
}

#[cfg(test)]
mod tests {
    use super::{Scope, ensure_is_published};
    use crate::continuity::comparison::CLOCKS_DIFFER_MS;
    use crate::settings::RecoverOptions;

    #[test]
    fn rows_and_records_somewhat_older_than_since_are_looked_at_as_well() {
        let scope = Scope::since(100_000);
        assert_eq!(scope.rows_since_ms, Some(100_000 - CLOCKS_DIFFER_MS));
        assert!(scope.records_since_ms < scope.rows_since_ms);
    }

    #[test]
    fn a_position_above_all_that_is_published_is_refused() {
        let options = RecoverOptions {
            yes: false,
            compare_anyway: false,
            accept_partitions: false,
            since: None,
            since_position: Some("0/100:0:5".parse().expect("a position")),
            undecided: None,
            failover: false,
            another_slot: false,
        };
        assert_eq!(ensure_is_published(&options, Some(0x100)), Ok(()));
        for highest in [None, Some(0xFF)] {
            let refused = ensure_is_published(&options, highest).expect_err("it is above");
            assert!(refused.to_string().contains("it is above all"), "{refused}");
        }
    }
}
