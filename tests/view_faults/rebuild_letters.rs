//! In a replay, one view refuses events that the other views have applied long ago.

use stack::eventually_ok;

use super::rebuild_positions::{CONTENT, rebuild, rig_with_applied_versions};
use super::rig_itself::{TABLE, apply};
use rig::ViewRig;
use rig::view_rig::DEADLINE;

const STRICT: &str = "select string_agg(id || ':' || version, ' ' order by id) from strict";

/// A rig whose builder has added a view that refuses later versions of item 5. So these versions are dead letters now.
async fn refused_in_a_replay(name: &str) -> ViewRig {
    let (rig, topic) = rig_with_applied_versions(name).await;
    let table = format!(
        "{}
create or replace function checked(id bigint, version bigint) returns bigint language plpgsql as $$
begin
    if id = 5 and version > 1 then raise exception 'no' using errcode = '23514'; end if;
    return id;
end $$;",
        TABLE.replace("item", "strict")
    );
    let statement = apply(&topic)
        .replace("into item", "into strict")
        .replace("select key, version", "select checked(key, version), version");
    rig.write_view("strict", &table, &statement);
    // The batches are so small that each version comes in a batch of its own.
    let builder = rig.builder("builder").env("BATCH_ROWS", "20");
    builder.start().expect("a start");
    eventually_ok(DEADLINE, "both views take part", || async {
        let strict = rig.value("select count(*) from view_sources").await?;
        anyhow::ensure!(strict == "2", "{strict} views");
        Ok(())
    })
    .await
    .unwrap_or_else(|err| panic!("{err:#}"));
    rig.wait_until_applied(&topic)
        .await
        .unwrap_or_else(|err| panic!("{err:#}"));
    builder.stop().await.expect("a clean end");
    let letters = "select string_agg((reason is null)::text, ' ' order by record_offset) from view_dead_letters";
    assert_eq!(rig.value(letters).await.expect("letters"), "false true");
    rig
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_keeps_the_events_that_another_one_has_refused_in_a_replay() {
    let rig = refused_in_a_replay("refused_in_replay").await;
    let (before, strict) = (
        rig.value(CONTENT).await.expect("a view"),
        rig.value(STRICT).await.expect("a view"),
    );
    assert!(
        before.contains(" 5:3 ") && strict.contains(" 5:1 "),
        "{before} / {strict}"
    );
    for view in ["item", "strict"] {
        let (code, said) = rebuild(&rig, view, "", &[]).await;
        assert_eq!(code, Some(0), "{said}");
    }
    assert_eq!(rig.value(CONTENT).await.expect("a view"), before);
    assert_eq!(rig.value(STRICT).await.expect("a view"), strict);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaving_out_every_event_with_a_dead_letter_is_caught() {
    let rig = refused_in_a_replay("bug_letter_never_applied").await;
    let (code, said) = rebuild(&rig, "item", "LetterIsNeverApplied", &[]).await;
    assert_eq!(code, Some(0), "{said}");
    let after = rig.value(CONTENT).await.expect("a view");
    assert!(after.contains(" 5:1 "), "the bug goes unnoticed: {after}");
}
