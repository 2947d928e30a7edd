//! Somebody reads a view for a long time. Starts, changed SQL and rebuilds run beside this reader, and nobody else waits for more than a moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rig::view_rig::{DEADLINE, Event};
use rig::{ViewRig, view_builder_exit};
use serde_json::json;
use stack::Program;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::odd::{wait_until_readyz_says, wait_until_value_is};
use super::rig_itself;

/// A reader may wait at most so long.
const READ_MAX: Duration = Duration::from_secs(2);
/// A builder that waits for nobody is ready within this time.
const READY_MAX: Duration = Duration::from_secs(20);
const READ: &str = "select count(*) from item_names";

/// A table and a plain view of it. `create or replace` locks the plain view against everybody.
fn table_sql(names: &str) -> String {
    format!("{}\ncreate or replace view item_names as {names};\n", rig_itself::TABLE)
}

/// Reads all the time until it is stopped, and remembers the longest wait.
struct Readers {
    stops: Arc<AtomicBool>,
    task: JoinHandle<Duration>,
}

impl Readers {
    async fn begin(rig: &ViewRig) -> Self {
        let client = rig.client().await.expect("a client");
        // A reader that waits for longer than this waits for ever.
        client
            .batch_execute("set statement_timeout = '10s'")
            .await
            .expect("a setting");
        let stops = Arc::new(AtomicBool::new(false));
        let stopped = stops.clone();
        let task = tokio::spawn(async move {
            let mut longest = Duration::ZERO;
            while !stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                client.batch_execute(READ).await.expect("an answer");
                longest = longest.max(began.elapsed());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            longest
        });
        Self { stops, task }
    }

    async fn longest_wait(self) -> Duration {
        self.stops.store(true, Ordering::Relaxed);
        self.task.await.expect("a reader")
    }
}

/// A builder that has applied ten events and was stopped, and a transaction that has read the builder's view and stays open.
async fn rig_with_stopped_builder_and_open_read(name: &str) -> (ViewRig, String, Client) {
    let rig = ViewRig::new(name).await;
    let topic = rig.topic("item");
    rig.create_topic(&topic, 1, &[]).await.expect("a topic");
    rig.write_view("item", &table_sql("select name from item"), &rig_itself::apply(&topic));
    let builder = rig.builder("builder");
    builder.start().expect("a start");
    produce(&rig, &topic, 0..10).await;
    wait_until_value_is(&rig, &builder, "select count(*) from item", "10").await;
    builder.stop().await.expect("a clean end");
    let reader = rig.client().await.expect("a client");
    reader
        .batch_execute(&format!("begin; {READ}"))
        .await
        .expect("a long transaction");
    (rig, topic, reader)
}

async fn produce(rig: &ViewRig, topic: &str, ids: std::ops::Range<i64>) {
    let events = ids.map(|id| Event::of(topic, 0, id, 1, Some(&json!({"name": "n"}))));
    rig.produce(topic, events).await.expect("offsets");
}

async fn is_ready_beside_a_reader(name: &str, starts: impl Fn(&ViewRig) -> Program) -> bool {
    let (rig, topic, reader) = rig_with_stopped_builder_and_open_read(name).await;
    let readers = Readers::begin(&rig).await;
    let builder = starts(&rig);
    builder.start().expect("a start");
    let is_ready = builder.wait_ready(READY_MAX).await.is_ok();
    let longest = readers.longest_wait().await;
    assert!(longest < READ_MAX, "a reader has waited for {longest:?}");
    reader.batch_execute("commit").await.expect("an end");
    builder.wait_ready(DEADLINE).await.expect("it is ready now");
    produce(&rig, &topic, 10..20).await;
    wait_until_value_is(&rig, &builder, "select count(*) from item", "20").await;
    builder.stop().await.expect("a clean end");
    is_ready
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_beside_a_long_reader_waits_for_nobody_and_keeps_nobody_waiting() {
    assert!(is_ready_beside_a_reader("locks_at_start", |rig| rig.builder("again")).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn installing_every_view_at_each_start_is_caught() {
    let faulty = |rig: &ViewRig| {
        rig.faulty_builder("again")
            .with_env("VIEW_BUILDER_BUG", "InstallEverything")
    };
    assert!(!is_ready_beside_a_reader("planted_install", faulty).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_sql_waits_in_the_open_and_keeps_no_reader_waiting() {
    let (rig, topic, reader) = rig_with_stopped_builder_and_open_read("locks_for_changed_sql").await;
    let readers = Readers::begin(&rig).await;
    rig.write_view(
        "item",
        &table_sql("select name, id from item"),
        &rig_itself::apply(&topic),
    );
    let builder = rig.builder("builder");
    builder.start().expect("a start");
    wait_until_readyz_says(&builder, &["waits for a lock"]).await;
    reader.batch_execute("commit").await.expect("an end");
    builder.wait_ready(DEADLINE).await.expect("it is ready");
    let longest = readers.longest_wait().await;
    assert!(longest < READ_MAX, "a reader has waited for {longest:?}");
    wait_until_value_is(&rig, &builder, "select count(id) from item_names", "10").await;
    builder.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_was_dropped_by_hand_is_made_again_at_the_next_start() {
    let (rig, topic, reader) = rig_with_stopped_builder_and_open_read("locks_dropped_table").await;
    reader.batch_execute("commit").await.expect("an end");
    let client = rig.client().await.expect("a client");
    client.batch_execute("drop view item_names").await.expect("a drop");
    let builder = rig.builder("builder");
    builder.start().expect("a start");
    builder.wait_ready(DEADLINE).await.expect("it is ready");
    produce(&rig, &topic, 10..20).await;
    wait_until_value_is(&rig, &builder, READ, "20").await;
    builder.stop().await.expect("a clean end");
}

/// A reader first locks a view, and then the tables that the view shows. If a swap took the locks in the other order, Postgres would end one of the
/// two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_reader_of_somebodys_own_view_is_ended_by_a_swap() {
    const READERS: usize = 4;
    const REBUILDS: usize = 8;
    let (rig, _, reader) = rig_with_stopped_builder_and_open_read("locks_of_others_views").await;
    reader.batch_execute("commit").await.expect("an end");
    rig.query(
        "create role analyst; grant analyst to view_builder; grant select on item to analyst; grant create on schema public to analyst; set role analyst;
         create view named as select id, name from item where name is not null; create view named_twice as select * from named",
    )
    .await
    .expect("views of an analyst");
    let (stops, mut tasks) = (Arc::new(AtomicBool::new(false)), Vec::new());
    for _ in 0..READERS {
        let (client, stopped) = (rig.client().await.expect("a client"), stops.clone());
        tasks.push(tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                let counted = client.query_one("select count(*) from named_twice", &[]).await?;
                anyhow::ensure!(counted.get::<_, i64>(0) == 10, "{counted:?}");
            }
            anyhow::Ok(())
        }));
    }
    for _ in 0..REBUILDS {
        rig.assert_command(&["rebuild", "item"], view_builder_exit::SUCCESS)
            .await;
    }
    stops.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.expect("a reader").expect("an answer each time");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_beside_a_long_reader_keeps_no_other_waiting() {
    let (rig, topic, reader) = rig_with_stopped_builder_and_open_read("locks_in_a_rebuild").await;
    let builder = rig.builder("builder");
    builder.start().expect("a start");
    builder.wait_ready(DEADLINE).await.expect("it is ready");
    let readers = Readers::begin(&rig).await;
    let rebuild = rig.builder("command").command_of("rebuild", &["rebuild", "item"]);
    rebuild.start().expect("a rebuild");
    stack::eventually_ok(DEADLINE, "the swap waits", || async {
        anyhow::ensure!(rebuild.log_text().contains("the swap waits"), "{}", rebuild.log_tail(9));
        Ok(())
    })
    .await
    .expect("it waits");
    produce(&rig, &topic, 10..20).await;
    wait_until_value_is(&rig, &builder, "select count(*) from item", "20").await;
    reader.batch_execute("commit").await.expect("an end");
    assert!(
        rebuild.exited(DEADLINE).await.expect("an end").success(),
        "{}",
        rebuild.log_tail(9)
    );
    let longest = readers.longest_wait().await;
    assert!(longest < READ_MAX, "a reader has waited for {longest:?}");
    wait_until_value_is(&rig, &builder, "select count(*) from item", "20").await;
    builder.stop().await.expect("a clean end");
}
