//! A property of librdkafka as an operator gives it: its value itself, or a file that holds the value.

use std::fmt;
use std::path::{Path, PathBuf};

/// Properties that have a setting of their own.
const SET_OTHERWISE: [&str; 2] = ["bootstrap.servers", "metadata.broker.list"];

/// Properties whose values are paths that librdkafka reads when a client is made.
const PATHS: [&str; 5] = [
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.crl.location",
    "ssl.keystore.location",
];

/// A property that cannot be used. The message names the flag that gave it, as `ClientArgs` has them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidProperty {
    // Not what was given: it may be a password whose name was forgotten.
    /// Which of the lines is none, counted from 1.
    #[error("--kafka-property number {0}: expected NAME=VALUE, such as security.protocol=SSL")]
    NoValue(usize),
    /// A line of a property file without a path.
    #[error("--kafka-property-file `{0}`: expected NAME=PATH, such as sasl.password=/run/secrets/kafka")]
    NoPath(String),
    /// The file that holds a property's value.
    #[error("--kafka-property-file {name}={path}: {reason}")]
    Unreadable { name: String, path: String, reason: String },
    /// A file that librdkafka would read.
    #[error("--kafka-property {name}={path}: {reason}")]
    NoFile { name: String, path: String, reason: String },
    /// One that the program sets itself.
    #[error("--kafka-property `{0}` cannot be set: exactly-once depends on it, or it has a setting of its own")]
    Reserved(String),
}

/// A property. `Debug` shows its name, and its file where it has one.
#[derive(Clone)]
pub(super) struct Property {
    name: String,
    value: String,
    /// Holds the value, which is what it held when it was read last.
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

    /// From `NAME=VALUE`, which is the line of this number.
    pub(super) fn given(line: &str, number: usize, reserved: &[&str]) -> Result<Self, InvalidProperty> {
        let (name, value) = line.split_once('=').ok_or(InvalidProperty::NoValue(number))?;
        Ok(Self::new(settable(name, reserved)?, value))
    }

    /// From `NAME=PATH`.
    pub(super) fn in_file(line: &str, reserved: &[&str]) -> Result<Self, InvalidProperty> {
        let (name, path) = line
            .split_once('=')
            .ok_or_else(|| InvalidProperty::NoPath(line.to_owned()))?;
        let mut property = Self {
            file: Some(path.into()),
            ..Self::new(settable(name, reserved)?, "")
        };
        property.read_again()?;
        Ok(property)
    }

    /// Reads the value from its file. A file that librdkafka reads by itself is looked at, since librdkafka's message does not always name it.
    pub(super) fn read_again(&mut self) -> Result<(), InvalidProperty> {
        let unreadable =
            |path: &Path, err: std::io::Error| (self.name.clone(), path.display().to_string(), err.to_string());
        if let Some(path) = &self.file {
            let text = std::fs::read_to_string(path).map_err(|err| {
                let (name, path, reason) = unreadable(path, err);
                InvalidProperty::Unreadable { name, path, reason }
            })?;
            self.value = text.trim_end_matches(['\r', '\n']).to_owned();
        } else if let Some(path) = self.file() {
            std::fs::File::open(path).map_err(|err| {
                let (name, path, reason) = unreadable(path, err);
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
        let names_file = PATHS.contains(&self.name()) && self.value != "probe";
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

fn settable<'n>(name: &'n str, reserved: &[&str]) -> Result<&'n str, InvalidProperty> {
    let name = name.trim();
    if reserved.contains(&name) || SET_OTHERWISE.contains(&name) {
        return Err(InvalidProperty::Reserved(name.to_owned()));
    }
    Ok(name)
}
