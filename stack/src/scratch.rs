//! Directories for the parts. A temporary one is removed with this process; the caller's own one stays.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tempfile::TempDir;

use crate::warden;

/// A directory that one part writes into.
#[derive(Debug)]
pub enum Scratch {
    /// Removed when it is dropped, and by the warden when this process dies.
    Temporary(TempDir),
    /// A directory that stays.
    Kept(PathBuf),
}

impl Scratch {
    /// A new temporary directory whose name begins with `prefix`.
    ///
    /// # Errors
    /// The temporary directory (`TMPDIR`) is not writable.
    pub fn temporary(prefix: &str) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix(prefix)
            .tempdir()
            .context("cannot make a temporary directory")?;
        warden::remove_with_us(directory.path());
        traversable(directory.path())?;
        Ok(Self::Temporary(directory))
    }

    /// `path`, which is made if it does not exist. If no path is given, a temporary directory.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn kept_or_temporary(path: Option<&Path>, prefix: &str) -> anyhow::Result<Self> {
        let Some(path) = path else {
            return Self::temporary(prefix);
        };
        fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
        traversable(path)?;
        let path = path
            .canonicalize()
            .with_context(|| format!("cannot resolve {}", path.display()))?;
        Ok(Self::Kept(path))
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Temporary(directory) => directory.path(),
            Self::Kept(path) => path,
        }
    }
}

/// PostgreSQL may run as another user (see [`crate::unprivileged`]). That user must be able to reach its own directory inside this one.
fn traversable(path: &Path) -> anyhow::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot set the permissions of {}", path.display()))
}
