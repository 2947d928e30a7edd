//! What an operator has accepted for a rebuild. It is kept with the rebuild, so that a command that goes on with it need not say it again.

use tokio_postgres::{Client, Error};

use crate::config::RebuildConfig;
use crate::faults::{self, Bug};

/// The columns, where builders of an earlier version have made the tables. Only rebuilds use those of `view_rebuilds`; the other one is made by
/// `positions.sql` too.
const COLUMNS: &str = "
    do $$
    begin
        if not exists (
            select from pg_attribute
            where attrelid = 'view_dead_letters'::regclass and attname = 'applied_before' and not attisdropped
        ) then
            alter table view_dead_letters add column if not exists applied_before boolean not null default false;
        end if;
        if not exists (
            select from pg_attribute
            where attrelid = 'view_rebuilds'::regclass and attname = 'accepts_compacted' and not attisdropped
        ) then
            alter table view_rebuilds
                add column if not exists accepts_truncated boolean not null default false,
                add column if not exists accepts_compacted boolean not null default false;
        end if;
    end
    $$";

#[derive(Clone, Copy, Debug)]
pub(super) struct Accepted {
    /// Events that retention has removed may be missing.
    pub(super) truncated: bool,
    /// Rows of keys with dead letters may be missing whose events compaction has removed.
    pub(super) compacted: bool,
}

pub(super) async fn make_columns(client: &Client) -> Result<(), Error> {
    client.batch_execute(COLUMNS).await
}

/// Adds what this command accepts to what was accepted before.
pub(super) async fn accept(client: &Client, config: &RebuildConfig, view: &str) -> Result<Accepted, Error> {
    let row = client
        .query_one(
            "update view_rebuilds set
                accepts_truncated = accepts_truncated or $2,
                accepts_compacted = accepts_compacted or $3
             where view = $1 returning accepts_truncated, accepts_compacted",
            &[&view, &config.accept_truncated, &config.accept_compacted],
        )
        .await?;
    if faults::is_planted(Bug::ForgetAcceptance) {
        return Ok(Accepted {
            truncated: config.accept_truncated,
            compacted: config.accept_compacted,
        });
    }
    Ok(Accepted {
        truncated: row.get(0),
        compacted: row.get(1),
    })
}
