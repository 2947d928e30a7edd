//! The posts' REST program: it owns the posts, and reads the views of users that view-builder keeps beside them.
//!
//! Every change of a post writes an event. A post is joined with its author whenever it is read. So a change of the author shows in all of the
//! author's posts, and a post whose author is unknown or deleted has null in the author's fields.
//!
//! Until view-builder has made its tables for the first time, every request is answered 503 and `/readyz` says why: a post
//! without its author's name would look as if the author did not exist.

mod list;
mod post;
mod posts;
mod reading;
mod statements;
mod views;

use rest::Program;
use rest::probe::Requirement;

use crate::reading::Reader;

/// What must be there before the program can work: its tables, the views, and its rights to them.
const REQUIREMENTS: &[Requirement] = &[
    Requirement {
        statement: "with changed as ( \
                update posts set title = title, content = content, author_id = author_id, \
                    created_at = created_at, updated_at = updated_at, version = version \
                where false returning id \
            ), removed as (delete from posts where false) \
            insert into outbox (id, aggregatetype, aggregateid, type, payload) \
            select gen_random_uuid(), '', id::text, '', null from changed where not exists (select id, payload from outbox where false)",
        remedy: "run `post-api migrate`",
    },
    Requirement {
        statement: "select user_id, name, email, department, status, created_at, updated_at, version, \
                last_processed_at from user_view where false",
        remedy: "view-builder makes it when it starts for the first time",
    },
    Requirement {
        statement: "select user_id, version from user_view_deleted where false",
        remedy: "view-builder makes it when it starts for the first time",
    },
    Requirement {
        statement: "select department, user_count, active_users, inactive_users, last_updated \
                from department_stats where false",
        remedy: "view-builder makes it when it starts for the first time",
    },
];

/// The service, as `main` runs it.
pub static PROGRAM: Program = Program {
    name: "post-api",
    version: env!("CARGO_PKG_VERSION"),
    things: "posts",
    listen: "127.0.0.1:8082",
    requirements: REQUIREMENTS,
    migrations: sqlx::migrate!("../sql/posts"),
    routes: |database, shutdown| {
        let reader = Reader::new(database, shutdown);
        posts::router(reader.clone()).merge(views::router(reader))
    },
};
