//! Prints where each partition of a topic ends: for a reader of what is committed, and for one who sees open transactions as well.
//!
//! `cargo run --example topic_ends --features args -- --kafka localhost:9092 orders`; `--help` has the flags for TLS and logins.

#![expect(clippy::print_stdout, reason = "the example prints the ends")]

use anyhow::Context as _;
use clap::Parser;
use kafka_client::{ClientArgs, ends_by, facts_by};
use rdkafka::consumer::Consumer as _;

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    kafka: ClientArgs,
    /// The topic.
    topic: String,
}

fn main() -> anyhow::Result<()> {
    let Cli { kafka, topic } = Cli::parse();
    let settings = kafka.check(&["group.id"])?;

    let mut config = settings.begin("topic-ends");
    // librdkafka takes no consumer without a group; this one never joins it.
    config.set("group.id", "topic-ends");
    settings.add_consumers_properties(&mut config);
    let client = settings.open_reader(&config)?;

    let asked = facts_by(&client, [&topic]);
    // librdkafka tries again where the cluster refuses us, and tells the reason on the side.
    let facts = asked.map_err(|err| match client.context().reasons().refused() {
        Some(refused) => refused.into(),
        None => err,
    })?;
    let facts = facts
        .get(&topic)
        .with_context(|| format!("there is no topic `{topic}`"))?;
    println!("topic {topic}, id {}", facts.id.as_deref().unwrap_or("not told"));
    println!("{:>9} {:>14} {:>14}", "PARTITION", "COMMITTED", "ALL");
    for ends in ends_by(
        &client,
        (0..facts.partitions).map(|partition| (topic.as_str(), partition)),
    )? {
        println!("{:>9} {:>14} {:>14}", ends.partition, ends.stable, ends.all);
    }
    Ok(())
}
