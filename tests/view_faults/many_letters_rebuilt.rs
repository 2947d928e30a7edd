//! A rebuild of a view with a million dead letters. It needs little memory, it reads the letters once and not at each look, and it swaps the tables.

use std::time::Duration;

use rig::ViewRig;
use rig::memory::peak_mb;
use rig::view_rig::{DEADLINE, Event};
use serde_json::json;
use stack::eventually_ok;
use tokio_postgres::Client;

use super::rig_itself::{TABLE, apply};

/// So many letters are of new items, which never had an event before.
const NEW: i64 = 1_000_000;
/// So many of them have a value of 10 kB; together 500 MB.
const LARGE: i64 = 50_000;
/// So many letters are of items that have a later event in the topic.
const SUPERSEDED: i64 = 45_000;
/// The memory of the program's container, in MB.
const MEMORY_MAX_MB: f64 = 128.0;
/// The time limit for a million letters.
const PATIENCE: Duration = Duration::from_secs(240);
/// For so long the test watches the rebuild while it waits.
const WATCHED: Duration = Duration::from_secs(10);
/// By then a rebuild has read its topic, and looks only at letters.
const READS_TOPIC_WITHIN: Duration = Duration::from_secs(30);
const COUNT: &str = "select count(*) from item";

/// A rig with a compacted topic. The letters have negative offsets, so that the topic need not have as many records.
async fn with_letters(name: &str) -> (ViewRig, String) {
    let rig = ViewRig::new(name).await;
    let topic = rig.topic("item");
    rig.create_topic(&topic, 1, &[("cleanup.policy", "compact")])
        .await
        .expect("a topic");
    rig.write_view("item", TABLE, &apply(&topic));
    let events = (0..SUPERSEDED).map(|id| Event::of(&topic, 0, NEW + id, 2, Some(&json!({"name": "n"}))));
    rig.produce(&topic, events).await.expect("offsets");
    let builder = rig.builder("builder");
    builder.start().expect("a start");
    rig.wait_until_applied(&topic).await.expect("it is applied");
    builder.stop().await.expect("a clean end");
    let sql = format!(
        "insert into view_dead_letters (topic, partition, record_offset, key, value, headers, reason)
         select '{topic}', 0, -n, convert_to(n::text, 'UTF8'),
            convert_to(format('{{\"manyLettersRebuiltItemId\":%s,\"version\":1,\"filler\":\"%s\"}}',
                n, case when n <= {LARGE} then repeat('x', 10000) else '' end), 'UTF8'),
            '[]', 'was refused'
         from generate_series(1, {NEW} - 1) as n;
         insert into view_dead_letters (topic, partition, record_offset, key, value, headers, reason, discarded_at)
         select '{topic}', 0, -10000000 - n, convert_to(({NEW} + n)::text, 'UTF8'), 'no event', '[]', 'no event', now()
         from generate_series(0, {SUPERSEDED} - 1) as n;
         analyze view_dead_letters"
    )
    .replace("manyLettersRebuiltItemId", &id_field(name));
    rig.query(&sql).await.expect("letters");
    (rig, topic)
}

/// The name of the field that has the item's id in the events of this rig's topic.
fn id_field(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.chain(["item", "id"]).fold(first, |field, word| {
        let (initial, rest) = word.split_at(1);
        field + &initial.to_uppercase() + rest
    })
}

/// How many rows of letters the statements have read so far.
async fn letters_read(rig: &ViewRig) -> i64 {
    let sql = "select seq_tup_read + idx_tup_fetch from pg_stat_user_tables where relname = 'view_dead_letters'";
    rig.value(sql).await.expect("statistics").parse().expect("a number")
}

/// How many letters are read while a rebuild does nothing but wait.
async fn letters_read_while_watched(rig: &ViewRig) -> i64 {
    // Postgres shows what a session has read with up to a second's delay.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = letters_read(rig).await;
    tokio::time::sleep(WATCHED).await;
    letters_read(rig).await - before
}

/// Begins a transaction that the swap has to wait for.
async fn begin_transaction(rig: &ViewRig) -> Client {
    let old = rig.client().await.expect("a connection");
    old.batch_execute("begin isolation level repeatable read; select count(*) from item")
        .await
        .expect("a snapshot");
    old
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_with_a_million_letters_stays_small_and_reads_them_once() {
    let (rig, topic) = with_letters("many_letters_rebuilt").await;
    let before = rig.value(COUNT).await.expect("a count");
    let old = begin_transaction(&rig).await;
    let command = rig.builder("rebuild").command_of("rebuild-item", &["rebuild", "item"]);
    command.start().expect("a start");
    eventually_ok(PATIENCE, "the rebuild waits for the transaction", || async {
        let peak = peak_mb(&command);
        let waits = command.log_text().contains("the swap waits");
        anyhow::ensure!(waits, "{peak:.0} MB: {}", command.log_tail(3));
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}"));
    let (read, peak) = (letters_read_while_watched(&rig).await, peak_mb(&command));
    // At the last moment two letters come: one of a new item, and one of an item that has an earlier letter.
    rig.query(&format!(
        "insert into view_dead_letters (topic, partition, record_offset, key, value, headers, reason)
         values ('{topic}', 0, -20000000, '{0}', '{{\"{1}\":{0},\"version\":1}}', '[]', 'was refused'),
            ('{topic}', 0, 5, '{2}', '', '[]', null)",
        2 * NEW,
        id_field(rig.name()),
        NEW / 2
    ))
    .await
    .expect("letters");
    old.batch_execute("commit").await.expect("it ends");
    let status = command.exited(DEADLINE).await.expect("an end");
    assert_eq!(status.code(), Some(0), "{}", command.log_tail(5));
    assert_eq!(rig.value(COUNT).await.expect("a count"), before);
    println!("{read} letters were read while the rebuild waited; it took {peak:.1} MB");
    assert!(peak < MEMORY_MAX_MB, "{peak:.1} MB");
    assert!(read < NEW / 100, "{read} letters were read in vain");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reading_all_letters_at_each_look_is_caught() {
    let (rig, _) = with_letters("all_letters_each_time").await;
    let old = begin_transaction(&rig).await;
    let program = rig
        .faulty_builder("rebuild")
        .env("VIEW_BUILDER_BUG", "ReadAllLettersEachTime");
    let command = program.command_of("rebuild-item", &["rebuild", "item"]);
    command.start().expect("a start");
    // It may not even come so far that it waits. It has never caught up, because each look takes longer than events may take.
    tokio::time::sleep(READS_TOPIC_WITHIN).await;
    let read = letters_read_while_watched(&rig).await;
    assert!(read > NEW, "the bug goes unnoticed: {read} letters were read");
    command.kill_hard().await;
    old.batch_execute("commit").await.expect("it ends");
}
