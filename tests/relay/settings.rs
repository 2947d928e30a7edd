//! Settings that somebody has made for a role or a database change nothing: no byte of a record, not whether the relay goes on, and not how it stops.

use std::collections::BTreeMap;
use std::time::Duration;

use rig::rig::ARRIVAL_DEADLINE;
use rig::{Isolation, Record, Rig, relay_exit, servers};
use stack::{eventually, eventually_ok};

use super::tampering::{DEADLINE, kill_and_drop_slot, metric};

/// Each of these settings changes what a session writes or understands, or ends the session in the middle of its work.
const AWKWARD: [(&str, &str); 18] = [
    ("bytea_output", "escape"),
    ("client_min_messages", "error"),
    ("\"DateStyle\"", "'SQL, DMY'"),
    ("\"IntervalStyle\"", "sql_standard"),
    ("extra_float_digits", "-15"),
    ("\"TimeZone\"", "'Asia/Seoul'"),
    ("idle_in_transaction_session_timeout", "1"),
    ("idle_session_timeout", "200"),
    ("statement_timeout", "30"),
    ("lock_timeout", "1"),
    // A view there shows slots that nobody has, and a function there matches a call better than Postgres' own function.
    ("search_path", "trap, pg_catalog, public"),
    ("quote_all_identifiers", "on"),
    ("row_security", "off"),
    ("default_transaction_isolation", "serializable"),
    ("default_transaction_deferrable", "on"),
    ("standard_conforming_strings", "off"),
    ("xmloption", "document"),
    ("exit_on_error", "on"),
];
/// Ends each transaction after so many milliseconds; PostgreSQL 17 and later.
const TRANSACTION_TIMEOUT: &str = "300";
/// Decoding so many rows takes longer than that.
const LARGE_TRANSACTION_ROWS: u32 = 150_000;

const COLUMNS: &str = "
    drop table outbox;
    create table outbox (id uuid primary key default gen_random_uuid(), aggregatetype text not null, aggregateid text not null,
      type text not null, payload bytea, due timestamptz, waits interval, ratio float8, part float4, price money, digest bytea, day date,
      document xml, created_at timestamptz not null default clock_timestamp());
    create schema trap;
    create view trap.pg_replication_slots as select * from pg_catalog.pg_replication_slots where false;
    create function trap.format(text, name, name) returns text language sql as 'select ''trapped''::text'";
const HEADERS: &str = "route.topic.replacement=${routedByValue}\ntable.fields.additional.placement=type:header,due:header,waits:header,\
    ratio:header,part:header,price:header,digest:header,day:header,document:header";

/// How the settings reach the relay's sessions.
#[derive(Clone, Copy, Debug)]
enum SetBy {
    Nobody,
    Role,
    Database,
    /// By `options` in the URL.
    Options,
}

/// A rig whose relay logs in as a role of its own, with the settings.
async fn rig(name: &str, set_by: SetBy) -> Rig {
    let mut rig = Rig::new(name).await;
    rig.sql(COLUMNS).await;
    rig.sql(&format!("create role {name} superuser login")).await;
    let mut settings: Vec<(&str, &str)> = AWKWARD.to_vec();
    if servers::postgres_version() >= 17 {
        settings.push(("transaction_timeout", TRANSACTION_TIMEOUT));
    }
    let mut url = rig.servers.postgres.url(name, name);
    for (setting, value) in settings {
        match set_by {
            SetBy::Nobody => {}
            SetBy::Role => {
                rig.sql(&format!("alter role {name} set {setting} = {value}")).await;
            }
            SetBy::Database => {
                // The test's own sessions do not get the settings, because a setting for a role in a database wins over a setting for the database.
                rig.sql(&format!(
                    "alter role postgres in database {name} set {setting} from current; alter database {name} set {setting} = {value}"
                ))
                .await;
            }
            SetBy::Options => {
                let value = value.trim_matches('\'').replace(' ', "\\ ");
                let option = format!("-c {}={value} ", setting.trim_matches('"'));
                let separator = if url.contains('?') { "" } else { "?options=" };
                url += &format!("{separator}{}", percent_encoded(&option));
            }
        }
    }
    rig.relay = rig.relay.env("DATABASE_URL", &url).env("ROUTER_OPTIONS", HEADERS);
    rig
}

fn percent_encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// The statement that inserts rows with a value of each type whose text a setting can change.
fn insert(rig: &Rig, from: u32, to: u32) -> String {
    let topic = rig.topic();
    format!(
        "insert into outbox (aggregatetype, aggregateid, type, payload, due, waits, ratio, part, price, digest, day, document)
         select '{topic}', n, 'Changed', decode('00ff5c' || lpad(to_hex(n), 8, '0'), 'hex'), '2026-03-04 05:06:07.089+00'::timestamptz + n * interval '1 day',
                make_interval(years => 1, days => n, secs => 1.5), 0.1 + n / 3.0, 0.1, 12.34::numeric::money, '\\x5c00'::bytea, date '2026-03-04' + n,
                xmlparse(content '<a/>b')
         from generate_series({from}, {to}) as n"
    )
}

/// The values and headers of the first rows' records, by key. What differs from row to row and from rig to rig is left out.
async fn published(rig: &Rig, rows: usize) -> BTreeMap<String, (Option<Vec<u8>>, Vec<(String, Option<Vec<u8>>)>)> {
    let records: Vec<Record> = eventually_ok(ARRIVAL_DEADLINE, "all rows are published", || async {
        let records = rig.records(Isolation::Committed).await?;
        anyhow::ensure!(
            records.len() >= rows,
            "{} records\n{}",
            records.len(),
            rig.relay.log_tail(10)
        );
        Ok(records)
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}"));
    assert_eq!(records.len(), rows, "{}", rig.name());
    let plain = |record: Record| {
        let key = record.key_text().expect("a key").to_owned();
        let mut headers = record.headers;
        headers.retain(|(name, _)| name != "id" && name != "position");
        (key, (record.value, headers))
    };
    records.into_iter().map(plain).collect()
}

/// Lets the relay publish existing rows and new rows, lets the guard confirm, and stops the relay by an altered publication. Returns what was
/// published.
async fn live(name: &str, set_by: SetBy) -> BTreeMap<String, (Option<Vec<u8>>, Vec<(String, Option<Vec<u8>>)>)> {
    let rig = rig(name, set_by).await;
    rig.sql(&insert(&rig, 1, 3_000)).await;
    rig.init(&[]).await;
    rig.relay.run(&["check"]).await.unwrap_or_else(|err| panic!("{err:#}"));
    rig.start().await;
    rig.sql(&insert(&rig, 3_001, 3_010)).await;
    let records = published(&rig, 3_010).await;
    super::tampering::wait_until_confirmed(&rig).await;
    let restarts = metric(&rig, "relay_restarts_total").await.unwrap_or(0.0);
    assert!(
        restarts < 0.5,
        "{name}: {restarts} restarts\n{}",
        rig.relay.log_tail(20)
    );
    // The publication is dropped. The relay must find out, although a setting hides warnings.
    rig.sql("drop publication outbox").await;
    rig.sql(&insert(&rig, 4_000, 4_000)).await;
    let status = rig.relay.exited(DEADLINE).await.unwrap_or_else(|err| panic!("{err:#}"));
    assert_eq!(
        status.code(),
        Some(relay_exit::PUBLICATION_WRONG),
        "{name}: {}",
        rig.relay.log_tail(10)
    );
    kill_and_drop_slot(&rig).await;
    records
}

#[tokio::test]
async fn what_is_set_for_a_role_a_database_or_by_options_changes_no_byte_and_no_stop() {
    let (plain, by_role, by_database, by_options) = tokio::join!(
        live("settings_plain", SetBy::Nobody),
        live("settings_role", SetBy::Role),
        live("settings_database", SetBy::Database),
        live("settings_options", SetBy::Options)
    );
    let row = &plain["7"];
    let header = |name: &str| {
        let (_, value) = row.1.iter().find(|(header, _)| header == name).expect("a header");
        String::from_utf8(value.clone().expect("a value")).expect("text")
    };
    assert_eq!(
        row.0.as_deref(),
        Some(&b"\x00\xff\x5c\x00\x00\x00\x07"[..]),
        "the payload's bytes"
    );
    for (name, expected) in [
        ("due", "2026-03-11 05:06:07.089+00"),
        ("waits", "1 year 7 days 00:00:01.5"),
        ("ratio", "2.433333333333333"),
        ("part", "0.1"),
        ("price", "$12.34"),
        ("digest", "\\x5c00"),
        ("day", "2026-03-11"),
        ("document", "<a/>b"),
    ] {
        assert_eq!(header(name), expected, "{name}");
    }
    for (how, records) in [("role", by_role), ("database", by_database), ("options", by_options)] {
        assert_eq!(records.len(), plain.len(), "{how}");
        for (key, record) in &plain {
            assert_eq!(records.get(key), Some(record), "{how}: row {key}");
        }
    }
}

#[tokio::test]
async fn a_large_transaction_outlasts_the_timeouts_that_are_set_for_the_role() {
    let rig = rig("settings_large", SetBy::Role).await;
    rig.init(&[]).await;
    rig.start().await;
    let fill = insert(&rig, 1, LARGE_TRANSACTION_ROWS);
    rig.sql(&fill).await;
    eventually(Duration::from_secs(120), "all rows are published", || async {
        let published = metric(&rig, "relay_published_records_total").await?;
        (published >= f64::from(LARGE_TRANSACTION_ROWS)).then_some(())
    })
    .await;
    let restarts = metric(&rig, "relay_restarts_total").await.unwrap_or(0.0);
    assert!(restarts < 0.5, "{restarts} restarts\n{}", rig.relay.log_tail(20));
    rig.finish().await.expect("a clean end");
}

/// Without the pinned settings, the router gets a column of bytes in another notation, and a consumer gets an interval in other words.
#[tokio::test]
async fn without_the_pinned_settings_a_row_is_refused_or_published_with_other_bytes() {
    let mut rig = Rig::new("settings_planted").await;
    rig.sql(COLUMNS).await;
    rig.sql("create role settings_planted superuser login; alter role settings_planted set bytea_output = escape")
        .await;
    let url = rig.servers.postgres.url("settings_planted", rig.name());
    rig.relay = rig
        .relay
        .with_binary("outbox-relay-faults")
        .env("DATABASE_URL", &url)
        .env("ROUTER_OPTIONS", HEADERS)
        .env("OUTBOX_RELAY_BUG", "PinNoSettings");
    rig.sql(&insert(&rig, 1, 2)).await;
    let status = rig.relay.run_for_status(&["init"]).await.expect("an init");
    assert_eq!(
        status.code(),
        Some(relay_exit::ROW_REFUSED),
        "{}",
        rig.relay.log_tail(5)
    );
    rig.sql("alter role settings_planted reset all; alter role settings_planted set \"IntervalStyle\" = sql_standard")
        .await;
    rig.init(&[]).await;
    let records = published(&rig, 2).await;
    let waits = records["1"].1.iter().find(|(header, _)| header == "waits");
    let waits = waits.and_then(|(_, value)| value.clone()).expect("a value");
    assert_eq!(String::from_utf8_lossy(&waits), "+1-0 +1 +0:00:01.5");
    kill_and_drop_slot(&rig).await;
}
