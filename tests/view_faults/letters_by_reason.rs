//! Dead letters are retried by their reason, and an operator's reason to give one up is kept.

use rig::{ViewRig, view_builder_exit};

use super::rebuild_positions::apply_all;
use super::rig_itself::{TABLE, apply};

/// A rig with three letters that can be applied by now. Those of item 1 are at offsets 0 and 2: the first has the reason `too long`, and the second waits behind it. Item 2 has the
/// letter at offset 1, with the reason `no JSON`.
async fn with_letters(name: &str, aggregate: &str) -> ViewRig {
    let rig = ViewRig::new(name).await;
    let topic = rig.topic("item");
    rig.create_topic(&topic, 1, &[]).await.expect("a topic");
    rig.write_view("item", TABLE, &apply(&topic));
    apply_all(&rig, &topic).await;
    let event_type = topic.trim_end_matches("-events").replace('-', "_").to_uppercase();
    for (offset, item, version, reason) in [(0, 1, 1, "'too long'"), (1, 2, 1, "'no JSON'"), (2, 1, 2, "null")] {
        let value = format!(
            r#"{{"eventType":"{event_type}_CREATED","{aggregate}Id":{item},"{aggregate}":{{"name":"n"}},"version":{version}}}"#
        );
        rig.query(&format!(
            "insert into view_dead_letters (topic, partition, record_offset, key, value, headers, reason)
             values ('{topic}', 0, {offset}, '{item}', '{value}', '[]', {reason})"
        ))
        .await
        .expect("a letter");
    }
    rig
}

async fn value(rig: &ViewRig, sql: &str) -> String {
    rig.value(sql).await.expect("a value")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_of_one_reason_are_retried_with_those_behind_them_and_others_wait() {
    let rig = with_letters("letters_of_reason", "lettersOfReasonItem").await;
    let said = rig
        .assert_command(
            &["dead-letters", "retry", "--all-with-reason", "too long"],
            view_builder_exit::SUCCESS,
        )
        .await;
    assert!(said.contains("2 applied, 0 still dead"), "{said}");
    assert_eq!(
        value(&rig, "select string_agg(reason, ',') from view_dead_letters").await,
        "no JSON"
    );
    assert_eq!(
        value(&rig, "select version from item where id = 1").await,
        "2",
        "{said}"
    );
    let said = rig
        .assert_command(
            &["dead-letters", "retry", "--all-with-reason", "nobody has this"],
            view_builder_exit::SUCCESS,
        )
        .await;
    assert!(said.contains("no dead letters"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_discarded_letter_keeps_the_reason_of_the_operator() {
    let rig = with_letters("letters_given_up", "lettersGivenUpItem").await;
    let id = value(&rig, "select id from view_dead_letters where reason = 'no JSON'").await;
    rig.assert_command(
        &["dead-letters", "discard", "--reason", "sent twice by mistake", &id],
        view_builder_exit::SUCCESS,
    )
    .await;
    let kept = value(
        &rig,
        "select discard_reason from view_dead_letters where discarded_at is not null",
    )
    .await;
    assert_eq!(kept, "sent twice by mistake");
    let said = rig
        .assert_command(&["dead-letters", "show", &id], view_builder_exit::SUCCESS)
        .await;
    assert!(said.contains("because      sent twice by mistake"), "{said}");
    let said = rig
        .assert_command(
            &["dead-letters", "list", "--discarded"],
            view_builder_exit::DEAD_LETTERS,
        )
        .await;
    assert!(said.contains("discarded: sent twice by mistake"), "{said}");
}
