//! The relay's settings. Each is a flag and an environment variable.
//!
//! [`source`] has the settings about Postgres, [`outbox`] those about its rows, and [`sink`] those about Kafka. [`names`] has the types for the names of slot,
//! publication and topics. The commands add settings of their own: [`init`], [`accept`], [`run`], [`recover`], [`replay`], [`parking`].

pub mod accept;
pub mod command_line;
pub mod init;
pub mod maintenance;
pub mod names;
pub mod outbox;
pub mod parking;
mod planted;
pub mod poison;
pub mod recover;
pub mod replay;
pub mod run;
pub mod sink;
pub mod source;
pub mod status;

use clap::Args;

pub use self::accept::AcceptOptions;
pub use self::command_line::{Cli, Command, PauseReason};
pub use self::init::{ExistingRows, InitOptions};
pub use self::maintenance::Maintenance;
use self::outbox::{OutboxConfig, OutboxSettings};
use self::poison::PoisonOptions;
pub use self::recover::{RecoverOptions, Undecided};
pub use self::replay::ReplayOptions;
pub use self::run::RunArgs;
use self::sink::{SinkConfig, SinkSettings};
use self::source::{SourceConfig, SourceSettings};
use crate::continuity::checkpoint::checkpoint_key;
use crate::continuity::lineage::Names;
use crate::kafka::CheckpointLog;
use crate::process::stop::Stop;
use pg_replication::Connection;

#[derive(Clone, Debug, Args)]
pub struct Settings {
    #[command(flatten)]
    pub source: SourceSettings,
    #[command(flatten)]
    pub outbox: OutboxSettings,
    #[command(flatten)]
    pub sink: SinkSettings,
}

/// The settings once everything in them is checked.
#[derive(Clone, Debug)]
pub struct Config {
    pub source: SourceConfig,
    pub outbox: OutboxConfig,
    pub sink: SinkConfig,
    /// Given to `run` and `init`. The other commands have the default.
    pub poison: PoisonOptions,
    /// How `run` keeps the outbox table in order. `None` in other commands.
    pub maintenance: Option<Maintenance>,
}

impl Settings {
    /// Checks every setting.
    ///
    /// # Errors
    /// [`Stop::Config`] names the setting that is wrong, and what would be right.
    pub fn check(&self) -> Result<Config, Stop> {
        Ok(Config {
            source: self.source.check()?,
            outbox: self.outbox.check()?,
            sink: self.sink.check()?,
            poison: PoisonOptions::default(),
            maintenance: None,
        })
    }
}

impl Config {
    /// The transactional id. It differs for each cluster, database and slot, so relays of different databases never fence each other.
    #[must_use]
    pub fn transactional_id(&self, system_identifier: &str) -> String {
        format!(
            "outbox-relay-{system_identifier}-{}-{}",
            self.source.target.database, self.source.slot
        )
    }

    /// Why another relay may have the same transactional id as this one: then each would fence the other for ever. `None`: no other relay can have it.
    ///
    /// Lanes add `-2`… to the id, and `replay` adds `-replay`. A slot's name has no `-`. So two ids can only be equal if one slot's name looks like such an
    /// ending, and its database's name ends with the other slot's name. For example slot `2` of database `shop-orders`, and slot `orders` of database `shop`.
    #[must_use]
    pub fn may_share_transactional_id(&self) -> Option<String> {
        let slot_looks_like_ending =
            self.source.slot.as_str() == "replay" || self.source.slot.bytes().all(|byte| byte.is_ascii_digit());
        (slot_looks_like_ending && self.source.target.database.contains('-')).then(|| {
            format!(
                "--slot `{}` of database `{}`: the transactional ids may be those of another database's relay, and each would fence the other for ever; a slot's name with a letter in it, other than `replay`, is right where the database's name has a `-`",
                self.source.slot, self.source.target.database
            )
        })
    }

    /// The same settings for further sessions. These must be with the same server as `connection`, see [`pg_replication::MovedAway`].
    ///
    /// # Errors
    /// The connection broke.
    pub async fn pinned_to(&self, connection: &mut Connection) -> anyhow::Result<Self> {
        let mut pinned = self.clone();
        if planted::trusts_any_server() {
            return Ok(pinned);
        }
        let instance = connection.instance().await?;
        pinned.source.target = self.source.target.at(connection.address(), &instance);
        if let Some(maintenance) = &mut pinned.maintenance {
            maintenance.target.instance = Some(instance);
        }
        Ok(pinned)
    }

    /// The topics for the relay's own records. No row may ever go there.
    pub fn own_topics(&self) -> impl Iterator<Item = &str> {
        [self.sink.checkpoint_topic.as_str(), self.sink.parking_topic.as_str()].into_iter()
    }

    /// Where this relay's checkpoints are.
    #[must_use]
    pub fn checkpoint_log(&self) -> CheckpointLog<'_> {
        CheckpointLog {
            settings: &self.sink.kafka,
            topic: &self.sink.checkpoint_topic,
        }
    }

    /// What a [`Stop`] calls the slot, the publication and the checkpoint topic.
    #[must_use]
    pub fn names_for_messages(&self) -> Names<'_> {
        Names {
            slot: &self.source.slot,
            publication: &self.source.publication,
            checkpoint_topic: &self.sink.checkpoint_topic,
        }
    }

    /// Key of this relay's checkpoint.
    #[must_use]
    pub fn checkpoint_key(&self) -> String {
        checkpoint_key(&self.source.target.database, &self.source.slot)
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::{Cli, Command};

    fn exit_message(arguments: &[&str]) -> String {
        let base = ["outbox-relay", "init", "--database-url", "postgres://u:secret@h/d"];
        match Cli::try_parse_from(base.iter().chain(arguments)) {
            Err(refused) => refused.to_string(),
            Ok(Cli {
                command: Command::Init(args),
            }) => args.settings.check().unwrap_err().to_string(),
            Ok(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn slots_whose_transactional_ids_can_be_anothers_are_known() {
        let config = |database: &str, slot: &str| {
            let url = format!("postgres://u@h/{database}");
            let cli = Cli::try_parse_from(["outbox-relay", "check", "--database-url", &url, "--slot", slot]).unwrap();
            let Command::Check(settings) = cli.command else {
                panic!("no check")
            };
            settings.check().unwrap()
        };
        let (orders, two, replay) = (
            config("shop", "orders"),
            config("shop-orders", "2"),
            config("shop-orders", "replay"),
        );
        let id = orders.transactional_id("7");
        assert_eq!(two.transactional_id("7"), format!("{id}-2"), "its second lane");
        assert_eq!(replay.transactional_id("7"), format!("{id}-replay"), "its replay");
        for (config, may_meet) in [
            (orders, false),
            (two, true),
            (replay, true),
            (config("shop", "2"), false),
            (config("shop", "replay"), false),
            (config("shop-orders", "orders_2"), false),
        ] {
            assert_eq!(
                config.may_share_transactional_id().is_some(),
                may_meet,
                "{} {}",
                config.source.target.database,
                config.source.slot
            );
        }
    }

    #[test]
    fn a_wrong_setting_is_named() {
        for (arguments, named) in [
            (["--slot", "Users"], "'Users' for '--slot <SLOT>': expected 1 to 63"),
            (["--publication", ""], "'' for '--publication <PUBLICATION>'"),
            (["--table", "public."], "--table `public.`"),
            (
                ["--checkpoint-topic", "a b"],
                "'a b' for '--checkpoint-topic <CHECKPOINT_TOPIC>'",
            ),
            (["--parking-topic", ".."], "'..' for '--parking-topic <PARKING_TOPIC>'"),
            (
                ["--parking-topic", "outbox-relay-checkpoints"],
                "--parking-topic and --checkpoint-topic",
            ),
            (["--topic", "a b"], "'a b' for '--topic <NAME[:PARTITIONS]>'"),
            (["--topic", "a:0"], "partitions are a number from 1 to 10000"),
            (["--set", "nonsense=1"], "router option `nonsense`"),
            (["--kafka-property", "acks=1"], "`acks`"),
            (["--topic-config", "x"], "--topic-config `x`"),
        ] {
            let message = exit_message(&arguments);
            assert!(message.contains(named), "{message}");
        }
    }
}
