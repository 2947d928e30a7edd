//! A cluster of three brokers loses some of them, and moves leaders and coordinators, while two builders keep a view.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use rig::ViewRig;
use rig::cluster::Cluster;
use rig::view_rig::{DEADLINE, Event};
use serde_json::json;
use stack::eventually_ok;

const PARTITIONS: i32 = 4;
/// So many events are produced at a time.
const TOGETHER: i64 = 20;
const INTERVAL: Duration = Duration::from_millis(100);
/// So many events must come through between two troubles.
const THROUGH: i64 = 200;
/// Kafka's own topic that holds the offsets of groups. The leader of one of its partitions coordinates the groups there.
const OFFSETS: &str = "__consumer_offsets";

/// Every event has a key of its own, so each must be in this table once. A real view should not be like this, because it cannot be replayed.
const TABLE: &str = "create table if not exists applied (seq bigint generated always as identity, id bigint not null);";

fn apply(topic: &str) -> String {
    format!(
        "-- Every event that was applied, as often as it was.\n-- topics: {topic}
insert into applied (id) select key from unnest($2::bigint[]) as event(key)"
    )
}

/// Produces events until it is told to end.
struct Load {
    stop: Arc<AtomicBool>,
    produced: Arc<AtomicI64>,
    task: tokio::task::JoinHandle<()>,
}

impl Load {
    fn start(rig: &Arc<ViewRig>, topic: &str) -> Self {
        let (stop, produced) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI64::new(0)));
        let (rig, topic) = (Arc::clone(rig), topic.to_owned());
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&produced));
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                let first = count.load(Ordering::Relaxed);
                let events = (first..first + TOGETHER).map(|id| {
                    let partition = i32::try_from(id % i64::from(PARTITIONS)).expect("a partition");
                    Event::of(&topic, partition, id, 1, Some(&json!({"id": id})))
                });
                // The producer is idempotent, and waits for brokers that are away.
                rig.produce(&topic, events).await.expect("offsets");
                count.store(first + TOGETHER, Ordering::Relaxed);
                tokio::time::sleep(INTERVAL).await;
            }
        });
        Self { stop, produced, task }
    }

    async fn end(self) -> i64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("every event is produced");
        self.produced.load(Ordering::Relaxed)
    }
}

/// Waits until so many more events are in the view.
async fn wait_until_applied_more(rig: &ViewRig, events: i64) {
    let count = || async {
        let count = rig.value("select count(*) from applied").await?;
        anyhow::Ok(count.parse::<i64>()?)
    };
    let before = count().await.expect("a count");
    let through = eventually_ok(DEADLINE, "events come through", || async {
        let now = count().await?;
        anyhow::ensure!(now >= before + events, "{before} then, {now} now");
        Ok(())
    });
    through.await.unwrap_or_else(|err| panic!("{err:#}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_elections_and_kills_of_brokers_lose_and_repeat_nothing_in_the_views() {
    let cluster = Cluster::take_turn().await;
    let rig = Arc::new(ViewRig::on(Arc::clone(&cluster.servers), "three_brokers").await);
    let topic = rig.topic("order");
    let settings = [("min.insync.replicas", "2")];
    rig.create_topic(&topic, PARTITIONS, &settings).await.expect("a topic");
    rig.write_view("applied", TABLE, &apply(&topic));
    let builders = ["one", "two"].map(|name| rig.builder(name));
    for builder in &builders {
        builder.start().expect("a start");
        builder.wait_ready(DEADLINE).await.expect("it is ready");
    }
    let load = Load::start(&rig, &topic);
    wait_until_applied_more(&rig, THROUGH).await;
    let topics = [topic.as_str(), OFFSETS];

    for id in cluster.nodes.ids() {
        cluster.nodes.node(id).stop().await.expect("a clean end");
        cluster.start_again(id).await;
        cluster.wait_until_in_sync(&topics).await;
        wait_until_applied_more(&rig, THROUGH).await;
    }
    for _ in 0..3 {
        cluster.move_leaders(&topics).await;
        wait_until_applied_more(&rig, THROUGH).await;
    }
    for id in cluster.nodes.ids() {
        cluster.nodes.node(id).kill_hard().await;
        wait_until_applied_more(&rig, THROUGH).await;
        cluster.start_again(id).await;
        cluster.wait_until_in_sync(&topics).await;
    }
    // A builder dies while a broker is away.
    cluster.nodes.node(1).kill_hard().await;
    builders[0].kill_hard().await;
    builders[0].start().expect("a start");
    wait_until_applied_more(&rig, THROUGH).await;
    cluster.start_again(1).await;
    wait_until_applied_more(&rig, THROUGH).await;

    let produced = load.end().await;
    let counted = eventually_ok(DEADLINE, "every event is there", || async {
        let rows = rig
            .query("select count(*), count(distinct id), coalesce(max(id), 0) + 1 from applied")
            .await?;
        let counted: Vec<String> = rows[0].iter().flatten().cloned().collect();
        let expected = vec![produced.to_string(); 3];
        anyhow::ensure!(
            counted == expected,
            "rows, ids, highest: {counted:?}; produced: {produced}"
        );
        Ok(())
    });
    counted
        .await
        .unwrap_or_else(|err| panic!("{err:#}\n{}\n{}", builders[0].log_tail(20), builders[1].log_tail(20)));
    let disorder = format!(
        "select count(*) from (select id, lag(id) over (partition by id % {PARTITIONS} order by seq) as before from applied) as pair
         where id < before"
    );
    assert_eq!(
        rig.value(&disorder).await.expect("a count"),
        "0",
        "in another order than in the topic"
    );
    for builder in &builders {
        builder.stop().await.expect("a clean end");
    }
}
