//! The files that Kafka's properties name, looked at for each client anew: whoever replaces a password or a certificate need not start the
//! relay again.
//!
//! A living client keeps what it was made with, also for connections that it makes later. When the broker refuses one of those, the
//! producer is disturbed, and the next start makes a new client from what the files hold then.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::process::faults::{self, Bug};
use crate::process::stop::{RelayError, Stop};

/// Properties whose values are paths that librdkafka reads when a client is made.
const PATHS: [&str; 5] = [
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.crl.location",
    "ssl.keystore.location",
];

/// A `--kafka-property` that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidProperty {
    // Not what was given: it may be a password whose name was forgotten.
    #[error("--kafka-property number {0}: expected NAME=VALUE")]
    NoValue(usize),
    #[error("--kafka-property-file `{0}`: expected NAME=PATH")]
    NoPath(String),
    #[error("--kafka-property-file {name}={path}: {reason}")]
    Unreadable { name: String, path: String, reason: String },
    #[error("--kafka-property `{0}` is not the operator's to set: exactly-once depends on it")]
    Reserved(String),
}

/// A property whose value is in a file.
#[derive(Clone, Debug)]
pub(in crate::kafka) struct PropertyFile {
    /// Place of the property among all of them.
    pub(in crate::kafka) index: usize,
    pub(in crate::kafka) path: PathBuf,
}

impl PropertyFile {
    /// What the file holds now; a line's end behind it is no part of it.
    pub(in crate::kafka) fn read(&self, name: &str) -> Result<String, InvalidProperty> {
        service::password_file::read(&self.path).map_err(|err| InvalidProperty::Unreadable {
            name: name.to_owned(),
            path: self.path.display().to_string(),
            reason: err.to_string(),
        })
    }
}

/// Whether librdkafka has ever made a client of a kind from these settings: from then on only the files can be at fault. Clones share it.
#[derive(Clone, Debug, Default)]
pub(in crate::kafka) struct Accepted(Arc<AtomicBool>);

impl Accepted {
    /// The outcome of making a client. A wrong setting is for a person; a file that is being replaced is worth another try.
    pub(in crate::kafka) fn judge<T>(&self, made: anyhow::Result<T>) -> Result<T, RelayError> {
        match made {
            Ok(client) => {
                self.0.store(true, Ordering::Release);
                Ok(client)
            }
            Err(err) if self.0.load(Ordering::Acquire) => Err(err.into()),
            Err(err) => Err(Stop::Config {
                what: format!("{err:#}"),
            }
            .into()),
        }
    }
}

/// Puts what the files hold now in the place of what the properties have.
///
/// # Errors
/// Names the file that cannot be read, and nothing of what is in it.
pub(super) fn read_again(properties: &mut [(String, String)], files: &[PropertyFile]) -> anyhow::Result<()> {
    if !faults::is_planted(Bug::KeepFirstKafkaSecrets) {
        for file in files {
            let (name, value) = &mut properties[file.index];
            *value = file.read(name)?;
        }
    }
    for (name, path) in properties {
        // librdkafka's own message does not always name the file.
        if PATHS.contains(&name.as_str())
            && path != "probe"
            && let Err(err) = std::fs::File::open(&*path)
        {
            anyhow::bail!("--kafka-property {name}={path}: {err}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Accepted;
    use crate::kafka::KafkaSettings;
    use crate::process::stop::{RelayError, Stop};

    #[test]
    fn a_file_is_read_for_each_client_and_an_unreadable_one_is_named() {
        let path = std::env::temp_dir().join(format!("outbox-relay-rotated-{}", std::process::id()));
        std::fs::write(&path, "first").unwrap();
        let settings = KafkaSettings::new("localhost:9092", &["client.id=a"]).unwrap();
        let settings = settings
            .with_property_files(&[format!("sasl.password={}", path.display())])
            .unwrap();
        std::fs::write(&path, "second\n").unwrap();
        let now = settings.with_files_read().unwrap();
        assert_eq!(now.reader("read_committed").get("sasl.password"), Some("second"));
        std::fs::remove_file(&path).unwrap();
        let message = settings.with_files_read().unwrap_err().to_string();
        assert!(message.contains(&path.display().to_string()), "{message}");
        let settings = KafkaSettings::new("localhost:9092", &["ssl.key.location=/nowhere/key"]).unwrap();
        let message = settings.with_files_read().unwrap_err().to_string();
        assert!(message.contains("ssl.key.location=/nowhere/key"), "{message}");
    }

    #[test]
    fn what_was_good_once_is_worth_another_try() {
        let accepted = Accepted::default();
        let fails = || Err::<(), _>(anyhow::anyhow!("no file"));
        assert!(matches!(
            accepted.judge(fails()),
            Err(RelayError::Stop(Stop::Config { .. }))
        ));
        accepted.judge(Ok(())).unwrap();
        assert!(matches!(accepted.judge(fails()), Err(RelayError::Transient(_))));
    }
}
