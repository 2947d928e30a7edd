//! A second server on a copy of a cluster's files, such as a restored backup or a cloned disk. It has the same system identifier, the same timeline,
//! and the same slots.

use std::sync::Mutex;

use anyhow::ensure;

use super::sessions::Sessions;
use super::{Postgres, replace_directory};
use crate::port;
use crate::scratch::Scratch;

impl Postgres {
    /// Copies the files of the stopped cluster with its slots, and starts a server on the copy.
    ///
    /// # Errors
    /// The server is not stopped, the files cannot be copied, or the copy does not come up.
    pub async fn copy(&self) -> anyhow::Result<Self> {
        ensure!(
            self.process().is_none(),
            "a cluster is copied while its server is stopped"
        );
        let copy = Self {
            process: Mutex::new(None),
            binaries: self.binaries.clone(),
            user: self.user.clone(),
            port: port::free()?,
            settings: self.settings.clone(),
            sessions: Sessions::default(),
            directory: Scratch::temporary("outbox-postgres-")?,
        };
        replace_directory(&self.data(), &copy.data())?;
        copy.initialize()?;
        copy.start_again().await?;
        Ok(copy)
    }
}
