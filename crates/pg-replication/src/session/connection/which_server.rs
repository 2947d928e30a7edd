//! Asks a session which server it is with.

use anyhow::Context;

use super::Connection;
use crate::session::instance::{MovedAway, ServerInstance};

impl Connection {
    /// Asks which server this session is with.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn instance(&mut self) -> anyhow::Result<ServerInstance> {
        let sql = "select extract(epoch from pg_catalog.pg_postmaster_start_time())::pg_catalog.text";
        let rows = self.rows(sql).await.context("cannot ask which server this is")?;
        let started_at = rows.first().and_then(|row| row.first().cloned().flatten());
        Ok(ServerInstance {
            started_at: started_at.context("the server does not say when it started")?,
        })
    }

    /// Checks that this session is with the server `expected`.
    ///
    /// # Errors
    /// [`MovedAway`] if it is with another server. Any other error means that the connection broke.
    pub(super) async fn ensure_is_with(&mut self, expected: &ServerInstance) -> anyhow::Result<()> {
        let found = self.instance().await?;
        if found == *expected {
            return Ok(());
        }
        Err(MovedAway {
            expected: expected.started_at.clone(),
            found: found.started_at,
        }
        .into())
    }
}
