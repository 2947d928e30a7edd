//! Sessions of the role that keeps the views, and the lock that lets only one rebuild of a view run.

use std::time::{Duration, Instant};

use pg_replication::Target;
use tokio_postgres::Client;

use super::trouble::Trouble;
use crate::postgres::connection;
use crate::process::failure::Failure;

/// How long to wait for the lock. The session of a rebuild that has just ended may keep it for moments more.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(3);
/// Pause between two tries to take the lock.
const LOCK_TRY_INTERVAL: Duration = Duration::from_millis(100);

/// Opens a session of the role that keeps the views.
pub(super) async fn open_as_owner(target: &Target) -> Result<Client, Trouble> {
    let client = connection::connect(target).await?;
    set_role_to_owner(&client).await?;
    Ok(client)
}

/// Makes the session one of the role that keeps the views.
async fn set_role_to_owner(client: &Client) -> Result<(), Trouble> {
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

/// Makes the session one of the role that keeps the views, for a command that is not a rebuild.
///
/// # Errors
/// No builder has run in this database yet, or Postgres does not answer.
pub(crate) async fn become_owner(client: &Client) -> Result<(), Failure> {
    set_role_to_owner(client).await.map_err(Trouble::into_failure)
}

/// Takes the advisory lock that makes this session the only one that rebuilds the view.
pub(super) async fn take_rebuild_lock(client: &Client, view: &str) -> Result<(), Trouble> {
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
        if began.elapsed() >= LOCK_WAIT_MAX {
            return Err(Failure::Setting(format!(
                "another rebuild of {view} is under way: let it end, or end it and run this again"
            ))
            .into());
        }
        tokio::time::sleep(LOCK_TRY_INTERVAL).await;
    }
}
