//! Which part is killed when. The schedule is made from a seed before anything starts, so the same seed gives the same schedule.

use std::fmt;
use std::time::Duration;

use stack::random::Random;

/// A part that can be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Part {
    /// SIGKILL of a relay.
    Relay,
    /// `pg_terminate_backend` of the session that reads the slot.
    Walsender,
    /// SIGKILL of the server and all its backends.
    Postgres,
    /// SIGKILL of the broker.
    Kafka,
}

impl Part {
    pub const ALL: [Self; 4] = [Self::Relay, Self::Walsender, Self::Postgres, Self::Kafka];

    /// The part's name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Walsender => "walsender",
            Self::Postgres => "postgres",
            Self::Kafka => "kafka",
        }
    }

    /// How often this part is killed, compared with the others. A broker takes seconds to come back, so it is killed least. With haste, only the
    /// parts that come back within a second are killed more often. Otherwise nothing would be published any more.
    fn weight(self, haste: u64) -> u64 {
        match self {
            Self::Relay => 7 * haste,
            Self::Walsender => 6 * haste,
            Self::Postgres => 4,
            Self::Kafka => 2,
        }
    }
}

/// One kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kill {
    /// The time since the storm's start. If the part is still down then, it is killed a little after it is up again.
    pub at: Duration,
    pub part: Part,
    /// Which of several relays is killed: this number modulo their count.
    pub victim: usize,
}

/// All kills of a storm, in the order of their times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule(pub Vec<Kill>);

/// Before the first kill, everything runs for so long.
const CALM_MS: u64 = 2_000;
/// The shortest time from a kill to one that comes while the relay still recovers.
const SHORT_GAP_MS_MIN: u64 = 50;
/// The shortest time between any other two kills, without haste.
const LONG_GAP_MS_MIN: u64 = 2_000;
/// [`Kill::victim`] is below this.
const VICTIMS: usize = 64;

impl Schedule {
    /// The kills of `parts` within `duration`. Every part is killed once before any is killed twice. A quarter of the kills follow the kill before
    /// within a second, while the relay still recovers from it. Relays and walsenders are killed `haste` times as often.
    #[must_use]
    pub fn from_seed(seed: u64, duration: Duration, parts: &[Part], haste: u64) -> Self {
        let (haste, mut random) = (haste.max(1), Random::seeded(seed));
        let sum_of_weights = |haste| parts.iter().map(|part| part.weight(haste)).sum::<u64>();
        let (weight_without_haste, weight) = (sum_of_weights(1), sum_of_weights(haste));
        let mut each_once = shuffled(&mut random, parts).into_iter();
        let (mut kills, mut at) = (Vec::new(), Duration::from_millis(CALM_MS));
        while at < duration && !parts.is_empty() {
            let part = each_once
                .next()
                .unwrap_or_else(|| choose_by_weight(&mut random, parts, haste));
            let victim = below(&mut random, VICTIMS);
            kills.push(Kill { at, part, victim });
            let gap_ms = if random.below(4) == 0 {
                SHORT_GAP_MS_MIN + random.below(900)
            } else {
                LONG_GAP_MS_MIN + random.below(4_000)
            };
            at += Duration::from_millis(gap_ms * weight_without_haste / weight);
        }
        Self(kills)
    }

    /// The kills of one part.
    #[must_use]
    pub fn kills_of(&self, part: Part) -> Vec<Kill> {
        self.0.iter().copied().filter(|kill| kill.part == part).collect()
    }
}

/// A random part. A part with twice the weight is chosen twice as often.
fn choose_by_weight(random: &mut Random, parts: &[Part], haste: u64) -> Part {
    let mut left = random.below(parts.iter().map(|part| part.weight(haste)).sum());
    for part in parts {
        if left < part.weight(haste) {
            return *part;
        }
        left -= part.weight(haste);
    }
    parts[0]
}

fn shuffled(random: &mut Random, parts: &[Part]) -> Vec<Part> {
    let mut shuffled = parts.to_vec();
    for last in (1..shuffled.len()).rev() {
        shuffled.swap(last, below(random, last + 1));
    }
    shuffled
}

fn below(random: &mut Random, bound: usize) -> usize {
    usize::try_from(random.below(bound as u64)).unwrap_or(0)
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.0.chunks(8) {
            for kill in line {
                write!(f, "  {:8.3} {:<9}", kill.at.as_secs_f64(), kill.part.name())?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Part, Schedule};

    const TEN_MINUTES: Duration = Duration::from_secs(600);

    fn of_ten_minutes(seed: u64, haste: u64) -> Schedule {
        Schedule::from_seed(seed, TEN_MINUTES, &Part::ALL, haste)
    }

    #[test]
    fn the_same_seed_gives_the_same_schedule_and_another_seed_another_one() {
        let schedule = of_ten_minutes(7, 1);
        assert_eq!(schedule, of_ten_minutes(7, 1));
        assert_ne!(schedule, of_ten_minutes(8, 1));
    }

    #[test]
    fn every_part_is_killed_once_before_any_is_killed_twice_and_all_within_the_storm() {
        let schedule = of_ten_minutes(7, 1);
        for part in Part::ALL {
            assert!(schedule.0[..4].iter().any(|kill| kill.part == part));
        }
        assert!(schedule.0.len() > 120, "{} kills", schedule.0.len());
        assert!(schedule.0.is_sorted_by_key(|kill| kill.at));
        assert!(schedule.0.iter().all(|kill| kill.at < TEN_MINUTES));
    }

    #[test]
    fn haste_multiplies_the_kills_but_not_those_of_brokers() {
        let (schedule, hasty) = (of_ten_minutes(7, 1), of_ten_minutes(7, 5));
        assert!(hasty.0.len() > schedule.0.len() * 3);
        let brokers = |schedule: &Schedule| schedule.kills_of(Part::Kafka).len();
        assert!(brokers(&hasty) < brokers(&schedule) * 2, "brokers need their time");
    }

    #[test]
    fn only_the_parts_that_were_asked_for_are_killed() {
        let schedule = Schedule::from_seed(7, Duration::from_secs(60), &[Part::Walsender], 1);
        assert!(!schedule.0.is_empty() && schedule.0.iter().all(|kill| kill.part == Part::Walsender));
    }
}
