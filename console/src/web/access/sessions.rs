//! Sessions of people who have logged in. They are in memory: a restart ends them all.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::tokens::{Holder, random_text};
use crate::settings::Role;

/// The cookie's name.
pub const COOKIE: &str = "console_session";
/// How long a session lasts.
const SESSION_TIME: Duration = Duration::from_hours(12);
/// Most sessions at once; a new one ends the oldest.
const SESSIONS_MAX: usize = 1_000;

/// A person who has logged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The value of the cookie.
    pub id: String,
    pub name: String,
    pub role: Role,
    /// The hash of the token by which the person has logged in. The session ends with this token.
    pub token_hash: String,
    /// What every form of this session has in its field `csrf`.
    pub csrf: String,
}

/// All sessions.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<HashMap<String, (Instant, Session)>>);

impl Sessions {
    /// Begins a session.
    pub fn begin(&self, holder: Holder) -> Session {
        let session = Session {
            id: random_text(),
            name: holder.name,
            role: holder.role,
            token_hash: holder.token_hash,
            csrf: random_text(),
        };
        let now = Instant::now();
        let mut sessions = self.lock();
        sessions.retain(|_, (begun, _)| now.duration_since(*begun) < SESSION_TIME);
        if sessions.len() >= SESSIONS_MAX
            && let Some(oldest) = sessions
                .iter()
                .min_by_key(|(_, (begun, _))| *begun)
                .map(|(id, _)| id.clone())
        {
            sessions.remove(&oldest);
        }
        sessions.insert(session.id.clone(), (now, session.clone()));
        session
    }

    /// The session of this id, if it has not ended.
    pub fn find(&self, id: &str) -> Option<Session> {
        let sessions = self.lock();
        let (begun, session) = sessions.get(id)?;
        (begun.elapsed() < SESSION_TIME).then(|| session.clone())
    }

    /// Ends a session.
    pub fn end(&self, session: &Session) {
        self.lock().remove(&session.id);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, (Instant, Session)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::{Holder, SESSIONS_MAX, Sessions};
    use crate::settings::Role;

    fn holder(name: &str) -> Holder {
        Holder {
            name: name.to_owned(),
            role: Role::Operator,
            token_hash: String::new(),
        }
    }

    #[test]
    fn a_session_is_found_until_it_ends() {
        let sessions = Sessions::default();
        let session = sessions.begin(holder("kim"));
        assert_ne!(session.id, session.csrf);
        assert_eq!(sessions.find(&session.id).as_ref(), Some(&session));
        assert_eq!(sessions.find(&session.csrf), None);
        sessions.end(&session);
        assert_eq!(sessions.find(&session.id), None);
    }

    #[test]
    fn there_are_never_more_than_the_limit_and_the_oldest_goes_first() {
        let sessions = Sessions::default();
        let oldest = sessions.begin(holder("first"));
        let mut last = oldest.clone();
        for _ in 0..SESSIONS_MAX {
            last = sessions.begin(holder("kim"));
        }
        assert_eq!(sessions.lock().len(), SESSIONS_MAX);
        assert_eq!(sessions.find(&oldest.id), None);
        assert!(sessions.find(&last.id).is_some());
    }
}
