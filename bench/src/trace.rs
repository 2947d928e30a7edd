//! How long the console takes to trace one event among many.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use stack::pipeline::{USERS_DATABASE, VIEWS_DATABASE};
use stack::{Pipeline, PipelineBuilder, postgres};

use crate::arguments::Trace;
use crate::http::Connection;
use crate::report::Report;
use crate::statistics::{latency_histogram, quantile_ms, thousands};
use crate::view_drain::many_users;

/// So many connections write the users.
const WRITERS: u64 = 4;
/// So many traces of each kind come first and are not counted: the console opens its clients and sessions by them.
const WARM_UP: usize = 20;
const HEADINGS: [&str; 5] = ["trace by", "traces", "p50 ms", "p99 ms", "max ms"];
const POLL: Duration = Duration::from_millis(500);

/// An event that is traced.
struct Event {
    id: String,
    key: String,
}

/// # Errors
/// A part failed, or a trace does not show the event in its view.
pub(crate) async fn measure(options: &Trace, builder: PipelineBuilder) -> anyhow::Result<Report> {
    let pipeline = builder.console(None).start().await?;
    let mut report = Report::begin(&pipeline, &HEADINGS).await?;
    fill(&pipeline, options).await?;
    let events = sample(&pipeline, options.traces as usize + WARM_UP).await?;
    let by_id: Vec<String> = events.iter().map(|event| format!("/trace?id={}", event.id)).collect();
    let by_key: Vec<String> = events
        .iter()
        .map(|event| format!("/trace?topic=user-events&key={}", event.key))
        .collect();
    let (pages, ids) = trace_all(&pipeline, &by_id).await?;
    let by_place = pages
        .iter()
        .map(|page| place_in(page))
        .collect::<anyhow::Result<Vec<String>>>()?;
    let (_, places) = trace_all(&pipeline, &by_place).await?;
    let (_, keys) = trace_all(&pipeline, &by_key).await?;
    pipeline.stop().await?;
    for (kind, latencies_us) in [
        ("event id", ids),
        ("partition and offset", places),
        ("key (the latest)", keys),
    ] {
        add(&mut report, kind, &latencies_us);
    }
    report.notes = vec![format!(
        "The topic has {} events of as many users, in transactions of {} rows. Each trace is a page of the console, asked for over one HTTP connection, one after the other, \
         of events chosen at random. Each page says that the event is in all views. The first {WARM_UP} of each kind do not count.",
        thousands(options.events as f64),
        options.transaction_rows
    )];
    Ok(report)
}

fn add(report: &mut Report, kind: &str, latencies_us: &Histogram<u64>) {
    let (p50, p99) = (quantile_ms(latencies_us, 0.5), quantile_ms(latencies_us, 0.99));
    let max = latencies_us.max() as f64 / 1_000.0;
    report
        .runs
        .push(json!({"trace_by": kind, "traces": latencies_us.len(), "p50_ms": p50, "p99_ms": p99, "max_ms": max}));
    report.table.add_row(vec![
        kind.to_owned(),
        latencies_us.len().to_string(),
        format!("{p50:.1}"),
        format!("{p99:.1}"),
        format!("{max:.1}"),
    ]);
}

/// Creates the users by user-api's own statement, and waits until the view has them.
async fn fill(pipeline: &Pipeline, options: &Trace) -> anyhow::Result<()> {
    tracing::info!(
        "creating {} users, which the relay and view-builder take up meanwhile",
        thousands(options.events as f64)
    );
    let progress = progress(options.events);
    let url = pipeline.database_url(USERS_DATABASE)?;
    let share = options.events.div_ceil(WRITERS);
    let writers = (0..WRITERS).map(|writer| {
        let (first, last) = (writer * share + 1, options.events.min((writer + 1) * share));
        write(&url, first, last, options.transaction_rows, &progress)
    });
    try_join_all(writers).await?;
    let views = postgres::connect(&pipeline.database_url(VIEWS_DATABASE)?).await?;
    loop {
        let row = views.query_one("select count(*) from user_view", &[]).await?;
        let count = u64::try_from(row.get::<_, i64>(0))?;
        progress.set_message(format!("{} in the view", thousands(count as f64)));
        if count >= options.events {
            break;
        }
        tokio::time::sleep(POLL).await;
    }
    progress.finish_and_clear();
    Ok(())
}

async fn write(url: &str, first: u64, last: u64, rows: u64, progress: &ProgressBar) -> anyhow::Result<()> {
    let client = postgres::connect(url).await?;
    client.batch_execute("set synchronous_commit = off").await?;
    let mut next = first;
    while next <= last {
        let end = last.min(next + rows - 1);
        client.batch_execute(&many_users(next, end)?).await?;
        progress.inc(end - next + 1);
        next = end + 1;
    }
    Ok(())
}

fn progress(events: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_bar} {human_pos} of {human_len} written, {per_sec}, {msg}");
    // The template is a constant; a wrong one falls back to the plain bar.
    ProgressBar::new(events).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Events chosen at random from all of the outbox.
async fn sample(pipeline: &Pipeline, count: usize) -> anyhow::Result<Vec<Event>> {
    let client = postgres::connect(&pipeline.database_url(USERS_DATABASE)?).await?;
    let rows = client
        .query(
            "select id::text, aggregateid from outbox order by random() limit $1",
            &[&i64::try_from(count)?],
        )
        .await?;
    ensure!(rows.len() == count, "the outbox has only {} rows", rows.len());
    Ok(rows
        .iter()
        .map(|row| Event {
            id: row.get(0),
            key: row.get(1),
        })
        .collect())
}

/// Asks for all pages, and checks each. Returns them with the latencies of all but the first [`WARM_UP`].
async fn trace_all(pipeline: &Pipeline, addresses: &[String]) -> anyhow::Result<(Vec<String>, Histogram<u64>)> {
    let console = pipeline.console.as_ref().context("the pipeline has no console")?;
    let mut connection = Connection::open(console.page_port()).await?;
    let (mut pages, mut latencies_us) = (Vec::new(), latency_histogram()?);
    for (number, address) in addresses.iter().enumerate() {
        let begin = Instant::now();
        let page = connection.get(address).await?;
        let took_us = u64::try_from(begin.elapsed().as_micros())?;
        ensure!(
            page.contains("in all views"),
            "{address} does not show the event in all views:\n{page}"
        );
        if number >= WARM_UP {
            latencies_us.saturating_record(took_us);
        }
        pages.push(page);
    }
    Ok((pages, latencies_us))
}

/// The address of the trace of the record that a page shows.
fn place_in(page: &str) -> anyhow::Result<String> {
    let link = "href=\"/events/user%2Devents/";
    let place = page.split(link).nth(1).and_then(|rest| rest.split('"').next());
    let (partition, offset) = place
        .and_then(|place| place.split_once('/'))
        .context("the page has no link to the record")?;
    Ok(format!(
        "/trace?topic=user-events&partition={partition}&offset={offset}"
    ))
}

#[cfg(test)]
mod tests {
    use super::place_in;

    #[test]
    fn the_record_of_a_page_is_known_by_its_link() {
        let page = r#"<a href="/events/user%2Devents/3/1000">3/1000</a>"#;
        assert_eq!(
            place_in(page).unwrap(),
            "/trace?topic=user-events&partition=3&offset=1000"
        );
        assert!(place_in("<p>nothing</p>").is_err());
    }
}
