//! What the pages ask of the dead letters.

use console::letters::{self, After, Which};
use console::postgres;

use super::support::TestDatabase;

/// What a builder makes at its start.
const POSITIONS: &str = include_str!("../../../view-builder/src/views/positions.sql");

#[tokio::test]
async fn letters_are_listed_without_their_events_and_found_with_them() {
    let database = TestDatabase::create().await;
    database.sql.batch_execute(POSITIONS).await.unwrap();
    database
        .sql
        .batch_execute(
            "insert into view_dead_letters (topic, partition, record_offset, key, value, headers, reason, discarded_at, discard_reason) values
                ('user-events', 0, 1, 'a', 'first', '[[\"id\", \"3766\"]]', 'no JSON', null, null),
                ('user-events', 0, 2, 'a', 'second', '[]', null, null, null),
                ('user-events', 0, 3, 'b', 'third', '[]', 'no JSON', now(), 'a test'),
                ('user-events', 0, 4, 'a', 'fourth', '[]', null, null, null)",
        )
        .await
        .unwrap();
    let asked = postgres::Database::new(database.setting().target);
    let list = async |which, reason| letters::list(&asked, which, reason, &After::default()).await.unwrap();

    let dead = list(Which::Dead, Some("no JSON")).await;
    let [first] = dead.as_slice() else {
        panic!("one letter is dead: {dead:?}")
    };
    assert_eq!((first.offset, first.behind, first.first), (1, 2, None));
    assert_eq!(list(Which::Dead, Some("another")).await, []);
    let parked = list(Which::Parked, None).await;
    assert_eq!(letters::behind(&asked, first).await.unwrap(), parked);
    let places: Vec<_> = parked.iter().map(|letter| (letter.offset, letter.first)).collect();
    assert_eq!(places, [(2, Some(first.id)), (4, Some(first.id))]);
    let discarded = list(Which::Discarded, None).await;
    assert_eq!(discarded[0].discard_reason.as_deref(), Some("a test"));

    let whole = letters::find(&asked, first.id).await.unwrap().unwrap();
    assert_eq!((&whole.letter, whole.value.as_slice()), (first, &b"first"[..]));
    assert_eq!(whole.headers[0].value.as_deref(), Some(&b"7f"[..]));
}

#[tokio::test]
async fn letters_of_former_topics_are_counted_by_themselves() {
    let database = TestDatabase::create().await;
    database.sql.batch_execute(POSITIONS).await.unwrap();
    let asked = postgres::Database::new(database.setting().target);
    assert_eq!(letters::count_former(&asked).await.unwrap(), 0);
    database
        .sql
        .batch_execute(
            "insert into view_former_dead_letters
                (id, topic, partition, record_offset, value, headers, record_time, reason, arrived_at, retries, applied_before, former_topic_id) values
                (1, 'user-events', 0, 1, '', '[]', now(), 'no JSON', now(), 0, false, 'former')",
        )
        .await
        .unwrap();
    assert_eq!(letters::count_former(&asked).await.unwrap(), 1);
    assert_eq!(letters::count_by_reason(&asked).await.unwrap(), []);
}
