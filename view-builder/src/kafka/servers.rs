//! Where Kafka is, and what its clients are made with besides ours.

use std::str::FromStr;

use clap::Args;
use service::Secret;

/// Where the events are.
#[derive(Clone, Debug, Args)]
pub struct Kafka {
    /// Kafka's bootstrap servers, HOST:PORT separated by commas.
    #[arg(long = "kafka", env = "KAFKA_BOOTSTRAP_SERVERS", default_value = "127.0.0.1:9092")]
    pub bootstrap: String,
    /// Consumer group; the processes of one group share the partitions.
    #[arg(long, env = "GROUP_ID", default_value = "view-builder")]
    pub group_id: String,
    /// A further property of librdkafka as NAME=VALUE, such as security.protocol=SASL_SSL. Repeatable; in the variable one on
    /// each line.
    #[arg(
        long = "kafka-property",
        env = "KAFKA_PROPERTIES",
        value_delimiter = '\n',
        hide_env_values = true,
        value_name = "NAME=VALUE"
    )]
    pub properties: Vec<KafkaProperty>,
    /// A property of librdkafka whose value is in a file, as NAME=PATH, for passwords. Repeatable; in the variable one on each line.
    #[arg(
        long = "kafka-property-file",
        env = "KAFKA_PROPERTY_FILES",
        value_delimiter = '\n',
        value_name = "NAME=PATH",
        value_parser = KafkaProperty::from_file
    )]
    pub property_files: Vec<KafkaProperty>,
}

/// One property of librdkafka. Its value does not print, as it may be a password.
#[derive(Clone, Debug)]
pub struct KafkaProperty {
    pub name: String,
    pub value: Secret,
}

/// Properties on which exactly-once rests, so that nobody sets them.
const RESERVED: [&str; 9] = [
    "isolation.level",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "auto.offset.reset",
    "partition.assignment.strategy",
    "group.protocol",
    "group.id",
    "group.instance.id",
    "bootstrap.servers",
];

impl FromStr for KafkaProperty {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text
            .split_once('=')
            .map(|(name, value)| (name.trim(), value))
            .filter(|(name, _)| !name.is_empty())
            .ok_or("expected NAME=VALUE, such as security.protocol=SSL")?;
        if RESERVED.contains(&name) {
            return Err(format!(
                "{name} cannot be set: exactly-once rests on it, or it has a setting of its own"
            ));
        }
        Ok(Self {
            name: name.to_owned(),
            value: value.to_owned().into(),
        })
    }
}

impl KafkaProperty {
    /// The property `NAME` with what the file `PATH` of `NAME=PATH` holds; the end of line behind it does not count.
    fn from_file(text: &str) -> Result<Self, String> {
        let Self { name, value: path } = text.parse()?;
        let value = service::password_file::read(path.reveal().as_ref())
            .map_err(|err| format!("{name}: {} cannot be read: {err}", path.reveal()))?;
        Ok(Self {
            name,
            value: value.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::KafkaProperty;

    #[test]
    fn a_propertys_value_may_be_in_a_file() {
        let path = std::env::temp_dir().join(format!("kafka-password-{}", std::process::id()));
        std::fs::write(&path, "p=w\n").unwrap();
        let property = KafkaProperty::from_file(&format!("sasl.password={}", path.display()));
        std::fs::remove_file(&path).unwrap();
        let property = property.unwrap();
        assert_eq!((&*property.name, property.value.reveal()), ("sasl.password", "p=w"));
        let err = KafkaProperty::from_file("sasl.password=/nowhere/at/all").unwrap_err();
        assert!(
            err.starts_with("sasl.password: /nowhere/at/all cannot be read: "),
            "{err}"
        );
    }
}
