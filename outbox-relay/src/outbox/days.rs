//! Decides which daily partitions of the outbox have to be made, and which are old enough to be removed. Pure.

use pg_replication::Lsn;

/// Seconds of a day. Days are those of UTC.
pub const DAY_S: i64 = 86_400;

/// A partition of the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// The name in SQL, with its schema.
    pub name: String,
    /// Its first second, since 1970. `None`: it has no lower bound, or it is the default partition.
    pub from_s: Option<i64>,
    /// The first second after it, since 1970. `None`: it has no upper bound, or it is the default partition.
    pub to_s: Option<i64>,
    pub is_default: bool,
}

/// A table that was a partition and has to be dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detached {
    /// The name in SQL, with its schema.
    pub name: String,
    /// A position behind the commits of all its rows.
    pub after: Lsn,
}

/// Whether rows of this day since 1970 may be written now. A writer's clock may be ahead by ten minutes.
#[must_use]
pub fn is_current(day: i64, now_s: i64) -> bool {
    (day * DAY_S..(day + 1) * DAY_S).contains(&now_s) || (0..600).contains(&(day * DAY_S - now_s))
}

/// What has to be done with the partitions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Days that need a partition, in days since 1970.
    pub create: Vec<i64>,
    /// Names of the partitions whose rows are all older than the rows that we keep.
    pub detach: Vec<String>,
}

impl Work {
    /// Decides what has to be done at `now_s`, in seconds since 1970.
    #[must_use]
    pub fn plan(partitions: &[Partition], now_s: i64, retain_days: Option<u16>, ahead_days: u16) -> Self {
        let today = now_s.div_euclid(DAY_S);
        let days = if ahead_days == 0 {
            today..today
        } else {
            today..today + i64::from(ahead_days) + 1
        };
        let create = days.filter(|day| {
            let (from_s, to_s) = (day * DAY_S, (day + 1) * DAY_S);
            !partitions
                .iter()
                .filter(|partition| !partition.is_default)
                .any(|partition| partition.overlaps(from_s, to_s))
        });
        let oldest_s = retain_days.map(|days| now_s - i64::from(days) * DAY_S);
        let detach = partitions.iter().filter(|partition| {
            oldest_s
                .zip(partition.to_s)
                .is_some_and(|(oldest_s, to_s)| to_s <= oldest_s)
        });
        Self {
            create: create.collect(),
            detach: detach.map(|partition| partition.name.clone()).collect(),
        }
    }
}

impl Partition {
    fn overlaps(&self, from_s: i64, to_s: i64) -> bool {
        self.from_s.is_none_or(|own_from_s| own_from_s < to_s) && self.to_s.is_none_or(|own_to_s| own_to_s > from_s)
    }
}

/// The tables of `detached` that can be dropped: the slot has sent all of their rows.
#[must_use]
pub fn droppable(detached: &[Detached], confirmed: Option<Lsn>) -> Vec<&Detached> {
    detached
        .iter()
        .filter(|table| confirmed.is_some_and(|confirmed| confirmed >= table.after))
        .collect()
}

/// Year, month and day of a day since 1970, in the Gregorian calendar (Howard Hinnant's `civil_from_days`).
#[must_use]
pub fn date_of_day(day: i64) -> (i64, i64, i64) {
    let shifted = day + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted_month + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::{DAY_S, Detached, Partition, Work, date_of_day, droppable, is_current};
    use pg_replication::Lsn;

    fn day(day: i64) -> Partition {
        Partition {
            name: format!("day{day}"),
            from_s: Some(day * DAY_S),
            to_s: Some((day + 1) * DAY_S),
            is_default: false,
        }
    }

    fn default() -> Partition {
        Partition {
            name: "default".to_owned(),
            from_s: None,
            to_s: None,
            is_default: true,
        }
    }

    #[test]
    fn days_without_a_partition_get_one_and_the_default_is_none() {
        let partitions = [default(), day(100), day(102)];
        let work = Work::plan(&partitions, 100 * DAY_S + 5, Some(7), 3);
        assert_eq!(work.create, [101, 103]);
        assert_eq!(work.detach, Vec::<String>::new());
        assert_eq!(Work::plan(&partitions, 100 * DAY_S, None, 0).create, Vec::<i64>::new());
    }

    #[test]
    fn a_day_goes_when_its_last_moment_is_older_than_wanted_and_not_a_second_before() {
        let partitions = [default(), day(92), day(93), day(99), day(100)];
        let at = |now_s| Work::plan(&partitions, now_s, Some(7), 0).detach;
        assert_eq!(at(100 * DAY_S - 1), Vec::<String>::new());
        assert_eq!(at(100 * DAY_S), ["day92"]);
        assert_eq!(at(101 * DAY_S), ["day92", "day93"]);
        assert_eq!(
            Work::plan(&partitions, 500 * DAY_S, None, 0).detach,
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_partition_without_a_lower_bound_covers_its_days_and_goes_like_the_others() {
        let before = Partition {
            from_s: None,
            ..day(100)
        };
        let partitions = [before];
        assert_eq!(Work::plan(&partitions, 100 * DAY_S, Some(7), 1).create, [101]);
        assert_eq!(Work::plan(&partitions, 108 * DAY_S, Some(7), 0).detach, ["day100"]);
    }

    #[test]
    fn nothing_is_dropped_before_its_last_commit_is_confirmed() {
        let detached = [Detached {
            name: "old".to_owned(),
            after: Lsn(10),
        }];
        assert_eq!(droppable(&detached, None), Vec::<&Detached>::new());
        assert_eq!(droppable(&detached, Some(Lsn(9))), Vec::<&Detached>::new());
        assert_eq!(droppable(&detached, Some(Lsn(10))).len(), 1);
    }

    #[test]
    fn today_is_current_and_tomorrow_only_shortly_before_it_begins() {
        assert!(is_current(10, 10 * DAY_S) && is_current(10, 11 * DAY_S - 1));
        assert!(!is_current(11, 10 * DAY_S) && is_current(11, 11 * DAY_S - 599));
        assert!(!is_current(9, 10 * DAY_S));
    }

    #[test]
    fn days_have_the_calendars_names() {
        assert_eq!(date_of_day(0), (1970, 1, 1));
        assert_eq!(date_of_day(11_016), (2000, 2, 29));
        assert_eq!(date_of_day(20_781), (2026, 11, 24));
    }
}
