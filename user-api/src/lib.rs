//! The users' REST program. Its database is the truth about users, and every change of it is an event.
//!
//! It has no Kafka client and knows nothing of the relay or of any view: a change is answered when it and its event have
//! been committed, however things stand behind.

mod config;
mod statements;
mod user;
mod users;

use metrics_exporter_prometheus::PrometheusHandle;
use rest::probe::Requirement;
use service::Shutdown;

pub use config::{Cli, Command, Config};

/// Name under which the program shows in its database's `pg_stat_activity`.
const PROGRAM: &str = "user-api";

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

/// Serves the API until `shutdown`.
///
/// # Errors
/// A setting is wrong, or the address cannot be listened on. A database that is away is no error: it is waited for.
pub async fn run(config: &Config, metrics: PrometheusHandle, shutdown: Shutdown) -> anyhow::Result<()> {
    rest::server::run(
        PROGRAM,
        config.listen,
        &config.server,
        REQUIREMENTS,
        users::router,
        metrics,
        shutdown,
    )
    .await
}

/// Applies the migrations of `sql/users` that are not applied yet, in the order of their numbers, as the user of the given URL, and tells which.
///
/// # Errors
/// The database does not come within a minute, or a migration fails.
pub async fn migrate(config: &Config) -> anyhow::Result<Vec<String>> {
    let options = rest::database::options(config.server.database_url()?, "user-api migrate")?;
    rest::migrations::apply(&options, &sqlx::migrate!("../sql/users")).await
}
