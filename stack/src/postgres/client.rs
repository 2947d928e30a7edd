//! Connections and scripts, for any server.

use std::path::Path;

use anyhow::{Context, bail};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// Connects to `url`, without TLS.
///
/// # Errors
/// The server does not answer or refuses.
pub async fn connect(url: &str) -> anyhow::Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .context("cannot connect to postgres")?;
    // If the connection fails, the client's next statement fails.
    tokio::spawn(connection);
    Ok(client)
}

/// Runs `sql`, which may have several statements. Returns the rows of the last result as text; null is `None`.
///
/// # Errors
/// A statement failed.
pub async fn query(client: &Client, sql: &str) -> anyhow::Result<Vec<Vec<Option<String>>>> {
    let mut rows = Vec::new();
    for message in client.simple_query(sql).await? {
        match message {
            SimpleQueryMessage::RowDescription(_) => rows.clear(),
            SimpleQueryMessage::Row(row) => rows.push(
                (0..row.len())
                    .map(|column| row.get(column).map(str::to_owned))
                    .collect(),
            ),
            _ => {}
        }
    }
    Ok(rows)
}

/// Runs the psql script `file` on the database of `url`. Stops at the first error.
///
/// # Errors
/// psql is missing, or a statement failed.
pub async fn run_script(url: &str, file: &Path) -> anyhow::Result<()> {
    let file = file.to_string_lossy();
    psql(url, &["--quiet", "--file", &file]).await.map(drop)
}

/// Runs the command `psql` with these arguments. Returns what it prints.
pub(super) async fn psql(url: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = tokio::process::Command::new("psql")
        .args(["--no-psqlrc", "--set", "ON_ERROR_STOP=1", "--dbname", url])
        .args(arguments)
        // A script may run twice, so notices that something exists already are hidden.
        .env("PGOPTIONS", "-c client_min_messages=warning")
        .kill_on_drop(true)
        .output()
        .await
        .context("cannot run psql (on Debian and Ubuntu the package postgresql-client)")?;
    if !output.status.success() {
        bail!("psql failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}
