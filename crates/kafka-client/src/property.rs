//! A property of librdkafka as an operator gives it: its value itself, or a file that holds the value.

use std::fmt;
use std::path::{Path, PathBuf};

/// Properties that cannot be set here, since there is another setting for them.
const PROPERTIES_WITH_OTHER_SETTING: [&str; 2] = ["bootstrap.servers", "metadata.broker.list"];

/// Properties whose values are paths that librdkafka reads when a client is made.
const PATH_PROPERTIES: [&str; 5] = [
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.crl.location",
    "ssl.keystore.location",
];

/// A property that cannot be used. The text names the flag of `ClientArgs` that gave it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidProperty {
    // The text does not repeat the line. It may be a password whose name was forgotten.
    /// The number of the line that has no `=`, counted from 1.
    #[error("--kafka-property number {0}: expected NAME=VALUE, such as security.protocol=SSL")]
    NoValue(usize),
    /// A line of a property file without a path.
    #[error("--kafka-property-file `{0}`: expected NAME=PATH, such as sasl.password=/run/secrets/kafka")]
    NoPath(String),
    /// The file that holds a property's value cannot be read.
    #[error("--kafka-property-file {name}={path}: {reason}")]
    Unreadable { name: String, path: String, reason: String },
    /// A file that librdkafka would read cannot be opened.
    #[error("--kafka-property {name}={path}: {reason}")]
    NoFile { name: String, path: String, reason: String },
    /// A property that only the program may set.
    #[error("--kafka-property `{0}` cannot be set: exactly-once depends on it, or it has a setting of its own")]
    Reserved(String),
}

/// A property. `Debug` shows its name, and its file if it has one.
#[derive(Clone)]
pub(super) struct Property {
    name: String,
    value: String,
    /// The file that holds the value. `value` is what it held when it was last read.
    file: Option<PathBuf>,
}

impl Property {
    pub(super) fn new(name: &str, value: &str) -> Self {
        Self {
            name: name.to_owned(),
            value: value.to_owned(),
            file: None,
        }
    }

    /// Parses `NAME=VALUE`. `number` is the line's number, for the error.
    pub(super) fn parse(line: &str, number: usize, reserved: &[&str]) -> Result<Self, InvalidProperty> {
        let (name, value) = line.split_once('=').ok_or(InvalidProperty::NoValue(number))?;
        Ok(Self::new(ensure_settable(name, reserved)?, value))
    }

    /// Parses `NAME=PATH`, and reads the file.
    pub(super) fn parse_with_file(line: &str, reserved: &[&str]) -> Result<Self, InvalidProperty> {
        let (name, path) = line
            .split_once('=')
            .ok_or_else(|| InvalidProperty::NoPath(line.to_owned()))?;
        let mut property = Self {
            file: Some(path.into()),
            ..Self::new(ensure_settable(name, reserved)?, "")
        };
        property.read_again()?;
        Ok(property)
    }

    /// Reads the value again from its file. A file that librdkafka itself reads is only opened, to see that it can be read: librdkafka's message does
    /// not always name it.
    pub(super) fn read_again(&mut self) -> Result<(), InvalidProperty> {
        let name_path_reason =
            |path: &Path, err: std::io::Error| (self.name.clone(), path.display().to_string(), err.to_string());
        if let Some(path) = &self.file {
            let text = std::fs::read_to_string(path).map_err(|err| {
                let (name, path, reason) = name_path_reason(path, err);
                InvalidProperty::Unreadable { name, path, reason }
            })?;
            self.value = text.trim_end_matches(['\r', '\n']).to_owned();
        } else if let Some(path) = self.file() {
            std::fs::File::open(path).map_err(|err| {
                let (name, path, reason) = name_path_reason(path, err);
                InvalidProperty::NoFile { name, path, reason }
            })?;
        }
        Ok(())
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn value(&self) -> &str {
        &self.value
    }

    /// The file that holds the value, or that the value names.
    pub(super) fn file(&self) -> Option<&Path> {
        let names_file = PATH_PROPERTIES.contains(&self.name()) && self.value != "probe";
        self.file
            .as_deref()
            .or_else(|| names_file.then(|| Path::new(&self.value)))
    }
}

impl fmt::Debug for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(path) => write!(f, "{} (in {})", self.name, path.display()),
            None => f.write_str(&self.name),
        }
    }
}

fn ensure_settable<'n>(name: &'n str, reserved: &[&str]) -> Result<&'n str, InvalidProperty> {
    let name = name.trim();
    if reserved.contains(&name) || PROPERTIES_WITH_OTHER_SETTING.contains(&name) {
        return Err(InvalidProperty::Reserved(name.to_owned()));
    }
    Ok(name)
}
