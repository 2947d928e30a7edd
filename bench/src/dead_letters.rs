//! What dead letters cost the keys that have none.

mod outcome;
mod plan;
mod round;
mod sampler;

use anyhow::ensure;
use stack::pipeline::VIEWS_DATABASE;
use stack::{Pipeline, PipelineBuilder, postgres};

use crate::arguments::DeadLetters;
use crate::latency::FIRST_WARM_UP_RATE;
use crate::report::Report;
use crate::statistics::quantile_ms;
use crate::wal_files;
use outcome::Outcome;
use plan::REFUSED_STATUS;
use round::Round;

/// The first round warms everything up and does not count. It is faster than the others, and as long as Java takes to compile the broker.
const FIRST_WARM_UP_SECONDS: u32 = 240;

/// Whether a round has poison events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    WithoutPoison,
    WithPoison,
}

/// Measures pairs of rounds, one with poison events and one without, and compares the latencies of the keys that get no poison.
///
/// # Errors
/// A part failed, or a change did not arrive.
pub(crate) async fn measure(options: &DeadLetters, builder: PipelineBuilder) -> anyhow::Result<Report> {
    ensure!(
        options.runs.is_multiple_of(4),
        "--runs must be a multiple of 4, so that each kind of round comes first equally often"
    );
    let pipeline = builder.start().await?;
    make_the_view_refuse_a_status(&pipeline).await?;
    let report = Report::begin(&pipeline, &outcome::HEADINGS).await?;
    warm_up(&pipeline, options).await?;
    let rounds = measure_rounds(&pipeline, options).await?;
    pipeline.stop().await?;
    Ok(Outcome::of(rounds)?.into_report(report, options))
}

/// Adds a constraint to the view, as an operator might. view-builder does not know the constraint, and learns of it only when PostgreSQL
/// refuses a batch.
async fn make_the_view_refuse_a_status(pipeline: &Pipeline) -> anyhow::Result<()> {
    let views = postgres::connect(&pipeline.database_url(VIEWS_DATABASE)?).await?;
    let sql = format!("alter table user_view add constraint user_view_bench check (status <> '{REFUSED_STATUS}')");
    Ok(views.batch_execute(&sql).await?)
}

async fn warm_up(pipeline: &Pipeline, options: &DeadLetters) -> anyhow::Result<()> {
    tracing::info!("warming up");
    wal_files::make_reusable(pipeline).await?;
    let warm_up = DeadLetters {
        rate: FIRST_WARM_UP_RATE,
        seconds: FIRST_WARM_UP_SECONDS,
        ..*options
    };
    round::measure(pipeline, &warm_up, 0, Kind::WithoutPoison).await?;
    Ok(())
}

/// Measures all pairs of rounds. Returns the rounds in the order in which they ran.
async fn measure_rounds(pipeline: &Pipeline, options: &DeadLetters) -> anyhow::Result<Vec<Round>> {
    let mut rounds = Vec::new();
    for number in 1..=options.runs {
        for kind in order_of_pair(number) {
            let round = round::measure(pipeline, options, u64::from(number), kind).await?;
            tracing::info!(
                "  round {number}, {}: p50 {:.1} ms, p99 {:.1} ms, {} dead letters",
                match kind {
                    Kind::WithPoison => "with poison",
                    Kind::WithoutPoison => "without",
                },
                quantile_ms(&round.latencies_us, 0.5),
                quantile_ms(&round.latencies_us, 0.99),
                round.dead_letters
            );
            rounds.push(round);
        }
    }
    Ok(rounds)
}

/// Which round of a pair comes first. Some conditions change with time: a server warms up, and PostgreSQL does something every minute or two,
/// which is as long as two or four rounds. Such a change must not count for one kind alone. The order is the Thue-Morse sequence, which is fair
/// over parts of such lengths.
fn order_of_pair(number: u32) -> [Kind; 2] {
    if (number - 1).count_ones() % 2 == 1 {
        [Kind::WithPoison, Kind::WithoutPoison]
    } else {
        [Kind::WithoutPoison, Kind::WithPoison]
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, order_of_pair};

    #[test]
    fn each_kind_comes_first_equally_often_in_every_four_pairs() {
        for first in [1, 5, 9, 13] {
            let pairs = (first..first + 4).map(order_of_pair);
            assert_eq!(pairs.filter(|order| order[0] == Kind::WithPoison).count(), 2);
        }
    }
}
