//! How far each partition's view is behind its topic, for `/metrics`: in events, and in seconds.
//!
//! The seconds are the age of the oldest event that is in the topic and not in the view, counted from its commit at the source. They are 0 if there
//! is no such event. A partition has a series only while this process holds it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use service::exporter;

use crate::contract::place::TopicPartition;
use crate::contract::position::Position;
use crate::kafka::End;

/// One for the process, like the recorder of its metrics.
static LAGS: Mutex<Lags> = Mutex::new(Lags(BTreeMap::new()));

/// How far a partition is behind.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Lag {
    /// Offsets between the position and the topic's end. Transaction markers count too, as long as events are still to come.
    events: i64,
    seconds: f64,
    /// Since when it is known that there are events that were not read, microseconds since 1970.
    unread_since_us: Option<i64>,
}

#[derive(Debug, Default)]
struct Lags(BTreeMap<TopicPartition, Lag>);

impl Lags {
    /// Holds these partitions and no others.
    fn observe<'a>(&mut self, now_us: i64, held: impl Iterator<Item = (Position<'a>, End)>) {
        let former = std::mem::take(&mut self.0);
        self.0.extend(held.map(|(position, end)| {
            let unread_since_us = former.get(position.place).and_then(|lag| lag.unread_since_us);
            (position.place.clone(), Lag::new(position, end, unread_since_us, now_us))
        }));
    }

    fn render(&self) -> String {
        let labels = |place: &TopicPartition| format!(r#"topic="{}",partition="{}""#, place.topic, place.partition);
        #[expect(clippy::cast_precision_loss, reason = "a lag is far below 2^52")]
        let events = self.0.iter().map(|(place, lag)| (labels(place), lag.events as f64));
        let seconds = self.0.iter().map(|(place, lag)| (labels(place), lag.seconds));
        exporter::gauge(
            "view_partition_lag_events",
            "offsets between the view's position and the topic's end, by topic and partition that this process holds",
            events,
        ) + &exporter::gauge(
            "view_partition_lag_seconds",
            "age of the oldest event that is in the topic and not in the view, in seconds; 0 where there is none",
            seconds,
        )
    }
}

impl Lag {
    fn new(position: Position<'_>, end: End, unread_since_us: Option<i64>, now_us: i64) -> Self {
        let events = (end.end - end.applied_up_to(&position)).max(0);
        // The age of an event that was not read yet is not known. It is at least the time since the event is known to be there. Usually that is a
        // moment. It is longer if Kafka goes away before the event is read.
        let is_unread = events > 0 && position.settled && position.oldest_us.is_none();
        let unread_since_us = is_unread.then(|| unread_since_us.unwrap_or(now_us));
        let oldest_us = position.oldest_us.or(unread_since_us);
        #[expect(clippy::cast_precision_loss, reason = "exact up to 285 years")]
        let seconds = oldest_us.map_or(0.0, |oldest_us| (now_us - oldest_us).max(0) as f64 / 1e6);
        Self {
            events,
            seconds,
            unread_since_us,
        }
    }
}

/// Notes how far the partitions are behind that this process holds now. All others are forgotten.
pub fn observe<'a>(now_us: i64, held: impl Iterator<Item = (Position<'a>, End)>) {
    lags().observe(now_us, held);
}

/// Forgets all partitions, since this process holds none any more.
pub fn forget() {
    lags().0.clear();
}

/// The gauges `view_partition_lag_events` and `view_partition_lag_seconds` in Prometheus' text format.
#[must_use]
pub fn render() -> String {
    lags().render()
}

fn lags() -> MutexGuard<'static, Lags> {
    LAGS.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::Lags;
    use crate::contract::place::TopicPartition;
    use crate::contract::position::Position;
    use crate::kafka::End;

    const SECOND_US: i64 = 1_000_000;
    const END: End = End { end: 20, reached: true };

    fn place() -> TopicPartition {
        TopicPartition {
            topic: "user-events".into(),
            partition: 3,
        }
    }

    fn position(place: &TopicPartition, next_offset: i64, settled: bool, oldest_us: Option<i64>) -> Position<'_> {
        Position {
            place,
            epoch: 1,
            next_offset,
            settled,
            oldest_us,
        }
    }

    /// Events and seconds behind, as of second `now`.
    fn observe_one(lags: &mut Lags, now: i64, position: Position<'_>, end: End) -> (i64, f64) {
        lags.observe(now * SECOND_US, std::iter::once((position, end)));
        let lag = lags.0[position.place];
        (lag.events, lag.seconds)
    }

    #[test]
    fn the_age_of_what_is_not_applied_grows_until_it_is() {
        let (mut lags, place) = (Lags::default(), place());
        let waiting = position(&place, 10, false, Some(97 * SECOND_US));
        assert_eq!(observe_one(&mut lags, 100, waiting, END), (10, 3.0));
        assert_eq!(observe_one(&mut lags, 160, waiting, END), (10, 63.0));
        assert_eq!(
            observe_one(&mut lags, 161, position(&place, 19, true, None), END),
            (0, 0.0)
        );
    }

    #[test]
    fn transaction_markers_at_the_end_are_no_lag_at_any_time() {
        let (mut lags, place) = (Lags::default(), place());
        for now in [100, 200] {
            assert_eq!(
                observe_one(&mut lags, now, position(&place, 19, true, None), END),
                (0, 0.0)
            );
        }
    }

    #[test]
    fn what_is_not_even_read_is_as_old_as_it_is_known() {
        let (mut lags, place) = (Lags::default(), place());
        let unread = End { reached: false, ..END };
        assert_eq!(
            observe_one(&mut lags, 100, position(&place, 10, true, None), unread),
            (10, 0.0)
        );
        assert_eq!(
            observe_one(&mut lags, 105, position(&place, 10, true, None), unread),
            (10, 5.0)
        );
        let read = position(&place, 10, false, Some(SECOND_US));
        assert_eq!(observe_one(&mut lags, 106, read, unread), (10, 105.0));
        assert_eq!(
            observe_one(&mut lags, 107, position(&place, 12, true, None), unread),
            (8, 0.0)
        );
    }

    #[test]
    fn a_clock_that_is_behind_the_sources_makes_no_negative_age() {
        let (mut lags, place) = (Lags::default(), place());
        let future = position(&place, 10, false, Some(200 * SECOND_US));
        assert_eq!(observe_one(&mut lags, 100, future, END), (10, 0.0));
    }

    #[test]
    fn a_partition_that_is_not_held_has_no_series() {
        let (mut lags, place) = (Lags::default(), place());
        observe_one(&mut lags, 100, position(&place, 19, false, Some(99 * SECOND_US)), END);
        let text = lags.render();
        let line = r#"view_partition_lag_seconds{topic="user-events",partition="3"} 1"#;
        assert!(text.lines().any(|found| found == line), "{text}");
        lags.observe(101 * SECOND_US, std::iter::empty());
        assert_eq!(lags.render(), "");
    }
}
