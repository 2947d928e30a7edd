//! A million dead letters. Builders start, apply new events, and need little memory. Retrying the letters delays nobody. A builder learns which keys
//! wait when it claims its partitions. If a key no longer waits, the builder must not park its events.

use std::time::{Duration, Instant};

use rig::memory::peak_mb;
use rig::view_rig::{DEADLINE, Event};
use rig::{ViewRig, view_builder_exit};
use serde_json::json;
use stack::{Program, eventually_ok};

use super::rig_itself::{TABLE, apply};

const LETTERS: i64 = 1_000_000;
/// One more event of this item comes, and waits behind the item's letter.
const ITEM_WITH_TWO_LETTERS: i64 = 500_000;
/// So many letters are left for the second retry.
const LETTERS_LEFT: i64 = 2_000;
/// The memory of the builder's container, in MB.
const MEMORY_MAX_MB: f64 = 128.0;
/// While letters are retried, a new event must be in the view within this time. It takes some milliseconds. It would take tens of seconds if each
/// letter made the builder read all of them.
const APPLIED_WITHIN: Duration = Duration::from_secs(3);

/// Inserts a million letters of as many keys, all in partition 0, as many batches of bad events would have left them.
async fn insert_letters(rig: &ViewRig, topic: &str) {
    let entity = topic.trim_end_matches("-events");
    let kind = entity.replace('-', "_").to_uppercase();
    let mut name = String::new();
    for (at, word) in entity.split('-').enumerate() {
        name += &if at == 0 {
            word.to_owned()
        } else {
            word[..1].to_uppercase() + &word[1..]
        };
    }
    let sql = format!(
        "insert into view_dead_letters (topic, partition, record_offset, key, value, headers, reason)
         select '{topic}', 0, n, convert_to(n::text, 'UTF8'),
            convert_to(format('{{\"eventType\":\"{kind}_CREATED\",\"{name}Id\":%s,\"{name}\":{{\"name\":\"late\"}},\"version\":1}}', n), 'UTF8'),
            '[]', 'was refused'
         from generate_series(1, {LETTERS}) as n"
    );
    rig.query(&sql).await.expect("letters");
}

/// Produces an event. Returns how long it takes until the event is in the view.
async fn time_until_applied(rig: &ViewRig, topic: &str, id: i64) -> Duration {
    let began = Instant::now();
    rig.produce(topic, [Event::of(topic, 1, id, 1, Some(&json!({"name": "new"})))])
        .await
        .expect("an offset");
    eventually_ok(DEADLINE, "the event is applied", || async {
        let there = rig.value(&format!("select count(*) from item where id = {id}")).await?;
        anyhow::ensure!(there == "1", "{there}");
        Ok(())
    })
    .await
    .expect("it is applied");
    began.elapsed()
}

fn assert_needs_little_memory(program: &Program) {
    let peak = peak_mb(program);
    assert!(peak < MEMORY_MAX_MB, "{}: {peak:.1} MB", program.name());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_million_letters_fill_no_memory_and_their_retry_holds_nobody_up() {
    let rig = ViewRig::new("many_letters").await;
    let topic = rig.topic("item");
    rig.create_topic(&topic, 2, &[]).await.expect("a topic");
    rig.write_view("item", TABLE, &apply(&topic));
    let builder = rig.builder("builder");
    builder.start().expect("a start");
    builder.wait_ready(DEADLINE).await.expect("it is ready");
    time_until_applied(&rig, &topic, LETTERS + 1).await;
    insert_letters(&rig, &topic).await;
    // Both partitions are claimed anew, with all letters.
    builder.kill_hard().await;
    builder.start().expect("a start");
    builder.wait_ready(DEADLINE).await.expect("it is ready");
    time_until_applied(&rig, &topic, LETTERS + 2).await;
    assert_needs_little_memory(&builder);

    // An event of a key that waits is parked.
    let behind = Event::of(&topic, 0, ITEM_WITH_TWO_LETTERS, 2, Some(&json!({"name": "behind"})));
    rig.produce(&topic, [behind]).await.expect("an offset");

    let command = builder.command_of("retry", &["dead-letters", "retry", "--all"]);
    command.start().expect("a start");
    let mut longest = Duration::ZERO;
    for probe in 0..20 {
        longest = longest.max(time_until_applied(&rig, &topic, LETTERS + 3 + probe).await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(longest < APPLIED_WITHIN, "{longest:?}");
    assert_needs_little_memory(&command);
    assert_needs_little_memory(&builder);
    let left = "select count(*) from view_dead_letters";
    let after: i64 = rig.value(left).await.expect("a count").parse().expect("a number");
    assert!(
        after < LETTERS && after > 0,
        "{after} letters are left: nothing was measured"
    );
    command.kill_hard().await;
    println!(
        "an event took {longest:?} at most while {} letters were retried",
        LETTERS - after
    );

    // A retry that was stopped in the middle goes on. The test deletes most of the rest, so that it ends.
    rig.query(&format!(
        "delete from view_dead_letters
         where record_offset < {LETTERS} - {LETTERS_LEFT} and record_offset <> {ITEM_WITH_TWO_LETTERS} and reason is not null"
    ))
    .await
        .expect("fewer letters");
    rig.assert_command(&["dead-letters", "retry", "--all"], view_builder_exit::SUCCESS)
        .await;
    assert_eq!(rig.value(left).await.expect("a count"), "0");
    builder.stop().await.expect("a clean end");
}

/// An item is refused at first. After its letter was retried, one more event of it comes. Returns how many letters there are then, and the item's
/// version.
async fn letters_and_version_after_a_retry(name: &str, bug: &str) -> (String, String) {
    let rig = ViewRig::new(name).await;
    let topic = rig.topic("item");
    rig.create_topic(&topic, 1, &[]).await.expect("a topic");
    rig.write_view("item", TABLE, &apply(&topic));
    let builder = rig.faulty_builder("builder").with_env("VIEW_BUILDER_BUG", bug);
    builder.start().expect("a start");
    builder.wait_ready(DEADLINE).await.expect("it is ready");
    rig.query("alter table item add constraint allowed check (name <> 'refused')")
        .await
        .expect("a constraint");
    let event = |version, name: &str| Event::of(&topic, 0, 7, version, Some(&json!({"name": name})));
    for (version, name) in [(1, "refused"), (2, "parked")] {
        rig.produce(&topic, [event(version, name)]).await.expect("an offset");
        rig.wait_until_applied(&topic).await.expect("it is read");
    }
    let letters = "select count(*) from view_dead_letters";
    assert_eq!(rig.value(letters).await.expect("a count"), "2");
    rig.query("alter table item drop constraint allowed")
        .await
        .expect("no constraint");
    rig.assert_command(&["dead-letters", "retry", "--all"], view_builder_exit::SUCCESS)
        .await;
    rig.produce(&topic, [event(3, "last")]).await.expect("an offset");
    rig.wait_until_applied(&topic).await.expect("it is read");
    let version = rig.value("select version from item").await.expect("a version");
    let letters = rig.value(letters).await.expect("a count");
    builder.stop().await.expect("a clean end");
    (letters, version)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_of_a_key_that_waits_no_longer_is_applied() {
    let right = letters_and_version_after_a_retry("letters_retried", "").await;
    assert_eq!(right, ("0".to_owned(), "3".to_owned()));
    let wrong = letters_and_version_after_a_retry("letters_retried_blindly", "ParkBlindly").await;
    assert_eq!(wrong, ("1".to_owned(), "2".to_owned()), "ParkBlindly goes unnoticed");
}
