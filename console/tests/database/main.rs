//! What the console asks of real databases. `TEST_DATABASE_URL` is a superuser's; each test has a database of its own.

mod audit;
mod snapshot;
mod support;
