//! What the quick start prints: the addresses of everything, and the results of a load.
#![expect(clippy::print_stdout, reason = "this is what the command is for")]

use std::time::Duration;

use anyhow::Context as _;
use hdrhistogram::Histogram;
use indicatif::HumanCount;
use stack::pipeline::{USERS_DATABASE, VIEWS_DATABASE};
use stack::{Pipeline, checkout};

use crate::load::Outcome;
use crate::view::View;

pub(crate) fn ready(pipeline: &Pipeline) -> anyhow::Result<()> {
    let postgres = match pipeline.postgres() {
        Ok(postgres) => format!("psql -h localhost -p {} -U postgres", postgres.port()),
        Err(_) => "yours".to_owned(),
    };
    let psql = match pipeline.postgres() {
        Ok(postgres) => format!(
            "psql -h localhost -p {} -U postgres -d {VIEWS_DATABASE}",
            postgres.port()
        ),
        Err(_) => format!("psql '{}'", pipeline.database_url(VIEWS_DATABASE)?),
    };
    let verify = verify(pipeline)?;
    let users = pipeline.user_api.url("/api/users");
    let posts = pipeline.post_api.url("/api/posts");
    println!("\nEverything is up. Ctrl-C ends it.\n");
    let console = pipeline.console.as_ref().context("the quick start has a console")?;
    table(&[
        ("console", console.url("/")),
        (
            "its token",
            format!("in {}   (to log in with for changes)", console.token_file().display()),
        ),
        ("users", users.clone()),
        ("posts", posts.clone()),
        (
            "PostgreSQL",
            format!("{postgres}   (databases {USERS_DATABASE}, {VIEWS_DATABASE})"),
        ),
        (
            "Kafka",
            format!("{}   (topics user-events, post-events)", pipeline.bootstrap_servers()),
        ),
        ("users' relay", pipeline.users_relay.url("/metrics   (also /readyz)")),
        ("posts' relay", pipeline.posts_relay.url("/metrics   (also /readyz)")),
        ("view-builder", pipeline.view_builder.url("/metrics   (also /readyz)")),
        ("logs", pipeline.logs().display().to_string()),
    ]);
    println!(
        r#"
Lines to paste into another terminal:

  curl -X POST {users} -H 'Content-Type: application/json' \
       -d '{{"name":"홍길동","email":"hong@example.com","department":"개발팀","status":"ACTIVE"}}'
  curl -X POST {posts} -H 'Content-Type: application/json' \
       -d '{{"title":"안녕하세요","content":"첫 번째 포스트입니다.","authorId":1}}'
  curl {posts}/by-department/개발팀
  {psql} -c 'select * from user_view'
  {psql} -c 'select * from department_stats'
{verify}"#
    );
    Ok(())
}

/// The command line that compares the views with their source. It is left out if the server is not ours, because it would show the roles' passwords.
fn verify(pipeline: &Pipeline) -> anyhow::Result<String> {
    if pipeline.postgres().is_err() {
        return Ok(String::new());
    }
    Ok(format!(
        r"  {} verify --kafka {} --views {} \
       --database-url {} \
       --source user-events={} --source post-events={}
",
        checkout::programs_directory()?.join("view-builder").display(),
        pipeline.bootstrap_servers(),
        checkout::root().join("sql/views").display(),
        pipeline.verifier_url(VIEWS_DATABASE)?,
        pipeline.verifier_url(USERS_DATABASE)?,
        pipeline.verifier_url(VIEWS_DATABASE)?,
    ))
}

pub(crate) fn load(outcome: &Outcome, view: &View) {
    let rate = |count: u64, elapsed: Duration| {
        let per_second = count as f64 / elapsed.as_secs_f64().max(0.001);
        format!("{per_second:.0}")
    };
    println!();
    table(&[
        ("users created", HumanCount(outcome.created).to_string()),
        ("failed", failures(outcome)),
        ("users/s", rate(outcome.created, outcome.elapsed)),
        ("request p50", milliseconds(&outcome.request_us, 0.5)),
        ("request p99", milliseconds(&outcome.request_us, 0.99)),
        ("rows in the view", HumanCount(view.rows).to_string()),
        ("view rows/s", rate(view.rows, view.elapsed)),
        ("commit to view p50", latency(view, 0.5)),
        ("commit to view p99", latency(view, 0.99)),
    ]);
    println!(
        "
users/s: from the first request to the last answer. view rows/s: from the first request until the last row is in user_view.
Commit to view: for each user, from the commit of its row in users to the commit of its row in user_view, by PostgreSQL's own
commit timestamps; under a load that creates users as fast as it can, this includes the time spent in queues.
"
    );
}

fn failures(outcome: &Outcome) -> String {
    let reasons: Vec<String> = outcome
        .failures
        .iter()
        .map(|(reason, count)| format!("{reason}: {}", HumanCount(*count)))
        .collect();
    if reasons.is_empty() {
        "0".to_owned()
    } else {
        format!("{} ({})", HumanCount(outcome.failed()), reasons.join(", "))
    }
}

fn latency(view: &View, quantile: f64) -> String {
    match &view.commit_to_view_us {
        Some(histogram) => milliseconds(histogram, quantile),
        None => "not known: the server has track_commit_timestamp = off".to_owned(),
    }
}

fn milliseconds(histogram: &Histogram<u64>, quantile: f64) -> String {
    if histogram.is_empty() {
        return "none".to_owned();
    }
    format!("{:.1} ms", histogram.value_at_quantile(quantile) as f64 / 1000.0)
}

/// Prints names in one column and values in the next.
fn table(rows: &[(&str, String)]) {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in rows {
        println!("  {name:width$}  {value}");
    }
}
