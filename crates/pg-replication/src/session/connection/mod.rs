//! A session with the server, and SQL by the simple query protocol.
//!
//! [`open`] begins a session and [`authentication`] does its login. [`which_server`] tells servers apart. [`quoting`] quotes names and texts for SQL.

mod authentication;
mod open;
mod quoting;
mod which_server;

use std::fmt;
use std::io;

use anyhow::Context;
use bytes::{Buf, BytesMut};
use postgres_protocol::message::backend::{ErrorResponseBody, Message};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::session::address::Address;
use crate::session::hosts::ServerState;
use crate::session::stream::Stream;

#[cfg(feature = "tokio-postgres")]
pub(super) use open::is_refused_login;
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
    pub(crate) fn from_body(body: &ErrorResponseBody) -> io::Result<Self> {
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
    /// Bytes that the server sent and nobody has taken yet.
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

impl Connection {
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
            match self.next_message().await? {
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
                Message::ErrorResponse(body) => failure = Some(PgError::from_body(&body)?),
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

    /// Waits for the next whole message and takes it. Fails at a CopyBothResponse, which `postgres-protocol` does not know.
    pub(crate) async fn next_message(&mut self) -> anyhow::Result<Message> {
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
