//! A transaction that Kafka calls complete, although it has not ended in all its partitions. Brokers of 4.2 to 4.4 make such a transaction if a
//! partition has no leader while they write the ends (KAFKA-20734).

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rig::partitions::{Partition, partitions};
use rig::servers::{kafka_options, postgres_options};
use rig::{Isolation, Rig, Servers, relay_exit};
use rustix::process::Signal;
use stack::{Kafka, KafkaCluster, KafkaOptions, Process, eventually, eventually_ok};

use crate::relay::load::{DEADLINE, metric, wait_until_publishes};

/// A release that loses the ends of transactions.
const KAFKA: &str = "4.4.0";
const BROKERS: usize = 3;
/// The node with the only replica of the partitions in which the transaction does not end.
const VICTIM: i32 = 3;
/// Kafka's own topic that holds the state of transactions.
const TRANSACTION_STATE: &str = "__transaction_state";
/// The brokers of these tests allow transactions of at most so long.
const TRANSACTION_MAX_TIMEOUT_MS: &str = "15000";
/// A relay logs this after it has fenced and read its checkpoint.
const STREAMS: &str = "streaming from the checkpoint";
/// This is shorter than the time after which the controllers give a broker up.
const OUT_OF_REACH: Duration = Duration::from_secs(5);
const ROWS: u32 = 100;

async fn partitions_of(servers: &Servers, topic: &str) -> anyhow::Result<Vec<Partition>> {
    let (bootstrap_servers, topic) = (servers.kafka.bootstrap_servers(), topic.to_owned());
    tokio::task::spawn_blocking(move || partitions(&bootstrap_servers, &[&topic])).await?
}

/// Creates a topic. `nodes` says which node has the only replica of each partition.
async fn create_topic(servers: &Servers, topic: &str, nodes: &str) {
    let arguments = [
        "--create",
        "--topic",
        topic,
        "--replica-assignment",
        nodes,
        "--config",
        "min.insync.replicas=1",
        "--config",
        "cleanup.policy=compact",
    ];
    let created = servers.kafka.topic_tool(&arguments).await;
    created.unwrap_or_else(|err| panic!("{err:#}"));
}

/// Makes sure that the victim coordinates no transactions.
async fn spare_the_coordinators(servers: &Servers) {
    let spared = eventually_ok(DEADLINE, "another node coordinates", || async {
        let led = partitions_of(servers, TRANSACTION_STATE).await?;
        let led: Vec<_> = led.into_iter().filter(|partition| partition.leader == VICTIM).collect();
        if led.is_empty() {
            return Ok(());
        }
        let wanted = led.iter().map(|partition| {
            let mut replicas = partition.replicas.clone();
            replicas.sort_unstable();
            (partition.topic.clone(), partition.id, replicas)
        });
        servers.kafka.elect_leaders(&wanted.collect::<Vec<_>>()).await?;
        bail!("{led:?}")
    });
    spared.await.unwrap_or_else(|err| panic!("{err:#}"));
}

/// A rig whose rows go to partitions on the victim and on other nodes.
async fn rig_on(servers: &Arc<Servers>, name: &str) -> Rig {
    let mut rig = Rig::on(Arc::clone(servers), name).await;
    rig.relay = rig
        .relay
        .env("KAFKA_TRANSACTION_MAX_TIMEOUT_MS", TRANSACTION_MAX_TIMEOUT_MS);
    create_topic(servers, &rig.topic(), &format!("{VICTIM},1,2,{VICTIM}")).await;
    rig
}

/// Starts a relay that sends all rows in one Kafka transaction. The relay then stands still before it commits.
async fn freeze_before_the_commit(rig: &mut Rig) {
    rig.init(&[]).await;
    spare_the_coordinators(&rig.servers).await;
    rig.insert_together(ROWS).await;
    let hits = rig.logs().join("hits");
    rig.relay = rig
        .relay
        .with_binary("outbox-relay-faults")
        .env("OUTBOX_RELAY_FAILPOINT", "commit.before=freeze@1")
        .env("OUTBOX_RELAY_FAILPOINT_HITS", &hits.to_string_lossy());
    rig.relay.start().expect("a relay");
    let stat = format!("/proc/{}/stat", rig.relay.process().expect("a relay").id());
    eventually(DEADLINE, "the relay stands still", || async {
        std::fs::read_to_string(&stat).ok()?.contains(") T ").then_some(())
    })
    .await;
}

/// Freezes the victim, so that partitions that only the victim has have no leader.
async fn freeze_the_victim(rig: &Rig, nodes: &KafkaCluster) -> Arc<Process> {
    let victim = nodes.node(VICTIM).process().expect("a broker");
    victim.signal(Signal::STOP);
    wait_for_leader(rig, -1).await;
    victim
}

async fn wake_the_victim(rig: &Rig, victim: &Process) {
    victim.signal(Signal::CONT);
    wait_for_leader(rig, VICTIM).await;
}

/// Waits until this node leads the first partition of the rows; -1: no node does.
async fn wait_for_leader(rig: &Rig, leader: i32) {
    let waited = eventually_ok(DEADLINE, "the victim's partitions change their leader", || async {
        let found = partitions_of(&rig.servers, &rig.topic()).await?;
        ensure!(found.first().is_some_and(|first| first.leader == leader), "{found:?}");
        Ok(())
    });
    waited.await.unwrap_or_else(|err| panic!("{err:#}"));
}

/// Ends all transactions that hang in `topic`, as the relay's last line says. Returns how many there were.
async fn end_what_hangs(kafka: &Kafka, topic: &str) -> usize {
    let arguments = ["find-hanging", "--topic", topic, "--max-transaction-timeout", "0"];
    let found = kafka.transactions_tool(&arguments).await;
    let found = found.unwrap_or_else(|err| panic!("{err:#}"));
    let mut ended = 0;
    for line in found.lines().filter(|line| line.starts_with(topic)) {
        let [_, partition, _, _, _, offset, ..] = line.split_whitespace().collect::<Vec<_>>()[..] else {
            panic!("no transaction of kafka-transactions: {line}");
        };
        let place = ["--topic", topic, "--partition", partition, "--start-offset", offset];
        let aborted = kafka.transactions_tool(&[&["abort"], &place[..]].concat()).await;
        aborted.unwrap_or_else(|err| panic!("{err:#}"));
        ended += 1;
    }
    ended
}

/// Takes the way out that the relay names. Asserts that nothing is lost, and nothing is there twice.
async fn assert_is_told_and_made_good(rig: &Rig, nodes: &KafkaCluster) {
    let topic = rig.topic();
    let says = [
        format!("find-hanging --topic {topic} --max-transaction-timeout 0"),
        format!("abort --topic {topic} --partition"),
        "outbox-relay recover --compare-anyway".to_owned(),
    ];
    let says = says.each_ref().map(String::as_str);
    rig.assert_stops(relay_exit::TRANSACTION_HANGS, &says).await;
    // A supervisor starts the relay again, before and after an operator has come. A broker that does not answer but still leads tells nothing.
    let victim = nodes.node(VICTIM).process().expect("a broker");
    victim.signal(Signal::STOP);
    tokio::spawn(async move {
        tokio::time::sleep(OUT_OF_REACH).await;
        victim.signal(Signal::CONT);
    });
    rig.assert_stops(relay_exit::TRANSACTION_HANGS, &says).await;
    let kafka = &rig.servers.kafka;
    assert!(end_what_hangs(kafka, &topic).await > 0, "nothing hung");
    end_what_hangs(kafka, &rig.checkpoint_topic()).await;
    let hidden = rig.describe_hidden_records().await;
    assert!(hidden.starts_with("no open transaction"), "{hidden}");
    rig.assert_stops(relay_exit::RECOVERY_UNFINISHED, &["outbox-relay recover"])
        .await;
    let recovered = rig.relay.run(&["recover", "--compare-anyway", "--yes"]).await;
    recovered.unwrap_or_else(|err| panic!("{err:#}"));
    rig.start().await;
    rig.insert_each(5).await;
    let ledger = rig.assert_exactly_once().await;
    assert_eq!(ledger.rows, ROWS as usize + 5, "{ledger}");
    rig.finish().await.expect("a clean end");
}

/// Half of the transaction can be read, and Kafka has told the relay that all of it can.
async fn a_commit_whose_end_is_lost(servers: &Arc<Servers>, nodes: &KafkaCluster) {
    let mut rig = rig_on(servers, "hanging_commit").await;
    freeze_before_the_commit(&mut rig).await;
    let victim = freeze_the_victim(&rig, nodes).await;
    rig.relay.process().expect("a relay").signal(Signal::CONT);
    wait_until_publishes(&rig.relay, f64::from(ROWS)).await;
    wake_the_victim(&rig, &victim).await;
    let ledger = rig.ledger(Isolation::Committed).await.expect("a ledger");
    assert!(!ledger.lost.is_empty() && ledger.lost.len() < 100, "{ledger}");
    let told = eventually_ok(DEADLINE, "the relay tells what is hidden", || async {
        let seconds = metric(&rig.relay, "relay_records_hidden_seconds").await;
        let seconds = seconds.context("no metric")?;
        ensure!(seconds > 10.0, "{seconds}");
        Ok(())
    });
    told.await.unwrap_or_else(|err| panic!("{err:#}"));
    rig.relay.kill_hard().await;
    rig.relay = rig.relay.with_binary("outbox-relay");
    assert_is_told_and_made_good(&rig, nodes).await;
}

/// Waits until a successor has fenced. What its predecessor left open has ended then.
async fn wait_until_fenced(rig: &Rig) {
    let fenced = eventually_ok(DEADLINE, "the successor fences", || async {
        let known = rig.servers.kafka.transactions().await?;
        let ours = known.iter().filter(|known| known.transactional_id.contains(rig.name()));
        let others: Vec<_> = ours.filter(|known| known.state != "Empty").collect();
        // By then a relay with the bug has begun its own transaction, as its predecessor had.
        let streams = rig.relay.log_text().matches(STREAMS).count() > 1;
        ensure!(streams || others.is_empty(), "{others:?}");
        Ok(())
    });
    fenced.await.unwrap_or_else(|err| panic!("{err:#}"));
}

/// A relay died before its commit. Its successor aborts the transaction, but the end does not reach the victim, which comes back later.
async fn an_abort_whose_end_is_lost(
    servers: &Arc<Servers>,
    nodes: &KafkaCluster,
    name: &str,
    bug: Option<&str>,
) -> Rig {
    let mut rig = rig_on(servers, name).await;
    freeze_before_the_commit(&mut rig).await;
    nodes.node(VICTIM).kill_hard().await;
    wait_for_leader(&rig, -1).await;
    rig.relay.kill_hard().await;
    rig.relay = match bug {
        None => rig.relay.with_binary("outbox-relay"),
        Some(bug) => rig.relay.with_env("OUTBOX_RELAY_BUG", bug),
    };
    rig.relay.start().expect("a relay");
    wait_until_fenced(&rig).await;
    let started = nodes.node(VICTIM).start_again().await;
    started.unwrap_or_else(|err| panic!("{err:#}"));
    wait_for_leader(&rig, VICTIM).await;
    rig
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_whose_end_kafka_has_lost_is_told_and_made_good_by_recover() {
    let options = KafkaOptions {
        version: Some(KAFKA.to_owned()),
        ..kafka_options()
    };
    let options = options.setting("transaction.max.timeout.ms", TRANSACTION_MAX_TIMEOUT_MS);
    let started = Servers::start_with_cluster(postgres_options(), BROKERS, options).await;
    let (servers, nodes) = started.unwrap_or_else(|err| panic!("the servers do not start: {err:#}"));
    let servers = Arc::new(servers);
    a_commit_whose_end_is_lost(&servers, &nodes).await;

    let rig = an_abort_whose_end_is_lost(&servers, &nodes, "hanging_abort", None).await;
    let status = rig.relay.exited(DEADLINE).await;
    let status = status.unwrap_or_else(|err| panic!("{err:#}"));
    assert_eq!(
        status.code(),
        Some(relay_exit::TRANSACTION_HANGS),
        "{}",
        rig.relay.log_tail(5)
    );
    assert_is_told_and_made_good(&rig, &nodes).await;

    let bug = Some("GoOnBehindOpenTransactions");
    let rig = an_abort_whose_end_is_lost(&servers, &nodes, "hanging_bug", bug).await;
    let repeats = eventually_ok(DEADLINE, "a careless relay repeats what was aborted", || async {
        let ledger = rig.ledger(Isolation::Committed).await?;
        ensure!(!ledger.duplicates.is_empty(), "{ledger}");
        Ok(())
    });
    repeats.await.unwrap_or_else(|err| panic!("{err:#}"));
    rig.finish().await.expect("a clean end");
}
