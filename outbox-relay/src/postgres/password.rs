//! Where the password of a login comes from.

use std::path::PathBuf;

use anyhow::Context;
use service::{Secret, password_file};

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
            Self::File(path) => password_file::read(path)
                .map(Secret::from)
                .with_context(|| format!("`passwordfile` {} cannot be read", path.display())),
        }
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
