//! Gives PostgreSQL files of the write-ahead log (WAL) that it can use again.

use anyhow::ensure;
use stack::pipeline::USERS_DATABASE;
use stack::{Pipeline, eventually_ok, postgres};

use crate::latency::ARRIVAL_DEADLINE;

/// As much WAL as the server keeps between two checkpoints (`max_wal_size`). At 2,000 changes per second this takes seven minutes, after which
/// each checkpoint leaves files behind.
const WAL_MB: u32 = 2000;

/// Leaves files of the WAL that can be used again, as on a server that has been running for a while. A new server makes each file when it is
/// needed: it writes and flushes 16 MB, and all commits wait for that.
///
/// # Errors
/// PostgreSQL refuses, or a slot still needs the old WAL after a minute.
pub(crate) async fn make_reusable(pipeline: &Pipeline) -> anyhow::Result<()> {
    let client = postgres::connect(&pipeline.database_url(USERS_DATABASE)?).await?;
    client.batch_execute("alter system set min_wal_size = '2GB'").await?;
    client.batch_execute("select pg_reload_conf()").await?;
    let fill =
        format!("select pg_logical_emit_message(false, '', repeat('x', 1000000)) from generate_series(1, {WAL_MB})");
    client.execute(&fill, &[]).await?;
    let end_lsn: String = client.query_one("select pg_current_wal_lsn()::text", &[]).await?.get(0);
    eventually_ok(ARRIVAL_DEADLINE, "the slots need none of that log", async || {
        // A checkpoint also tells the slots where they may begin again.
        client.batch_execute("checkpoint").await?;
        let sql = "select count(*) from pg_replication_slots where restart_lsn < $1::text::pg_lsn";
        let behind: i64 = client.query_one(sql, &[&end_lsn]).await?.get(0);
        ensure!(behind == 0, "{behind} slots still need it");
        Ok(())
    })
    .await?;
    client.batch_execute("checkpoint").await?;
    let files: i64 = client
        .query_one("select count(*) from pg_ls_waldir()", &[])
        .await?
        .get(0);
    tracing::info!("  {files} files of the write-ahead log");
    Ok(())
}
