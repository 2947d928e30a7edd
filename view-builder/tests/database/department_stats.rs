//! `department_stats` is at every moment what counting `user_view` gives.

use super::support::{TestDatabase, deletion, shipped_views, user};

/// A small generator of numbers, the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

const DEPARTMENTS: [Option<&str>; 6] = [None, Some(""), Some("개발팀"), Some("기획팀"), Some("Z"), Some("a")];
const STATUS: [&str; 3] = ["ACTIVE", "INACTIVE", "suspended"];

/// Events of `keys` users with ever higher versions.
fn random_events(dice: &mut Dice, keys: u64, first_key: i64, count: usize, version: &mut i64) -> Vec<String> {
    (0..count)
        .map(|_| {
            *version += 1;
            let id = first_key + i64::try_from(dice.roll(keys)).unwrap();
            if dice.roll(4) == 0 {
                deletion(id, *version)
            } else {
                let department = DEPARTMENTS[usize::try_from(dice.roll(6)).unwrap()];
                user(
                    id,
                    *version,
                    "n",
                    department,
                    STATUS[usize::try_from(dice.roll(3)).unwrap()],
                )
            }
        })
        .collect()
}

#[tokio::test]
async fn stays_right_over_random_batches_and_edits_by_hand() {
    let (database, mut builder) = TestDatabase::with_builder().await;
    let (mut dice, mut version, mut departments_most) = (Dice(7), 0, 0);
    for round in 0..60 {
        let count = usize::try_from(1 + dice.roll(40)).unwrap();
        let events = random_events(&mut dice, 30, 1, count, &mut version);
        builder.apply(0, &events).await;
        database
            .assert_stats_are_right(&format!("batch of round {round}"))
            .await;
        let departments = database.rows("table department_stats").await.len();
        departments_most = departments_most.max(departments);
        let edit = match dice.roll(8) {
            0 => "delete from user_view where user_id % 3 = 0",
            1 => "delete from user_view where last_processed_at = (select max(last_processed_at) from user_view)",
            2 => "update user_view set department = null where user_id % 2 = 0",
            3 => "update user_view set department = 'moved', status = 'INACTIVE' where user_id % 5 = 0",
            4 => "update user_view set last_processed_at = last_processed_at - interval '1 day'",
            5 => {
                "insert into user_view (user_id, name, email, status, created_at, updated_at)
                  select 1000 + n, '', '', 'ACTIVE', now(), now() from generate_series(1, 3) as n
                  on conflict (user_id) do update set department = 'again'"
            }
            6 => "update user_view set user_id = user_id where false",
            _ => "truncate user_view",
        };
        database.sql.batch_execute(edit).await.unwrap();
        database.assert_stats_are_right(edit).await;
    }
    assert!(
        departments_most > 5,
        "the rounds had departments to compare: {departments_most}"
    );
}

#[tokio::test]
async fn last_updated_moves_back_when_the_newest_user_goes() {
    let (database, mut builder) = TestDatabase::with_builder().await;
    for id in 1..=3 {
        builder.put(user(id, 1, "n", None, "ACTIVE")).await;
    }
    let second = database
        .value("select last_processed_at from user_view where user_id = 2")
        .await;
    builder.put(deletion(3, 2)).await;
    assert_eq!(
        database.value("select last_updated from department_stats").await,
        second
    );
    builder.put(deletion(1, 2)).await;
    builder.put(deletion(2, 2)).await;
    assert!(
        database.rows("table department_stats").await.is_empty(),
        "a department without users has no row"
    );
}

#[tokio::test]
async fn the_replaced_systems_set_up_does_no_harm_and_a_recount_mends() {
    let (database, mut builder) = TestDatabase::with_builder().await;
    builder.put(user(1, 1, "n", Some("a"), "ACTIVE")).await;
    for habit in [
        "create or replace function refresh_department_stats() returns trigger language plpgsql as
            $$ begin refresh materialized view concurrently department_stats; return null; end $$",
        "create trigger trigger_refresh_department_stats after insert or delete or update on user_view
            for each statement execute function refresh_department_stats()",
    ] {
        assert!(database.sql.batch_execute(habit).await.is_err(), "{habit}");
    }
    builder.put(user(2, 1, "n", Some("a"), "ACTIVE")).await;
    database.assert_stats_are_right("after the old set-up").await;
    database
        .sql
        .batch_execute("update department_stats set user_count = 99; select refresh_department_stats()")
        .await
        .unwrap();
    database.assert_stats_are_right("after the recount").await;
}

#[tokio::test]
async fn a_reader_without_rights_on_the_statistics_may_still_edit_the_view() {
    let (database, mut builder) = TestDatabase::with_builder().await;
    builder.put(user(1, 1, "n", Some("a"), "ACTIVE")).await;
    let role = format!("editor_{}", std::process::id());
    database
        .sql
        .batch_execute(&format!(
            "drop role if exists {role}; create role {role}; grant select, delete on user_view to {role}; set role {role};
             delete from user_view; reset role; drop owned by {role}; drop role {role}"
        ))
        .await
        .unwrap();
    database.assert_stats_are_right("after the edit").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_batches_and_edits_by_hand_on_the_same_departments_do_not_deadlock() {
    let database = TestDatabase::create().await;
    let mut tasks = Vec::new();
    for partition in 0..4 {
        let mut builder = database.builder(&shipped_views()).await;
        builder.claim(&[partition]).await;
        tasks.push(tokio::spawn(async move {
            let (mut dice, mut version) = (Dice(u64::try_from(partition).unwrap()), 0);
            for _ in 0..60 {
                let first = i64::from(partition) * 1_000;
                let events = random_events(&mut dice, 50, first, 40, &mut version);
                let applied = builder.apply(partition, &events).await;
                super::support::assert_applied(&applied);
            }
        }));
    }
    let sampler = database.connect().await;
    for _ in 0..40 {
        let both = sampler
            .query_one(
                "select (select count(*) from user_view), (select coalesce(sum(user_count), 0)::bigint from department_stats)",
                &[],
            )
            .await
            .unwrap();
        assert_eq!(both.get::<_, i64>(0), both.get::<_, i64>(1), "in one snapshot");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    for task in tasks {
        task.await.unwrap();
    }
    database.assert_stats_are_right("at the end").await;
    let deadlocks = "select deadlocks from pg_stat_database where datname = current_database()";
    assert_eq!(database.value(deadlocks).await, "0");
}
