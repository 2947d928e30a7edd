//! The planted bugs of settings. Without the feature `faults` none of them is there.

use kafka_client::{ClientSettings, Tokens};

use crate::process::faults::{self, Bug};
use pg_replication::{Password, Target};

pub(super) fn trusts_any_server() -> bool {
    faults::is_planted(Bug::TrustAnyServer)
}

/// Leaves a session's settings to others, and keeps the first password that a file held.
pub(super) fn spoil_target(target: &mut Target) {
    if faults::is_planted(Bug::PinNoSettings) {
        target.pins_settings = false;
    }
    if faults::is_planted(Bug::KeepFirstPassword)
        && let Some(Ok(first)) = target.password.as_ref().map(Password::reveal)
    {
        target.password = Some(Password::Given(first));
    }
}

/// Keeps the first token that a file held.
pub(super) fn spoil_client(client: &mut ClientSettings) {
    if faults::is_planted(Bug::KeepFirstKafkaSecrets)
        && let Tokens::File(path) = &client.tokens
        && let Ok(first) = std::fs::read_to_string(path)
    {
        client.tokens = Tokens::Given(first);
    }
}
