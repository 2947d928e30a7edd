//! Another program writes headers whose names are no text. Kafka takes them, and they end no builder.

use rdkafka::config::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rig::ViewRig;
use rig::view_rig::{DEADLINE, Event};
use stack::eventually_ok;

use super::rebuild_positions::item;
use super::rig_itself::{TABLE, apply};

/// The library takes names as text only, and copies their bytes as they are.
#[expect(unsafe_code, reason = "only so can a name be made that is no text")]
fn no_text() -> OwnedHeaders {
    let name = [b'n', b'a', 0xff, b'm', b'e'].to_vec();
    // SAFETY: nothing reads it as text: the library takes its address and its length.
    let key = unsafe { std::str::from_utf8_unchecked(&name) };
    OwnedHeaders::new().insert(Header {
        key,
        value: Some("value"),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_whose_name_is_no_text_ends_no_builder() {
    let rig = ViewRig::new("foreign_headers").await;
    let topic = rig.topic("item");
    rig.create_topic(&topic, 1, &[]).await.expect("a topic");
    rig.write_view("item", TABLE, &apply(&topic));
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", rig.servers.kafka.bootstrap_servers())
        .create()
        .expect("a producer");
    let letter = Event {
        partition: 0,
        key: Some("2".to_owned()),
        value: Some("no JSON".to_owned()),
    };
    for event in [
        Event {
            partition: 0,
            ..item(&topic, 1, 1)
        },
        letter,
    ] {
        let record = FutureRecord::to(&topic)
            .partition(event.partition)
            .key(event.key.as_deref().unwrap_or_default())
            .payload(event.value.as_deref().unwrap_or_default())
            .headers(no_text());
        producer
            .send(record, DEADLINE)
            .await
            .map_err(|(err, _)| err)
            .expect("an offset");
    }
    let builder = rig.builder("builder");
    builder.start().expect("a start");
    let kept = "select headers from view_dead_letters";
    let headers = eventually_ok(DEADLINE, "the second record is a letter", || rig.value(kept)).await;
    let headers = headers.unwrap_or_else(|err| panic!("{err:#}\n{}", builder.log_tail(20)));
    assert!(
        headers.contains("na\u{fffd}me") && headers.contains("76616c7565"),
        "{headers}"
    );
    assert_eq!(rig.value("select count(*) from item").await.expect("a view"), "1");
    builder.stop().await.expect("a clean end");
}
