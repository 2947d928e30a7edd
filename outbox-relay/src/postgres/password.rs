//! Where the password of a login comes from.

use std::path::{Path, PathBuf};

use anyhow::Context;
use service::{Secret, password_file};

#[cfg(feature = "faults")]
use crate::process::faults::{self, Bug};

/// A password, or the file that holds it.
#[derive(Clone, Debug)]
pub enum Password {
    Given(Secret),
    /// Read again for each login, so that a password can be replaced while the relay runs.
    File(PathBuf),
}

impl Password {
    /// The password as it is now.
    ///
    /// # Errors
    /// The file cannot be read; the message names it, and nothing of what is in it.
    pub(super) fn read(&self) -> anyhow::Result<Secret> {
        match self {
            Self::Given(secret) => Ok(secret.clone()),
            #[cfg(feature = "faults")]
            Self::File(path) if faults::is_planted(Bug::KeepFirstPassword) => read_once(path),
            Self::File(path) => read_file(path),
        }
    }
}

fn read_file(path: &Path) -> anyhow::Result<Secret> {
    password_file::read(path)
        .map(Secret::from)
        .with_context(|| format!("`passwordfile` {} cannot be read", path.display()))
}

/// The planted bug of a relay that never reads the file again.
#[cfg(feature = "faults")]
fn read_once(path: &Path) -> anyhow::Result<Secret> {
    static FIRST: std::sync::OnceLock<Secret> = std::sync::OnceLock::new();
    match FIRST.get() {
        Some(first) => Ok(first.clone()),
        None => read_file(path).map(|read| FIRST.get_or_init(|| read).clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::Password;

    #[test]
    fn a_file_is_read_each_time_and_named_where_it_cannot_be() {
        let path = std::env::temp_dir().join(format!("outbox-relay-password-{}", std::process::id()));
        let password = Password::File(path.clone());
        for text in ["first", "second"] {
            std::fs::write(&path, format!("{text}\n")).unwrap();
            assert_eq!(password.read().unwrap().reveal(), text);
        }
        std::fs::remove_file(&path).unwrap();
        let message = format!("{:#}", password.read().unwrap_err());
        assert!(message.contains(&path.display().to_string()), "{message}");
        assert!(!format!("{password:?}").contains("second"));
    }
}
