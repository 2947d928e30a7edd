//! Changes the settings of topics. Also the steps that are shared by the tests of rows that Kafka does not take.

use rig::rig::{ARRIVAL_DEADLINE, READY_DEADLINE};
use rig::{Isolation, Rig};
use stack::{Program, eventually};

/// Gives the rig's topic these settings and no others of its own. Returns once the broker knows them.
pub(super) async fn set_topic(rig: &Rig, settings: &[(&str, &str)]) {
    let bootstrap_servers = rig.servers.kafka.bootstrap_servers();
    let set = rig::topic_settings::set(&bootstrap_servers, &rig.topic(), settings).await;
    set.unwrap_or_else(|err| panic!("{err:#}"));
}

/// Sets how many bytes a record of the rig's topic may have. Returns once the broker knows it.
pub(super) async fn limit_record_bytes(rig: &Rig, bytes: u32) {
    set_topic(rig, &[("max.message.bytes", &bytes.to_string())]).await;
}

/// Waits until all rows are older than this.
pub(super) async fn wait_until_older_than(rig: &Rig, milliseconds: u32) {
    let sql =
        format!("select clock_timestamp() - max(created_at) > interval '{milliseconds} milliseconds' from outbox");
    eventually(READY_DEADLINE, "the rows are old", || async {
        (rig.value(&sql).await == "t").then_some(())
    })
    .await;
}

/// Writes a row without a key. Returns its id.
pub(super) async fn insert_keyless(rig: &Rig) -> String {
    let topic = rig.topic();
    rig.sql("alter table outbox alter aggregateid drop not null").await;
    rig.value(&format!(
        "insert into outbox (aggregatetype, type, payload)
         values ('{topic}', 'Keyless', jsonb_build_object('n', nextval('numbers'))) returning id"
    ))
    .await
}

/// Waits until the running relay ends by itself. Asserts that it ends with this exit code, and that its log says all of `says` after the byte
/// `logged`. Returns that part of the log.
pub(super) async fn assert_ends(relay: &Program, logged: usize, code: i32, says: &[&str]) -> String {
    let status = relay
        .exited(READY_DEADLINE)
        .await
        .unwrap_or_else(|err| panic!("{err:#}"));
    let log = relay.log_text()[logged..].to_owned();
    assert_eq!(status.code(), Some(code), "{log}");
    for words in says {
        assert!(log.contains(words), "it says `{words}`: {log}");
    }
    log
}

/// Starts the relay, and asserts that it ends by itself as [`assert_ends`] says.
pub(super) async fn assert_stops(relay: &Program, code: i32, says: &[&str]) -> String {
    let logged = relay.log_text().len();
    relay.start().expect("a start");
    assert_ends(relay, logged, code, says).await
}

/// The ids of the topic's committed records, sorted.
pub(super) async fn published_ids(rig: &Rig) -> Vec<String> {
    let records = rig.records(Isolation::Committed).await.expect("the topic");
    let ids = records
        .iter()
        .map(|record| record.header("id").unwrap_or("none").to_owned());
    let mut ids: Vec<String> = ids.collect();
    ids.sort();
    ids
}

/// Waits until the topic has as many records as the outbox has rows. Asserts that each row is there once, also the rows without a key.
pub(super) async fn assert_each_once(rig: &Rig, relay: &Program) {
    let rows = rig.sql("select id::text from outbox order by id::text").await;
    let rows: Vec<String> = rows
        .into_iter()
        .filter_map(|row| row.into_iter().next().flatten())
        .collect();
    eventually(ARRIVAL_DEADLINE, "every row is in the topic", || async {
        let records = rig.records(Isolation::Committed).await.ok()?;
        (records.len() >= rows.len()).then_some(())
    })
    .await;
    assert_eq!(published_ids(rig).await, rows, "{}", relay.log_tail(20));
}

/// Asserts that the topic has exactly the first `count` rows, in the order of their numbers.
pub(super) async fn assert_published_before(rig: &Rig, count: usize) {
    let sql = format!(
        "select id::text from (select id from outbox order by (payload ->> 'n')::int limit {count}) as first order by 1"
    );
    let rows = rig.sql(&sql).await;
    let rows: Vec<String> = rows
        .into_iter()
        .filter_map(|row| row.into_iter().next().flatten())
        .collect();
    assert_eq!(
        published_ids(rig).await,
        rows,
        "what stands before the row, and nothing else"
    );
}
