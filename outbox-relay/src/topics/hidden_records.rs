//! Measures for how long an open Kafka transaction has hidden the records after it from the readers of a topic.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::kafka::Ends;

/// Records that are hidden for so long are logged. The relay's own transactions last at most a second.
const LOG_AFTER: Duration = Duration::from_secs(60);
/// How often the log line comes again.
const LOG_AGAIN_AFTER: Duration = Duration::from_secs(600);

/// The partitions that have hidden records.
#[derive(Debug, Default)]
pub struct HiddenRecords(BTreeMap<(String, i32), Hidden>);

/// A partition of which readers cannot read the end.
#[derive(Clone, Debug)]
struct Hidden {
    /// The offset of the first record that is hidden.
    from: i64,
    since: Instant,
    logged_at: Option<Instant>,
}

/// The partition whose records are hidden for the longest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Longest {
    pub topic: String,
    pub partition: i32,
    pub from: i64,
    pub lasted: Duration,
}

impl HiddenRecords {
    /// Notes the partitions' ends. A partition that is not in `ends` stays as it was.
    pub fn note(&mut self, ends: Vec<Ends>, now: Instant) {
        for Ends {
            topic,
            partition,
            stable,
            all,
        } in ends
        {
            let topic_partition = (topic, partition);
            if stable >= all {
                self.0.remove(&topic_partition);
                continue;
            }
            let hidden = self.0.entry(topic_partition).or_insert(Hidden {
                from: stable,
                since: now,
                logged_at: None,
            });
            // The earlier transaction has ended. Now another one hides records.
            if hidden.from != stable {
                *hidden = Hidden {
                    from: stable,
                    since: now,
                    logged_at: None,
                };
            }
        }
    }

    /// The partition whose records are hidden for the longest. `None`: no records are hidden.
    #[must_use]
    pub fn longest(&self, now: Instant) -> Option<Longest> {
        let ((topic, partition), hidden) = self.0.iter().min_by_key(|(_, hidden)| hidden.since)?;
        Some(Longest {
            topic: topic.clone(),
            partition: *partition,
            from: hidden.from,
            lasted: now.saturating_duration_since(hidden.since),
        })
    }

    /// For how long records of the topic have been hidden. Zero if none are.
    #[must_use]
    pub fn lasted(&self, topic: &str, now: Instant) -> Duration {
        let of_topic = self.0.iter().filter(|((name, _), _)| name == topic);
        let since = of_topic.map(|(_, hidden)| hidden.since).min();
        since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Logs each partition whose records are hidden for a minute, and again every ten.
    pub fn log_news(&mut self, now: Instant) {
        for ((topic, partition), hidden) in &mut self.0 {
            let is_due = match hidden.logged_at {
                None => now >= hidden.since + LOG_AFTER,
                Some(logged_at) => now >= logged_at + LOG_AGAIN_AFTER,
            };
            if is_due {
                hidden.logged_at = Some(now);
                tracing::warn!(
                    topic,
                    partition,
                    offset = hidden.from,
                    seconds = now.saturating_duration_since(hidden.since).as_secs(),
                    "an open transaction hides what lies behind it from every reader of what is committed; where it stays, kafka has lost its end: abort nothing while a relay runs, docs/exit-codes.md, code 36, says what to do"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::HiddenRecords;
    use crate::kafka::Ends;

    fn ends(partition: i32, stable: i64, all: i64) -> Vec<Ends> {
        vec![Ends {
            topic: "t".to_owned(),
            partition,
            stable,
            all,
        }]
    }

    #[test]
    fn records_are_hidden_for_as_long_as_their_readers_end_stands_still() {
        let (mut hidden, began) = (HiddenRecords::default(), Instant::now());
        let at = |seconds| began + Duration::from_secs(seconds);
        hidden.note(ends(0, 10, 10), at(0));
        assert_eq!(hidden.longest(at(0)), None);
        hidden.note(ends(0, 10, 12), at(5));
        hidden.note(ends(0, 10, 90), at(20));
        let longest = hidden.longest(at(20)).unwrap();
        assert_eq!((longest.from, longest.lasted.as_secs()), (10, 15));
        assert_eq!(hidden.lasted("t", at(20)).as_secs(), 15);
        assert_eq!(hidden.lasted("another", at(20)), Duration::ZERO);
    }

    #[test]
    fn a_transaction_that_follows_one_that_ended_is_another() {
        let (mut hidden, began) = (HiddenRecords::default(), Instant::now());
        let at = |seconds| began + Duration::from_secs(seconds);
        hidden.note(ends(0, 10, 12), at(0));
        hidden.note(ends(0, 13, 20), at(15));
        assert_eq!(hidden.longest(at(15)).unwrap().lasted, Duration::ZERO);
        hidden.note(ends(1, 3, 4), at(20));
        assert_eq!(hidden.longest(at(30)).unwrap().partition, 0);
        hidden.note(ends(0, 20, 20), at(30));
        assert_eq!(hidden.longest(at(30)).unwrap().partition, 1);
    }
}
