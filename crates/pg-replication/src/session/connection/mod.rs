//! A session with the server: its start-up, and SQL by the simple query protocol.
//!
//! [`authentication`] does the login, [`which_server`] tells servers apart, and [`quoting`] quotes names and texts for SQL.

mod authentication;
mod quoting;
mod which_server;

use std::fmt;
use std::io;

use anyhow::Context;
use bytes::{Buf, BytesMut};
use postgres_protocol::message::backend::{ErrorResponseBody, Message};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::session::address::{Address, Endpoint};
use crate::session::hosts::ServerState;
use crate::session::pinned::{PINNED, pinned_since};
use crate::session::stream::Stream;
use crate::session::target::Target;

pub use quoting::{quote_identifier, quote_literal};

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Ordinary SQL.
    Sql,
    /// `replication=database`: SQL by the simple protocol and the replication commands.
    /// See <https://www.postgresql.org/docs/current/protocol-replication.html>.
    Replication,
}

/// An error that the server reported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} (SQLSTATE {code})")]
pub struct PgError {
    /// SQLSTATE, see <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
    pub code: String,
    pub message: String,
}

impl PgError {
    pub(crate) fn read(body: &ErrorResponseBody) -> io::Result<Self> {
        let (mut code, mut message) = (String::new(), String::new());
        let mut fields = body.fields();
        while let Some(field) = fallible_next(&mut fields)? {
            let text = String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'C' => code = text,
                b'M' => message = text,
                _ => {}
            }
        }
        Ok(Self { code, message })
    }

    /// The SQLSTATE of the error in `err`'s chain, if a server's error is in it.
    #[must_use]
    pub fn code_of(err: &anyhow::Error) -> Option<&str> {
        err.chain()
            .find_map(|cause| cause.downcast_ref::<Self>())
            .map(|err| err.code.as_str())
    }
}

fn fallible_next<I: fallible_iterator::FallibleIterator<Error = io::Error>>(
    iterator: &mut I,
) -> io::Result<Option<I::Item>> {
    iterator.next()
}

/// A row of an answer; values are in Postgres' text format.
pub type Row = Vec<Option<String>>;

/// An answer to a statement: the columns' names and type oids, and the rows.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    pub columns: Vec<(String, u32)>,
    pub rows: Vec<Row>,
}

/// A session with a Postgres server.
pub struct Connection {
    pub(in crate::session) stream: Stream,
    pub(in crate::session) input: BytesMut,
    server_version_num: u32,
    process_id: i32,
    state: ServerState,
    address: Address,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// Whether a server that says this SQLSTATE refuses the login (class 28). Another server would hide a wrong password.
pub(super) fn is_refused_login(code: &str) -> bool {
    code.starts_with("28")
}

fn refuses_login(err: &anyhow::Error) -> bool {
    PgError::code_of(err).is_some_and(is_refused_login)
}

impl Connection {
    /// Connects to the first of the target's hosts that answers and is of the kind that the target wants, and logs in; each endpoint of a host
    /// has the target's connect timeout.
    ///
    /// A host that refuses the login ends the search, as in libpq: the next one would hide a wrong password.
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
            "no Postgres of {} will do ({})",
            target.addresses.len(),
            reasons.join("; ")
        );
        Err(match first_server_error {
            Some(error) => anyhow::Error::new(error).context(reasons),
            None => anyhow::anyhow!(reasons),
        })
    }

    /// Logs in at the first endpoint of the host that will do. Each has the connect timeout.
    async fn open_host(target: &Target, address: &Address, mode: Mode) -> anyhow::Result<Self> {
        let mut first_refusal = None;
        let mut last = None;
        for endpoint in target.in_time(address.endpoints()).await? {
            match target
                .in_time(Box::pin(Self::log_in(target, address, endpoint, mode)))
                .await
            {
                Ok(connection) => return Ok(connection),
                Err(err) if refuses_login(&err) => return Err(err),
                Err(err) if PgError::code_of(&err).is_some() => {
                    first_refusal.get_or_insert(err);
                }
                Err(err) => last = Some(err),
            }
        }
        // What a server says tells more than silence at another endpoint of the same name.
        Err(first_refusal
            .or(last)
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
            match connection.message().await? {
                Message::ParameterStatus(status) => match status.name()? {
                    "server_version" => connection.server_version_num = version_num(status.value()?),
                    "in_hot_standby" => connection.state.is_in_recovery = status.value()? == "on",
                    "default_transaction_read_only" => connection.state.is_read_only = status.value()? == "on",
                    _ => {}
                },
                Message::BackendKeyData(body) => connection.process_id = body.process_id(),
                Message::ReadyForQuery(_) => break,
                Message::ErrorResponse(body) => return Err(explain_refused_start(PgError::read(&body)?)),
                _ => {}
            }
        }
        target
            .session
            .accept(connection.state)
            .map_err(|reason| anyhow::anyhow!(reason))?;
        if let Some(statement) = pinned_since(connection.server_version_num) {
            connection.query(statement).await?;
        }
        if let Some(instance) = &target.instance {
            connection.ensure_is_with(instance).await?;
        }
        Ok(connection)
    }

    /// The server's version as `server_version_num` counts it: 150018 is 15.18.
    #[must_use]
    pub fn server_version_num(&self) -> u32 {
        self.server_version_num
    }

    /// Process id of the server's backend that serves this session.
    #[must_use]
    pub fn process_id(&self) -> i32 {
        self.process_id
    }

    /// Which of the target's hosts this session is with.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Runs one statement and collects its rows in memory.
    ///
    /// # Errors
    /// The connection broke, or the server refused the statement (a [`PgError`] is in the chain then).
    pub async fn query(&mut self, sql: &str) -> anyhow::Result<Answer> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out)?;
        self.send(&out).await?;
        let mut answer = Answer::default();
        let mut failure = None;
        loop {
            match self.message().await? {
                Message::RowDescription(body) => {
                    let mut fields = body.fields();
                    while let Some(field) = fallible_next(&mut fields)? {
                        answer.columns.push((field.name().to_owned(), field.type_oid()));
                    }
                }
                Message::DataRow(body) => {
                    let mut row = Row::new();
                    let mut ranges = body.ranges();
                    while let Some(range) = fallible_next(&mut ranges)? {
                        let text = range.map(|range| String::from_utf8(body.buffer()[range].to_vec()));
                        row.push(text.transpose().context("the server sent text that is not UTF-8")?);
                    }
                    answer.rows.push(row);
                }
                Message::ErrorResponse(body) => failure = Some(PgError::read(&body)?),
                Message::ReadyForQuery(_) => break,
                _ => {}
            }
        }
        match failure {
            Some(error) => Err(error.into()),
            None => Ok(answer),
        }
    }

    /// The rows of a statement.
    ///
    /// # Errors
    /// As [`Connection::query`].
    pub async fn rows(&mut self, sql: &str) -> anyhow::Result<Vec<Row>> {
        Ok(self.query(sql).await?.rows)
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// The next message, whole. Not for CopyBothResponse, which `postgres-protocol` does not know.
    pub(crate) async fn message(&mut self) -> anyhow::Result<Message> {
        loop {
            if let Some(message) = Message::parse(&mut self.input)? {
                return Ok(message);
            }
            self.read_more().await?;
        }
    }

    /// The tag of the next message, without taking it.
    pub(crate) async fn peek_tag(&mut self) -> anyhow::Result<u8> {
        while self.input.remaining() < 5 {
            self.read_more().await?;
        }
        Ok(self.input[0])
    }

    pub(crate) async fn read_more(&mut self) -> io::Result<()> {
        self.input.reserve(8 * 1024);
        if self.stream.read_buf(&mut self.input).await? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the server closed the connection",
            ));
        }
        Ok(())
    }
}

/// The server's error at the start of a session, with a reason that people understand.
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
