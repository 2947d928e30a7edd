//! An event is published if and only if its transaction committed, and in the order of the transaction.

use std::collections::BTreeMap;
use std::time::Duration;

use stack::{Pipeline, Record, eventually};

use super::ledger::{Outbox, consume, event_id, records};
use super::{rows, shared};

const DEADLINE: Duration = Duration::from_secs(60);

/// The SQL that writes users and their events, as a person with psql would. The users have the numbers 1 to `count`, and `kind` in their names.
fn insert_users(kind: &str, count: u32) -> String {
    format!(
        "with number as (select n from generate_series(1, {count}) as n order by n),
         created as (
             insert into users (name, email, department, status)
             select '{kind}' || n, '{kind}.' || n || '@example.com', '{kind}', 'ACTIVE' from number
             returning *
         )
         insert into outbox (aggregatetype, aggregateid, type, payload)
         select 'user', id::text, 'USER_CREATED', jsonb_build_object(
             'eventType', 'USER_CREATED', 'userId', id, 'timestamp', created_at, 'version', version,
             'user', jsonb_build_object('id', id, 'name', name, 'email', email, 'department', department,
                 'status', status, 'createdAt', created_at, 'updatedAt', updated_at))
         from created order by id"
    )
}

#[tokio::test]
async fn a_rolled_back_transaction_publishes_nothing() {
    let pipeline = shared::pipeline().await;
    let consumer = consume(&pipeline, Outbox::Users);
    rows::in_users(
        &pipeline,
        &format!("begin; {}; rollback", insert_users("rolled-back", 100)),
    )
    .await;
    // This transaction commits later, so it is published later. Once it is there, the rolled-back events would be there, too.
    rows::in_users(&pipeline, &insert_users("committed-after", 1)).await;
    let of_department = |department: &str| of_department(&records(&consumer), department);
    eventually(DEADLINE, "the later transaction is published", || {
        std::future::ready((of_department("committed-after").len() == 1).then_some(()))
    })
    .await;
    assert_eq!(of_department("rolled-back"), []);
    let left = rows::in_users(&pipeline, "select 1 from users where department = 'rolled-back'").await;
    assert!(left.is_empty());
}

#[tokio::test]
async fn ten_thousand_users_of_one_transaction_arrive_once_each_and_in_order() {
    const COUNT: usize = 10_000;
    let pipeline = shared::pipeline().await;
    let consumer = consume(&pipeline, Outbox::Users);
    rows::in_users(
        &pipeline,
        &insert_users("one-transaction", u32::try_from(COUNT).expect("a small number")),
    )
    .await;
    eventually(DEADLINE, "all events are published", || {
        let published = of_department(&records(&consumer), "one-transaction").len();
        std::future::ready((published >= COUNT).then_some(()))
    })
    .await;

    let published = of_department(&records(&consumer), "one-transaction");
    assert_eq!(
        sorted(published.iter().map(|record| event_id(record).to_owned())),
        outbox_ids(&pipeline).await
    );
    let mut transactions: Vec<&str> = published.iter().map(|record| position(record).0).collect();
    transactions.dedup();
    assert_eq!(transactions.len(), 1, "one transaction has one commit position");
    let mut by_partition: BTreeMap<i32, Vec<&Record>> = BTreeMap::new();
    for record in &published {
        by_partition.entry(record.partition).or_default().push(record);
    }
    for (partition, mut records) in by_partition {
        records.sort_by_key(|record| record.offset);
        assert!(
            records.is_sorted_by_key(|record| position(record).1),
            "partition {partition} has the transaction's order"
        );
    }
    let indexes = sorted(published.iter().map(|record| position(record).1));
    assert!(
        indexes.iter().copied().eq(0..COUNT as u64),
        "every index of the transaction once"
    );
    eventually(DEADLINE, "all users are in the view", || async {
        let sql = "select count(*) from user_view where department = 'one-transaction'";
        (rows::single(&rows::in_views(&pipeline, sql).await) == COUNT.to_string()).then_some(())
    })
    .await;
}

async fn outbox_ids(pipeline: &Pipeline) -> Vec<String> {
    let sql = "select id from outbox where payload -> 'user' ->> 'department' = 'one-transaction'";
    let rows = rows::in_users(pipeline, sql).await;
    sorted(rows.into_iter().map(|row| row[0].clone().expect("an id")))
}

fn of_department(records: &[Record], department: &str) -> Vec<Record> {
    let has = |record: &&Record| {
        record
            .json()
            .is_ok_and(|event| event["user"]["department"] == department)
    };
    records.iter().filter(has).cloned().collect()
}

/// The commit position, and the index in the transaction, of a header such as `16/B374D848:0:1795344833217210`.
fn position(record: &Record) -> (&str, u64) {
    let text = record.header("position").expect("a position header");
    let mut parts = text.split(':');
    let lsn = parts.next().expect("a commit position");
    let index = parts.next().expect("an index");
    (lsn, index.parse().expect("a number"))
}

fn sorted<T: Ord>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut items: Vec<T> = items.collect();
    items.sort();
    items
}
