//! user-api as a client meets it, over HTTP, on a real PostgreSQL.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod edge;
mod events;
mod lifecycle;
mod lost_answers;
mod refusals;
mod users;

use rest_rig::{Executable, Program};
use serde_json::{Value, json};

const USER_API: Executable = Executable {
    path: env!("CARGO_BIN_EXE_user-api"),
    role: "user_api",
};

async fn ready() -> Program {
    Program::ready(USER_API, "").await
}

/// A user whose e-mail is `email`.
fn user(email: &str) -> Value {
    json!({"name": "홍길동", "email": email, "department": "개발팀", "status": "ACTIVE"})
}
