//! Begins a session: finds a host that can be used, logs in, and pins the session's settings.

use bytes::BytesMut;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;

use super::{Connection, Mode, PgError};
use crate::session::address::{Address, Endpoint};
use crate::session::hosts::ServerState;
use crate::session::pinned::{PINNED, statement_to_pin_newer_settings};
use crate::session::stream::Stream;
use crate::session::target::Target;

impl Connection {
    /// Tries the target's hosts in their order, and logs in at the first one that answers and is of the kind that the target wants. The target's
    /// connect timeout applies to each endpoint of a host.
    ///
    /// A host that refuses the login ends the search, as in libpq. Otherwise the next host would hide a wrong password.
    ///
    /// # Errors
    /// No host is suitable. The message names the reason for each host: it cannot be reached, its certificate is refused, it is a standby, or it
    /// refuses the login (then a [`PgError`] is in the chain).
    pub async fn open(target: &Target, mode: Mode) -> anyhow::Result<Self> {
        let mut reasons = Vec::new();
        let mut first_server_error = None;
        for address in &target.addresses {
            let err = match Box::pin(Self::open_host(target, address, mode)).await {
                Ok(connection) => return Ok(connection),
                Err(err) => err,
            };
            if refuses_login(&err) || target.addresses.len() == 1 {
                return Err(err.context(format!("Postgres at {address}")));
            }
            reasons.push(format!("{address}: {err:#}"));
            first_server_error = first_server_error.or_else(|| err.downcast::<PgError>().ok());
        }
        let reasons = format!(
            "none of the {} Postgres hosts can be used ({})",
            target.addresses.len(),
            reasons.join("; ")
        );
        Err(match first_server_error {
            Some(error) => anyhow::Error::new(error).context(reasons),
            None => anyhow::anyhow!(reasons),
        })
    }

    /// Logs in at the first endpoint of the host that can be used. The connect timeout applies to each endpoint.
    async fn open_host(target: &Target, address: &Address, mode: Mode) -> anyhow::Result<Self> {
        let mut first_server_error = None;
        let mut last_error = None;
        for endpoint in target.in_time(address.endpoints()).await? {
            match target
                .in_time(Box::pin(Self::log_in(target, address, endpoint, mode)))
                .await
            {
                Ok(connection) => return Ok(connection),
                Err(err) if refuses_login(&err) => return Err(err),
                Err(err) if PgError::code_of(&err).is_some() => {
                    first_server_error.get_or_insert(err);
                }
                Err(err) => last_error = Some(err),
            }
        }
        // An error that a server reported says more than the silence of another endpoint of the same name.
        Err(first_server_error
            .or(last_error)
            .unwrap_or_else(|| anyhow::anyhow!("the host has no address")))
    }

    async fn log_in(target: &Target, address: &Address, endpoint: Endpoint, mode: Mode) -> anyhow::Result<Self> {
        let stream = Stream::open(target, endpoint).await?;
        let mut connection = Self {
            stream,
            input: BytesMut::new(),
            server_version_num: 0,
            process_id: 0,
            state: ServerState::default(),
            address: address.clone(),
        };
        let application_name = target.application_name.as_deref().unwrap_or("outbox-relay");
        let mut parameters = vec![
            ("user", target.user.as_str()),
            ("database", target.database.as_str()),
            ("application_name", application_name),
        ];
        if target.pins_settings {
            parameters.extend(PINNED);
        }
        if mode == Mode::Replication {
            parameters.push(("replication", "database"));
        }
        if let Some(options) = &target.options {
            parameters.push(("options", options));
        }
        let mut out = BytesMut::new();
        frontend::startup_message(parameters, &mut out)?;
        connection.send(&out).await?;
        connection.authenticate(target).await?;
        loop {
            match connection.next_message().await? {
                Message::ParameterStatus(status) => match status.name()? {
                    "server_version" => connection.server_version_num = version_num(status.value()?),
                    "in_hot_standby" => connection.state.is_in_recovery = status.value()? == "on",
                    "default_transaction_read_only" => connection.state.is_read_only = status.value()? == "on",
                    _ => {}
                },
                Message::BackendKeyData(body) => connection.process_id = body.process_id(),
                Message::ReadyForQuery(_) => break,
                Message::ErrorResponse(body) => return Err(explain_refused_start(PgError::from_body(&body)?)),
                _ => {}
            }
        }
        target
            .session
            .accept(connection.state)
            .map_err(|reason| anyhow::anyhow!(reason))?;
        if let Some(statement) = statement_to_pin_newer_settings(connection.server_version_num) {
            connection.query(statement).await?;
        }
        if let Some(instance) = &target.instance {
            connection.ensure_is_with(instance).await?;
        }
        Ok(connection)
    }
}

/// Whether this SQLSTATE says that the server refuses the login (class 28). After such a refusal no other server is tried, since it would hide a
/// wrong password.
pub(in crate::session) fn is_refused_login(code: &str) -> bool {
    code.starts_with("28")
}

fn refuses_login(err: &anyhow::Error) -> bool {
    PgError::code_of(err).is_some_and(is_refused_login)
}

/// The server's error at the start of a session, with an explanation where SQLSTATE and text alone would not help.
fn explain_refused_start(error: PgError) -> anyhow::Error {
    // undefined_object: the server does not know one of the settings that we pin.
    let is_too_old = error.code == "42704";
    let error = anyhow::Error::new(error);
    if is_too_old {
        return error.context("the server is too old: the relay needs PostgreSQL 15 or later");
    }
    error
}

/// Turns a version's text into a number: `15.18 (Debian …)` → 150018, `18beta1` → 180000. A part that is no number counts as 0. So a text that is
/// no version counts as a version that is too old.
fn version_num(text: &str) -> u32 {
    let mut parts = text
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse::<u32>().unwrap_or(0));
    parts.next().unwrap_or(0) * 10_000 + parts.next().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::version_num;

    #[test]
    fn versions_count_as_server_version_num_does() {
        assert_eq!(version_num("15.18 (Debian 15.18-0+deb12u1)"), 150_018);
        assert_eq!(version_num("18.6"), 180_006);
        assert_eq!(version_num("19beta2"), 190_000);
    }
}
