//! The Kafka of a pipeline: a private broker, or a cluster that is there already.

use anyhow::ensure;

use crate::{Kafka, KafkaOptions, metadata};

/// Which Kafka a pipeline is to run on.
#[derive(Debug)]
pub(super) enum KafkaChoice {
    /// A broker that the pipeline starts with these options.
    Private(KafkaOptions),
    /// The address of a cluster that is there already, as `HOST:PORT`.
    Existing(String),
}

/// The Kafka that a pipeline runs on.
#[derive(Debug)]
pub(super) enum KafkaServer {
    /// The pipeline has started this broker, and ends it.
    Private(Kafka),
    /// The pipeline found this cluster running, and leaves it running.
    Existing { bootstrap_servers: String },
}

impl KafkaServer {
    /// Starts a private broker, or checks that the existing cluster has one.
    ///
    /// # Errors
    /// The broker does not start, or the cluster does not answer.
    pub(super) async fn start_or_check(choice: KafkaChoice) -> anyhow::Result<Self> {
        match choice {
            KafkaChoice::Private(options) => {
                let kafka = Kafka::start(options).await?;
                tracing::info!("Apache Kafka is up on port {}", kafka.port());
                Ok(Self::Private(kafka))
            }
            KafkaChoice::Existing(bootstrap_servers) => {
                let brokers = metadata::brokers(&bootstrap_servers).await?;
                ensure!(brokers > 0, "the Kafka cluster at {bootstrap_servers} has no broker");
                Ok(Self::Existing { bootstrap_servers })
            }
        }
    }

    /// The address that clients connect to first, as `HOST:PORT`.
    pub(super) fn bootstrap_servers(&self) -> String {
        match self {
            Self::Private(kafka) => kafka.bootstrap_servers(),
            Self::Existing { bootstrap_servers } => bootstrap_servers.clone(),
        }
    }

    /// The private broker; none where the pipeline runs on an existing cluster.
    pub(super) fn private(&self) -> Option<&Kafka> {
        match self {
            Self::Private(kafka) => Some(kafka),
            Self::Existing { .. } => None,
        }
    }
}
