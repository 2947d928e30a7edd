//! What the console asks of real databases. `TEST_DATABASE_URL` is a superuser's; each test has a database of its own.

#![allow(clippy::unwrap_used, reason = "a test's helper fails by panicking, as the test does")]

mod audit;
mod letters;
mod snapshot;
mod support;
