//! Of a dead letter's key only a hash is remembered, and two keys may have one hash.

use rig::ViewRig;
use rig::view_rig::Event;

use super::rebuild_positions::{CONTENT, ITEMS, apply_all, item, rebuild};
use super::rig_itself::{TABLE, apply};

/// The only key that waits.
const WAITING: &str = "7";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_leaves_out_no_event_whose_key_only_has_the_hash_of_a_waiting_key() {
    let rig = ViewRig::new("rebuild_hashes").await;
    let topic = rig.topic("item");
    rig.create_topic(&topic, 2, &[]).await.expect("a topic");
    rig.write_view("item", TABLE, &apply(&topic));
    let dead = Event {
        partition: 1,
        key: Some(WAITING.to_owned()),
        value: Some("{".to_owned()),
    };
    let events = (1..=2).flat_map(|version| (1..=ITEMS).map(move |id| (id, version)));
    let events = events.map(|(id, version)| item(&topic, id, version));
    rig.produce(&topic, std::iter::once(dead).chain(events))
        .await
        .expect("offsets");
    apply_all(&rig, &topic).await;
    let before = rig.value(CONTENT).await.expect("a view");
    assert!(before.contains(" 9:2 ") && !before.contains(" 7:"), "{before}");
    let (code, said) = rebuild(&rig, "item", "HashesAlike", &[]).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(rig.value(CONTENT).await.expect("a view"), before);
}
