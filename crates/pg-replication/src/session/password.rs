//! Where the password of a login comes from.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// A password, or the file that holds it. `Debug` shows the file's path, and never a password.
#[derive(Clone)]
pub enum Password {
    /// The password itself.
    Given(String),
    /// A file that holds the password alone. It is read again for each login, so that a password can be replaced while the program runs.
    File(PathBuf),
}

impl Password {
    pub(crate) fn given(text: String) -> Self {
        Self::Given(text)
    }

    /// The password as it is now. A line break at the end of its file does not belong to it.
    ///
    /// # Errors
    /// The file cannot be read, or is not UTF-8.
    pub fn reveal(&self) -> io::Result<String> {
        match self {
            Self::Given(text) => Ok(text.clone()),
            Self::File(path) => {
                std::fs::read_to_string(path).map(|text| text.trim_end_matches(['\r', '\n']).to_owned())
            }
        }
    }

    /// What an error text may call it. This does not contain the password.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Given(_) => "the password".to_owned(),
            Self::File(path) => format!("`passwordfile` {}", path.display()),
        }
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given(_) => f.write_str("***"),
            Self::File(path) => path.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Password;

    #[test]
    fn a_file_is_read_each_time_and_named_where_it_cannot_be() {
        let path = std::env::temp_dir().join(format!("pg-replication-password-{}", std::process::id()));
        let password = Password::File(path.clone());
        for text in ["first", "second"] {
            std::fs::write(&path, format!("{text}\n")).unwrap();
            assert_eq!(password.reveal().unwrap(), text);
        }
        std::fs::remove_file(&path).unwrap();
        assert!(password.reveal().is_err());
        assert!(password.describe().contains(&path.display().to_string()));
        assert!(!format!("{password:?}").contains("second"));
        assert_eq!(format!("{:?}", Password::given("secret".to_owned())), "***");
    }
}
