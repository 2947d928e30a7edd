//! Moves an outbox to a new major version of Postgres. The test takes the steps of docs/operations.md, and reads the SQL and the commands out of
//! that page.
//!
//! It moves the data by a dump, because `pg_upgrade` needs the installed programs of both versions. For the relay a dump is the same as `pg_upgrade`
//! from version 15 or 16: afterwards the system identifier is another one, the role and the publication are there, and the slot is gone.

use std::process::{Command, Stdio};
use std::sync::Arc;

use rig::servers::postgres_options;
use rig::{Isolation, Ledger, Rig, Servers, relay_exit};
use stack::{Postgres, PostgresOptions, eventually};

use crate::relay::tampering::DEADLINE;

const PAGE: &str = include_str!("../../../docs/operations.md");
/// Version of the server that the outbox leaves.
const OLD_VERSION: u32 = 15;

/// The section of the page about a new major version.
fn section() -> &'static str {
    let (_, section) = PAGE
        .split_once("\n## A new major version of Postgres\n")
        .expect("the section");
    section.split_once("\n## ").expect("the next section").0
}

/// The first block of code in `language` that follows the text `after`.
fn code_block(language: &str, after: &str) -> String {
    let (_, rest) = section().split_once(after).unwrap_or_else(|| panic!("no `{after}`"));
    let (_, rest) = rest.split_once(&format!("```{language}\n")).expect("a block");
    rest.split_once("```").expect("the block's end").0.trim().to_owned()
}

/// Copies all databases and roles of the old cluster into the new one.
async fn dump_and_restore(old: &Postgres, new: &Postgres) {
    let (from, to) = (old.url("postgres", "postgres"), new.url("postgres", "postgres"));
    let copied = tokio::task::spawn_blocking(move || {
        let mut dump = Command::new("pg_dumpall")
            .args(["--dbname", &from])
            .stdout(Stdio::piped())
            .spawn()
            .expect("pg_dumpall (on Debian and Ubuntu the package postgresql-client)");
        let dumped = dump.stdout.take().expect("its output");
        // psql goes on after an error, and one is expected: the role postgres is there already.
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

/// A rig on a server of the old version. Its relay has published and confirmed every row, and was stopped.
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
    let is_confirmed = code_block("sql", "\n2. ").replace("'shop'", &format!("'{name}'"));
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
    assert_eq!(
        status.code(),
        Some(relay_exit::OTHER_CLUSTER),
        "{}",
        rig.relay.log_tail(5)
    );
    let command = code_block("sh", "Where the slot is gone.");
    let arguments: Vec<&str> = command.strip_prefix("outbox-relay ").expect("one").split(' ').collect();
    rig.relay.run(&arguments).await.unwrap_or_else(|err| panic!("{err:#}"));
    assert_check_finds_no_problem(&rig).await;
    rig.start().await;
    for statement in [rig.insert_statement(30, 7), rig.insert_statement(1, 7)] {
        new.query(rig.name(), &statement).await.expect("rows");
    }
    let rows = rig.rows_on(&new).await;
    let written_before = 5 + 20 + 30;
    assert_eq!(rows.len(), written_before + 30 + 1);
    let ledger = eventually(DEADLINE, "all rows are published", || async {
        let records = rig.records(Isolation::Committed).await.ok()?;
        let ledger = Ledger::compare(&rows, &records);
        ledger.lost.is_empty().then_some(ledger)
    })
    .await;
    assert!(ledger.is_exact(), "{ledger}");
    rig.relay.stop().await.expect("a clean end");
}
