//! No command on dead letters applies a letter before an earlier letter of the same key.

use rig::{ViewRig, view_builder_exit};

use super::rebuild_positions::apply_all;
use super::rig_itself::{TABLE, apply};

/// A rig with letters of item 1 at the offsets 0, 1, and so on. A letter that is an event can be applied, and the others cannot.
async fn with_letters(name: &str, aggregate: &str, are_events: &[bool]) -> (ViewRig, Vec<String>) {
    let rig = ViewRig::new(name).await;
    let topic = rig.topic("item");
    rig.create_topic(&topic, 1, &[]).await.expect("a topic");
    rig.write_view("item", TABLE, &apply(&topic));
    apply_all(&rig, &topic).await;
    for (offset, is_event) in are_events.iter().enumerate() {
        let value = if *is_event {
            format!(
                r#"{{"eventType":"{}_CREATED","{aggregate}Id":1,"{aggregate}":{{"name":"n"}},"version":{}}}"#,
                topic.trim_end_matches("-events").replace('-', "_").to_uppercase(),
                offset + 1
            )
        } else {
            "no event".to_owned()
        };
        rig.query(&format!(
            "insert into view_dead_letters (topic, partition, record_offset, key, value, headers, reason)
             values ('{topic}', 0, {offset}, '1', '{value}', '[]', 'was refused')"
        ))
        .await
        .expect("a letter");
    }
    let rows = rig
        .query("select id from view_dead_letters order by record_offset")
        .await;
    let ids = rows.expect("ids").into_iter().filter_map(|row| row.into_iter().next()?);
    (rig, ids.collect())
}

async fn open(rig: &ViewRig) -> String {
    let sql = "select string_agg(record_offset::text, ',' order by record_offset) from view_dead_letters where discarded_at is null";
    rig.value(sql).await.expect("offsets")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_that_is_named_beside_one_of_its_key_that_stays_dead_waits() {
    let (rig, ids) = with_letters("letters_beside", "lettersBesideItem", &[false, true]).await;
    let said = rig
        .assert_command(
            &["dead-letters", "retry", &ids[0], &ids[1]],
            view_builder_exit::DEAD_LETTERS,
        )
        .await;
    assert_eq!(open(&rig).await, "0,1", "{said}");
    assert_eq!(
        rig.value("select count(*) from item").await.expect("a count"),
        "0",
        "{said}"
    );
    assert!(
        said.contains(&format!("{} of the same key stands before it", ids[0])),
        "{said}"
    );
    // In their order, both can be applied.
    let said = rig
        .assert_command(&["dead-letters", "discard", &ids[0]], view_builder_exit::SUCCESS)
        .await;
    assert_eq!(
        rig.value("select version from item").await.expect("a version"),
        "2",
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stands_behind_a_discarded_letter_waits_for_one_between_that_stays_dead() {
    let are_events = [false, false, false, true];
    let (rig, ids) = with_letters("letters_between", "lettersBetweenItem", &are_events).await;
    let said = rig
        .assert_command(
            &["dead-letters", "discard", &ids[0], &ids[2]],
            view_builder_exit::DEAD_LETTERS,
        )
        .await;
    assert_eq!(open(&rig).await, "1,3", "{said}");
    assert_eq!(
        rig.value("select count(*) from item").await.expect("a count"),
        "0",
        "{said}"
    );
}
