//! Dead letters of a topic that was made anew hold nothing up in the new one.

use view_builder::builder::beginning::Beginning;
use view_builder::builder::claim::Start;

use super::support::{TestDatabase, new_user, shipped_views};

/// What Postgres knows of partition 0 and of its topic.
#[derive(Debug, PartialEq, Eq)]
struct Known {
    next_offset: i64,
    topic_id: Option<String>,
    former_topic_ids: Vec<String>,
    /// How often the offsets have lost their meaning.
    breaks: i64,
    letters_version: i64,
    letters: i64,
    former_letters: i64,
}

impl Known {
    async fn load(database: &TestDatabase) -> Self {
        let row = database
            .sql
            .query_one(
                "select next_offset, topic_id, former_topic_ids, breaks, letters_version,
                    (select count(*) from only view_dead_letters) as letters,
                    (select count(*) from view_former_dead_letters) as former_letters
                 from view_positions where partition = 0",
                &[],
            )
            .await
            .unwrap();
        Self {
            next_offset: row.get("next_offset"),
            topic_id: row.get("topic_id"),
            former_topic_ids: row.get("former_topic_ids"),
            breaks: row.get("breaks"),
            letters_version: row.get("letters_version"),
            letters: row.get("letters"),
            former_letters: row.get("former_letters"),
        }
    }

    /// Six events of the topic `former` are applied, and one letter waits.
    fn of_former_topic() -> Self {
        Self {
            next_offset: 6,
            topic_id: Some("former".to_owned()),
            former_topic_ids: Vec::new(),
            breaks: 0,
            letters_version: 0,
            letters: 1,
            former_letters: 0,
        }
    }

    /// The topic `new` begins, and the letter of the former one is put aside.
    fn of_new_topic() -> Self {
        Self {
            next_offset: 0,
            topic_id: Some("new".to_owned()),
            former_topic_ids: vec!["former".to_owned()],
            breaks: 1,
            letters_version: 1,
            letters: 0,
            former_letters: 1,
        }
    }
}

const LETTER_AT_3: &str = "insert into view_dead_letters (topic, partition, record_offset, key, value, headers)
    values ('user-events', 0, 3, '1', '', '[]')";

/// A database as [`Known::of_former_topic`], and the builder that has applied the events.
async fn with_letter_of_former_topic() -> (TestDatabase, super::support::Builder) {
    let (database, mut builder) = TestDatabase::with_builder().await;
    for id in 1..=6 {
        builder.put(new_user(id)).await;
    }
    database.sql.batch_execute(LETTER_AT_3).await.unwrap();
    let name_topic = "update view_positions set topic_id = 'former'";
    database.sql.batch_execute(name_topic).await.unwrap();
    assert_eq!(Known::load(&database).await, Known::of_former_topic());
    (database, builder)
}

/// Partition 0 begins at offset 0 of the topic `new`.
fn beginning_of_new_topic(start: &Start) -> Beginning {
    Beginning {
        ended_at: None,
        start: Start {
            next_offset: 0,
            ..start.clone()
        },
        topic_id: Some("new".to_owned()),
        is_anew: true,
        notice: None,
    }
}

#[tokio::test]
async fn a_topic_that_was_made_anew_begins_anew_and_its_letters_are_put_aside() {
    let (database, mut builder) = with_letter_of_former_topic().await;
    builder.claim(&[0]).await;
    let beginning = beginning_of_new_topic(&builder.starts[0]);
    builder.database.begin(&[beginning]).await;
    assert_eq!(Known::load(&database).await, Known::of_new_topic());
}

#[tokio::test]
async fn only_the_holder_of_a_partition_begins_its_topic_anew() {
    let (database, mut zombie) = with_letter_of_former_topic().await;
    let mut holder = database.builder(&shipped_views()).await;
    holder.claim(&[0]).await;
    let beginning = beginning_of_new_topic(&zombie.starts[0]);
    zombie.database.begin(&[beginning]).await;
    assert_eq!(Known::load(&database).await, Known::of_former_topic());
}

#[tokio::test]
async fn an_offset_may_have_a_letter_in_the_new_topic_as_well_as_in_the_former_one() {
    let (database, mut builder) = with_letter_of_former_topic().await;
    builder.claim(&[0]).await;
    let beginning = beginning_of_new_topic(&builder.starts[0]);
    builder.database.begin(&[beginning]).await;
    database.sql.batch_execute(LETTER_AT_3).await.unwrap();
    let known = Known::load(&database).await;
    assert_eq!((known.letters, known.former_letters), (1, 1));
}

/// The keys of the letters, as a builder of an earlier version sees them.
const LETTERS: &str = "select string_agg(convert_from(key, 'UTF8'), ' ' order by key) from view_dead_letters";
/// Keys and topics of the letters that were put aside.
const FORMER_LETTERS: &str = "select string_agg(convert_from(key, 'UTF8') || ' ' || former_topic_id, ', ' order by key) from view_former_dead_letters";

/// The tables as an earlier version has made them: with a former letter of key 1, which its builders see, and a letter of key 2.
async fn database_of_an_earlier_version() -> TestDatabase {
    let (database, _) = TestDatabase::with_builder().await;
    let earlier = "
        drop table view_former_dead_letters;
        create table view_former_dead_letters (primary key (id)) inherits (view_dead_letters);
        insert into view_dead_letters (topic, partition, record_offset, key, value, headers) values ('user-events', 0, 3, '1', '', '[]');
        select put_dead_letters_aside('user-events', 0, 0, 'former');
        insert into view_dead_letters (topic, partition, record_offset, key, value, headers) values ('user-events', 0, 3, '2', '', '[]')";
    database.sql.batch_execute(earlier).await.unwrap();
    assert_eq!(database.value(LETTERS).await, "1 2");
    database
}

#[tokio::test]
async fn a_start_takes_letters_of_former_topics_out_of_the_sight_of_older_builders() {
    let database = database_of_an_earlier_version().await;
    database.database(&shipped_views()).install().await.unwrap();
    assert_eq!(database.value(LETTERS).await, "2");
    assert_eq!(database.value(FORMER_LETTERS).await, "1 former");
}

#[tokio::test]
async fn an_older_builder_that_starts_later_puts_letters_aside_as_before() {
    let database = database_of_an_earlier_version().await;
    database.database(&shipped_views()).install().await.unwrap();
    let older = "
        create table if not exists view_former_dead_letters (primary key (id)) inherits (view_dead_letters);
        select put_dead_letters_aside('user-events', 0, 0, 'later')";
    database.sql.batch_execute(older).await.unwrap();
    assert_eq!(database.value(FORMER_LETTERS).await, "1 former, 2 later");
    assert_eq!(database.value("select count(*) from view_dead_letters").await, "0");
}
