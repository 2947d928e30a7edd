//! A new major version of Postgres, step by step as docs/operations.md has it: the test reads SQL and commands out of the page.
//!
//! It goes by a dump, since `pg_upgrade` needs the programs of both versions in the form that a distribution installs. For the relay the two are the same
//! from 15 and 16 on: another system identifier, role and publication, and no slot.

use std::process::{Command, Stdio};
use std::sync::Arc;

use rig::servers::postgres_options;
use rig::{Isolation, Ledger, Rig, Servers};
use stack::{Postgres, PostgresOptions, eventually};

use crate::relay::tampering::DEADLINE;

const PAGE: &str = include_str!("../../../docs/operations.md");
/// Of the server that is left.
const OLD_VERSION: u32 = 15;
/// Exit code of `outbox-relay`.
const OTHER_CLUSTER: i32 = 16;

/// The page's part about this.
fn part() -> &'static str {
    let (_, part) = PAGE
        .split_once("\n## A new major version of Postgres\n")
        .expect("the page's part");
    part.split_once("\n## ").expect("the next part").0
}

/// The first block of `language` behind `after`.
fn block(language: &str, after: &str) -> String {
    let (_, rest) = part().split_once(after).unwrap_or_else(|| panic!("no `{after}`"));
    let (_, rest) = rest.split_once(&format!("```{language}\n")).expect("a block");
    rest.split_once("```").expect("the block's end").0.trim().to_owned()
}

/// All of the old cluster into the new one.
async fn dump_and_restore(old: &Postgres, new: &Postgres) {
    let (from, to) = (old.url("postgres", "postgres"), new.url("postgres", "postgres"));
    let copied = tokio::task::spawn_blocking(move || {
        let mut dump = Command::new("pg_dumpall")
            .args(["--dbname", &from])
            .stdout(Stdio::piped())
            .spawn()
            .expect("pg_dumpall (on Debian and Ubuntu the package postgresql-client)");
        let dumped = dump.stdout.take().expect("its output");
        // Goes on after the error that the role postgres is there already.
        let restored = Command::new("psql")
            .args(["--quiet", "--dbname", &to])
            .stdin(dumped)
            .stdout(Stdio::null())
            .output()
            .expect("psql");
        (dump.wait().expect("its end"), restored)
    });
    let (dumped, restored) = copied.await.expect("a dump");
    let said = String::from_utf8_lossy(&restored.stderr).into_owned();
    assert!(dumped.success() && restored.status.success(), "{said}");
    let errors = said.lines().filter(|line| line.contains("ERROR"));
    let unexpected: Vec<&str> = errors
        .filter(|line| !line.contains("role \"postgres\" already exists"))
        .collect();
    assert!(unexpected.is_empty(), "{said}");
}

/// A rig on a server of the old version, with rows that are published and confirmed, whose relay is stopped.
async fn published_on_the_old_version(name: &str) -> Rig {
    let options = PostgresOptions {
        version: Some(OLD_VERSION),
        ..postgres_options()
    };
    let servers = Servers {
        postgres: Arc::new(Postgres::start(options).await.expect("the old version")),
        kafka: Arc::clone(&Servers::shared().await.kafka),
    };
    let rig = Rig::on(Arc::new(servers), name).await;
    rig.insert_each(5).await;
    rig.init(&[]).await;
    rig.start().await;
    rig.insert_each(20).await;
    rig.insert_together(30).await;
    rig.assert_exactly_once().await;
    let is_confirmed = block("sql", "\n2. ").replace("'shop'", &format!("'{name}'"));
    eventually(DEADLINE, "all is confirmed", || async {
        (rig.value(&is_confirmed).await == "t").then_some(())
    })
    .await;
    rig.relay.stop().await.expect("a clean end");
    rig
}

async fn assert_check_finds_no_problem(rig: &Rig) {
    let logged = rig.relay.log_text().len();
    let checked = rig.relay.run(&["check"]).await;
    checked.unwrap_or_else(|err| panic!("{err:#}"));
    let found = rig.relay.log_text()[logged..].to_owned();
    assert!(!found.contains("PROBLEM"), "{found}");
}

#[tokio::test]
async fn where_the_slot_does_not_come_along_every_row_from_before_and_after_is_published_once() {
    let mut rig = published_on_the_old_version("major_version").await;
    let new = Postgres::start(postgres_options()).await.expect("the new version");
    assert!(new.version() > OLD_VERSION);
    dump_and_restore(&rig.servers.postgres, &new).await;
    rig.servers.postgres.stop_fast().await.expect("the old version's end");

    rig.relay = rig.relay.with_env("DATABASE_URL", &new.url("postgres", rig.name()));
    let status = rig.relay.run_for_status(&["run"]).await.expect("an end");
    assert_eq!(status.code(), Some(OTHER_CLUSTER), "{}", rig.relay.log_tail(5));
    let command = block("sh", "Where it is gone.");
    let arguments: Vec<&str> = command.strip_prefix("outbox-relay ").expect("one").split(' ').collect();
    rig.relay.run(&arguments).await.unwrap_or_else(|err| panic!("{err:#}"));
    assert_check_finds_no_problem(&rig).await;
    rig.start().await;
    for statement in [rig.insert_statement(30, 7), rig.insert_statement(1, 7)] {
        new.query(rig.name(), &statement).await.expect("rows");
    }
    let rows = rig.rows_on(&new).await;
    assert_eq!(rows.len(), 86);
    let ledger = eventually(DEADLINE, "all rows are published", || async {
        let records = rig.records(Isolation::Committed).await.ok()?;
        let ledger = Ledger::compare(&rows, &records);
        ledger.lost.is_empty().then_some(ledger)
    })
    .await;
    assert!(ledger.is_exact(), "{ledger}");
    rig.relay.stop().await.expect("a clean end");
}
