//! A source and a view that `verify` compares, and what it finds, as rows with names.

use std::time::{Duration, Instant};

use view_builder::commands::verify::arrival::{Arrival, Arrived, Behind};
use view_builder::commands::verify::compare::{Outcome, State, compare};
use view_builder::commands::verify::file::{Query, parse};
use view_builder::commands::verify::side::Side;
use view_builder::commands::verify::{Compared, Report};
use view_builder::postgres::connection::connect;
use view_builder::process::failure::Failure;
use view_builder::views::view::{SqlFile, View, load_all};

use super::{Builder, TestDatabase, shipped_views, target, user};

/// Longest wait of a comparison. No test takes so long.
pub const WAIT: Duration = Duration::from_secs(60);

/// `users` in one database, the shipped views in another.
pub struct World {
    pub users: TestDatabase,
    pub views: TestDatabase,
    pub builder: Builder,
}

/// Five users as id, version and department: one without department, and one with an empty name for it.
const FIVE: [(i64, i64, Option<&str>); 5] = [
    (1, 1, Some("개발팀")),
    (2, 3, Some("개발팀")),
    (3, 1, Some("기획팀")),
    (4, 1, None),
    (5, 1, Some("")),
];

impl World {
    pub async fn empty() -> Self {
        let users = TestDatabase::create().await;
        let table = without_grants(include_str!("../../../../sql/users/0001_users.sql"));
        users.sql.batch_execute(table).await.unwrap();
        let (views, builder) = TestDatabase::with_builder().await;
        Self { users, views, builder }
    }

    /// Both sides have [`FIVE`].
    pub async fn equal() -> Self {
        let mut world = Self::empty().await;
        for (id, version, department) in FIVE {
            world.insert_user(id, version, department).await;
            world.builder.put(user(id, version, "n", department, "ACTIVE")).await;
        }
        world
    }

    /// Inserts a user into the source alone.
    pub async fn insert_user(&self, id: i64, version: i64, department: Option<&str>) {
        let insert = "insert into users (id, name, email, department, status, created_at, updated_at, version)
            overriding system value values ($1::bigint, 'n', 'e' || $1::bigint || '@x', $2, 'ACTIVE', '2025-01-01', '2025-01-01', $3)";
        self.users
            .sql
            .execute(insert, &[&id, &department, &version])
            .await
            .unwrap();
    }

    pub async fn change_source(&self, sql: &str) {
        self.users.sql.batch_execute(sql).await.unwrap();
    }

    pub async fn edit_views(&self, sql: &str) {
        self.views.sql.batch_execute(sql).await.unwrap();
    }

    /// `user_view` and its source, as the shipped verify.sql compares them.
    pub async fn sides_of_user_view(&self) -> (Side, Side) {
        self.sides(&self.users, "user_view").await
    }

    /// Compares `user_view` with its source.
    pub async fn compare_user_view(&self, arrival: &mut impl Arrival) -> Outcome {
        let (source, view) = self.sides_of_user_view().await;
        compare(&source, &view, Some(arrival), WAIT, false).await.unwrap()
    }

    /// Compares `department_stats` with its recomputation, in one snapshot.
    pub async fn compare_department_stats(&self) -> Outcome {
        let (source, view) = self.sides(&self.views, "department_stats").await;
        compare(&source, &view, None::<&mut NothingOnTheWay>, Duration::ZERO, true)
            .await
            .unwrap()
    }

    async fn sides(&self, source: &TestDatabase, table: &str) -> (Side, Side) {
        let view = shipped_view("user_view");
        let file = view.verify.as_ref().unwrap();
        let comparisons = parse(file, &view.topics).unwrap();
        let comparison = comparisons.iter().find(|comparison| comparison.table == table).unwrap();
        (
            side(source, file, &comparison.source).await.unwrap(),
            side(&self.views, file, &comparison.view).await.unwrap(),
        )
    }
}

/// A migration's table, without the grants to roles that a test's cluster does not have.
pub fn without_grants(migration: &str) -> &str {
    let (table, _) = migration.split_once("grant ").unwrap();
    table
}

pub fn shipped_view(name: &str) -> View {
    let views = load_all(&shipped_views()).unwrap();
    views.into_iter().find(|view| view.name == name).unwrap()
}

pub async fn side(database: &TestDatabase, file: &SqlFile, query: &Query) -> Result<Side, Failure> {
    let client = connect(&target(&database.url)).await.unwrap();
    Side::new(client, query, file, "this side").await
}

/// No event is on its way.
pub struct NothingOnTheWay;

impl Arrival for NothingOnTheWay {
    async fn arrived(&mut self, _: Instant) -> Result<Arrived, Failure> {
        Ok(Arrived::All)
    }
}

/// The view does not get its three events in time.
pub struct NeverThere;

impl Arrival for NeverThere {
    async fn arrived(&mut self, _: Instant) -> Result<Arrived, Failure> {
        Ok(Arrived::Behind(Behind {
            events: 3,
            unconfirmed_bytes: 0,
        }))
    }
}

/// During the first wait these events arrive in the view, and this happens to the source.
pub struct Meanwhile<'a> {
    pub world: &'a mut World,
    pub events: Vec<String>,
    pub source: &'a str,
    pub waits: u32,
}

impl Arrival for Meanwhile<'_> {
    async fn arrived(&mut self, _: Instant) -> Result<Arrived, Failure> {
        self.waits += 1;
        for event in self.events.drain(..) {
            self.world.builder.put(event).await;
        }
        self.world.change_source(std::mem::take(&mut self.source)).await;
        Ok(Arrived::All)
    }
}

/// A row that differs, as `verify` tells it.
#[derive(Debug, PartialEq, Eq)]
pub struct DifferingRow {
    pub key: i64,
    pub kind: &'static str,
    pub version_in_source: Option<i64>,
    pub version_in_view: Option<i64>,
}

impl DifferingRow {
    pub fn missing(key: i64, version_in_source: i64) -> Self {
        Self {
            key,
            kind: "missing",
            version_in_source: Some(version_in_source),
            version_in_view: None,
        }
    }

    pub fn extra(key: i64, version_in_view: i64) -> Self {
        Self {
            key,
            kind: "extra",
            version_in_source: None,
            version_in_view: Some(version_in_view),
        }
    }

    pub fn different(key: i64, version_in_source: i64, version_in_view: i64) -> Self {
        Self {
            key,
            kind: "different",
            version_in_source: Some(version_in_source),
            version_in_view: Some(version_in_view),
        }
    }
}

pub fn differing_rows(outcome: &Outcome) -> Vec<DifferingRow> {
    let rows = outcome.differences.iter().map(|difference| DifferingRow {
        key: difference.key,
        kind: difference.kind(),
        version_in_source: difference.source.as_ref().map(|row| row.version),
        version_in_view: difference.view.as_ref().map(|row| row.version),
    });
    rows.collect()
}

/// How many rows differed at first and are no difference, by the reason.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Undecided {
    pub caught_up: u64,
    pub undecided: u64,
    pub not_looked_at_again: u64,
}

pub fn undecided(outcome: &Outcome) -> Undecided {
    Undecided {
        caught_up: outcome.caught_up,
        undecided: outcome.undecided,
        not_looked_at_again: outcome.not_looked_at_again,
    }
}

/// Fails where a bucket that differed at first stands otherwise.
pub fn assert_every_bucket_is(outcome: &Outcome, state: State) {
    assert!(!outcome.buckets.is_empty(), "some bucket has differed");
    let is_so = outcome.buckets.iter().all(|line| line.state == state);
    assert!(is_so, "{:?}", outcome.buckets);
}

/// The report of `user_view` with this outcome.
pub fn report(outcome: Outcome, limit: u32, json: bool) -> Report {
    let view = shipped_view("user_view");
    let comparison = parse(view.verify.as_ref().unwrap(), &view.topics).unwrap().remove(0);
    let mut report = Report::new(limit, json);
    report.compared.push(Compared {
        view: view.name,
        comparison,
        outcome,
    });
    report
}
