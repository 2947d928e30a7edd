//! Sessions of the role that keeps the views, and the lock that lets only one rebuild of a view run.

use std::time::{Duration, Instant};

use pg_replication::Target;
use tokio_postgres::Client;

use super::trouble::Trouble;
use crate::postgres::connection;
use crate::process::failure::Failure;

/// How long another rebuild of the view may take to end: a session that was just closed is gone from the server within moments.
const OWN_MAX: Duration = Duration::from_secs(3);
/// How often the lock is tried meanwhile.
const OWN_INTERVAL: Duration = Duration::from_millis(100);

/// A session of the role that keeps the views.
pub(super) async fn open(target: &Target) -> Result<Client, Trouble> {
    let client = connection::connect(target).await?;
    as_owner(&client).await?;
    Ok(client)
}

/// Makes the session one of the role that keeps the views.
async fn as_owner(client: &Client) -> Result<(), Trouble> {
    let owner = client
        .query_opt(
            "select relowner::regrole::text as owner, relowner::regrole::text <> current_user as is_another from pg_class where oid = to_regclass('public.view_positions')",
            &[],
        )
        .await?;
    let Some(owner) = owner else {
        return Err(Failure::Setting(
            "no builder has run in this database yet: start view-builder run first".to_owned(),
        )
        .into());
    };
    if owner.get("is_another") {
        client
            .batch_execute(&format!("set role {}", owner.get::<_, &str>("owner")))
            .await?;
    }
    Ok(())
}

/// As `as_owner`, for another command.
///
/// # Errors
/// No builder has run in this database yet, or Postgres does not answer.
pub(crate) async fn take_the_role(client: &Client) -> Result<(), Failure> {
    as_owner(client).await.map_err(Trouble::into_failure)
}

/// Makes this session the only one that rebuilds the view. A rebuild that has just ended may take moments to be gone from the server.
pub(super) async fn own(client: &Client, view: &str) -> Result<(), Trouble> {
    let began = Instant::now();
    loop {
        let row = client
            .query_one(
                "select pg_try_advisory_lock(hashtext('view-builder rebuild'), hashtext($1))",
                &[&view],
            )
            .await?;
        if row.get(0) {
            return Ok(());
        }
        if began.elapsed() >= OWN_MAX {
            return Err(Failure::Setting(format!(
                "another rebuild of {view} is under way: let it end, or end it and run this again"
            ))
            .into());
        }
        tokio::time::sleep(OWN_INTERVAL).await;
    }
}
