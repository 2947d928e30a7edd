//! Every command runs with the privileges that docs/operations.md lists, and no more. The test reads them from the page.

use std::sync::Arc;

use rig::servers::postgres_options;
use rig::{Isolation, Ledger, Rig, Servers, Status, relay_exit};
use stack::{KafkaOptions, Postgres, Program, eventually};

use super::least_accepts::{accept_each, make_other_slots, park_and_discard};
use super::topic_settings::set_topic;
use crate::relay::load::metric;
use crate::relay::tampering::{DEADLINE, publish_and_stop, wait_until_confirmed};

const PAGE: &str = include_str!("../../../docs/operations.md");
/// These names are examples on the page.
const DATABASE: &str = "shop";
const OWNER: &str = "shop_owner";
/// The user of `check`, `status` and `run`.
const RUN: &str = "relay_run";
/// The user of all other commands.
const ADMIN: &str = "relay_admin";
const PASSWORD: &str = "secret";

/// The block of code on the page with this language and this name.
fn block(language: &str, name: &str) -> &'static str {
    let (_, rest) = PAGE
        .split_once(&format!("```{language} {name}\n"))
        .unwrap_or_else(|| panic!("docs/operations.md has no block `{language} {name}`"));
    rest.split_once("```").expect("the block's end").0
}

/// A Kafka whose listener LOGIN knows the two users, who have no rights yet. Clients of the other listener have all rights.
fn kafka_with_authorizer() -> KafkaOptions {
    let users = format!(
        "org.apache.kafka.common.security.plain.PlainLoginModule required user_{RUN}=\"{PASSWORD}\" user_{ADMIN}=\"{PASSWORD}\";"
    );
    let options = KafkaOptions {
        listeners: vec![("LOGIN".to_owned(), "SASL_PLAINTEXT".to_owned())],
        ..KafkaOptions::default()
    };
    options
        .setting("inter.broker.listener.name", "PLAINTEXT")
        .setting("sasl.enabled.mechanisms", "PLAIN")
        .setting("listener.name.login.plain.sasl.jaas.config", &users)
        .setting(
            "authorizer.class.name",
            "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        )
        .setting("super.users", "User:ANONYMOUS")
}

/// Gives the page's roles their privileges in Postgres. First it revokes what everybody may do by default.
async fn grant_in_postgres(postgres: &Postgres) {
    let as_superuser = async |sql: &str| {
        let done = postgres.query(DATABASE, sql).await;
        done.unwrap_or_else(|err| panic!("{sql}: {err:#}"));
    };
    as_superuser(&format!(
        "revoke all on database {DATABASE} from public; revoke all on schema public from public;
         create role {OWNER} login; grant connect, create on database {DATABASE} to {OWNER};
         grant usage on schema public to {OWNER}; alter table outbox owner to {OWNER}"
    ))
    .await;
    let owner = postgres.connect(OWNER, DATABASE).await.expect("the owner's login");
    owner.batch_execute(block("sql", "owner")).await.expect("a publication");
    for role in [RUN, ADMIN] {
        as_superuser(block("sql", role)).await;
    }
}

/// Gives the page's users their rights (ACLs) in Kafka.
async fn grant_in_kafka(servers: &Servers, blocks: &[&str]) {
    for name in blocks {
        for line in block("sh", name).lines() {
            let arguments = line
                .strip_prefix("kafka-acls --bootstrap-server broker:9092 ")
                .unwrap_or_else(|| panic!("no kafka-acls: {line}"));
            let arguments: Vec<&str> = arguments.split_whitespace().collect();
            let added = servers.kafka.acls_tool(&arguments).await;
            added.unwrap_or_else(|err| panic!("{line}: {err:#}"));
        }
    }
}

/// The relay, changed to log in as this user to Postgres and to Kafka.
fn as_user(rig: &Rig, user: &str) -> Program {
    let kafka = &rig.servers.kafka;
    let properties = format!(
        "broker.address.family=v4\nsecurity.protocol=sasl_plaintext\nsasl.mechanism=PLAIN\nsasl.username={user}\nsasl.password={PASSWORD}"
    );
    rig.relay
        .with_env("DATABASE_URL", &rig.servers.postgres.url(user, DATABASE))
        .env("KAFKA_BOOTSTRAP_SERVERS", &kafka.listener("LOGIN").expect("a listener"))
        .env("KAFKA_PROPERTIES", &properties)
}

pub(super) async fn run(program: &Program, arguments: &[&str]) -> String {
    let logged = program.log_text().len();
    let done = program.run(arguments).await;
    done.unwrap_or_else(|err| panic!("{arguments:?}: {err:#}"));
    program.log_text()[logged..].to_owned()
}

/// A row that is too large for its topic is parked, listed, and published again.
async fn park_and_retry(rig: &mut Rig, admin: &Program) {
    grant_in_kafka(&rig.servers, &["relay_run_parking"]).await;
    run(admin, &["init", "--poison", "park"]).await;
    set_topic(rig, &[("max.message.bytes", "20000")]).await;
    let runner = rig.relay.with_env("OUTBOX_POISON", "park");
    let topic = rig.topic();
    rig.sql(&format!(
        "insert into outbox (aggregatetype, aggregateid, type, payload)
         values ('{topic}', 'parked', 'Some', jsonb_build_object('n', nextval('numbers'), 'pad', repeat('x', 30000)))"
    ))
    .await;
    runner.start().expect("a start");
    eventually(DEADLINE, "the row is parked", || async {
        (metric(&runner, "relay_parked_rows").await? >= 1.0).then_some(())
    })
    .await;
    runner.stop().await.expect("a clean end");
    assert!(run(admin, &["parked", "list"]).await.contains("max.message.bytes"));
    set_topic(rig, &[("max.message.bytes", "60000")]).await;
    run(admin, &["parked", "retry", "--all"]).await;
    rig.start().await;
    rig.insert_each(2).await;
    rig.assert_exactly_once().await;
    rig.relay.stop().await.expect("a clean end");
}

/// Asserts that each row is there once, without counting replays.
async fn assert_each_row_once(rig: &Rig) {
    let ledger = eventually(DEADLINE, "all rows are published", || async {
        let mut records = rig.records(Isolation::Committed).await.ok()?;
        records.retain(|record| record.header("replay").is_none());
        let ledger = Ledger::compare(&rig.rows().await, &records);
        ledger.lost.is_empty().then_some(ledger)
    })
    .await;
    assert!(ledger.duplicates.is_empty(), "{ledger}");
}

#[tokio::test]
async fn every_command_runs_with_the_privileges_of_the_page_and_no_more() {
    let servers = Servers::start(postgres_options(), kafka_with_authorizer()).await;
    let servers = Arc::new(servers.unwrap_or_else(|err| panic!("the servers do not start: {err:#}")));
    let mut rig = Rig::on(Arc::clone(&servers), DATABASE).await;
    grant_in_postgres(&servers.postgres).await;
    grant_in_kafka(&servers, &[RUN, ADMIN]).await;
    let (admin, runner) = (as_user(&rig, ADMIN), as_user(&rig, RUN));

    rig.insert_each(5).await;
    let topic = format!("{}:4", rig.topic());
    let refused = runner.run_for_status(&["init", "--topic", &topic]).await;
    let said = runner.log_text();
    assert_eq!(
        refused.expect("an init").code(),
        Some(relay_exit::TOPIC_REFUSED),
        "{said}"
    );
    assert!(said.contains("TopicAuthorizationFailed"), "{said}");
    // With the page's rights, the relay can see that a topic would lose its checkpoints.
    let create = ["--create", "--topic", &rig.checkpoint_topic(), "--partitions", "1"];
    servers.kafka.topic_tool(&create).await.expect("a topic");
    let refused = admin.run_for_status(&["init", "--topic", &topic]).await;
    let said = admin.log_text();
    assert_eq!(
        refused.expect("an init").code(),
        Some(relay_exit::TOPIC_UNSAFE),
        "{said}"
    );
    let compacts = [("cleanup.policy", "compact")];
    let bootstrap_servers = servers.kafka.bootstrap_servers();
    let set = rig::topic_settings::set(&bootstrap_servers, &rig.checkpoint_topic(), &compacts).await;
    set.unwrap_or_else(|err| panic!("{err:#}"));
    run(&admin, &["init", "--topic", &topic]).await;

    let found = run(&runner, &["check"]).await;
    assert!(found.contains("continues the checkpoint"), "{found}");
    assert!(!found.contains("PROBLEM"), "{found}");
    let status = Status::of(&runner).await;
    assert_eq!(
        (status.state(), status.exit_code()),
        ("stopped", relay_exit::NO_RELAY),
        "{status}"
    );
    // This role reads no table, so it does not see how old the oldest row is. Everything else is there.
    let unknown = status.at("/outbox/unknown_because");
    assert!(
        unknown.as_str().is_some_and(|why| why.contains("permission denied")),
        "{status}"
    );
    assert!(status.at("/checkpoint/published_lsn").is_string(), "{status}");
    run(&runner, &["pause", "--reason", "a look"]).await;
    run(&runner, &["resume"]).await;
    rig.relay = runner;
    rig.insert_together(50).await;
    publish_and_stop(&rig).await;

    // The stream has lost what comes after the slot's end. The outbox still has it.
    rig.drop_slot().await;
    rig.insert_each(5).await;
    rig.assert_stops(relay_exit::SLOT_GONE, &["outbox-relay recover"]).await;
    run(&admin, &["recover", "--yes"]).await;
    rig.start().await;
    rig.insert_each(5).await;
    rig.assert_exactly_once().await;
    rig.relay.stop().await.expect("a clean end");

    park_and_retry(&mut rig, &admin).await;

    rig.drop_slot().await;
    run(&admin, &["init", "--accept-new-slot", "--existing-rows", "skip"]).await;
    rig.start().await;
    rig.insert_each(5).await;
    rig.assert_exactly_once().await;
    wait_until_confirmed(&rig).await;
    run(&admin, &["replay", "--key", "k1", "--yes"]).await;
    rig.relay.stop().await.expect("a clean end");

    park_and_discard(&rig, &admin).await;
    accept_each(&rig, &admin).await;
    make_other_slots(&rig, &admin).await;
    let found = run(&rig.relay, &["check"]).await;
    assert!(!found.contains("PROBLEM"), "{found}");
    rig.start().await;
    rig.insert_each(5).await;
    assert_each_row_once(&rig).await;
    for relay in [&rig.relay, &admin] {
        let log = relay.log_text();
        assert!(!log.contains("is not known"), "a privilege is missing: {log}");
    }
    rig.finish().await.expect("a clean end");
}
