//! How much of long answers the program holds at a time, over all its requests.
//!
//! A text that the database made is in memory several times while it is read, and then until its client has taken it. Whoever wants to answer with a
//! long one takes room for it first, and gives it back when the client asks for what comes next. So memory does not depend on how many
//! clients there are, nor on how slowly they read; short answers need no room and are never held up.

use std::time::Duration;

use axum::body::{Body, Bytes};
use futures_util::stream;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::Problem;

/// What room is counted in, in bytes.
const UNIT: usize = 1024;
/// All room, in units.
const ALL: usize = 12 * 1024;
/// What is taken before it is known how long the answer is: as much as a post, or a part of a list, may have.
const FIRST: u32 = 1024;
/// How long room is waited for before the request is answered 503.
const WAIT: Duration = Duration::from_secs(5);
/// What has up to so many bytes needs none.
pub const SHORT_BYTES: usize = 16 * 1024;

static ROOM: Semaphore = Semaphore::const_new(ALL);

/// Room that is taken. Given back when dropped.
#[derive(Debug)]
pub struct Room(Option<SemaphorePermit<'static>>);

impl Room {
    /// Waits for room for a long answer, before it is read.
    ///
    /// # Errors
    /// 503: others have it all, and do not give it back.
    pub async fn take() -> Result<Self, Problem> {
        Self::take_units(FIRST).await
    }

    /// Waits for room for `bytes`, which nothing is taken for where they are few.
    ///
    /// # Errors
    /// As [`Room::take`].
    pub(crate) async fn take_for(bytes: usize) -> Result<Self, Problem> {
        match u32::try_from(bytes.div_ceil(UNIT)) {
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

    /// Keeps only what so many bytes need.
    pub(crate) fn keep(&mut self, bytes: usize) {
        // A short body takes no room.
        let Some(permit) = &mut self.0 else { return };
        let needed = if bytes > SHORT_BYTES { bytes.div_ceil(UNIT) } else { 0 };
        let more = permit.num_permits().saturating_sub(needed);
        drop(permit.split(more));
    }

    /// A body of one text, whose room is given back when the client has taken it.
    pub fn body(mut self, text: String) -> Body {
        self.keep(text.len());
        if text.len() <= SHORT_BYTES {
            return Body::from(text);
        }
        let parts = stream::unfold((Some(Bytes::from(text)), self), |(text, room)| async move {
            Some((Ok::<_, std::convert::Infallible>(text?), (None, room)))
        });
        Body::from_stream(parts)
    }
}
