//! post-api as a client meets it, over HTTP, on a real PostgreSQL. The cases of HTTP itself are in user-api's tests, since both programs have the
//! same code for them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod events;
mod hostile;
mod lifecycle;
mod lost_answers;
mod posts;
mod read_your_writes;
mod refusals;
mod views;
mod views_behind;
mod waiting_reads;

use rest_rig::{Executable, Program};
use serde_json::{Value, json};

const POST_API: Executable = Executable {
    path: env!("CARGO_BIN_EXE_post-api"),
    role: "post_api",
};

/// The views as view-builder makes them, with three users.
const VIEWS: &str = concat!(
    "set role view_builder;",
    include_str!("../../../sql/views/user_view/table.sql"),
    "; insert into user_view values
        (2, '장웅', 'changwng@example.com', '개발팀', 'ACTIVE', '2026-11-22 10:00:00', '2026-11-22 10:00:00.5', 1,
            '2026-11-22 10:00:01'),
        (1, '홍길동', 'hong@example.com', null, 'ACTIVE', '2026-11-22 10:00:00', '2026-11-22 10:00:00', 4,
            '2026-11-22 10:00:02.25'),
        (3, 'R', 'r@example.com', 'R/D', 'INACTIVE', '2026-11-22 10:00:00', '2026-11-22 10:00:00', 1,
            '2026-11-22 10:00:03');
    reset role"
);

async fn ready() -> Program {
    Program::ready(POST_API, VIEWS).await
}

fn post(author_id: i64) -> Value {
    json!({"title": "안녕하세요", "content": "첫 번째 포스트입니다.", "authorId": author_id})
}

/// The ids of a list of posts.
fn ids(list: &Value) -> Vec<i64> {
    let posts = list.as_array().unwrap().iter();
    posts.map(|post| post["id"].as_i64().unwrap()).collect()
}
