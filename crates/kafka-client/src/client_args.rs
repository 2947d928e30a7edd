//! The flags and environment variables by which an operator says where Kafka is, the same for every program.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::client_settings::ClientSettings;
use crate::property::InvalidProperty;

/// Flags for clap. Add them to a program by `#[command(flatten)]`. [`ClientArgs::check`] turns them into settings.
#[derive(Clone, Debug, clap::Args)]
pub struct ClientArgs {
    /// Kafka's bootstrap servers, HOST:PORT separated by commas.
    #[arg(
        long = "kafka",
        env = "KAFKA_BOOTSTRAP_SERVERS",
        value_name = "SERVERS",
        default_value = "localhost:9092"
    )]
    pub bootstrap_servers: String,
    /// A property of librdkafka, NAME=VALUE: for TLS, SASL, compression, message.max.bytes and so on. Repeat the flag for several; in the
    /// environment variable write one on each line.
    #[arg(
        long = "kafka-property",
        env = "KAFKA_PROPERTIES",
        value_name = "NAME=VALUE",
        value_delimiter = '\n',
        hide_env_values = true
    )]
    pub properties: Vec<PropertyLine>,
    /// A property of librdkafka whose value is in a file, NAME=PATH, such as a password. The file is read again for each client. Repeat the flag
    /// for several; in the environment variable write one on each line.
    #[arg(
        long = "kafka-property-file",
        env = "KAFKA_PROPERTY_FILES",
        value_name = "NAME=PATH",
        value_delimiter = '\n'
    )]
    pub property_files: Vec<String>,
    /// The file that holds the JWT for SASL OAUTHBEARER (sasl.mechanism=OAUTHBEARER). It is read again for each refresh, so a program that issues
    /// tokens can replace it.
    #[arg(long = "kafka-oauth-token-file", env = "KAFKA_OAUTH_TOKEN_FILE", value_name = "PATH")]
    pub oauth_token_file: Option<PathBuf>,
}

/// A property as it was typed. [`ClientArgs::check`] parses it, and not clap: clap would print a wrong one, which may be a password whose name was
/// forgotten. `Debug` shows `***`.
#[derive(Clone)]
pub struct PropertyLine(String);

impl ClientArgs {
    /// Checks the flags and makes the settings. `reserved`: the properties that only the program may set.
    ///
    /// # Errors
    /// Names the flag that is wrong, and what would be right.
    pub fn check(&self, reserved: &[&str]) -> Result<ClientSettings, InvalidProperty> {
        let mut settings = ClientSettings::new(&self.bootstrap_servers)
            .with_properties(&self.properties, reserved)?
            .with_property_files(&self.property_files, reserved)?;
        if let Some(path) = self
            .oauth_token_file
            .clone()
            .filter(|path| !path.as_os_str().is_empty())
        {
            settings = settings.with_token_file(path);
        }
        Ok(settings)
    }
}

impl FromStr for PropertyLine {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl AsRef<str> for PropertyLine {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PropertyLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::ClientArgs;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        kafka: ClientArgs,
    }

    fn parse(arguments: &[&str]) -> Program {
        Program::try_parse_from(std::iter::once(&"program").chain(arguments)).unwrap()
    }

    #[test]
    fn flags_become_settings() {
        let program = parse(&[
            "--kafka",
            "broker-1:9092,broker-2:9092",
            "--kafka-property",
            "security.protocol=SASL_SSL\nsasl.mechanism=OAUTHBEARER",
            "--kafka-oauth-token-file",
            "/run/secrets/token",
        ]);
        let settings = program.kafka.check(&["acks"]).unwrap();
        assert_eq!(settings.bootstrap_servers, "broker-1:9092,broker-2:9092");
        assert_eq!(settings.property("sasl.mechanism"), Some("OAUTHBEARER"));
        assert!(format!("{:?}", settings.tokens).contains("/run/secrets/token"));
    }

    #[test]
    fn what_may_be_a_password_is_not_printed() {
        let program = parse(&["--kafka-property", "hunter2"]);
        assert!(!format!("{program:?}").contains("hunter2"), "{program:?}");
        let message = program.kafka.check(&[]).unwrap_err().to_string();
        assert_eq!(
            message,
            "--kafka-property number 1: expected NAME=VALUE, such as security.protocol=SSL"
        );
    }
}
