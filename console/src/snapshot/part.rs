//! A part of the pipeline: what it said last, and whether it answers.

use time::OffsetDateTime;

/// What a part said last.
#[derive(Clone, Debug)]
pub struct Part<T> {
    /// As people call it, such as `relay users`.
    pub name: String,
    /// `None`: it has said nothing yet.
    pub value: Option<T>,
    /// When it said that.
    pub read_at: Option<OffsetDateTime>,
    /// `None`: it answers, or nobody has asked yet.
    pub away: Option<Away>,
}

/// A part that does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Away {
    /// When it first did not answer.
    pub since: OffsetDateTime,
    /// In one line, without secrets.
    pub why: String,
}

impl<T> Part<T> {
    #[must_use]
    pub fn new(name: String) -> Self {
        Self {
            name,
            value: None,
            read_at: None,
            away: None,
        }
    }

    /// Takes the answer to the newest question. A part that does not answer keeps what it said last.
    pub fn take(&mut self, answer: Result<T, String>) {
        let now = OffsetDateTime::now_utc();
        match answer {
            Ok(value) => {
                self.value = Some(value);
                self.read_at = Some(now);
                self.away = None;
            }
            Err(why) => {
                let since = self.away.as_ref().map_or(now, |away| away.since);
                self.away = Some(Away { since, why });
            }
        }
    }

    /// What it says now. `None` while it is away.
    #[must_use]
    pub fn fresh(&self) -> Option<&T> {
        self.value.as_ref().filter(|_| self.away.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::Part;

    #[test]
    fn a_part_that_is_away_keeps_its_last_figures_and_since_when_it_is_away() {
        let mut part = Part::new("Kafka".to_owned());
        part.take(Ok(1));
        let read_at = part.read_at;
        part.take(Err("refused".to_owned()));
        let since = part.away.clone().unwrap().since;
        part.take(Err("silent".to_owned()));
        let away = part.away.clone().unwrap();
        assert_eq!((away.since, away.why.as_str()), (since, "silent"));
        assert_eq!((part.value, part.read_at, part.fresh()), (Some(1), read_at, None));
        part.take(Ok(2));
        assert_eq!((part.fresh(), &part.away), (Some(&2), &None));
    }
}
