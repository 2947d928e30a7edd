//! The hunt for what Postgres refuses: a batch that fails is halved until a single event is left, and everything before it and beside it is
//! applied. Then it is found out who is at fault, see [`super::verdict`]: the event goes to the dead letters, or its view is paused, or it
//! is tried again, which is told.

use std::collections::HashSet;
use std::time::Instant;

use super::ages;
use super::rehearsal::{has_room, rehearse};
use super::tries::pause_again;
use super::verdict::{Facts, FAILURES_IN_A_ROW_MAX, Verdict, who_is_at_fault};
use super::{Applied, Ended, Failed, GivenUp, Stumble};
use crate::contract::batch::RefusedEvent;
use crate::contract::batch::{Batch, Part};
use crate::postgres::refusal::{self, Kind};
use crate::views::database::Database;
use crate::views::pauses::Cause;
use crate::views::view::View;

/// Most other events that a suspect one is compared with: with itself they are enough to pause the view.
const COMPARED_MAX: usize = 9;
const _: () = assert!(COMPARED_MAX + 1 == FAILURES_IN_A_ROW_MAX as usize);

/// A batch that has failed.
struct Hunt {
    batch: Batch,
    /// Views of which a part of the batch was applied.
    worked: HashSet<String>,
    /// Since when the event at hand fails, and how often it was looked at.
    at_hand: Option<(Instant, u32)>,
}

/// What the other events of a view say.
#[derive(Default)]
struct Comparison {
    works: bool,
    failed: u32,
}

impl Database {
    /// Applies the batch; waits for as long as Postgres is away, and for as long as it refuses what is nobody's fault.
    pub async fn apply(&mut self, batch: Batch) -> Applied {
        let mut applied = Applied::default();
        let mut hunt: Option<Hunt> = None;
        let mut waiting = vec![batch];
        while let Some(mut batch) = waiting.pop() {
            batch
                .parts
                .retain(|part| !applied.refused.iter().any(|refused| refused.place == part.place));
            if batch.parts.is_empty() {
                continue;
            }
            match self.transact(&batch, hunt.is_some()).await {
                Ended::Committed => {
                    ages::applied(&batch);
                    self.worked(&batch, hunt.as_mut());
                    let reached = batch.parts.into_iter().map(|part| (part.place, part.to));
                    applied.reached.extend(reached);
                }
                Ended::GivenUp(why) => {
                    applied.given_up = Some(why);
                    break;
                }
                Ended::Failed(failed) => {
                    let hunt = hunt.get_or_insert_with(|| Hunt {
                        batch: batch.clone(),
                        worked: HashSet::new(),
                        at_hand: None,
                    });
                    if !matches!(failed.kind, Kind::Refused | Kind::Ambiguous) {
                        self.stuck(&failed.state, &failed.reason).await;
                    }
                    match batch.split() {
                        Ok((first, second)) => waiting.extend([second, first]),
                        Err(single) => match self.judge(&single, &failed, hunt).await {
                            Verdict::Event => {
                                hunt.at_hand = None;
                                applied.refused.extend(refused(single, &failed));
                            }
                            Verdict::View => {
                                self.pause_for(&failed).await;
                                applied.given_up = Some(GivenUp::Fenced);
                                break;
                            }
                            Verdict::Again => {
                                self.stuck(&failed.state, &failed.reason).await;
                                let times = hunt.looks_again();
                                tokio::time::sleep(pause_again(times)).await;
                                waiting.push(single);
                            }
                        },
                    }
                }
            }
        }
        if hunt.is_some() {
            self.unstuck().await;
        }
        applied
    }

    /// Takes note that the batch was applied: its views work.
    fn worked(&mut self, batch: &Batch, hunt: Option<&mut Hunt>) {
        if hunt.is_none() && self.refused_in_a_row.is_empty() {
            return;
        }
        let views = self.views.iter().filter(|view| reads(view, batch));
        let views: Vec<String> = views.map(|view| view.name.clone()).collect();
        for view in &views {
            self.refused_in_a_row.remove(view);
        }
        if let Some(hunt) = hunt {
            hunt.worked.extend(views);
            hunt.at_hand = None;
        }
    }

    /// Who is at fault where this batch of one event fails.
    async fn judge(&mut self, single: &Batch, failed: &Failed, hunt: &mut Hunt) -> Verdict {
        let since = hunt.at_hand.get_or_insert_with(|| (Instant::now(), 0)).0;
        let mut facts = Facts {
            kind: failed.kind,
            fails_in_a_view: failed.view.is_some(),
            fails_without_events: false,
            another_works: false,
            another_fails: false,
            failures_in_a_row: 1,
            failing_for: since.elapsed(),
            rest_works: false,
        };
        if failed.kind != Kind::Refused
            && single.event_count() > 0
            && self.gather(&mut facts, single, failed, hunt).await.is_err()
        {
            // The connection is lost: nothing is known.
            return Verdict::Again;
        }
        let verdict = who_is_at_fault(facts);
        if let (Verdict::Event, Some(view)) = (verdict, &failed.view)
            && failed.kind != Kind::Refused
        {
            *self.refused_in_a_row.entry(view.clone()).or_default() += 1;
        }
        verdict
    }

    /// Tries out, with transactions that are rolled back, what works and what does not.
    async fn gather(&mut self, facts: &mut Facts, single: &Batch, failed: &Failed, hunt: &Hunt) -> Result<(), Stumble> {
        self.session().await;
        let (views, contracts) = (self.views.clone(), self.contracts.clone());
        let in_a_row = failed.view.as_ref().and_then(|view| self.refused_in_a_row.get(view));
        // This one, and those before it.
        facts.failures_in_a_row = 1 + in_a_row.copied().unwrap_or(0);
        let session = self.session().await;
        let its_view = views.iter().position(|view| Some(&view.name) == failed.view.as_ref());
        let is_its = |at: usize| its_view.is_none_or(|view| view == at);
        let nothing = Batch::default();
        let same = |failing: Option<String>| failing.as_ref() == Some(&failed.state);
        facts.fails_without_events = same(failing(rehearse(session, &views, &contracts, &nothing, is_its).await)?);
        let mut comparison = Comparison::default();
        if let Some(view) = its_view.and_then(|at| views.get(at)) {
            comparison.works = hunt.worked.contains(&view.name) && matches!(failed.kind, Kind::Ambiguous);
        }
        let key = single
            .parts
            .first()
            .and_then(|part| part.events.first())
            .map(|event| event.key);
        for other in hunt.others(key, its_view.and_then(|at| views.get(at))) {
            if comparison.works {
                break;
            }
            match failing(rehearse(session, &views, &contracts, &other, is_its).await)? {
                None => comparison.works = true,
                // What fails in another way says nothing.
                failing => comparison.failed += u32::from(same(failing)),
            }
        }
        facts.another_works = comparison.works;
        facts.another_fails = comparison.failed > 0;
        facts.failures_in_a_row += comparison.failed;
        let rest = if its_view.is_some() { single } else { &nothing };
        let is_rest = |at: usize| Some(at) != its_view;
        facts.rest_works =
            failing(rehearse(session, &views, &contracts, rest, is_rest).await)?.is_none() && has_room(session).await?;
        Ok(())
    }

    async fn pause_for(&mut self, failed: &Failed) {
        let views = self.views.clone();
        let view = views.iter().find(|view| Some(&view.name) == failed.view.as_ref());
        if let Some(view) = view {
            self.refused_in_a_row.remove(&view.name);
            let cause = Cause {
                reason: &failed.reason,
                sqlstate: Some(&failed.state),
                by: "the view-builder",
            };
            self.pause(view, &cause).await;
        }
    }
}

/// The SQLSTATE with which a rehearsal failed; an error is a lost connection.
fn failing(rehearsed: Result<(), Stumble>) -> Result<Option<String>, Stumble> {
    match rehearsed {
        Ok(()) => Ok(None),
        Err(stumble) if refusal::goes_on(&stumble.err) => Ok(Some(refusal::state(&stumble.err))),
        Err(stumble) => Err(stumble),
    }
}

/// Whether the batch has an event for the view.
fn reads(view: &View, batch: &Batch) -> bool {
    let of_view = |part: &&Part| view.topics.iter().any(|topic| **topic == *part.place.topic);
    batch.parts.iter().filter(of_view).any(|part| !part.events.is_empty())
}

fn refused(single: Batch, failed: &Failed) -> impl Iterator<Item = RefusedEvent> {
    single.parts.into_iter().map(|part| RefusedEvent {
        offset: part.events.first().map_or(part.from, |event| event.offset),
        place: part.place,
        reason: failed.reason.clone(),
    })
}

impl Hunt {
    /// Counts how often the event at hand was looked at; how often before.
    fn looks_again(&mut self) -> u32 {
        self.at_hand.as_mut().map_or(0, |(_, times)| {
            *times += 1;
            *times - 1
        })
    }

    /// Some events of other keys that the view reads, each as a batch of its own.
    fn others(&self, key: Option<i64>, view: Option<&View>) -> Vec<Batch> {
        let mut keys = HashSet::new();
        let mut others = Vec::new();
        for part in &self.batch.parts {
            if view.is_some_and(|view| !view.topics.iter().any(|topic| **topic == *part.place.topic)) {
                continue;
            }
            for event in &part.events {
                if others.len() == COMPARED_MAX {
                    return others;
                }
                if Some(event.key) == key || !keys.insert((&part.place.topic, event.key)) {
                    continue;
                }
                others.push(Batch {
                    parts: vec![Part {
                        events: vec![event.clone()],
                        letters: Vec::new(),
                        ..part.clone()
                    }],
                });
            }
        }
        others
    }
}
