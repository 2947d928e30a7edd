//! Postgres fails in the middle of a command on dead letters. The command says what it has done and what it has not done.

use rig::{ViewRig, view_builder_exit};

use super::rebuild_positions::apply_all;
use super::rig_itself::{TABLE, apply};

const LETTERS: i64 = 700;
/// One transaction of `retry --all` has so many letters.
const LETTERS_A_TRANSACTION: i64 = 500;
/// The disk is full at this item, which is in the second transaction.
const FULL_AT: i64 = 650;

/// A rig with letters of the items 1 to [`LETTERS`]. Its table fails at one of them as if the disk were full.
async fn rig_with_letters(name: &str, field: &str) -> ViewRig {
    let rig = ViewRig::new(name).await;
    let topic = rig.topic("item");
    rig.create_topic(&topic, 1, &[]).await.expect("a topic");
    rig.write_view("item", TABLE, &apply(&topic));
    apply_all(&rig, &topic).await;
    rig.query(&format!(
        "insert into view_dead_letters (topic, partition, record_offset, key, value, headers, reason)
         select '{topic}', 0, n, convert_to(n::text, 'UTF8'),
            convert_to(json_build_object('eventType', '{}_CREATED', '{field}Id', n, '{field}', json_build_object('name', 'late'),
                'version', 1)::text, 'UTF8'), '[]', 'was refused'
         from generate_series(1, {LETTERS}) as n;
         create function full_disk() returns trigger language plpgsql as $$ begin
            if new.id = {FULL_AT} then raise exception 'no space left' using errcode = '53100'; end if;
            return new;
         end $$;
         create trigger full_disk before insert on item for each row execute function full_disk()",
        topic.trim_end_matches("-events").replace('-', "_").to_uppercase()
    ))
    .await
    .expect("letters");
    rig
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_of_all_that_fails_in_the_middle_says_what_was_applied() {
    let rig = rig_with_letters("all_interrupted", "allInterruptedItem").await;
    let said = rig
        .assert_command(&["dead-letters", "retry", "--all"], view_builder_exit::FAILED)
        .await;
    let applied = rig.value("select count(*) from item").await.expect("a count");
    assert_eq!(applied, LETTERS_A_TRANSACTION.to_string(), "{said}");
    assert!(said.contains("no space left"), "{said}");
    let summary = format!("{LETTERS_A_TRANSACTION} applied, 0 discarded, 0 still dead");
    assert!(said.contains(&summary), "{said}");
    assert!(!said.contains("nothing is changed"), "{said}");
    rig.query("drop trigger full_disk on item").await.expect("room again");
    let said = rig
        .assert_command(&["dead-letters", "retry", "--all"], view_builder_exit::SUCCESS)
        .await;
    let rest = LETTERS - LETTERS_A_TRANSACTION;
    assert!(said.contains(&format!("{rest} applied")), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_of_some_that_fails_in_the_middle_says_what_was_applied() {
    let rig = rig_with_letters("some_interrupted", "someInterruptedItem").await;
    let id = async |offset: i64| {
        let sql = format!("select id from view_dead_letters where record_offset = {offset}");
        rig.value(&sql).await.expect("a letter")
    };
    let (good, full, other) = (id(7).await, id(FULL_AT).await, id(8).await);
    let retry = ["dead-letters", "retry", &good, &full, &other];
    let said = rig.assert_command(&retry, view_builder_exit::FAILED).await;
    assert!(said.contains(&format!("applied {good} (")), "{said}");
    assert!(said.contains("1 applied, 0 discarded, 0 still dead"), "{said}");
    let discard = ["dead-letters", "discard", &other, "999999"];
    let (_, said) = rig.command(&discard).await.expect("a refusal");
    assert!(said.contains("there is no dead letter 999999"), "{said}");
    assert_eq!(
        rig.value("select count(*) from view_dead_letters where discarded_at is null")
            .await
            .expect("a count"),
        (LETTERS - 1).to_string()
    );
}
