//! A builder that is a static member of its group. Kafka expels it when another client joins under the same name. librdkafka then refuses to go on
//! with its client.

use std::path::Path;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use stack::eventually;

use super::lane::Lane;
use super::oracle::Complete::LatestOfEachKey;
use super::positions;
use super::site::Site;

const EXPELLED: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
const NAME: &str = "static";

#[tokio::test]
async fn a_builder_that_is_expelled_goes_on_with_another_client_and_ends_where_that_repeats_itself() {
    let site = Site::shared().await;
    let lane = Lane::new(&site, "expelled", LatestOfEachKey).await;
    let builder = lane.builder(NAME, true);
    builder.start().expect("a start");
    lane.check_exact().await.unwrap_or_else(|err| panic!("{err:#}"));

    expel(&lane, builder.log(), "another one takes its place").await;
    lane.check_exact().await.unwrap_or_else(|err| panic!("{err:#}"));

    expel(&lane, builder.log(), "give each its own").await;
    let status = eventually(EXPELLED, "the builder ends", || {
        std::future::ready(builder.process().expect("a started builder").exit_status())
    })
    .await;
    assert_eq!(status.code(), Some(1), "{}", builder.log_tail(10));

    builder.start().expect("a start");
    lane.check_exact().await.unwrap_or_else(|err| panic!("{err:#}"));
    builder.stop().await.expect("a clean end");
}

/// Joins the group under the builder's name. Joins again whenever the builder expels it in turn, until the builder says `words`.
async fn expel(lane: &Lane, log: &Path, words: &'static str) {
    let mut config = positions::outsider(&lane.bootstrap(), &lane.name);
    config
        .set("group.instance.id", NAME)
        .set("partition.assignment.strategy", "range")
        .set("session.timeout.ms", "6000");
    let log = log.to_owned();
    let joining = tokio::task::spawn_blocking(move || {
        let start = Instant::now();
        let has_said = || std::fs::read_to_string(&log).is_ok_and(|text| text.contains(words));
        while !has_said() {
            let intruder: BaseConsumer = config.create().expect("a consumer");
            intruder
                .subscribe(&["user-events", "post-events"])
                .expect("a subscription");
            while !has_said() {
                assert!(start.elapsed() < EXPELLED, "the builder was not expelled");
                if let Some(Err(KafkaError::MessageConsumptionFatal(_))) = intruder.poll(POLL) {
                    break;
                }
            }
        }
    });
    joining.await.expect("an intruder");
}
