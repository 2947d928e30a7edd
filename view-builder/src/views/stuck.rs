//! A batch that fails again and again is told: in `/readyz` and the log, as a metric, and where Postgres takes it for `status`.

use tokio_postgres::{Client, Error};

use crate::process::measure;
use crate::views::database::Database;

/// A builder that has not told for this long is stuck no longer, or is gone.
const RECENT: &str = "interval '1 minute'";

impl Database {
    /// The batch in hand fails again and again, for this reason.
    pub(crate) async fn stuck(&mut self, state: &str, reason: &str) {
        self.trouble.goes_on(format!(
            "postgres refuses a batch again and again, which is tried on: {reason}"
        ));
        measure::stuck(true);
        // Without a session `status` cannot be told now; the next attempt of the batch makes one.
        let Some(session) = &self.session else { return };
        let told = session
            .client
            .execute(
                "insert into view_stuck_batches as known (owner, reason) values ($1, $2)
                 on conflict (owner) do update set reason = excluded.reason, told_at = clock_timestamp(),
                    since = case when known.told_at < clock_timestamp() - interval '1 minute' then clock_timestamp() else known.since end",
                &[&self.owner, &reason],
            )
            .await;
        if let Err(err) = told {
            tracing::debug!(error = %err, state, "status cannot tell that a batch fails again and again");
        }
    }

    /// The batch has ended, one way or the other.
    pub(crate) async fn unstuck(&mut self) {
        if !self.trouble.is_on() {
            return;
        }
        self.trouble.ends();
        measure::stuck(false);
        // Without a session the line stays until it is too old for `status`.
        let Some(session) = &self.session else { return };
        let sql = "delete from view_stuck_batches where owner = $1 or told_at < clock_timestamp() - interval '1 day'";
        if let Err(err) = session.client.execute(sql, &[&self.owner]).await {
            tracing::debug!(error = %err, "status tells of a batch that has ended");
        }
    }
}

/// A line for each builder whose batch fails again and again.
pub(crate) async fn lines(client: &Client) -> Result<Vec<String>, Error> {
    let known = client
        .query_one("select to_regclass('public.view_stuck_batches') is not null", &[])
        .await?;
    if !known.get::<_, bool>(0) {
        return Ok(Vec::new());
    }
    let rows = client
        .query(
            &format!(
                "select owner, reason, extract(epoch from clock_timestamp() - since)::bigint as seconds from view_stuck_batches
                 where told_at > clock_timestamp() - {RECENT} order by owner"
            ),
            &[],
        )
        .await?;
    let line = |row: &tokio_postgres::Row| {
        format!(
            "a batch of {} fails again and again for {} s: {}",
            row.get::<_, &str>("owner"),
            row.get::<_, i64>("seconds"),
            row.get::<_, &str>("reason")
        )
    };
    Ok(rows.iter().map(line).collect())
}
