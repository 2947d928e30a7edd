//! This machine's clock. It measures and informs; nothing is ordered by it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Microseconds since 1970-01-01 UTC; 0 where the clock is set to an earlier time.
#[must_use]
pub fn now_us() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        // 63 bits hold the microseconds of 292,000 years.
        .map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}
