//! A dead letter comes while a rebuild of a compacted topic waits for its swap.

use rig::{ViewRig, view_builder_exit};
use stack::eventually_ok;

use super::rebuild_topics::compacted;
use rig::view_rig::DEADLINE;

const ROW: &str = "select count(*) from item where id = 200";

/// Item 200 gets a letter while the swap waits, and only the live view has this item. Runs a rebuild with this planted bug, or without one. Returns
/// the rig, and the exit code and text of the rebuild.
async fn with_a_late_letter(name: &str, bug: &str) -> (ViewRig, Option<i32>, String) {
    let (rig, topic) = compacted(name).await;
    rig.query("delete from view_dead_letters; insert into item (id, version) values (200, 1)")
        .await
        .expect("an item");
    let old = rig.client().await.expect("a connection");
    old.batch_execute("begin isolation level repeatable read; select count(*) from item")
        .await
        .expect("a snapshot");
    let program = rig.faulty_builder("rebuild").env("VIEW_BUILDER_BUG", bug);
    let command = program.command_of("rebuild-item", &["rebuild", "item"]);
    command.start().expect("a start");
    eventually_ok(DEADLINE, "the rebuild waits for the transaction", || async {
        anyhow::ensure!(command.log_text().contains("the swap waits"), "{}", command.log_tail(3));
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}"));
    rig.query(&format!(
        "insert into view_dead_letters (topic, partition, record_offset, key, value, headers, reason)
         values ('{topic}', 0, 3, '200', 'no event', '[]', 'no event')"
    ))
    .await
    .expect("a letter");
    old.batch_execute("commit").await.expect("it ends");
    let status = command.exited(DEADLINE).await.expect("an end");
    (rig, status.code(), command.log_text())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_that_comes_while_the_swap_waits_is_looked_at_too() {
    let (rig, code, said) = with_a_late_letter("late_letter", "").await;
    assert_eq!(code, Some(view_builder_exit::REFUSED), "{said}");
    assert!(
        said.contains("1 keys with dead letters") && said.contains("key 200;"),
        "{said}"
    );
    assert_eq!(rig.value(ROW).await.expect("a count"), "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn looking_at_earlier_letters_alone_is_caught() {
    let (rig, code, said) = with_a_late_letter("bug_no_late_letter", "NoLetterComesLater").await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(rig.value(ROW).await.expect("a count"), "0", "the bug goes unnoticed");
}
