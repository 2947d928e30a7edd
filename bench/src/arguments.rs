//! The command line; `--help` is the manual.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Measure the pipeline's programs on a throw-away PostgreSQL and a throw-away Apache Kafka of this machine.
///
/// Each measurement starts its own servers, says on standard error what it does, prints one table, and leaves nothing behind.
/// The programs are those beside this one: build them with `cargo build --release --workspace --bins`. Rates depend on the machine and on
/// what else it does; where two ways are compared, their runs alternate, and the ratio of the medians is what counts.
#[derive(Debug, Parser)]
#[command(name = "bench", max_term_width = 110)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub measurement: Measurement,
}

#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Also write conditions, every run and the medians to this file, as JSON.
    #[arg(long, value_name = "FILE", global = true)]
    pub json: Option<PathBuf>,

    /// Keep the programs' logs in this directory.
    #[arg(long, value_name = "DIR", global = true)]
    pub logs: Option<PathBuf>,

    /// Major version of PostgreSQL, 15 to 18; downloaded once.
    #[arg(long, value_name = "N", default_value_t = 18, global = true)]
    pub postgres: u32,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Measurement {
    /// How fast outbox-relay publishes a backlog, against pg_recvlogical reading the same backlog into /dev/null.
    ///
    /// Clock of the relay: from the start of its process until every row is visible to a read_committed consumer. Clock of pg_recvlogical:
    /// from the start of its process to its end. Both read copies of one replication slot. After each of the relay's runs its topic is
    /// read: every outbox id must be there exactly once.
    RelayDrain(RelayDrain),
    /// How long a change takes at a fixed rate: from its commit to a Kafka consumer, and from its commit to user_view.
    ///
    /// Commit to Kafka: one-row transactions into the outbox by SQL; a read_committed consumer compares its clock with the commit time in the
    /// record's position header. Commit to view: users created through REST; PostgreSQL's own commit times of users and user_view.
    Latency(Latency),
    /// Users per second through REST, against pgbench running the same SQL statement over as many connections.
    ///
    /// Both write into the same table of the same server (fsync on), in turns, as the role user_api.
    Rest(Rest),
    /// How fast view-builder brings a new view up to date with users that are in the topic already.
    ///
    /// Clock: from the start of its process until the view's transactions with all of them have committed. Afterwards user_view must equal
    /// users. Each run adds as many users as the one before, so that the view grows.
    ViewDrain(ViewDrain),
    /// How fast 1, 2 and 4 view-builder processes bring a new view up to date with the same users.
    ///
    /// Every run has a database and a consumer group of its own, and the numbers take turns. Clock: from the start of the processes, all at
    /// once, until the view's transactions with all users have committed. Afterwards user_view must equal users.
    ViewScale(ViewScale),
    /// What dead letters cost the good keys: from a commit to user_view, without and with one poison event in a hundred.
    ///
    /// Users are changed by user-api's own statement, in turn. In every other round some of the changes are events that cannot be applied, and
    /// later events of those users wait behind them. Both rounds of a pair measure the same users: those that get no poison.
    DeadLetters(DeadLetters),
    /// How fast `outbox-relay init` publishes an outbox that is full already, and goes on after kill -9.
    ///
    /// The first attempt is killed once the topic has half of the rows, the second one goes on to the end. Afterwards the topic is read: every
    /// outbox id must be there exactly once. A million rows take about 0.6 GB of disk.
    Init(Init),
    /// How soon outbox-relay publishes again after a clean stop and after kill -9.
    ///
    /// Clock: from the start of its process until a read_committed consumer has the row that was committed just before.
    Restart(Restart),
    /// How long `view-builder verify` takes for many users.
    ///
    /// Clock: from the start of its process to its end. First on equal tables, then with every thousandth row of user_view edited by
    /// hand: that run includes the wait until nothing can be on its way any more.
    Verify(Verify),
    /// What a batch of each shipped view costs in a view of some size, and in one ten times larger.
    ///
    /// The views' own SQL, without view-builder: the same batches of 5,000 changed users and of 5,000 changed posts, each in one transaction
    /// of all views. Clock: from the first statement until the commit is answered. As many posts as users are in the views.
    ViewCost(ViewCost),
    /// How long the console takes to trace one event of a topic with very many: by its id, by partition and offset, and the latest of a key.
    ///
    /// Users are created by user-api's own statement, published by the relay and taken up by view-builder. Then pages of the console are asked for over one
    /// HTTP connection. Clock: from the request to the end of the answer. Each page must say that the event is in all views. Ten million
    /// events take about 15 GB of disk.
    Trace(Trace),
}

#[derive(Debug, Args)]
pub(crate) struct RelayDrain {
    /// One-row transactions of the first backlog; 0: leave it out.
    #[arg(long, value_name = "N", default_value_t = 600_000)]
    pub singles: u64,

    /// Rows of the second backlog, which is one transaction; 0: leave it out.
    #[arg(long, value_name = "N", default_value_t = 1_500_000)]
    pub bulk: u64,

    /// Runs of each of the two on each backlog.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=15))]
    pub runs: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Trace {
    /// Events in the topic.
    #[arg(long, value_name = "N", default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(1_000..))]
    pub events: u64,

    /// Rows of each transaction.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub transaction_rows: u64,

    /// Traces of each kind.
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(100..=100_000))]
    pub traces: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Latency {
    /// Changes per second, separated by commas.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "200,2000", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rate: Vec<u32>,

    /// How long each rate is measured, after a warm-up at the same rate.
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub seconds: u32,

    /// Connections that share the rate.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub connections: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Rest {
    /// Connections of both, separated by commas.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "8,32", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub connections: Vec<u32>,

    /// Length of a run.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub seconds: u32,

    /// Runs of each of the two with each number of connections.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=15))]
    pub runs: u32,
}

#[derive(Debug, Args)]
pub(crate) struct ViewDrain {
    /// Users that are in the topic when view-builder starts.
    #[arg(long, value_name = "N", default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub users: u64,

    /// Runs.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=15))]
    pub runs: u32,
}

#[derive(Debug, Args)]
pub(crate) struct ViewScale {
    /// Users that are in the topic when the builders start.
    #[arg(long, value_name = "N", default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub users: u64,

    /// Numbers of processes, separated by commas; the ratios are to the first.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,2,4", value_parser = clap::value_parser!(u32).range(1..=8))]
    pub builders: Vec<u32>,

    /// Runs of each number.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=15))]
    pub runs: u32,
}

#[derive(Debug, Args)]
pub(crate) struct DeadLetters {
    /// Events per second, poison included.
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rate: u32,

    /// Poison events in a hundred.
    #[arg(long, value_name = "PERCENT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=50))]
    pub poison: u32,

    /// Users that are changed in turn.
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(100..=100_000))]
    pub keys: u32,

    /// How long a round is measured, after a warm-up at the same rate.
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub seconds: u32,

    /// Connections that share the rate.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub connections: u32,

    /// Rounds of each of the two; a multiple of 4, so that either comes first as often.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(4..=32))]
    pub runs: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Init {
    /// Rows of the outbox.
    #[arg(long, value_name = "N", default_value_t = 50_000_000, value_parser = clap::value_parser!(u64).range(100_000..=1_000_000_000))]
    pub rows: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Restart {
    /// Restarts of each kind.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub restarts: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Users, in 8 departments.
    #[arg(long, value_name = "N", default_value_t = 500_000, value_parser = clap::value_parser!(u64).range(1_000..=10_000_000))]
    pub users: u64,

    /// Runs on equal tables.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=15))]
    pub runs: u32,
}

#[derive(Debug, Args)]
pub(crate) struct ViewCost {
    /// Users in the smaller view.
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(10_000..=1_000_000))]
    pub users: u64,

    /// Batches of each kind at each size.
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=99))]
    pub runs: u32,
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::{Cli, Measurement};

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn rates_are_separated_by_commas() {
        let cli = Cli::try_parse_from(["bench", "latency", "--rate", "200,2000"]).unwrap();
        let Measurement::Latency(latency) = cli.measurement else {
            panic!("another measurement")
        };
        assert_eq!(latency.rate, [200, 2000]);
    }
}
