//! The posts' REST program: it owns the posts, and reads the views of users that view-builder keeps beside them.
//!
//! Every change of a post is an event, as with users. A post is joined with its author whenever it is read, so an author's
//! change shows in every post, and a post whose author is unknown or gone has null author fields.
//!
//! Until view-builder has made its tables for the first time, every request is answered 503 and `/readyz` says why: a post
//! without its author's name would look as if the author did not exist.

mod config;
mod list;
mod post;
mod posts;
mod reading;
mod statements;
mod views;

use axum::Router;
use metrics_exporter_prometheus::PrometheusHandle;
use rest::probe::Requirement;
use service::Shutdown;

use crate::reading::Reader;

pub use config::{Cli, Command, Config};

/// Name under which the program shows in its database's `pg_stat_activity`.
const PROGRAM: &str = "post-api";

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

/// Serves the API until `shutdown`.
///
/// # Errors
/// A setting is wrong, or the address cannot be listened on. A database that is away is no error: it is waited for.
pub async fn run(config: &Config, metrics: PrometheusHandle, shutdown: Shutdown) -> anyhow::Result<()> {
    let (connections, stopping) = (config.server.database_connections, shutdown.clone());
    rest::server::run(
        PROGRAM,
        config.listen,
        &config.server,
        REQUIREMENTS,
        move |database| router(Reader::new(database, connections, stopping)),
        metrics,
        shutdown,
    )
    .await
}

/// Applies the migrations of `sql/posts` that are not applied yet, in the order of their numbers, as the user of the given URL, and tells which.
///
/// # Errors
/// The database does not come within a minute, or a migration fails.
pub async fn migrate(config: &Config) -> anyhow::Result<Vec<String>> {
    let options = rest::database::options(config.server.database_url()?, "post-api migrate")?;
    rest::migrations::apply(&options, &sqlx::migrate!("../sql/posts")).await
}

fn router(reader: Reader) -> Router {
    posts::router(reader.clone()).merge(views::router(reader))
}
