//! Limits the memory that long bodies take at a time, over all requests of the program.
//!
//! A text from the database is in memory several times while it is read, and once more until its client has taken it. A request that will answer with
//! a long text takes room for it first. It gives the room back when the client asks for what comes next. So memory does not depend on how many clients
//! there are, or on how slowly they read. Short bodies need no room and never wait for it.

use std::time::Duration;

use axum::body::{Body, Bytes};
use futures_util::stream;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::Problem;

/// Room is counted in units of this many bytes.
const UNIT_BYTES: usize = 1024;
/// All the room that there is, in units.
const ALL_UNITS: usize = 12 * 1024;
/// Room that is taken while the length of the answer is not known, in units. A post, or a part of a list, needs no more.
const FIRST_UNITS: u32 = 1024;
/// How long a request waits for room before it is answered 503.
const WAIT: Duration = Duration::from_secs(5);
/// A body of at most this many bytes needs no room.
pub const SHORT_BYTES: usize = 16 * 1024;

static ROOM: Semaphore = Semaphore::const_new(ALL_UNITS);

/// Room that a request has taken. It is given back when this is dropped.
#[derive(Debug)]
pub struct Room(Option<SemaphorePermit<'static>>);

impl Room {
    /// Waits for room for a long answer, before it is read.
    ///
    /// # Errors
    /// 503: other requests had all the room for too long.
    pub async fn take() -> Result<Self, Problem> {
        Self::take_units(FIRST_UNITS).await
    }

    /// Waits for room for so many bytes. A short body takes none.
    ///
    /// # Errors
    /// As [`Room::take`].
    pub(crate) async fn take_for(bytes: usize) -> Result<Self, Problem> {
        match u32::try_from(bytes.div_ceil(UNIT_BYTES)) {
            Ok(units) if bytes > SHORT_BYTES => Self::take_units(units).await,
            _ => Ok(Self(None)),
        }
    }

    async fn take_units(units: u32) -> Result<Self, Problem> {
        match timeout(WAIT, ROOM.acquire_many(units)).await {
            Ok(Ok(permit)) => Ok(Self(Some(permit))),
            _ => Err(Problem::unavailable(
                "too many long bodies are on their way at the moment; nothing was changed",
            )),
        }
    }

    /// Gives back all room except what so many bytes need.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        // A short body takes no room.
        let Some(permit) = &mut self.0 else { return };
        let needed = if bytes > SHORT_BYTES {
            bytes.div_ceil(UNIT_BYTES)
        } else {
            0
        };
        let surplus = permit.num_permits().saturating_sub(needed);
        drop(permit.split(surplus));
    }

    /// A body of one text, whose room is given back when the client has taken it.
    pub fn body(mut self, text: String) -> Body {
        self.shrink_to(text.len());
        if text.len() <= SHORT_BYTES {
            return Body::from(text);
        }
        let parts = stream::unfold((Some(Bytes::from(text)), self), |(text, room)| async move {
            Some((Ok::<_, std::convert::Infallible>(text?), (None, room)))
        });
        Body::from_stream(parts)
    }
}
