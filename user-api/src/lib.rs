//! The users' REST program. Its database is the truth about users, and every change of a user is an event.
//!
//! It has no Kafka client and knows nothing of the relay or of any view: a change is answered as soon as it and its event are committed, however far
//! behind the relay and the views are.

pub mod statements;
mod user;
mod users;

use rest::Program;
use rest::probe::Requirement;

/// What must be there before the program can work: its tables, and its rights to them.
const REQUIREMENTS: &[Requirement] = &[Requirement {
    statement: "with changed as ( \
                update users set name = name, email = email, department = department, status = status, \
                    created_at = created_at, updated_at = updated_at, version = version \
                where false returning id \
            ), removed as (delete from users where false) \
            insert into outbox (id, aggregatetype, aggregateid, type, payload) \
            select gen_random_uuid(), '', id::text, '', null from changed where not exists (select id, payload from outbox where false)",
    remedy: "run `user-api migrate`",
}];

/// The service, as `main` runs it.
pub static PROGRAM: Program = Program {
    name: "user-api",
    version: env!("CARGO_PKG_VERSION"),
    things: "users",
    listen: "127.0.0.1:8081",
    requirements: REQUIREMENTS,
    migrations: sqlx::migrate!("../sql/users"),
    routes: |database, _| users::router(database),
};
