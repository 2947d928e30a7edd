//! Finds out which events a paused view lacks, and whether its topics still have them. Pure.

use crate::continuity::offsets::{Bounds, Untold, gone};
use crate::continuity::topic_ids::{Topic, TopicIds};

/// The state of one partition of a paused view's topics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pause {
    /// The live position. `None`: nothing was applied yet.
    pub(super) live: Option<i64>,
    /// The highest live position that the partition has ever had.
    pub(super) reached: Option<i64>,
    /// The ids of the topics that the live position was of.
    pub(super) ids: TopicIds,
    /// The pause position: the paused view has every event before it. `None`: it has no event of the partition.
    pub(super) paused: Option<i64>,
    /// The view lacks events of a topic that was replaced.
    pub(super) lacks: bool,
}

impl Pause {
    /// Whether events were applied to the other views that this one lacks. A builder that begins a topic that was made anew decides it in the same
    /// way.
    fn has_missed_any(&self) -> bool {
        self.paused != self.reached
    }
}

/// Why it is not known now whether the topic still has the events that the view lacks. `None`: it is known.
pub(super) fn why_unknown(pause: &Pause, bounds: Result<&Bounds, Untold>) -> Option<String> {
    if pause.lacks || !pause.has_missed_any() {
        return None;
    }
    match bounds {
        Err(Untold::NoPartition { .. }) => None,
        Err(untold) => Some(untold.to_string()),
        Ok(bounds) => (pause.ids.compare(bounds.topic_id.as_deref()) == Topic::Former)
            .then(|| "is told to be of a topic that another one has replaced: a broker lags behind".to_owned()),
    }
}

/// Why the topic does not have the events that the view lacks. `None`: it has them all.
pub(super) fn why_lost(pause: &Pause, bounds: Result<&Bounds, Untold>) -> Option<String> {
    if pause.lacks {
        return Some("was made anew, and the view lacks events of the topic of before".to_owned());
    }
    let bounds = match bounds {
        Ok(bounds) => bounds,
        Err(Untold::NoPartition { partitions }) if pause.has_missed_any() => {
            return Some(format!("is {}, and the view lacks events of it", gone(partitions)));
        }
        // The view has every event of the partition.
        Err(_) => return None,
    };
    if pause.ids.compare(bounds.topic_id.as_deref()) == Topic::MadeAnew {
        // If the view has every event of the former topic, a builder reads the new topic from its beginning for this view as well.
        return pause
            .has_missed_any()
            .then(|| "was made anew, and the view lacks events of the topic of before".to_owned());
    }
    // Without a pause position the view has no event of the partition, so it needs all of them.
    let from = pause.paused.unwrap_or(0);
    let live = pause.live?;
    if live <= from {
        return None;
    }
    let Bounds { beginning, end, .. } = *bounds;
    if end < from {
        return Some(format!(
            "ends at {end}, and the view has events up to {from}: it was made anew"
        ));
    }
    (beginning > from).then(|| {
        format!("begins at {beginning}, and the view has events up to {from}: those between have been removed")
    })
}

#[cfg(test)]
mod tests {
    use super::{Pause, why_lost, why_unknown};
    use crate::continuity::offsets::{Bounds, Untold};
    use crate::continuity::topic_ids::TopicIds;

    fn bounds(beginning: i64, end: i64) -> Bounds {
        of_topic("b", beginning, end)
    }

    fn of_topic(id: &str, beginning: i64, end: i64) -> Bounds {
        Bounds {
            beginning,
            end,
            group: None,
            epoch: None,
            topic_id: Some(id.to_owned()),
        }
    }

    fn pause(live: Option<i64>, paused: Option<i64>) -> Pause {
        let ids = TopicIds {
            now: Some("b".to_owned()),
            former: vec!["a".to_owned()],
        };
        Pause {
            live,
            reached: live,
            paused,
            lacks: false,
            ids,
        }
    }

    #[test]
    fn what_the_view_lacks_must_be_in_the_topic() {
        let pause = pause(Some(50), Some(20));
        assert_eq!(why_lost(&pause, Ok(&bounds(20, 60))), None);
        assert!(why_lost(&pause, Ok(&bounds(21, 60))).is_some_and(|reason| reason.contains("begins at 21")));
        assert!(why_lost(&pause, Ok(&bounds(0, 19))).is_some_and(|reason| reason.contains("ends at 19")));
        let lacking = Pause { lacks: true, ..pause };
        assert!(why_lost(&lacking, Ok(&bounds(0, 60))).is_some_and(|reason| reason.contains("made anew")));
    }

    #[test]
    fn a_partition_that_has_not_moved_lacks_nothing() {
        for live in [None, Some(20), Some(3)] {
            assert_eq!(why_lost(&pause(live, Some(20)), Ok(&bounds(40, 60))), None, "{live:?}");
        }
    }

    #[test]
    fn a_view_that_has_nothing_of_a_partition_needs_it_from_its_beginning() {
        let pause = pause(Some(5), None);
        assert_eq!(why_lost(&pause, Ok(&bounds(0, 9))), None);
        assert!(why_lost(&pause, Ok(&bounds(1, 9))).is_some());
    }

    #[test]
    fn a_topic_that_was_made_anew_cannot_give_what_the_view_lacks_of_the_former_one() {
        let anew = of_topic("c", 0, 60);
        let moved = pause(Some(50), Some(20));
        assert!(why_lost(&moved, Ok(&anew)).is_some_and(|reason| reason.contains("made anew")));
        assert_eq!(why_lost(&pause(Some(20), Some(20)), Ok(&anew)), None);
        // A replay was under way when the view was paused: it lacks nothing, which nobody can tell.
        let set_back = Pause {
            reached: Some(30),
            ..pause(Some(20), Some(20))
        };
        assert!(why_lost(&set_back, Ok(&anew)).is_some());
        assert!(why_unknown(&moved, Ok(&of_topic("a", 0, 60))).is_some());
    }

    #[test]
    fn a_partition_that_is_gone_or_has_no_leader_matters_only_to_a_view_that_lacks_events_of_it() {
        let (moved, unmoved) = (pause(Some(50), Some(20)), pause(Some(20), Some(20)));
        let gone = Err(Untold::NoPartition { partitions: 4 });
        assert!(why_lost(&moved, gone).is_some_and(|reason| reason.contains("the topic has 4 partitions now")));
        assert_eq!((why_lost(&unmoved, gone), why_unknown(&moved, gone)), (None, None));
        let no_leader = Err(Untold::NoLeader);
        assert!(why_unknown(&moved, no_leader).is_some_and(|reason| reason.contains("no leader")));
        assert_eq!(
            (why_lost(&unmoved, no_leader), why_unknown(&unmoved, no_leader)),
            (None, None)
        );
    }
}
