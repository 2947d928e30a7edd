//! Where Kafka is, and which group reads there.

use clap::error::ErrorKind;
use clap::{ArgMatches, Args, Command, FromArgMatches};
use kafka_client::{ClientArgs, ClientSettings};

/// Where the events are. The settings are checked when the command line is read: a wrong one ends the program before anything is done.
#[derive(Clone, Debug)]
pub struct Kafka {
    pub client: ClientSettings,
    pub group_id: String,
}

#[derive(Args)]
struct KafkaArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Consumer group; the processes of one group share the partitions.
    #[arg(long, env = "GROUP_ID", default_value = "view-builder")]
    group_id: String,
}

/// Properties on which exactly-once rests, so that nobody sets them.
const RESERVED: [&str; 8] = [
    "isolation.level",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "auto.offset.reset",
    "partition.assignment.strategy",
    "group.protocol",
    "group.id",
    "group.instance.id",
];

impl FromArgMatches for Kafka {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let KafkaArgs { client, group_id } = KafkaArgs::from_arg_matches(matches)?;
        match client.check(&RESERVED) {
            Ok(client) => Ok(Self { client, group_id }),
            Err(err) => Err(clap::Error::raw(ErrorKind::ValueValidation, format!("{err}\n"))),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Kafka {
    fn augment_args(command: Command) -> Command {
        KafkaArgs::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        KafkaArgs::augment_args_for_update(command)
    }
}
