//! The partitions that this process holds and does not read, as `/readyz` and `/metrics` tell them.

use std::collections::BTreeMap;

use metrics::gauge;
use service::Readiness;

use crate::builder::beginning::Paused;
use crate::builder::claim;

/// The part of `/readyz`.
const PART: &str = "continuity";
/// Of so many partitions the reasons are told; the others are counted.
const TOLD_MAX: usize = 3;
/// Every reason, so that its series goes back to 0.
const REASONS: [&str; 3] = ["beyond_end", "below_beginning", "former_topic"];

/// The partitions that are paused.
pub struct PausedPartitions {
    readiness: Readiness,
    paused: Vec<Paused>,
}

impl PausedPartitions {
    #[must_use]
    pub const fn new(readiness: Readiness) -> Self {
        Self {
            readiness,
            paused: Vec::new(),
        }
    }

    /// Holds these and no others.
    pub fn replace(&mut self, paused: Vec<Paused>) {
        self.paused = paused;
        if self.paused.is_empty() {
            self.readiness.ready(PART);
        } else {
            self.readiness.not_ready(PART, describe(&self.paused));
        }
        let mut counts: BTreeMap<&str, u32> = REASONS.map(|reason| (reason, 0)).into();
        for paused in &self.paused {
            *counts.entry(paused.lost.name()).or_default() += 1;
        }
        for (reason, count) in counts {
            gauge!("view_partitions_paused", "reason" => reason.to_owned()).set(count);
        }
    }

    /// Holds these as well.
    pub fn add(&mut self, paused: Vec<Paused>) {
        let mut all = std::mem::take(&mut self.paused);
        all.extend(paused);
        self.replace(all);
    }

    /// Holds none until the next takeover tells which; `/readyz` says the reasons until then, as most of them last.
    pub fn let_go(&mut self) {
        self.paused.clear();
    }

    #[must_use]
    pub fn all(&self) -> &[Paused] {
        &self.paused
    }

    /// The claims under which they are held.
    pub fn claims(&self) -> impl Iterator<Item = claim::Held> {
        self.paused.iter().map(|paused| claim::Held {
            place: paused.claim.place.clone(),
            epoch: paused.claim.epoch,
        })
    }
}

fn describe(paused: &[Paused]) -> String {
    let reasons = paused.iter().take(TOLD_MAX);
    let reasons: Vec<String> = reasons.map(|paused| paused.lost.advice(&paused.claim.place)).collect();
    let mut told = reasons.join("; ");
    if paused.len() > TOLD_MAX {
        told += &format!("; and {} more: view-builder status", paused.len() - TOLD_MAX);
    }
    told
}

/// Tells what somebody has to know of partitions although they are read: kind and text.
pub fn report_notices(readiness: &Readiness, notices: &[(String, String)]) {
    let mut counts: BTreeMap<&str, u32> = [("made-anew", 0), ("truncated", 0), ("end-lost", 0)].into();
    for (kind, _) in notices {
        *counts.entry(kind).or_default() += 1;
    }
    for (kind, count) in counts {
        gauge!("view_partition_notices", "notice" => kind.to_owned()).set(count);
    }
    if notices.is_empty() {
        readiness.fine(PART);
        return;
    }
    let texts: Vec<&str> = notices.iter().take(TOLD_MAX).map(|(_, text)| text.as_str()).collect();
    let mut told = texts.join("; ");
    if notices.len() > TOLD_MAX {
        told += &format!("; and {} more: view-builder status", notices.len() - TOLD_MAX);
    }
    readiness.warn(PART, told);
}

#[cfg(test)]
mod tests {
    use super::describe;
    use crate::builder::beginning::Paused;
    use crate::builder::claim::Claim;
    use crate::continuity::start::Lost;
    use crate::continuity::topic_ids::TopicIds;
    use crate::contract::place::place;
    use crate::letters::Known;

    fn paused(partition: i32) -> Paused {
        Paused {
            claim: Claim {
                place: place("user-events", partition),
                epoch: 1,
                next_offset: Some(50),
                highest_offset: None,
                group_offset: None,
                ids: TopicIds::default(),
                was_paused: false,
                paused_end: None,
                read: None,
                known: Known::at(1),
            },
            lost: Lost::BeyondEnd { position: 50, end: 40 },
        }
    }

    #[test]
    fn each_reason_names_its_partition_and_what_to_type_and_the_line_stays_short() {
        let one = describe(&[paused(2)]);
        assert!(one.contains("`view-builder accept user-events/2 --from "), "{one}");
        let many: Vec<_> = (0..5).map(paused).collect();
        let many = describe(&many);
        assert!(many.ends_with("; and 2 more: view-builder status"), "{many}");
    }
}
