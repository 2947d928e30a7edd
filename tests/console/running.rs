//! The pipeline of these tests, with something to look at in it.

use std::time::Duration;

use rig::rest::{Rest, id, user};
use stack::pipeline::{USERS_DATABASE, VIEWS_DATABASE};
use stack::{DEPARTMENTS, Pipeline, PostgresOptions, eventually_ok};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

const DEADLINE: Duration = Duration::from_secs(60);
const USERS: usize = 40;
/// What a person could write into a field to take over the browser of who looks at it.
const MARKUP: &str = "</td><script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">";

static SHARED: OnceCell<Mutex<Pipeline>> = OnceCell::const_new();

/// The shared pipeline, for one test at a time. It ends with the test process: see `stack::warden`.
pub(crate) async fn pipeline() -> MutexGuard<'static, Pipeline> {
    let shared = SHARED.get_or_init(|| async {
        let pipeline = started().await;
        fill(&pipeline).await;
        Mutex::new(pipeline)
    });
    shared.await.lock().await
}

async fn started() -> Pipeline {
    // The tests kill processes, never the machine. So what the kernel has got is safe without fsync.
    let postgres = PostgresOptions {
        version: Some(18),
        ..PostgresOptions::default()
    };
    let postgres = postgres.setting("fsync", "off");
    let started = Pipeline::builder().postgres(postgres).console(None).start().await;
    started.unwrap_or_else(|err| panic!("the pipeline does not start: {err:#}"))
}

/// Makes users with several versions, posts, and letters of two reasons with events that wait behind them.
async fn fill(pipeline: &Pipeline) {
    let rest = Rest::of(pipeline);
    let mut ids = Vec::new();
    for number in 0..USERS {
        let department = DEPARTMENTS[number % DEPARTMENTS.len()];
        let created = rest
            .create_user(&user("홍길동", department, "ACTIVE"))
            .await
            .expect("a user");
        ids.push(id(&created));
        if number % 3 == 0 {
            let changed = user("홍길동", department, "INACTIVE");
            rest.update_user(id(&created), &changed).await.expect("a change");
        }
    }
    for author in &ids[..10] {
        rest.create_post("첫 번째 포스트", *author).await.expect("a post");
    }
    rest.create_user(&user(MARKUP, "보안팀", "ACTIVE"))
        .await
        .expect("a user");
    // The services write no event that cannot be applied. So somebody writes it past them.
    for (place, event_type, count) in [(1, "USER_PROMOTED", 2), (2, "USER_PROMOTED", 1), (4, MARKUP, 1)] {
        for _ in 0..count {
            insert_event(pipeline, ids[place], event_type).await;
        }
    }
    // This one waits behind the letters of its user.
    rest.update_user(ids[1], &user("김철수", "개발팀", "ACTIVE"))
        .await
        .expect("a change");
    let letters = "select count(*) from view_dead_letters";
    let wanted = Some("5".to_owned());
    let all_are_there = eventually_ok(DEADLINE, "the letters are there", || async {
        let postgres = pipeline.postgres()?;
        let found = postgres.query(VIEWS_DATABASE, letters).await?;
        anyhow::ensure!(found[0][0] == wanted, "{found:?}");
        Ok(())
    });
    all_are_there.await.expect("five letters");
    // It asks each part every few seconds, and the first tests shall not come before its first answers.
    let console = pipeline.console.as_ref().expect("a pipeline with a console");
    let knows_the_view = eventually_ok(DEADLINE, "the console knows the views", || async {
        let page = reqwest::get(console.url("/views/user_view")).await?.text().await?;
        anyhow::ensure!(page.contains("apply.sql"), "{page}");
        Ok(())
    });
    knows_the_view.await.expect("the page of a view");
}

/// Writes an event of a user that view-builder does not know how to apply.
async fn insert_event(pipeline: &Pipeline, user: i64, event_type: &str) {
    let payload =
        serde_json::json!({"eventType": event_type, "userId": user, "version": 99, "timestamp": "2026-01-01T00:00:00"});
    let sql = format!(
        "insert into outbox (aggregatetype, aggregateid, type, payload) values ('user', '{user}', $type${event_type}$type$, $json${payload}$json$)"
    );
    let postgres = pipeline.postgres().expect("a private postgres");
    postgres.query(USERS_DATABASE, &sql).await.expect("an event");
}
