//! Views that are rebuilt, added, changed and dropped while everything runs.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use stack::pipeline::VIEWS_DATABASE;
use stack::{Pipeline, Program, checkout, eventually_ok};
use tokio::task::JoinHandle;

use super::rows::{assert_view_equals_users, in_views, single, wait_for_view};
use rig::Workload;
use rig::rest::{Rest, user};

const DEADLINE: Duration = Duration::from_secs(60);
const CHANGES_PER_SECOND: u32 = 100;
const SAMPLE_INTERVAL: Duration = Duration::from_millis(50);
/// Exit code of a wrong setting, and of what cannot be done now.
const SETTING: i32 = 2;
/// Exit code of a view that Postgres refuses.
const VIEW: i32 = 3;

async fn connect(pipeline: &Pipeline) -> tokio_postgres::Client {
    let url = pipeline.database_url(VIEWS_DATABASE).expect("a URL");
    stack::postgres::connect(&url).await.expect("a connection")
}

/// The statement as the superuser.
async fn sql(pipeline: &Pipeline, statement: &str) {
    connect(pipeline)
        .await
        .batch_execute(statement)
        .await
        .unwrap_or_else(|err| panic!("{statement}: {err}"));
}

async fn value(pipeline: &Pipeline, query: &str) -> String {
    single(&in_views(pipeline, query).await).to_owned()
}

fn command(pipeline: &Pipeline, views: &Path, arguments: &[&str]) -> Program {
    let name = arguments.join("-");
    let command = pipeline.view_builder.command_of(&name, arguments);
    if arguments[0] == "rebuild" {
        command.with_env("VIEWS", &views.to_string_lossy())
    } else {
        command
    }
}

/// Clients at work, more than `answered` of whose changes have been answered.
async fn busy(pipeline: &Pipeline, answered: usize) -> Workload {
    let workload = Workload::start(&Rest::of(pipeline), CHANGES_PER_SECOND);
    eventually_ok(DEADLINE, "some changes", || async {
        anyhow::ensure!(workload.answered() > answered);
        Ok(())
    })
    .await
    .expect("changes");
    workload
}

/// Exit code and log of the command.
async fn run(pipeline: &Pipeline, views: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let command = command(pipeline, views, arguments);
    command.start().expect("the command starts");
    let status = command.exited(DEADLINE).await.expect("the command ends");
    (status.code(), command.log_text())
}

/// Looks at the view every 50 ms, in one snapshot each time, as a careful reader does.
struct Sampler {
    stop: Arc<AtomicBool>,
    samples: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Sampler {
    async fn start(pipeline: &Pipeline) -> Self {
        let client = connect(pipeline).await;
        let (stop, samples) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (stop.clone(), samples.clone());
        let task = tokio::spawn(async move {
            let mut seen: HashMap<i64, i64> = HashMap::new();
            while !stopped.load(Ordering::Relaxed) {
                client
                    .batch_execute("begin isolation level repeatable read read only")
                    .await
                    .expect("begin");
                let rows = client
                    .query("select user_id, version from user_view", &[])
                    .await
                    .expect("the view");
                let counted = client
                    .query_one("select coalesce(sum(user_count), 0)::bigint from department_stats", &[])
                    .await
                    .expect("the statistics");
                client.batch_execute("commit").await.expect("commit");
                assert_eq!(
                    rows.len().to_string(),
                    counted.get::<_, i64>(0).to_string(),
                    "the statistics"
                );
                for row in &rows {
                    let (id, version): (i64, i64) = (row.get(0), row.get(1));
                    let before = seen.insert(id, version).unwrap_or(0);
                    assert!(before <= version, "user {id} went back from {before} to {version}");
                }
                count.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(SAMPLE_INTERVAL).await;
            }
        });
        Self { stop, samples, task }
    }

    async fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("a reader who never sees anything wrong");
        self.samples.load(Ordering::Relaxed)
    }
}

/// A copy of the shipped views, removed in the end.
struct Views(PathBuf);

impl Views {
    fn copy(pipeline: &Pipeline, name: &str) -> Self {
        let directory = pipeline.logs().join(name);
        for view in std::fs::read_dir(checkout::root().join("sql/views")).expect("the shipped views") {
            let view = view.expect("a folder");
            let to = directory.join(view.file_name());
            std::fs::create_dir_all(&to).expect("a folder");
            for file in std::fs::read_dir(view.path()).expect("its files") {
                let file = file.expect("a file");
                std::fs::copy(file.path(), to.join(file.file_name())).expect("a copy");
            }
        }
        Self(directory)
    }

    fn write(&self, view: &str, file: &str, text: &str) {
        std::fs::create_dir_all(self.0.join(view)).expect("a folder");
        std::fs::write(self.0.join(view).join(file), text).expect("a file");
    }

    fn read(&self, view: &str, file: &str) -> String {
        std::fs::read_to_string(self.0.join(view).join(file)).expect("a file")
    }
}

/// What people hang on a view: each must be there after a rebuild.
const ADDED: &str = "
    create role analyst;
    grant select on user_view to analyst;
    grant select (department, user_count) on department_stats to analyst with grant option;
    set role view_builder;
    create index added_index on user_view (lower(name));
    alter table user_view add constraint added_constraint check (name <> 'refused');
    alter table user_view set (autovacuum_vacuum_scale_factor = 0.05);
    create function added_function() returns trigger language plpgsql as 'begin return null; end';
    create trigger added_trigger after delete on user_view for each row execute function added_function();
    create view active_users with (security_barrier) as select user_id, name from user_view where status = 'ACTIVE';
    create view active_names as select name from active_users;
    grant select on active_users to analyst";

/// One line that is the same before and after where everything has gone over.
const WHAT_IS_ADDED: &str = "
    select concat_ws(' ',
        has_table_privilege('analyst', 'user_view', 'select'), has_table_privilege('analyst', 'department_stats', 'select'),
        has_column_privilege('analyst', 'department_stats', 'user_count', 'select with grant option'),
        has_table_privilege('post_api', 'user_view', 'select'), has_table_privilege('analyst', 'active_users', 'select'),
        (select string_agg(indexdef, ';' order by indexname) from pg_indexes where schemaname = 'public' and tablename in ('user_view', 'department_stats')),
        (select string_agg(conname || pg_get_constraintdef(oid), ';' order by conname) from pg_constraint where conrelid = 'user_view'::regclass),
        (select string_agg(pg_get_triggerdef(oid), ';' order by tgname) from pg_trigger where tgrelid = 'user_view'::regclass),
        (select reloptions::text from pg_class where oid = 'user_view'::regclass),
        (select reloptions::text from pg_class where oid = 'active_users'::regclass),
        (select pg_get_functiondef('keep_department_stats'::regproc)))";

const LEFT_BEHIND: &str = "
    select count(*) from (
        select nspname from pg_namespace where nspname like '%\\_rebuild' or nspname like '%\\_replaced'
        union all select view from view_rebuilds) as left_behind";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_is_rebuilt_beside_the_live_one_and_all_that_hangs_on_it_stays() {
    let pipeline = super::shared::builder().start().await.expect("a pipeline");
    let views = Views::copy(&pipeline, "views");
    let rebuild = ["rebuild", "user_view"];
    sql(&pipeline, ADDED).await;
    let sampler = Sampler::start(&pipeline).await;
    let workload = busy(&pipeline, 300).await;

    // What cannot go over is named, and nothing is begun.
    sql(
        &pipeline,
        "create publication theirs for table user_view; create materialized view theirs as select name from user_view",
    )
    .await;
    let (code, log) = run(&pipeline, &views.0, &rebuild).await;
    assert_eq!(code, Some(SETTING), "{log}");
    assert!(
        log.contains("table user_view in publication theirs") && log.contains("materialized view"),
        "{log}"
    );
    sql(&pipeline, "drop publication theirs; drop materialized view theirs").await;

    // A transaction that could see the generation half full is waited for; meanwhile nobody else may rebuild, and a kill does not hurt.
    let (before, table) = (
        value(&pipeline, WHAT_IS_ADDED).await,
        "select 'user_view'::regclass::oid::text",
    );
    let old_table = value(&pipeline, table).await;
    let reader = connect(&pipeline).await;
    reader
        .batch_execute("begin isolation level repeatable read; select count(*) from posts")
        .await
        .expect("a reader");
    let first = command(&pipeline, &views.0, &rebuild);
    first.start().expect("a start");
    eventually_ok(DEADLINE, "the swap waits", || async {
        anyhow::ensure!(first.log_text().contains("the swap waits"), "{}", first.log_tail(5));
        Ok(())
    })
    .await
    .expect("it waits");
    let (code, log) = run(&pipeline, &views.0, &rebuild).await;
    assert_eq!(code, Some(SETTING), "{log}");
    assert!(log.contains("another rebuild of user_view is under way"), "{log}");
    first.kill_hard().await;
    assert_eq!(value(&pipeline, table).await, old_table, "the live view is the old one");
    let second = command(&pipeline, &views.0, &rebuild);
    second.start().expect("a start");
    eventually_ok(DEADLINE, "the rebuild goes on", || async {
        let log = second.log_text();
        let resumed = log.rfind("an unfinished rebuild goes on");
        anyhow::ensure!(
            resumed.is_some_and(|at| log[at..].contains("the swap waits")),
            "{}",
            second.log_tail(5)
        );
        Ok(())
    })
    .await
    .expect("it goes on");
    reader.batch_execute("commit").await.expect("commit");
    let status = second.exited(DEADLINE).await.expect("it ends");
    assert!(status.success(), "{}", second.log_tail(20));

    assert_ne!(value(&pipeline, table).await, old_table, "another table is live");
    assert_eq!(value(&pipeline, WHAT_IS_ADDED).await, before);
    assert_eq!(value(&pipeline, LEFT_BEHIND).await, "0");
    drop(workload.stop().await);
    assert!(sampler.end().await > 50);
    assert_view_equals_users(&pipeline, DEADLINE).await;
    let by_view =
        "select (select count(*) from active_names) - (select count(*) from user_view where status = 'ACTIVE')";
    assert_eq!(
        value(&pipeline, by_view).await,
        "0",
        "views on the table show the new one"
    );

    // Dead letters stay out of a generation, and what is retried while it is filled comes in.
    dead_letters_are_left_out(&pipeline, &views).await;
    let restarts = pipeline.view_builder.log_text().matches("these views are kept").count();
    assert_eq!(restarts, 0, "the same SQL concerns no builder");
    pipeline.stop().await.expect("a clean end");
}

/// Waits until this many events wait.
async fn letters_wait(pipeline: &Pipeline, expected: &str) {
    eventually_ok(DEADLINE, "dead letters", || async {
        let waiting = value(pipeline, "select count(*) from view_dead_letters").await;
        anyhow::ensure!(waiting == expected, "{waiting}");
        Ok(())
    })
    .await
    .expect("dead letters");
}

async fn dead_letters_are_left_out(pipeline: &Pipeline, views: &Views) {
    let rest = Rest::of(pipeline);
    let created = rest
        .create_user(&user("refused", "개발팀", "ACTIVE"))
        .await
        .expect("a user");
    let id = created["id"].as_i64().expect("an id");
    // One after the other: of two events in one batch only the later one is applied, and nothing is wrong with it.
    letters_wait(pipeline, "1").await;
    rest.update_user(id, &user("behind", "개발팀", "ACTIVE"))
        .await
        .expect("an update");
    letters_wait(pipeline, "2").await;
    let (code, log) = run(pipeline, &views.0, &["rebuild", "user_view"]).await;
    assert_eq!(code, Some(0), "{log}");
    let shown = format!("select count(*) from user_view where user_id = {id}");
    assert_eq!(
        value(pipeline, &shown).await,
        "0",
        "an event behind a dead one is not applied"
    );

    let reader = connect(pipeline).await;
    reader
        .batch_execute("begin isolation level repeatable read; select count(*) from posts")
        .await
        .expect("a reader");
    let second = command(pipeline, &views.0, &["rebuild", "user_view"]);
    second.start().expect("a start");
    eventually_ok(DEADLINE, "the swap waits", || async {
        let log = second.log_text();
        anyhow::ensure!(
            log.matches("the swap waits").count() > log.matches("is rebuilt").count(),
            "{}",
            second.log_tail(5)
        );
        let begun = value(pipeline, "select count(*) from view_rebuilds").await;
        anyhow::ensure!(begun == "1", "{begun}");
        Ok(())
    })
    .await
    .expect("it waits");
    for schema in ["public", "user_view_rebuild"] {
        sql(
            pipeline,
            &format!("alter table {schema}.user_view drop constraint added_constraint"),
        )
        .await;
    }
    let (code, log) = run(pipeline, &views.0, &["dead-letters", "retry", "--all"]).await;
    assert_eq!(code, Some(0), "{log}");
    reader.batch_execute("commit").await.expect("commit");
    let status = second.exited(DEADLINE).await.expect("it ends");
    assert!(status.success(), "{}", second.log_tail(20));
    assert_eq!(value(pipeline, &shown).await, "1", "what was retried meanwhile");
    assert_view_equals_users(pipeline, DEADLINE).await;
}

/// The file that the page shows.
fn file_of_the_page(page: &str, name: &str) -> String {
    let at = page
        .find(&format!("`{name}`:"))
        .unwrap_or_else(|| panic!("docs/views.md shows no {name}"));
    let block = page[at..].split("```").nth(1).expect("a block of code");
    block.strip_prefix("sql\n").expect("SQL").to_owned()
}

const DOMAINS: &str = "select domain || ' ' || users from email_domains where users > 0 order by users desc limit 3";
const DOMAINS_COUNTED: &str = "
    select count(*) from (
        (select domain, users from email_domains where users > 0
         except all select lower(split_part(email, '@', 2)), count(*) from user_view group by 1)
        union all
        (select lower(split_part(email, '@', 2)), count(*) from user_view group by 1
         except all select domain, users from email_domains where users > 0)) as difference";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_about_views_leads_to_a_view_and_nobody_is_restarted() {
    let page = std::fs::read_to_string(checkout::root().join("docs/views.md")).expect("docs/views.md");
    let pipeline = super::shared::builder().start().await.expect("a pipeline");
    let views = Views::copy(&pipeline, "views");
    let workload = busy(&pipeline, 200).await;
    for file in ["table.sql", "apply.sql"] {
        views.write(
            "email_domains",
            file,
            &file_of_the_page(&page, &format!("sql/views/email_domains/{file}")),
        );
    }
    let command = "view-builder rebuild email_domains";
    assert!(page.contains(&format!("\n{command}\n")), "the page's command");
    let arguments: Vec<&str> = command.split(' ').skip(1).collect();

    // As the page says what happens to SQL that Postgres refuses.
    let right = views.read("email_domains", "apply.sql");
    views.write(
        "email_domains",
        "apply.sql",
        &right.replace("entity ->> 'email'", "emial"),
    );
    let (code, log) = run(&pipeline, &views.0, &arguments).await;
    assert_eq!(code, Some(VIEW), "{log}");
    let line = 1 + right
        .lines()
        .position(|line| line.contains("entity ->> 'email'"))
        .expect("a line");
    let told = format!("email_domains/apply.sql:{line}: column \"emial\" does not exist");
    assert!(log.replace('\\', "").contains(&told), "{told}\n{log}");
    assert!(page.contains(&format!("sql/views/{told}")), "the page tells this line");
    assert_eq!(value(&pipeline, LEFT_BEHIND).await, "0");
    views.write("email_domains", "apply.sql", &right);

    let positions = "select coalesce(min(next_offset), -1) from view_positions";
    let before: i64 = value(&pipeline, positions).await.parse().expect("a number");
    let (code, log) = run(&pipeline, &views.0, &arguments).await;
    assert_eq!(code, Some(0), "{log}");
    let after: i64 = value(&pipeline, positions).await.parse().expect("a number");
    assert!(before <= after, "no topic is applied again: {before}, {after}");
    assert!(!in_views(&pipeline, DOMAINS).await.is_empty(), "the page's query");
    let grant = "select has_table_privilege('post_api', 'email_domains', 'select')::text";
    assert_eq!(value(&pipeline, grant).await, "true", "as for every view");

    // The running builder keeps it from here on, and changed SQL as well.
    is_kept(&pipeline, "first.example", 1, "users").await;
    views.write(
        "email_domains",
        "apply.sql",
        &right.replace("sum(n)\nfrom", "sum(n) * 10\nfrom"),
    );
    let (code, log) = run(&pipeline, &views.0, &arguments).await;
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(
        value(
            &pipeline,
            "select users from email_domains where domain = 'first.example'"
        )
        .await,
        "10"
    );
    is_kept(&pipeline, "second.example", 10, "users").await;
    views.write("email_domains", "apply.sql", &right);
    let (code, log) = run(&pipeline, &views.0, &arguments).await;
    assert_eq!(code, Some(0), "{log}");
    drop(workload.stop().await);
    assert_view_equals_users(&pipeline, DEADLINE).await;
    eventually_ok(DEADLINE, "the view is what its definition says", || async {
        let wrong = value(&pipeline, DOMAINS_COUNTED).await;
        anyhow::ensure!(wrong == "0", "{wrong}");
        Ok(())
    })
    .await
    .expect("a right view");

    let (code, log) = run(&pipeline, &views.0, &["drop", "email_domains", "--yes"]).await;
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(
        value(&pipeline, "select to_regclass('email_domains') is null").await,
        "t"
    );
    let created = Rest::of(&pipeline)
        .create_user(&user("n", "d", "ACTIVE"))
        .await
        .expect("a user");
    wait_for_view(&pipeline, created["id"].as_i64().expect("an id"), 1, DEADLINE).await;
    let starts = pipeline
        .view_builder
        .log_text()
        .matches("the views are installed")
        .count();
    assert_eq!(starts, 1, "the builder was never restarted");
    pipeline.stop().await.expect("a clean end");
}

/// A new user's domain shows up with this number.
async fn is_kept(pipeline: &Pipeline, domain: &str, expected: i64, column: &str) {
    let mut body = user("n", "d", "ACTIVE");
    body["email"] = format!("n@{domain}").into();
    Rest::of(pipeline).create_user(&body).await.expect("a user");
    eventually_ok(DEADLINE, "the new domain", || async {
        let rows = in_views(
            pipeline,
            &format!("select {column} from email_domains where domain = '{domain}'"),
        )
        .await;
        anyhow::ensure!(rows == [[Some(expected.to_string())]], "{rows:?}");
        Ok(())
    })
    .await
    .expect("the view is kept");
}
