//! Tests of the rig: what it produces is applied, and its events are as the contract says.

pub(crate) use rig::item_view::{TABLE, apply};
use rig::view_rig::{DEADLINE, Event};
use rig::{ViewRig, view_builder_exit};
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_produced_is_applied() {
    let rig = ViewRig::new("rig_itself").await;
    let topic = rig.topic("item");
    rig.create_topic(&topic, 2, &[]).await.expect("a topic");
    rig.write_view("item", TABLE, &apply(&topic));
    let builder = rig.builder("builder");
    builder.start().expect("a start");
    let events = (0..10).map(|id| Event::of(&topic, (id % 2) as i32, id, 1, Some(&json!({"name": format!("n{id}")}))));
    let offsets = rig.produce(&topic, events).await.expect("offsets");
    assert_eq!(offsets, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]);
    rig.wait_until_applied(&topic)
        .await
        .unwrap_or_else(|err| panic!("{err:#}\n{}", builder.log_tail(20)));
    rig.assert_command(&["status"], view_builder_exit::SUCCESS).await;
    assert_eq!(
        rig.value("select count(*) from item where name = 'n' || id")
            .await
            .expect("a count"),
        "10"
    );
    builder.wait_ready(DEADLINE).await.expect("it is ready");
    builder.stop().await.expect("a clean end");
}
