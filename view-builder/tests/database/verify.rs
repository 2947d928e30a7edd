//! What `view-builder verify` tells of a view and its source, on real PostgreSQL; where the events are is each test's to say.

use std::path::Path;
use std::time::{Duration, Instant};

use super::support::{Builder, TestDatabase, deletion, post, posts_place, shipped_views, user};
use clap::Parser as _;
use view_builder::commands::verify::arrival::{Arrival, Arrived, Behind};
use view_builder::commands::verify::compare::{Outcome, State, compare};
use view_builder::commands::verify::file::{Origin, parse};
use view_builder::commands::verify::side::Side;
use view_builder::commands::verify::{Compared, Report, verify};
use view_builder::contract::batch::Batch;
use view_builder::postgres::connection::connect;
use view_builder::process::failure::Failure;
use view_builder::settings::{Cli, Command};
use view_builder::views::view::{SqlFile, load_all};

/// No event is on its way.
struct Quiet;

impl Arrival for Quiet {
    async fn arrived(&mut self, _: Instant) -> Result<Arrived, Failure> {
        Ok(Arrived::All)
    }
}

/// The view does not get the events in time.
struct Stopped;

impl Arrival for Stopped {
    async fn arrived(&mut self, _: Instant) -> Result<Arrived, Failure> {
        Ok(Arrived::Behind(Behind {
            events: 3,
            unconfirmed_bytes: 0,
        }))
    }
}

/// During the first wait these events arrive and this happens to the source.
struct Meanwhile<'a> {
    world: &'a mut World,
    events: Vec<String>,
    source: &'a str,
    waits: u32,
}

impl Arrival for Meanwhile<'_> {
    async fn arrived(&mut self, _: Instant) -> Result<Arrived, Failure> {
        self.waits += 1;
        for event in self.events.drain(..) {
            self.world.builder.put(event).await;
        }
        self.world
            .users
            .sql
            .batch_execute(std::mem::take(&mut self.source))
            .await
            .unwrap();
        Ok(Arrived::All)
    }
}

/// `users` in one database, the shipped views in another.
struct World {
    users: TestDatabase,
    views: TestDatabase,
    builder: Builder,
}

/// Five users, one without department and one with an empty name for it.
const FIVE: [(i64, i64, Option<&str>); 5] = [
    (1, 1, Some("개발팀")),
    (2, 3, Some("개발팀")),
    (3, 1, Some("기획팀")),
    (4, 1, None),
    (5, 1, Some("")),
];

impl World {
    async fn empty() -> Self {
        let users = TestDatabase::create().await;
        // The real table, without the roles that a test's cluster does not have.
        let (table, _) = include_str!("../../../sql/users/0001_users.sql")
            .split_once("grant ")
            .unwrap();
        users.sql.batch_execute(table).await.unwrap();
        let (views, builder) = TestDatabase::with_builder().await;
        Self { users, views, builder }
    }

    /// Both sides have [`FIVE`].
    async fn equal() -> Self {
        let mut world = Self::empty().await;
        for (id, version, department) in FIVE {
            world.insert(id, version, department).await;
            world.builder.put(user(id, version, "n", department, "ACTIVE")).await;
        }
        world
    }

    async fn insert(&self, id: i64, version: i64, department: Option<&str>) {
        let insert = "insert into users (id, name, email, department, status, created_at, updated_at, version)
            overriding system value values ($1::bigint, 'n', 'e' || $1::bigint || '@x', $2, 'ACTIVE', '2025-01-01', '2025-01-01', $3)";
        self.users
            .sql
            .execute(insert, &[&id, &department, &version])
            .await
            .unwrap();
    }

    async fn edit(&self, sql: &str) {
        self.views.sql.batch_execute(sql).await.unwrap();
    }

    /// The sides of a pair of the shipped verify.sql.
    async fn sides(&self, pair: usize) -> (Side, Side) {
        let views = load_all(&shipped_views()).unwrap();
        let view = views.iter().find(|view| view.name == "user_view").unwrap();
        let file = view.verify.as_ref().unwrap();
        let pair = &parse(file, &view.topics).unwrap()[pair];
        let source = if pair.table == "user_view" {
            &self.users
        } else {
            &self.views
        };
        (
            side(source, file, &pair.source).await.unwrap(),
            side(&self.views, file, &pair.view).await.unwrap(),
        )
    }

    async fn verified(&self, arrival: &mut impl Arrival) -> Outcome {
        let (source, view) = self.sides(0).await;
        compare(&source, &view, Some(arrival), Duration::from_secs(60), false)
            .await
            .unwrap()
    }

    async fn stats(&self) -> Outcome {
        let (source, view) = self.sides(1).await;
        compare(&source, &view, None::<&mut Quiet>, Duration::ZERO, true)
            .await
            .unwrap()
    }
}

async fn side(
    database: &TestDatabase,
    file: &SqlFile,
    query: &view_builder::commands::verify::file::Query,
) -> Result<Side, Failure> {
    let target = super::support::target(&database.url);
    Side::new(connect(&target).await.unwrap(), query, file, "this side").await
}

/// Key, kind, and the versions of both sides.
type Told<'a> = Vec<(i64, &'a str, Option<i64>, Option<i64>)>;

fn told(outcome: &Outcome) -> Told<'_> {
    let version = |row: &Option<view_builder::commands::verify::side::Row>| row.as_ref().map(|row| row.version);
    let rows = outcome.differences.iter();
    rows.map(|row| (row.key, row.kind(), version(&row.source), version(&row.view)))
        .collect()
}

fn undecided(outcome: &Outcome) -> (u64, u64, u64) {
    (outcome.caught_up, outcome.open, outcome.unexamined)
}

fn report(outcome: Outcome, limit: u32, json: bool) -> Report {
    let views = load_all(&shipped_views()).unwrap();
    let view = views.iter().find(|view| view.name == "user_view").unwrap();
    let comparison = parse(view.verify.as_ref().unwrap(), &view.topics).unwrap().remove(0);
    let mut report = Report::new(limit, json);
    report.compared.push(Compared {
        view: view.name.clone(),
        comparison,
        outcome,
    });
    report
}

#[tokio::test]
async fn equal_tables_are_equal_and_the_time_of_processing_does_not_count() {
    let world = World::equal().await;
    world
        .edit("update user_view set last_processed_at = 'epoch' where user_id = 1")
        .await;
    let (source, view) = world.sides(0).await;
    let outcome = compare(&source, &view, Some(&mut Quiet), Duration::ZERO, true)
        .await
        .unwrap();
    assert_eq!((told(&outcome), undecided(&outcome)), (vec![], (0, 0, 0)));
    assert_eq!((outcome.rows_source, outcome.rows_view), (5, 5));
    let buckets: Vec<_> = outcome
        .buckets
        .iter()
        .map(|line| (line.bucket.as_deref(), line.rows_view, line.state))
        .collect();
    assert_eq!(
        buckets,
        [
            (None, 1, State::Equal),
            (Some(""), 1, State::Equal),
            (Some("개발팀"), 2, State::Equal),
            (Some("기획팀"), 1, State::Equal)
        ]
    );
    let report = report(outcome, 20, false);
    assert!(report.verdict().is_ok());
    assert!(report.to_string().ends_with("\nequal\n"), "{report}");
}

#[tokio::test]
async fn every_kind_of_difference_is_told_once_with_its_id_and_versions() {
    let world = World::equal().await;
    world.insert(6, 2, Some("기획팀")).await;
    world
        .edit(
            "update user_view set email = 'by hand' where user_id = 1;
             update user_view set version = 2 where user_id = 2;
             delete from user_view where user_id = 3;
             update user_view set department = '' where user_id = 4;
             insert into user_view (user_id, name, email, department, status, created_at, updated_at)
             values (-9, 'n', 'e', '개발팀', 'ACTIVE', '2025-01-01', '2025-01-01')",
        )
        .await;
    let outcome = world.verified(&mut Quiet).await;
    assert_eq!(
        told(&outcome),
        [
            (-9, "extra", None, Some(1)),
            (1, "different", Some(1), Some(1)),
            (2, "different", Some(3), Some(2)),
            (3, "missing", Some(1), None),
            (4, "different", Some(1), Some(1)),
            (6, "missing", Some(2), None),
        ]
    );
    assert_eq!(undecided(&outcome), (0, 0, 0));
    assert!(
        outcome.buckets.iter().all(|line| line.state == State::Different),
        "{:?}",
        outcome.buckets
    );
    let text = report(outcome, 2, false);
    assert!(matches!(text.verdict(), Err(Failure::Different)));
    let text = text.to_string();
    assert!(
        text.contains("4 more rows differ") && text.contains("version 1 of \"개발팀\", other content"),
        "{text}"
    );
    assert!(!text.contains("by hand") && !text.contains("not in the view"), "{text}");
}

#[tokio::test]
async fn a_department_of_another_case_or_only_moved_rows_are_differences_too() {
    let world = World::equal().await;
    // The two buckets keep their counts.
    world
        .edit("update user_view set department = case user_id when 1 then '기획팀' else '개발팀' end where user_id in (1, 3)")
        .await;
    let outcome = world.verified(&mut Quiet).await;
    assert_eq!(
        told(&outcome),
        [(1, "different", Some(1), Some(1)), (3, "different", Some(1), Some(1))]
    );
    let rows: Vec<_> = outcome
        .buckets
        .iter()
        .map(|line| (line.rows_source, line.rows_view))
        .collect();
    assert_eq!(rows, [(2, 2), (1, 1)]);
}

#[tokio::test]
async fn what_arrives_during_the_wait_was_lag() {
    let mut world = World::equal().await;
    world.insert(6, 1, None).await;
    world
        .users
        .sql
        .batch_execute("update users set name = 'new', version = 2 where id = 1; delete from users where id = 3")
        .await
        .unwrap();
    let (source, view) = world.sides(0).await;
    let mut arrival = Meanwhile {
        events: vec![
            user(6, 1, "n", None, "ACTIVE"),
            user(1, 2, "new", Some("개발팀"), "ACTIVE"),
            deletion(3, 2),
        ],
        world: &mut world,
        source: "",
        waits: 0,
    };
    let outcome = compare(&source, &view, Some(&mut arrival), Duration::from_secs(60), false)
        .await
        .unwrap();
    assert_eq!(
        (told(&outcome), undecided(&outcome), arrival.waits),
        (vec![], (3, 0, 0), 1)
    );
    assert!(
        outcome.buckets.iter().all(|line| line.state == State::CaughtUp),
        "{:?}",
        outcome.buckets
    );
}

#[tokio::test]
async fn a_row_that_changes_during_the_wait_is_looked_at_until_it_rests() {
    let mut world = World::equal().await;
    world.edit("delete from user_view where user_id in (1, 2)").await;
    let (source, view) = world.sides(0).await;
    let mut arrival = Meanwhile {
        world: &mut world,
        events: Vec::new(),
        source: "update users set version = 2 where id = 1; delete from users where id = 2",
        waits: 0,
    };
    let outcome = compare(&source, &view, Some(&mut arrival), Duration::from_secs(60), false)
        .await
        .unwrap();
    assert_eq!(told(&outcome), [(1, "missing", Some(2), None)]);
    assert_eq!((undecided(&outcome), arrival.waits), ((1, 0, 0), 2));
}

#[tokio::test]
async fn a_view_that_is_behind_is_not_called_different() {
    let world = World::equal().await;
    world.insert(6, 1, None).await;
    world.edit("update user_view set name = 'x' where user_id = 1").await;
    let outcome = world.verified(&mut Stopped).await;
    assert_eq!((told(&outcome), undecided(&outcome)), (vec![], (0, 2, 0)));
    assert!(
        outcome.buckets.iter().all(|line| line.state == State::Open),
        "{:?}",
        outcome.buckets
    );
    let text = report(outcome, 20, false);
    assert!(matches!(text.verdict(), Err(Failure::Lagging)));
    assert!(
        text.to_string()
            .contains("2 rows not decided: the view is behind by 3 events"),
        "{text}"
    );
}

#[tokio::test]
async fn more_rows_than_can_be_held_are_counted() {
    let world = World::empty().await;
    world
        .users
        .sql
        .batch_execute(
            "insert into users (id, name, email, department, status) overriding system value
             select n, 'n', n::text, n % 3, 'ACTIVE' from generate_series(1, 50002) as n",
        )
        .await
        .unwrap();
    let outcome = world.verified(&mut Quiet).await;
    assert_eq!((outcome.differences.len(), undecided(&outcome)), (50_000, (0, 0, 2)));
    assert_eq!((outcome.rows_source, outcome.rows_view), (50_002, 0));
    let told: serde_json::Value = serde_json::from_str(&report(outcome, 1, true).to_string()).unwrap();
    assert_eq!(
        (&told["verdict"], &told["compared"][0]["differences_more"]),
        (&"different".into(), &49_999.into())
    );
    assert_eq!(
        told["compared"][0]["differences"],
        serde_json::json!([{"key": 1, "kind": "missing", "source": {"bucket": "1", "version": 1}, "view": null}])
    );
}

#[tokio::test]
async fn a_derived_table_is_compared_with_its_recomputation() {
    let world = World::equal().await;
    let outcome = world.stats().await;
    assert_eq!((told(&outcome), outcome.buckets.len()), (vec![], 4));
    world.edit("update department_stats set active_users = 7 where department is null; delete from department_stats where department = '기획팀'").await;
    let outcome = world.stats().await;
    let mut kinds: Vec<_> = outcome
        .differences
        .iter()
        .map(view_builder::commands::verify::compare::Difference::kind)
        .collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["different", "missing"]);
    world.edit("select refresh_department_stats()").await;
    assert!(world.stats().await.differences.is_empty());
}

/// The pairs of the shipped activity/verify.sql: its tables in order, and an edit that each has to find.
const ACTIVITY: [(&str, &str); 5] = [
    ("activity", "update activity set active = false where user_id = 2"),
    (
        "activity_post",
        "update activity_post set author_id = 3 where post_id = 11",
    ),
    ("post_stats", "update activity set last_post_id = 11 where user_id = 1"),
    (
        "user_activity",
        "update activity set posts = posts + 1 where user_id = 1",
    ),
    (
        "department_performance",
        "update department_performance set authors = 0 where department = '개발팀'",
    ),
];

#[tokio::test]
async fn activity_is_compared_with_users_and_posts_and_its_derived_tables_with_their_recomputation() {
    let world = World::equal().await;
    let (table, _) = include_str!("../../../sql/posts/0001_posts.sql")
        .split_once("grant ")
        .unwrap();
    world.users.sql.batch_execute(table).await.unwrap();
    world
        .users
        .sql
        .batch_execute(
            "insert into posts (id, title, content, author_id, created_at, updated_at) overriding system value
             select id, 't', 'c', author_id, '2025-01-02'::timestamp + id * interval '1 s', '2025-01-02'::timestamp + id * interval '2 s'
             from (values (11, 1), (12, 1), (13, 2), (14, 99)) as written(id, author_id)",
        )
        .await
        .unwrap();
    let mut builder = world.views.builder(&shipped_views()).await;
    builder.claim_places(&[posts_place(0)]).await;
    let posts = [(11_i64, 1), (12, 1), (13, 2), (14, 99)]
        .map(|(id, author)| post(id, 1, author, id.unsigned_abs(), 2 * id.unsigned_abs()));
    let part = builder.part(&posts_place(0), &posts);
    super::support::assert_applied(&builder.apply_batch(Batch { parts: vec![part] }).await);

    let views = load_all(&shipped_views()).unwrap();
    let view = views.iter().find(|view| view.name == "activity").unwrap();
    let file = view.verify.as_ref().unwrap();
    let pairs = parse(file, &view.topics).unwrap();
    let tables: Vec<&str> = pairs.iter().map(|pair| pair.table.as_str()).collect();
    assert_eq!(tables, ACTIVITY.map(|(table, _)| table));
    for (pair, (table, edit)) in pairs.iter().zip(ACTIVITY) {
        let database = match pair.origin {
            Origin::Topic(_) => &world.users,
            Origin::Views => &world.views,
        };
        let (source, shown) = (
            side(database, file, &pair.source).await.unwrap(),
            side(&world.views, file, &pair.view).await.unwrap(),
        );
        let differences = async || {
            let outcome = compare(&source, &shown, Some(&mut Quiet), Duration::from_secs(60), false).await;
            let outcome = outcome.unwrap();
            assert!(outcome.rows_source > 0, "{table} has rows to compare");
            outcome.differences.len()
        };
        assert_eq!(differences().await, 0, "{table}");
        // With the builder's own setting, so that nothing is counted anew.
        world
            .edit(&format!("begin; set local view_builder.counts = 'on'; {edit}; commit"))
            .await;
        assert_eq!(differences().await, 1, "{table} after `{edit}`");
        // Any other edit has what is derived counted anew; a replay is another test's.
        world
            .edit("update activity_post set author_id = 1 where post_id = 11")
            .await;
        world.edit("update activity set active = true where user_id = 2").await;
    }
}

#[tokio::test]
async fn wrong_sql_is_refused_with_file_line_and_message() {
    let database = TestDatabase::create().await;
    for (query, expected) in [
        (
            "select 1,\n  wrong",
            "verify.sql:4: this side: column \"wrong\" does not exist",
        ),
        (
            "select 'b', 1, 1::bigint, ''",
            "verify.sql:3: the query gives (?column? text, ?column? int4, int8 int8, ?column? text), expected (bucket text, key bigint, version bigint, content text)",
        ),
        (
            "select 'b', 1::bigint, 1::bigint",
            "verify.sql:3: the query gives (?column? text, int8 int8, int8 int8), expected (bucket text, key bigint, version bigint, content text)",
        ),
        (
            "select 'b', 1::bigint, 1::bigint, $1::text",
            "verify.sql:3: the query takes parameters, and there are none",
        ),
    ] {
        let file = SqlFile {
            path: "verify.sql".into(),
            text: format!("-- 왜\n-- source: views\n{query};\n-- view: t\nselect 1"),
        };
        let pair = parse(&file, &[]).unwrap().remove(0);
        let Err(refused) = side(&database, &file, &pair.source).await else {
            panic!("{query} is accepted");
        };
        assert_eq!(refused.to_string(), expected);
    }
}

#[tokio::test]
async fn rows_that_cannot_be_compared_are_refused() {
    let database = TestDatabase::create().await;
    for (query, expected) in [
        (
            "select 'b', 1::bigint, n, '' from generate_series(1::bigint, 2) as n",
            "a key comes more than once",
        ),
        ("select 'b', null::bigint, 1::bigint, ''", "a key or a version is null"),
    ] {
        let file = SqlFile {
            path: "verify.sql".into(),
            text: format!("-- source: views\n{query}\n-- view: t\nselect 'b', 5::bigint, 1::bigint, ''"),
        };
        let pair = parse(&file, &[]).unwrap().remove(0);
        let (source, view) = (
            side(&database, &file, &pair.source).await.unwrap(),
            side(&database, &file, &pair.view).await.unwrap(),
        );
        let refused = compare(&source, &view, None::<&mut Quiet>, Duration::ZERO, false)
            .await
            .unwrap_err();
        assert_eq!(
            refused.to_string(),
            format!("verify.sql: in the rows of this side: {expected}")
        );
    }
}

fn settings(views: &Path, more: &[&str]) -> Box<view_builder::settings::VerifyConfig> {
    let views = views.to_str().unwrap();
    let arguments = [
        "view-builder",
        "verify",
        "--database-url",
        "postgres://nobody@127.0.0.1:1/x",
        "--views",
        views,
    ];
    let Command::Verify(config) = Cli::try_parse_from(arguments.iter().chain(more)).unwrap().command else {
        panic!("verify");
    };
    config
}

#[tokio::test]
async fn a_view_without_verify_sql_is_reported_and_a_missing_source_is_named() {
    let folder = std::env::temp_dir().join(format!("verify-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("plain")).unwrap();
    std::fs::write(folder.join("plain/table.sql"), "").unwrap();
    std::fs::write(
        folder.join("plain/apply.sql"),
        "-- Plain.\n-- topics: user-events\nselect 1",
    )
    .unwrap();
    let told = verify(&settings(&folder, &[])).await;
    std::fs::remove_dir_all(&folder).unwrap();
    let told = told.unwrap().to_string();
    assert!(told.starts_with("plain: not verified: has no verify.sql\n"), "{told}");

    let missing = verify(&settings(&shipped_views(), &["--source", "post-events=postgres://x"]))
        .await
        .unwrap_err();
    assert!(
        matches!(&missing, Failure::Setting(text) if text.contains("--source user-events=")),
        "{missing}"
    );
}
