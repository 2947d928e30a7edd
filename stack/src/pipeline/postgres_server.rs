//! The PostgreSQL of a pipeline: a private server, or a server that is there already.

use anyhow::{Context, ensure};

use crate::{Postgres, PostgresOptions, checkout, postgres, random};

/// The role of each program, as `sql/cluster.sql` makes them.
const ROLES: [&str; 7] = [
    "user_api",
    "post_api",
    "view_builder",
    "outbox_relay",
    "outbox_maintainer",
    VERIFIER,
    CONSOLE,
];
/// The role that reads everything that `view-builder verify` compares.
pub(super) const VERIFIER: &str = "view_verifier";
/// The role that reads what the console shows.
pub(super) const CONSOLE: &str = "console";

/// Which PostgreSQL a pipeline is to run on.
#[derive(Debug)]
pub(super) enum PostgresChoice {
    /// A server that the pipeline starts with these options.
    Private(PostgresOptions),
    /// The URL of a superuser on a server that is there already.
    Existing(String),
}

/// The PostgreSQL that a pipeline runs on.
#[derive(Debug)]
pub(super) enum PostgresServer {
    /// The pipeline has started this server, and ends it. The server trusts local connections, so no role has a password.
    Private(Postgres),
    /// The pipeline found this server running, and leaves it running.
    Existing {
        superuser_url: String,
        /// The password of each role in [`ROLES`].
        roles_password: String,
    },
}

impl PostgresServer {
    /// Starts a private server, or checks that the existing one can carry the pipeline.
    ///
    /// # Errors
    /// The server does not start, does not answer, or cannot carry the pipeline. The message says what is wrong.
    pub(super) async fn start_or_check(choice: PostgresChoice) -> anyhow::Result<Self> {
        match choice {
            PostgresChoice::Private(options) => {
                let postgres = Postgres::start(options).await?;
                tracing::info!("PostgreSQL {} is up on port {}", postgres.version(), postgres.port());
                Ok(Self::Private(postgres))
            }
            PostgresChoice::Existing(superuser_url) => {
                check(&superuser_url).await?;
                Ok(Self::Existing {
                    superuser_url,
                    roles_password: random::password()?,
                })
            }
        }
    }

    /// Makes the databases and the roles, and sets the roles' password where they have one.
    ///
    /// # Errors
    /// The server refuses a statement.
    pub(super) async fn make_databases_and_roles(&self) -> anyhow::Result<()> {
        let superuser_url = self.superuser_url();
        postgres::run_script(&superuser_url, &checkout::root().join("sql/cluster.sql")).await?;
        if let Self::Existing { roles_password, .. } = self {
            let statements = ROLES.map(|role| format!("alter role {role} password '{roles_password}';"));
            let superuser = postgres::connect(&superuser_url).await?;
            superuser.batch_execute(&statements.concat()).await?;
        }
        Ok(())
    }

    /// The URL of `database` for the superuser.
    ///
    /// # Errors
    /// The pipeline was given an address that is not a URL.
    pub(super) fn url_for_superuser(&self, database: &str) -> anyhow::Result<String> {
        with_database(&self.superuser_url(), database)
    }

    /// The URL of `database` for one of [`ROLES`].
    ///
    /// # Errors
    /// The pipeline was given an address that is not a URL.
    pub(super) fn url_for_role(&self, role: &str, database: &str) -> anyhow::Result<String> {
        let password = match self {
            Self::Private(_) => None,
            Self::Existing { roles_password, .. } => Some(roles_password.as_str()),
        };
        with_database_and_user(&self.superuser_url(), database, role, password)
    }

    /// The private server; none where the pipeline runs on an existing one.
    pub(super) fn private(&self) -> Option<&Postgres> {
        match self {
            Self::Private(postgres) => Some(postgres),
            Self::Existing { .. } => None,
        }
    }

    fn superuser_url(&self) -> String {
        match self {
            Self::Private(postgres) => postgres.url("postgres", "postgres"),
            Self::Existing { superuser_url, .. } => superuser_url.clone(),
        }
    }
}

/// Refuses a server that cannot carry the pipeline. The error says what is wrong.
async fn check(superuser_url: &str) -> anyhow::Result<()> {
    let client = postgres::connect(superuser_url).await?;
    let row = client
        .query_one(
            "select current_setting('server_version_num')::int / 10000,
                    current_setting('wal_level'),
                    rolsuper
             from pg_roles where rolname = current_user",
            &[],
        )
        .await?;
    let (version, wal_level, is_superuser): (i32, String, bool) = (row.get(0), row.get(1), row.get(2));
    ensure!(
        (15..=18).contains(&version),
        "this is PostgreSQL {version}; the pipeline needs 15-18"
    );
    ensure!(
        wal_level == "logical",
        "wal_level is {wal_level}; it must be logical: alter system set wal_level = logical, then restart the server"
    );
    ensure!(
        is_superuser,
        "the user of the PostgreSQL URL is no superuser, and cannot make the databases, roles and slots"
    );
    Ok(())
}

/// `url` with another database.
fn with_database(url: &str, database: &str) -> anyhow::Result<String> {
    let mut url = parse(url)?;
    url.set_path(database);
    Ok(url.to_string())
}

/// `url` with another database, user and password.
fn with_database_and_user(url: &str, database: &str, user: &str, password: Option<&str>) -> anyhow::Result<String> {
    let mut url = parse(url)?;
    url.set_path(database);
    let changed = url.set_username(user).and_then(|()| url.set_password(password));
    changed.map_err(|()| anyhow::anyhow!("the PostgreSQL URL has no host"))?;
    Ok(url.to_string())
}

fn parse(url: &str) -> anyhow::Result<url::Url> {
    url::Url::parse(url).context("this is not a PostgreSQL URL: expected postgres://USER:PASSWORD@HOST:PORT/DATABASE")
}

#[cfg(test)]
mod tests {
    use super::{with_database, with_database_and_user};

    #[test]
    fn a_url_changes_its_database_and_user_only() {
        let given = "postgres://root:secret@db:5433/postgres?sslmode=require";
        assert_eq!(
            with_database_and_user(given, "users_db", "user_api", Some("p")).expect("a URL"),
            "postgres://user_api:p@db:5433/users_db?sslmode=require"
        );
        assert_eq!(
            with_database("postgres://postgres@127.0.0.1:1/postgres", "users_db").expect("a URL"),
            "postgres://postgres@127.0.0.1:1/users_db"
        );
    }
}
