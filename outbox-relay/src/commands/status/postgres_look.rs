//! What `status` asks Postgres. As soon as one question has no answer, Postgres counts as away, and no further question is asked.

use anyhow::Context as _;
use tokio::time::{Instant, timeout_at};

use super::figures;
use crate::continuity::comparison::RowsOfAKey;
use crate::continuity::source::Slot;
use crate::findings::{Finding, failover, sentences};
use crate::guard::retention::Retention;
use crate::intake::outbox_snapshot::read_rows_of_a_key;
use crate::outbox::publication::{Publication, require_usable_publication};
use crate::outbox::rows::first_row;
use crate::outbox::source::{self, System};
use crate::outbox::table::table_name;
use crate::process::stop::{RelayError, Stop};
use crate::settings::Config;
use pg_replication::{Connection, Mode, PgError, quote_identifier, quote_literal};

/// How long the question for the oldest row may take. Without an index on `created_at` it reads the table.
const OLDEST_ROW_WITHIN_MS: u32 = 1_000;
/// Postgres' code for a right that a role does not have.
const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// What Postgres has told so far.
#[derive(Default)]
pub(super) struct PostgresLook {
    connection: Option<Connection>,
    /// Why no further question was asked.
    pub(super) away_because: Option<String>,
    pub(super) server_version: Option<String>,
    /// As a start looks at it.
    pub(super) slot: Option<Slot>,
    /// As people look at it.
    pub(super) slot_figures: Option<figures::Slot>,
    /// Why the slot may be lost, or sends nothing.
    pub(super) slot_dangers: Vec<String>,
    pub(super) publication: Option<Result<Publication, Stop>>,
    pub(super) system: Option<System>,
    /// Age of the oldest row that is not published, in seconds, or why it is not known.
    pub(super) oldest_unpublished: Option<Result<f64, String>>,
}

/// One question, and what it changes in the look.
type Asked<T> = anyhow::Result<T>;

impl PostgresLook {
    /// Opens a session and reads the slot.
    pub(super) async fn open(config: &Config, deadline: Instant) -> Self {
        let mut look = Self::default();
        let opened = within(deadline, async {
            let mut connection = Connection::open(&config.source.target, Mode::Replication).await?;
            let slot = source::find_slot(&mut connection, &config.source.slot).await?;
            Ok((connection, slot))
        });
        match opened.await {
            Err(err) => look.away_because = Some(sentences::postgres_is_away(&err)),
            Ok((connection, slot)) => {
                let version = connection.server_version_num();
                look.server_version = Some(format!("{}.{}", version / 10_000, version % 10_000));
                look.connection = Some(connection);
                look.slot = slot;
            }
        }
        look
    }

    /// Reads what keeps the slot, and the publication.
    pub(super) async fn look_at_slot(&mut self, config: &Config, deadline: Instant) {
        let Some(mut connection) = self.connection.take() else {
            return;
        };
        let asked = within(deadline, async {
            let figures = read_slot(&mut connection, config).await?;
            let failover = failover::findings(&mut connection, &config.source.slot).await?;
            let publication = match require_usable_publication(&mut connection, config).await {
                Ok(publication) => Ok(publication),
                Err(RelayError::Stop(stop)) => Err(stop),
                Err(RelayError::Transient(err)) => return Err(err),
            };
            Ok((connection, figures, failover, publication))
        });
        let Some((connection, slot, failover, publication)) = self.take(asked.await) else {
            return;
        };
        self.connection = Some(connection);
        self.publication = Some(publication);
        if let Some((slot, retention)) = slot {
            // A slot that is lost is a stop of its own.
            let danger = retention.danger().filter(|_| retention.wal_status != "lost");
            self.slot_dangers.extend(danger);
            self.slot_figures = Some(slot);
        }
        self.slot_dangers
            .extend(failover.into_iter().filter_map(|finding| match finding {
                Finding::Problem(what) => Some(what),
                Finding::Good(_) | Finding::Warning(_) => None,
            }));
    }

    /// Reads where the WAL ends, and how old the oldest row is that was committed after `published_until_us` (microseconds since 1970).
    pub(super) async fn finish(&mut self, config: &Config, published_until_us: Option<i64>, deadline: Instant) {
        let Some(mut connection) = self.connection.take() else {
            return;
        };
        let asked = within(deadline, async {
            let system = source::identify_server(&mut connection).await?;
            let oldest = match published_until_us {
                None => None,
                Some(_) if config.outbox.table.is_empty() => Some(Err("the outbox has no table".to_owned())),
                Some(until_us) => Some(read_oldest_age(&mut connection, config, until_us).await?),
            };
            Ok((system, oldest))
        });
        if let Some((system, oldest)) = self.take(asked.await) {
            self.system = Some(system);
            self.oldest_unpublished = oldest;
        }
    }

    /// What was answered. If nothing was, Postgres is away from now on.
    fn take<T>(&mut self, asked: Asked<T>) -> Option<T> {
        match asked {
            Ok(answer) => Some(answer),
            Err(err) => {
                self.away_because = Some(sentences::postgres_is_away(&err));
                None
            }
        }
    }
}

async fn within<T>(deadline: Instant, asked: impl Future<Output = Asked<T>>) -> Asked<T> {
    timeout_at(deadline, asked)
        .await
        .unwrap_or_else(|_| Err(anyhow::anyhow!("Postgres does not answer in time")))
}

/// Where Postgres may be.
pub(super) fn addresses(config: &Config) -> String {
    let addresses: Vec<String> = config.source.target.addresses.iter().map(ToString::to_string).collect();
    addresses.join(",")
}

/// Reads the slot with its reader and its WAL. `None`: there is no such slot.
async fn read_slot(connection: &mut Connection, config: &Config) -> anyhow::Result<Option<(figures::Slot, Retention)>> {
    // Columns of later versions are read by to_jsonb, which has null for a column that is not there.
    let sql = format!(
        "select s.active as is_active, s.active_pid, a.application_name, host(a.client_addr) as client_address,
                coalesce(s.confirmed_flush_lsn, '0/0') as confirmed, coalesce(s.restart_lsn, '0/0') as restart,
                coalesce(pg_wal_lsn_diff(wal.wal_end, s.confirmed_flush_lsn), 0)::bigint as unconfirmed_bytes,
                coalesce(pg_wal_lsn_diff(wal.wal_end, s.restart_lsn), 0)::bigint as retained_bytes,
                s.safe_wal_size as safe_bytes, pg_size_bytes(current_setting('max_slot_wal_keep_size')) as keep_bytes,
                coalesce(s.wal_status, '') as wal_status, coalesce(to_jsonb(s) ->> 'invalidation_reason', '') as invalidation_reason,
                coalesce((to_jsonb(s) ->> 'failover')::boolean, false) as is_failover
         from pg_replication_slots s
         cross join (select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end as wal_end) wal
         left join pg_stat_activity a on a.pid = s.active_pid
         where s.slot_name = {}",
        quote_literal(&config.source.slot)
    );
    let answer = connection.query(&sql).await.context("cannot look at the slot's WAL")?;
    let Some(row) = first_row(&answer) else {
        return Ok(None);
    };
    let text = |column| anyhow::Ok(row.nullable(column)?.map(str::to_owned));
    let reader = row.parse_nullable("active_pid")?.map(|pid| {
        anyhow::Ok(figures::Reader {
            pid,
            application_name: text("application_name")?,
            client_address: text("client_address")?,
        })
    });
    let retention = Retention {
        confirmed: row.parse("confirmed")?,
        retained_bytes: row.parse("retained_bytes")?,
        safe_bytes: row.parse_nullable("safe_bytes")?,
        keep_bytes: row.parse("keep_bytes")?,
        wal_status: row.text("wal_status")?.to_owned(),
        invalidation_reason: row.text("invalidation_reason")?.to_owned(),
    };
    let slot = figures::Slot {
        name: config.source.slot.to_string(),
        is_active: row.is_true("is_active")?,
        reader: reader.transpose()?,
        confirmed_lsn: retention.confirmed.to_string(),
        restart_lsn: row.text("restart")?.to_owned(),
        unconfirmed_bytes: row.parse("unconfirmed_bytes")?,
        retained_bytes: retention.retained_bytes,
        limit_bytes: Some(retention.keep_bytes).filter(|bytes| *bytes >= 0),
        safe_bytes: retention.safe_bytes,
        wal_status: retention.wal_status.clone(),
        invalidation_reason: Some(retention.invalidation_reason.clone()).filter(|reason| !reason.is_empty()),
        is_failover: row.is_true("is_failover")?,
    };
    Ok(Some((slot, retention)))
}

/// The age of the oldest row that was inserted after everything that is published had been committed, in seconds; 0 if there is none. A row that was inserted
/// before and committed later is left out, so the true age may be larger. An error is a statement that the server refuses, and the reason is returned.
async fn read_oldest_age(
    connection: &mut Connection,
    config: &Config,
    published_until_us: i64,
) -> anyhow::Result<Result<f64, String>> {
    match read_rows_of_a_key(connection, config).await {
        Ok(RowsOfAKey::CommitAsCreated | RowsOfAKey::CommitAfterCreation) => {}
        // A time that an application sets may be ahead of the commit. Then a published row looks like one that waits.
        Ok(RowsOfAKey::CommitAtAnyTime) => {
            let what = "`created_at` does not default to the clock of the server, so it does not tell which rows were committed last";
            return Ok(Err(what.to_owned()));
        }
        Err(RelayError::Stop(stop)) => return Ok(Err(stop.to_string())),
        Err(RelayError::Transient(err)) => return refusal(config, err).map(Err),
    }
    let sql = format!(
        "set statement_timeout = {OLDEST_ROW_WITHIN_MS};
         select greatest(coalesce(extract(epoch from clock_timestamp() - min(created_at)), 0), 0)::double precision as age_seconds
         from {} where created_at > to_timestamp({published_until_us} / 1000000.0)",
        table_name(config)
    );
    let rows = match connection.rows(&sql).await {
        Ok(rows) => rows,
        Err(err) => return refusal(config, err).map(Err),
    };
    let age = rows.last().and_then(|row| row.first()?.as_deref());
    Ok(Ok(age.context("no answer")?.parse()?))
}

/// Why the server refuses a statement on the outbox, and what mends it. The session goes on, and the rest of the look does not need the table.
///
/// # Errors
/// The server does not answer.
fn refusal(config: &Config, err: anyhow::Error) -> anyhow::Result<String> {
    match PgError::code_of(&err) {
        None => Err(err),
        Some(INSUFFICIENT_PRIVILEGE) => Ok(format!(
            "{err:#}; mend it by `grant select on {} to {}`",
            table_name(config),
            quote_identifier(&config.source.target.user)
        )),
        Some(_) => Ok(format!("{err:#}")),
    }
}
