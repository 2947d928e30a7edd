//! Who may ask for what.
//!
//! Looking needs no token on a loopback address. Every change needs a session whose token has the role `operator`, the session's CSRF token in the form, and a
//! request that comes from our own page. A request that names another host is refused: otherwise a foreign site could have its own name lead to this
//! machine (DNS rebinding), and read what a browser here may read.

mod change;
mod guard;
mod sessions;
pub mod tokens;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

pub use self::change::{Change, Fields, Refusal};
pub use self::guard::{Visitor, guard};
pub use self::sessions::{COOKIE, Session, Sessions};
use self::tokens::TokenFile;
use crate::settings::Role;

/// Who may ask for what. Clones share the sessions.
#[derive(Clone, Debug)]
pub struct Access(Arc<Rules>);

#[derive(Debug)]
struct Rules {
    tokens: Option<TokenFile>,
    sessions: Sessions,
    /// On a loopback address everybody may look, and only loopback names are served.
    is_loopback: bool,
}

impl Access {
    /// # Errors
    /// The file of the tokens cannot be read, or one of its lines is wrong.
    pub fn new(listen: SocketAddr, token_file: Option<PathBuf>) -> Result<Self, String> {
        Ok(Self(Arc::new(Rules {
            tokens: token_file.map(TokenFile::open).transpose()?,
            sessions: Sessions::default(),
            is_loopback: listen.ip().is_loopback(),
        })))
    }

    /// Whether people can log in at all.
    #[must_use]
    pub fn has_tokens(&self) -> bool {
        self.0.tokens.is_some()
    }

    /// Whether looking needs a session.
    #[must_use]
    pub fn needs_login_to_read(&self) -> bool {
        !self.0.is_loopback
    }

    /// Begins a session for whoever has this token. `None`: nobody has it.
    #[must_use]
    pub fn log_in(&self, token: &str) -> Option<Session> {
        let holder = self.0.tokens.as_ref()?.find(token)?;
        Some(self.0.sessions.begin(holder))
    }

    /// Ends the session.
    pub fn log_out(&self, session: &Session) {
        self.0.sessions.end(session);
    }

    /// The session of the cookie, while its person still has the token by which it began, with the same role.
    #[must_use]
    pub fn session(&self, id: &str) -> Option<Session> {
        let session = self.0.sessions.find(id)?;
        let is_known = self
            .0
            .tokens
            .as_ref()
            .is_some_and(|tokens| tokens.has(&session.token_hash, &session.name, session.role));
        is_known.then_some(session)
    }

    fn may_change(session: &Session) -> bool {
        session.role == Role::Operator
    }
}
