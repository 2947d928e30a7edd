//! Which running server a session is with.
//!
//! A name or an address does not say which server this is. DNS, a proxy or a load balancer may lead one session to a primary and the next one to its
//! copy, its promoted standby or a restored backup. All of these have the same system identifier, perhaps the same timeline, and a slot of the same
//! name. A check on one of them says nothing about what another one streams.
//!
//! So the first session of a cycle asks which server it is with. Each further session must be with that server, or it is refused ([`MovedAway`]).

/// One run of a server. After a restart it is another instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerInstance {
    /// When the server's postmaster started: seconds since 1970, with microseconds. No two servers start in the same microsecond.
    pub(in crate::session) started_at: String,
}

/// The address that led to one server leads to another one now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the address leads to another server (started at {found}) than the one that the relay began with (started at {expected}); the relay begins again and checks the server that it finds then"
)]
pub struct MovedAway {
    pub(in crate::session) expected: String,
    pub(in crate::session) found: String,
}

impl MovedAway {
    /// Whether it is the cause of `err`.
    #[must_use]
    pub fn is_cause_of(err: &anyhow::Error) -> bool {
        err.chain().any(|cause| cause.is::<Self>())
    }
}

impl ServerInstance {
    /// When its postmaster started, in microseconds since 1970.
    #[must_use]
    pub fn started_us(&self) -> Option<i64> {
        let (seconds, micros) = self.started_at.split_once('.').unwrap_or((&self.started_at, ""));
        let micros = format!("{micros:0<6}");
        Some(seconds.parse::<i64>().ok()? * 1_000_000 + micros.get(..6)?.parse::<i64>().ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::ServerInstance;

    #[test]
    fn a_start_is_read_to_the_microsecond() {
        let started_us = |text: &str| {
            let started_at = text.to_owned();
            ServerInstance { started_at }.started_us()
        };
        assert_eq!(started_us("1795344833.217210"), Some(1_795_344_833_217_210));
        assert_eq!(started_us("1795344833.2"), Some(1_795_344_833_200_000));
        assert_eq!(started_us("1795344833"), Some(1_795_344_833_000_000));
        assert_eq!(started_us("x"), None);
    }
}
