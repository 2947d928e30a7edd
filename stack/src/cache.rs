//! Keeps downloaded parts between runs.
//!
//! An entry is made in a directory beside its final place, under a lock. When it is complete, it is renamed. So an interrupted download leaves
//! nothing that looks complete, and two runs at once download only once.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};

const FOLDER: &str = "transactional-outbox";
/// How often to try again to take a lock that another run holds.
const LOCK_POLL: Duration = Duration::from_millis(200);
/// No download takes longer, unless the other run hangs.
const LOCK_DEADLINE: Duration = Duration::from_secs(900);

/// What [`look_up`] found.
#[derive(Debug)]
pub enum Entry {
    Present(PathBuf),
    /// There is no entry, and the caller has to make it. Others wait meanwhile.
    Missing(Claim),
}

/// The right to make an entry, and the directory to make it in. If it is dropped before [`Claim::finish`], nothing is left.
#[derive(Debug)]
pub struct Claim {
    unfinished: PathBuf,
    path: PathBuf,
    _lock: File,
}

/// The directory of the cache. It is our folder in `$XDG_CACHE_HOME`; by default in `~/.cache`, or for root in `/var/cache`, because the user that
/// PostgreSQL runs as cannot reach root's home.
///
/// # Errors
/// `HOME` is not set.
pub fn directory() -> anyhow::Result<PathBuf> {
    if let Some(cache) = std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        return Ok(Path::new(&cache).join(FOLDER));
    }
    if rustix::process::geteuid().is_root() {
        return Ok(Path::new("/var/cache").join(FOLDER));
    }
    let home = std::env::home_dir().context("HOME is not set, so there is no place for downloads")?;
    Ok(home.join(".cache").join(FOLDER))
}

/// Returns the entry `name`, or the right to make it. If another run is making it, this waits.
///
/// # Errors
/// The cache is not writable.
pub async fn look_up(name: &str) -> anyhow::Result<Entry> {
    let cache = directory()?;
    let path = cache.join(name);
    if path.exists() {
        return Ok(Entry::Present(path));
    }
    fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let lock = lock(&cache.join("lock")).await?;
    if path.exists() {
        return Ok(Entry::Present(path));
    }
    let unfinished = cache.join(format!("{name}.unfinished"));
    // The run that has left this directory is gone. Otherwise it would hold the lock.
    remove(&unfinished)?;
    fs::create_dir(&unfinished).with_context(|| format!("cannot make {}", unfinished.display()))?;
    Ok(Entry::Missing(Claim {
        unfinished,
        path,
        _lock: lock,
    }))
}

impl Claim {
    /// The directory to make the entry in.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.unfinished
    }

    /// Declares the entry complete. Returns its final path.
    ///
    /// # Errors
    /// It cannot be renamed.
    pub fn finish(self) -> anyhow::Result<PathBuf> {
        fs::rename(&self.unfinished, &self.path).with_context(|| format!("cannot make {}", self.path.display()))?;
        Ok(self.path.clone())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Err(err) = remove(&self.unfinished) {
            tracing::debug!(error = %err, "an unfinished download stays");
        }
    }
}

/// There is one lock for all entries, because Maven's own repository allows only one writer at a time.
async fn lock(path: &Path) -> anyhow::Result<File> {
    let file = crate::process::append(path)?;
    let waiting = async {
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) => tokio::time::sleep(LOCK_POLL).await,
                Err(TryLockError::Error(err)) => {
                    return Err(err).with_context(|| format!("cannot lock {}", path.display()));
                }
            }
        }
    };
    match tokio::time::timeout(LOCK_DEADLINE, waiting).await {
        Ok(locked) => locked?,
        Err(_) => bail!(
            "another run has held {} for {} s; end it and try again",
            path.display(),
            LOCK_DEADLINE.as_secs()
        ),
    }
    Ok(file)
}

fn remove(directory: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
            Err(err).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}
