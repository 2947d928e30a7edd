//! How much WAL the server keeps for the slot, and how much more may be written before the slot is lost.
//!
//! A slot that falls behind fills the server's disk. If `max_slot_wal_keep_size` sets a limit, Postgres invalidates the slot instead, and events are
//! lost. So we measure both, and warn while there is time.

use std::time::{Duration, Instant};

use service::Readiness;

use pg_replication::Lsn;

/// The slot is in danger when less than a tenth of `max_slot_wal_keep_size` is left.
const MARGIN_DIVISOR: i64 = 10;
/// The slot is in danger when less than this is left, in bytes: a server can write so much in seconds. With a small limit, half of the limit counts instead.
const MARGIN_BYTES_MIN: i64 = 64 << 20;

/// What `pg_replication_slots` says about the slot's WAL, see <https://www.postgresql.org/docs/current/view-pg-replication-slots.html>.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    pub confirmed: Lsn,
    /// From `restart_lsn` to the end of the WAL, in bytes.
    pub retained_bytes: i64,
    /// How much more WAL can be written before the slot may be lost, in bytes. `None`: there is no limit.
    pub safe_bytes: Option<i64>,
    /// `max_slot_wal_keep_size` in bytes. -1: there is no limit.
    pub keep_bytes: i64,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: String,
    /// Empty if the slot is valid, and before PostgreSQL 17.
    pub invalidation_reason: String,
}

impl Retention {
    /// Why the slot is in danger. `None`: it is not.
    #[must_use]
    pub fn danger(&self) -> Option<String> {
        match (self.wal_status.as_str(), self.safe_bytes) {
            ("lost", _) => Some(format!(
                "postgres has invalidated the slot ({})",
                self.invalidation_reason
            )),
            ("unreserved", _) => {
                Some("the slot is lost at the server's next checkpoint: wal_status is unreserved".to_owned())
            }
            (_, Some(safe)) if safe < self.margin_bytes() => Some(format!(
                "the slot is lost after {safe} more bytes of WAL: it retains {} of max_slot_wal_keep_size = {} bytes",
                self.retained_bytes, self.keep_bytes
            )),
            _ => None,
        }
    }

    fn margin_bytes(&self) -> i64 {
        (self.keep_bytes / MARGIN_DIVISOR)
            .max(MARGIN_BYTES_MIN)
            .min(self.keep_bytes / 2)
    }
}

/// For how long the slot's confirmed position has stood still although there was WAL to confirm.
#[derive(Clone, Copy, Debug)]
pub struct ConfirmedAge {
    confirmed: Lsn,
    unchanged_since: Instant,
}

impl ConfirmedAge {
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            confirmed: Lsn::INVALID,
            unchanged_since: now,
        }
    }

    /// The age at `now`. It is zero while everything up to `wal_end` is confirmed.
    pub fn measure(&mut self, now: Instant, confirmed: Lsn, wal_end: Lsn) -> Duration {
        if confirmed != self.confirmed || confirmed >= wal_end {
            self.confirmed = confirmed;
            self.unchanged_since = now;
        }
        now - self.unchanged_since
    }
}

/// Shows a [`Retention`] in the metrics and in the part `wal` of readiness.
pub struct RetentionGauges {
    age: ConfirmedAge,
    retained_bytes: metrics::Gauge,
    safe_bytes: metrics::Gauge,
    confirmed_age_seconds: metrics::Gauge,
}

impl RetentionGauges {
    #[must_use]
    pub fn new() -> Self {
        metrics::describe_gauge!(
            "relay_slot_retained_bytes",
            "WAL that the server keeps for the slot, in bytes."
        );
        metrics::describe_gauge!(
            "relay_slot_safe_bytes",
            "WAL that may still be written before the slot may be lost (safe_wal_size), in bytes; NaN where max_slot_wal_keep_size sets no limit."
        );
        metrics::describe_gauge!(
            "relay_confirmed_age_seconds",
            "For how long the slot's confirmed position has stood still although there was WAL to confirm, in seconds."
        );
        Self {
            age: ConfirmedAge::new(Instant::now()),
            retained_bytes: metrics::gauge!("relay_slot_retained_bytes"),
            safe_bytes: metrics::gauge!("relay_slot_safe_bytes"),
            confirmed_age_seconds: metrics::gauge!("relay_confirmed_age_seconds"),
        }
    }

    /// Sets the metrics and the readiness.
    pub fn show(&mut self, retention: &Retention, wal_end: Lsn, readiness: &Readiness) {
        self.retained_bytes.set(retention.retained_bytes as f64);
        self.safe_bytes
            .set(retention.safe_bytes.map_or(f64::NAN, |bytes| bytes as f64));
        let age = self.age.measure(Instant::now(), retention.confirmed, wal_end);
        self.confirmed_age_seconds.set(age.as_secs_f64());
        match retention.danger() {
            Some(danger) => readiness.not_ready("wal", danger),
            None => readiness.ready("wal"),
        }
    }
}

impl Default for RetentionGauges {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{ConfirmedAge, Retention};
    use pg_replication::Lsn;

    const GB: i64 = 1 << 30;

    fn left(safe_bytes: i64, keep_bytes: i64) -> Retention {
        Retention {
            confirmed: Lsn(1),
            retained_bytes: 1,
            safe_bytes: Some(safe_bytes),
            keep_bytes,
            wal_status: "extended".to_owned(),
            invalidation_reason: String::new(),
        }
    }

    #[test]
    fn a_slot_is_in_danger_below_a_tenth_of_the_limit_and_no_less_than_64_mb() {
        assert_eq!(left(2 * GB, 10 * GB).danger(), None);
        assert!(left(GB - 1, 10 * GB).danger().is_some());
        assert!(left(GB / 17, GB / 4).danger().is_some());
        assert_eq!(left(GB / 15, GB / 4).danger(), None);
        assert_eq!(left(600, 1_000).danger(), None, "half of a small limit is enough");
    }

    #[test]
    fn without_a_limit_only_a_slot_that_is_lost_is_in_danger() {
        let unlimited = Retention {
            safe_bytes: None,
            ..left(0, -1)
        };
        assert_eq!(unlimited.danger(), None);
        for status in ["lost", "unreserved"] {
            let wal_status = status.to_owned();
            assert!(
                Retention {
                    wal_status,
                    ..unlimited.clone()
                }
                .danger()
                .is_some(),
                "{status}"
            );
        }
    }

    #[test]
    fn the_confirmed_position_ages_only_while_there_is_something_to_confirm() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut age = ConfirmedAge::new(start);
        assert_eq!(age.measure(after(5), Lsn(10), Lsn(20)), Duration::ZERO);
        assert_eq!(age.measure(after(9), Lsn(10), Lsn(30)), Duration::from_secs(4));
        assert_eq!(age.measure(after(10), Lsn(25), Lsn(30)), Duration::ZERO);
        assert_eq!(age.measure(after(20), Lsn(30), Lsn(30)), Duration::ZERO);
        assert_eq!(age.measure(after(30), Lsn(30), Lsn(30)), Duration::ZERO);
    }
}
