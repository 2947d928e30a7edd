//! PostgreSQL and Kafka, which many rigs share.

use std::sync::Arc;

use stack::{Kafka, KafkaCluster, KafkaOptions, Postgres, PostgresOptions};
use tokio::sync::OnceCell;

/// A running PostgreSQL and a running Kafka.
#[derive(Debug)]
pub struct Servers {
    pub postgres: Arc<Postgres>,
    /// One broker. If it belongs to a cluster, its bootstrap servers are all brokers of the cluster.
    pub kafka: Arc<Kafka>,
}

impl Servers {
    /// The servers that all tests of this process share. No test may stop, kill or reconfigure them. They end with the process, see `stack::warden`.
    ///
    /// # Panics
    /// They do not start.
    pub async fn shared() -> Arc<Self> {
        static SHARED: OnceCell<Arc<Servers>> = OnceCell::const_new();
        SHARED
            .get_or_init(|| async {
                let servers = Self::start(postgres_options(), kafka_options()).await;
                Arc::new(servers.unwrap_or_else(|err| panic!("the servers do not start: {err:#}")))
            })
            .await
            .clone()
    }

    /// New servers for a test that stops or kills them.
    ///
    /// # Errors
    /// One of them could not be obtained or does not start.
    pub async fn start(postgres: PostgresOptions, kafka: KafkaOptions) -> anyhow::Result<Self> {
        let kafka = Kafka::start(with_version(kafka));
        let (postgres, kafka) = tokio::try_join!(Postgres::start(postgres), kafka)?;
        Ok(Self {
            postgres: Arc::new(postgres),
            kafka: Arc::new(kafka),
        })
    }

    /// As [`Servers::start`], with a cluster of `brokers` instead of one broker.
    ///
    /// # Errors
    /// As [`Servers::start`].
    pub async fn start_with_cluster(
        postgres: PostgresOptions,
        brokers: usize,
        kafka: KafkaOptions,
    ) -> anyhow::Result<(Self, KafkaCluster)> {
        let cluster = KafkaCluster::start(brokers, with_version(kafka));
        let (postgres, cluster) = tokio::try_join!(Postgres::start(postgres), cluster)?;
        let servers = Self {
            postgres: Arc::new(postgres),
            kafka: Arc::clone(cluster.node(1)),
        };
        Ok((servers, cluster))
    }
}

/// The major version in `E2E_POSTGRES`, 18 by default.
///
/// # Panics
/// The variable is no number.
#[must_use]
pub fn postgres_version() -> u32 {
    std::env::var("E2E_POSTGRES").map_or(18, |text| text.parse().expect("E2E_POSTGRES is a number from 15 to 18"))
}

/// Options for a PostgreSQL of [`postgres_version`] with room for many slots.
#[must_use]
pub fn postgres_options() -> PostgresOptions {
    let options = PostgresOptions {
        version: Some(postgres_version()),
        ..PostgresOptions::default()
    };
    options
        // The tests kill processes, never the machine. So what the kernel has got is safe without fsync.
        .setting("fsync", "off")
        .setting("max_replication_slots", "200")
        .setting("max_wal_senders", "200")
        .setting("max_connections", "300")
        .setting("max_prepared_transactions", "10")
}

/// Sets the release in `E2E_KAFKA`, unless the options name one.
fn with_version(options: KafkaOptions) -> KafkaOptions {
    let version = options.version.or_else(|| std::env::var("E2E_KAFKA").ok());
    KafkaOptions { version, ..options }
}

/// Options for a Kafka that looks often for transactions past their timeout. Otherwise a test that waits for such a timeout would wait ten seconds
/// more.
#[must_use]
pub fn kafka_options() -> KafkaOptions {
    KafkaOptions::default().setting("transaction.abort.timed.out.transaction.cleanup.interval.ms", "200")
}
