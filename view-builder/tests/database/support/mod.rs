//! A database of its own for each test, and builders on it.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

pub mod comparison;
pub mod lives;
pub mod reference;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use pg_replication::Target;
use service::Readiness;
use tokio_postgres::{Client, NoTls};
use url::Url;
use view_builder::apply::{Applied, GivenUp};
use view_builder::builder::beginning::Beginning;
use view_builder::builder::claim::Start;
use view_builder::contract::Contract;
use view_builder::contract::batch::{Batch, Part};
use view_builder::contract::event::Event;
use view_builder::contract::place::TopicPartition;
use view_builder::views::database::Database;
use view_builder::views::view;

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// An empty database, dropped by the next run of `./test` with its cluster.
pub struct TestDatabase {
    pub url: Url,
    pub sql: Client,
}

impl TestDatabase {
    pub async fn create() -> Self {
        let server = std::env::var("TEST_DATABASE_URL")
            .expect("TEST_DATABASE_URL must be a superuser's URL of a PostgreSQL for tests: ./test sets it");
        let mut url: Url = server.parse().expect("TEST_DATABASE_URL is a URL");
        let name = format!(
            "view_builder_{}_{}",
            std::process::id(),
            COUNTER.fetch_add(1, Ordering::Relaxed)
        );
        let admin = connect(&url).await;
        admin
            .batch_execute(&format!("drop database if exists {name}"))
            .await
            .unwrap();
        admin.batch_execute(&format!("create database {name}")).await.unwrap();
        url.set_path(&name);
        let sql = connect(&url).await;
        Self { url, sql }
    }

    /// A database with the shipped views, and a builder that holds partitions 0 and 1 of the users' topic.
    pub async fn with_builder() -> (Self, Builder) {
        let database = Self::create().await;
        let mut builder = database.builder(&shipped_views()).await;
        builder.claim(&[0, 1]).await;
        (database, builder)
    }

    /// A builder that keeps the views in `directory`; they are installed.
    pub async fn builder(&self, directory: &Path) -> Builder {
        let mut database = self.database(directory);
        database.install().await.expect("the views can be installed");
        Builder {
            database,
            starts: Vec::new(),
        }
    }

    pub fn database(&self, directory: &Path) -> Database {
        let views = view::load_all(directory).expect("the views can be read");
        Database::new(&target(&self.url), views.into(), Readiness::default())
    }

    pub async fn connect(&self) -> Client {
        connect(&self.url).await
    }

    /// The query's rows as texts, null as `∅`.
    pub async fn rows(&self, query: &str) -> Vec<Vec<String>> {
        let messages = self.sql.simple_query(query).await.unwrap();
        messages
            .iter()
            .filter_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => Some(
                    (0..row.len())
                        .map(|column| row.get(column).unwrap_or("∅").to_owned())
                        .collect(),
                ),
                _ => None,
            })
            .collect()
    }

    /// The one value that the query gives.
    pub async fn value(&self, query: &str) -> String {
        let rows = self.rows(query).await;
        assert_eq!((rows.len(), rows[0].len()), (1, 1), "{query}");
        rows[0][0].clone()
    }

    /// Fails where `department_stats` is not what counting `user_view` gives.
    pub async fn assert_stats_are_right(&self, when: &str) {
        let difference = self
            .rows(
                "with counted as (
                    select department, count(*) as user_count,
                        count(case when status = 'ACTIVE' then 1 end) as active_users,
                        count(case when status = 'INACTIVE' then 1 end) as inactive_users,
                        max(last_processed_at) as last_updated
                    from user_view group by department)
                 (select 'missing', * from (table counted except all table department_stats) as missing)
                 union all
                 (select 'wrong', * from (table department_stats except all table counted) as wrong)",
            )
            .await;
        assert!(difference.is_empty(), "{when}: {difference:?}");
    }
}

async fn connect(url: &Url) -> Client {
    let (client, connection) = tokio_postgres::connect(url.as_str(), NoTls)
        .await
        .expect("the PostgreSQL of TEST_DATABASE_URL answers");
    tokio::spawn(connection);
    client
}

/// The way to the database that view-builder goes.
pub fn target(url: &Url) -> Target {
    Target::parse(url.as_str()).expect("a URL of Postgres")
}

/// The repository's own views.
pub fn shipped_views() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../sql/views")
}

/// What a view-builder does with one claim of some partitions.
pub struct Builder {
    pub database: Database,
    pub starts: Vec<Start>,
}

impl Builder {
    /// Claims partitions of the users' topic; one without position begins at 0.
    pub async fn claim(&mut self, partitions: &[i32]) {
        let places: Vec<TopicPartition> = partitions.iter().map(|&partition| place(partition)).collect();
        self.claim_places(&places).await;
    }

    /// The same with places of any topic.
    pub async fn claim_places(&mut self, places: &[TopicPartition]) {
        let claims = self.database.claim(places, "a test").await;
        self.starts = claims
            .into_iter()
            .map(|claim| {
                let next_offset = claim.next_offset.unwrap_or(0);
                claim.starting_at(next_offset)
            })
            .collect();
        let beginnings: Vec<Beginning> = self.starts.iter().cloned().map(Beginning::at).collect();
        self.database.begin(&beginnings).await;
    }

    /// Applies these values as the next records of a partition; the key is each value's userId.
    pub async fn apply(&mut self, partition: i32, values: &[String]) -> Applied {
        let batch = self.batch(partition, values);
        self.apply_batch(batch).await
    }

    pub async fn apply_batch(&mut self, batch: Batch) -> Applied {
        let applied = self.database.apply(batch).await;
        for (place, next_offset) in &applied.reached {
            let start = self.starts.iter_mut().find(|start| start.place == *place).unwrap();
            start.next_offset = *next_offset;
        }
        applied
    }

    /// Applies one value and expects that its transaction commits.
    pub async fn put(&mut self, value: String) {
        let applied = self.apply(0, &[value]).await;
        assert_applied(&applied);
    }

    pub fn batch(&self, partition: i32, values: &[String]) -> Batch {
        Batch {
            parts: vec![self.part(&place(partition), values)],
        }
    }

    /// These values as the next records of a place; the key is each value's userId or postId.
    pub fn part(&self, place: &TopicPartition, values: &[String]) -> Part {
        let contract = Contract::of(&place.topic).unwrap();
        let start = self.starts.iter().find(|start| start.place == *place).expect("claimed");
        let events: Vec<Event> = (start.next_offset..)
            .zip(values)
            .map(|(offset, value)| {
                let key = serde_json::from_str::<serde_json::Value>(value).unwrap()[contract.id.as_str()].to_string();
                Event::parse(&contract, offset, 0, Some(key.as_bytes()), value.as_bytes()).unwrap()
            })
            .collect();
        Part {
            place: start.place.clone(),
            epoch: start.epoch,
            from: start.next_offset,
            to: start.next_offset + i64::try_from(values.len()).unwrap(),
            read: None,
            events,
            letters: Vec::new(),
        }
    }
}

/// Fails where a batch was not applied as a whole.
pub fn assert_applied(applied: &Applied) {
    assert!(applied.given_up.is_none() && applied.refused.is_empty(), "{applied:?}");
}

/// Whether a batch was given up since another builder owns a partition.
pub fn is_fenced(applied: &Applied) -> bool {
    applied.given_up == Some(GivenUp::Fenced)
}

pub fn place(partition: i32) -> TopicPartition {
    TopicPartition {
        topic: events::USER_TOPIC.into(),
        partition,
    }
}

/// Partition `partition` of the posts' topic.
pub fn posts_place(partition: i32) -> TopicPartition {
    TopicPartition {
        topic: events::POST_TOPIC.into(),
        partition,
    }
}

/// An event of user `id` with everything given.
pub fn user(id: i64, version: i64, name: &str, department: Option<&str>, status: &str) -> String {
    let event_type = if version == 1 { "USER_CREATED" } else { "USER_UPDATED" };
    serde_json::json!({
        "eventType": event_type, "userId": id, "version": version, "timestamp": "2025-01-01T00:00:00",
        "user": {"id": id, "name": name, "email": format!("e{id}@x"), "department": department, "status": status,
            "createdAt": "2025-01-01T00:00:00", "updatedAt": "2025-01-01T00:00:00"},
    })
    .to_string()
}

/// User `id` as its first event makes it.
pub fn new_user(id: i64) -> String {
    user(id, 1, "n", Some("a"), "ACTIVE")
}

/// A deletion of user `id`.
pub fn deletion(id: i64, version: i64) -> String {
    serde_json::json!({"eventType": "USER_DELETED", "userId": id, "version": version, "user": null, "timestamp": "2025-01-01T00:00:00"})
        .to_string()
}

/// An event of post `id`, created and changed at these seconds of one day.
pub fn post(id: i64, version: i64, author: i64, created: u64, updated: u64) -> String {
    let event_type = if version == 1 { "POST_CREATED" } else { "POST_UPDATED" };
    serde_json::json!({
        "eventType": event_type, "postId": id, "version": version, "timestamp": "2025-01-02T00:00:00",
        "post": {"id": id, "title": "t", "content": "c", "authorId": author, "createdAt": second(created), "updatedAt": second(updated)},
    })
    .to_string()
}

/// A deletion of post `id`.
pub fn post_deletion(id: i64, version: i64) -> String {
    serde_json::json!({"eventType": "POST_DELETED", "postId": id, "version": version, "post": null, "timestamp": "2025-01-02T00:00:00"})
        .to_string()
}

/// The date-time of a second of 2025-01-02, as events and Postgres write it.
pub fn second(of_day: u64) -> String {
    assert!(of_day < 86_400, "a day has 86,400 seconds");
    format!(
        "2025-01-02T{:02}:{:02}:{:02}",
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60
    )
}
