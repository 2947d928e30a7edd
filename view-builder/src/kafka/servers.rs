//! Where Kafka is, and which group reads there.

use clap::Args;
use kafka_client::{ClientArgs, ClientSettings};

use crate::contract::name::GroupName;
use crate::process::checked::Check;

/// Where the events are.
#[derive(Clone, Debug)]
pub struct Kafka {
    pub client: ClientSettings,
    pub group_id: GroupName,
}

/// [`Kafka`] as the command line gives it.
#[derive(Args)]
pub struct KafkaArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Consumer group; the processes of one group share the partitions.
    #[arg(long, env = "GROUP_ID", default_value = "view-builder")]
    group_id: GroupName,
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

impl Check for Kafka {
    type Given = KafkaArgs;

    fn check(KafkaArgs { client, group_id }: KafkaArgs) -> Result<Self, String> {
        let client = client.check(&RESERVED).map_err(|err| err.to_string())?;
        Ok(Self { client, group_id })
    }
}
