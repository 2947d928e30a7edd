//! Makes a streaming standby of a running cluster, and promotes it.
//!
//! It works as `pg_basebackup` does, by the SQL functions of the low-level backup interface, because the downloaded PostgreSQL has no such program.
//! See <https://www.postgresql.org/docs/current/continuous-archiving.html#BACKUP-LOWLEVEL-BASE-BACKUP>.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, ensure};

use super::sessions::Sessions;
use super::{Postgres, query};
use crate::port;
use crate::scratch::Scratch;
use crate::unprivileged::User;

/// The contents of these directories are not copied. They are the slots, which belong to the copied server alone, and the WAL, which the standby gets
/// by streaming.
const NOT_COPIED: [&str; 3] = ["pg_replslot", "pg_wal", "pg_stat_tmp"];
/// The first version that keeps copies of failover slots.
const FAILOVER_SLOTS_SINCE: u32 = 17;

impl Postgres {
    /// Makes the physical slot `slot`, and starts a standby that streams by it. From PostgreSQL 17 on, the standby keeps copies of the failover
    /// slots.
    ///
    /// # Errors
    /// The server refuses, the copy fails, or the standby does not come up.
    pub async fn standby(&self, slot: &str) -> anyhow::Result<Self> {
        let client = self.connect("postgres", "postgres").await?;
        query(
            &client,
            &format!("select pg_create_physical_replication_slot('{slot}', true)"),
        )
        .await?;
        query(&client, "select pg_backup_start('standby', true)").await?;
        let mut settings = self.settings.clone();
        let mut add = |name: &str, value: &str| settings.push((name.to_owned(), value.to_owned()));
        add("hot_standby_feedback", "on");
        add("primary_slot_name", slot);
        add("wal_receiver_status_interval", "1");
        add("wal_retrieve_retry_interval", "200ms");
        if self.version() >= FAILOVER_SLOTS_SINCE {
            add("sync_replication_slots", "on");
        }
        let standby = Self {
            process: Mutex::new(None),
            binaries: self.binaries.clone(),
            user: self.user.clone(),
            port: port::free()?,
            settings,
            sessions: Sessions::default(),
            directory: Scratch::temporary("outbox-postgres-")?,
        };
        let (from, to, user) = (self.data(), standby.data(), self.user.clone());
        let owner = user.clone();
        tokio::task::spawn_blocking(move || copy(&from, &to, owner.as_ref(), true))
            .await?
            .context("cannot copy the data directory")?;
        let stopped = query(&client, "select labelfile from pg_backup_stop(false)").await?;
        let label = stopped.first().and_then(|row| row.first().cloned().flatten());
        // The setting is in the file, not on the command line, so that a test can change it while the standby runs.
        let primary = format!(
            "primary_conninfo = 'host=127.0.0.1 port={} user=postgres dbname=postgres'\n",
            self.port
        );
        for (name, text) in [
            ("backup_label", label.context("pg_backup_stop has no label")?),
            ("standby.signal", String::new()),
            ("postgresql.auto.conf", primary),
        ] {
            let path = standby.data().join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            give(&path, user.as_ref(), 0o600)?;
        }
        standby.initialize()?;
        standby.start_again().await?;
        Ok(standby)
    }

    /// Ends the streaming of a standby, which stays a standby.
    ///
    /// # Errors
    /// The server is not there.
    pub async fn stop_streaming(&self) -> anyhow::Result<()> {
        self.query("postgres", "alter system set primary_conninfo = ''").await?;
        self.query("postgres", "select pg_reload_conf()").await?;
        Ok(())
    }

    /// Makes the standby a primary, and waits until it is one.
    ///
    /// # Errors
    /// It is not a standby, or does not become a primary within a minute.
    pub async fn promote(&self) -> anyhow::Result<()> {
        let promoted = self.query("postgres", "select pg_promote(true, 60)").await?;
        let is_done = promoted.first().and_then(|row| row.first().cloned().flatten());
        ensure!(is_done.as_deref() == Some("t"), "the standby was not promoted in time");
        Ok(())
    }
}

/// Copies a directory of a running server. A file that vanishes meanwhile was temporary. For a file that changes meanwhile, the WAL repairs the copy.
fn copy(from: &Path, to: &Path, user: Option<&User>, is_top: bool) -> io::Result<()> {
    fs::create_dir(to)?;
    give(to, user, 0o700)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let outcome = if !entry.file_type()?.is_dir() {
            if is_top && matches!(entry.file_name().to_str(), Some("postmaster.pid" | "postmaster.opts")) {
                continue;
            }
            fs::copy(&source, &target).and_then(|_| give(&target, user, 0o600))
        } else if is_top && NOT_COPIED.iter().any(|name| entry.file_name() == *name) {
            fs::create_dir(&target).and_then(|()| give(&target, user, 0o700))
        } else {
            copy(&source, &target, user, false)
        };
        match outcome {
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            outcome => outcome?,
        }
    }
    Ok(())
}

fn give(path: &Path, user: Option<&User>, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    match user {
        Some(user) => chown(path, Some(user.uid), Some(user.gid)),
        None => Ok(()),
    }
}
