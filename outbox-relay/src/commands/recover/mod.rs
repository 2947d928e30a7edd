//! `recover`: goes on where the checkpoint, the slot or the server does not continue the other two any more, from the rows that are still in
//! the outbox.
//!
//! The order of its steps is what makes it safe to kill at any moment and to run again. [`recover`] has the first step, [`carry_out`] the others,
//! each with its reason.

mod carry_out;
mod compare;
mod decide;
mod loss;
mod mark;
mod plan;
mod publish;
mod scope;
mod situation;

use service::Shutdown;

use self::carry_out::Recovery;
use self::compare::compare_outbox_with_topics;
use self::loss::with_advice_for_recover;
use self::plan::{ask_operator_to_confirm, ensure_every_row_is_decided, print_plan};
use self::scope::{Scope, ensure_is_published, oldest_row_ms, since_ms};
use self::situation::Situation;
use crate::intake::outbox_snapshot::OutboxSnapshot;
use crate::process::stop::RelayError;
use crate::settings::{Config, RecoverOptions};
use crate::topics::destination;
use pg_replication::{Connection, Mode};

/// Does everything; what it returns is for a person.
///
/// # Errors
/// A [`crate::process::stop::Stop`] where there is nothing to recover, where it cannot be done, or where nobody said yes; anything else is worth another try.
pub async fn recover(config: &Config, options: &RecoverOptions, shutdown: &Shutdown) -> Result<String, RelayError> {
    let recovered = look_ask_and_carry_out(config, options, shutdown).await;
    recovered.map_err(|err| match err {
        // The topic may also have come by partitions while this was at work.
        RelayError::Stop(stop) => with_advice_for_recover(stop).into(),
        transient => transient,
    })
}

/// Step 1: look, compare and ask. Nothing is changed before the operator has seen what will be done, and said yes. Then steps 2 to 6, which do not
/// trust this comparison: a relay may have published since.
async fn look_ask_and_carry_out(
    config: &Config,
    options: &RecoverOptions,
    shutdown: &Shutdown,
) -> Result<String, RelayError> {
    let mut connection = Connection::open(&config.source.target, Mode::Replication).await?;
    let config = &config.pinned_to(&mut connection).await?;
    let since_ms = since_ms(&mut connection, options).await?;
    let situation = Situation::read(&mut connection, config, options).await?;
    let mut snapshot = OutboxSnapshot::open(config, None, situation.names_of_detached_tables.clone()).await?;
    let oldest_row_ms = oldest_row_ms(&mut snapshot).await?;
    let scope = Scope::choose(&mut snapshot, since_ms).await?;
    let mut lineage = situation.lineage_to_go_on_from(config);
    let compared = compare_outbox_with_topics(
        config,
        &mut lineage,
        &situation.recreated,
        &mut snapshot,
        scope,
        shutdown,
    )
    .await?;
    snapshot.close().await?;
    ensure_is_published(options, compared.highest_published(&situation))?;
    print_plan(config, options, &situation, &compared, oldest_row_ms)?;
    ensure_every_row_is_decided(&compared.verdicts, options)?;
    ask_operator_to_confirm(options).await?;
    let topics = lineage.partitions.keys().map(String::as_str);
    let topics = topics.chain([config.sink.parking_topic.as_str()]);
    destination::learn_batch_limits(config, topics).await;
    let recovery = Recovery {
        config,
        options,
        since_ms,
        shutdown,
    };
    // On the heap: what the steps hold is too large for the stack.
    Box::pin(recovery.carry_out(connection, compared)).await
}
