//! Views that do not have yet what a read asks for.

use std::time::Duration;

use rest_rig::{Answer, Program, eventually};
use serde_json::Value;
use sqlx::Executor;

/// Far less than any wait in these tests, far more than an answer takes.
pub(crate) const AT_ONCE: Duration = Duration::from_secs(5);

/// Asserts that the answer says that the view is behind. Returns which users are.
#[track_caller]
pub(crate) fn behind(answer: &Answer) -> Value {
    let problem = answer.problem(503);
    assert_eq!(problem["type"], "urn:problem-type:view-behind");
    assert_eq!(problem["title"], "View Behind");
    assert_eq!(answer.header("retry-after"), "2");
    problem["behind"].clone()
}

/// Runs a statement in the program's database.
pub(crate) async fn execute(program: &Program, statement: &'static str) {
    program.database().sql().await.execute(statement).await.unwrap();
}

/// Waits until so many requests wait for a version.
pub(crate) async fn until_requests_wait(program: &Program, count: usize) {
    eventually(&format!("{count} requests wait"), async || {
        program
            .get("/metrics")
            .await
            .text
            .contains(&format!("\nview_waiting_requests {count}\n"))
    })
    .await;
}
