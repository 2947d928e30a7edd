//! The hunt for the event that Postgres refuses. A batch that fails is halved again and again until a single event is left. Everything before that
//! event and beside it is applied. Then [`super::verdict`] decides who is at fault: the event becomes a dead letter, or its view is paused, or the
//! event is tried again, and `status` and `/readyz` say so meanwhile.

use std::collections::HashSet;
use std::time::Instant;

use super::ages;
use super::rehearsal::{has_room, rehearse};
use super::tries::{Suspicion, pause_before_another_look};
use super::verdict::{FAILURES_IN_A_ROW_MAX, Facts, Verdict, who_is_at_fault};
use super::{Applied, Ended, Failed, GivenUp, Stumble};
use crate::contract::batch::RefusedEvent;
use crate::contract::batch::{Batch, Part};
use crate::postgres::refusal::{self, Kind};
use crate::views::database::Database;
use crate::views::pauses::Cause;
use crate::views::view::View;

/// A suspect event is compared with so many other events, at most. If all of them fail too, these are enough failures to pause the view.
const COMPARED_MAX: usize = 9;
const _: () = assert!(COMPARED_MAX + 1 == FAILURES_IN_A_ROW_MAX as usize);

/// What is known while the cause of a failed batch is looked for.
struct Hunt {
    /// The batch that failed.
    batch: Batch,
    /// The views to which a part of the batch was applied.
    working_views: HashSet<String>,
    /// The single event that fails now, if the hunt has come to one.
    suspect: Option<Suspect>,
}

/// A single event that fails.
struct Suspect {
    failing_since: Instant,
    /// How often it was tried again.
    retries: u32,
}

/// Whether the view's other events work.
#[derive(Default)]
struct Comparison {
    another_works: bool,
    /// How many of them fail in the same way as the suspect.
    failed: u32,
}

impl Database {
    /// Applies the batch. Waits for as long as Postgres is away, and for as long as it refuses an event for a reason that is neither the event's
    /// nor the view's fault.
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
            let suspicion = if hunt.is_some() {
                Suspicion::PartOfFailedBatch
            } else {
                Suspicion::None
            };
            match self.transact(&batch, suspicion).await {
                Ended::Committed => {
                    ages::applied(&batch);
                    self.note_that_views_work(&batch, hunt.as_mut());
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
                        working_views: HashSet::new(),
                        suspect: None,
                    });
                    if !matches!(failed.kind, Kind::Refused | Kind::Ambiguous) {
                        self.stuck(&failed.state, &failed.reason).await;
                    }
                    match batch.split() {
                        Ok((first, second)) => waiting.extend([second, first]),
                        Err(single) => match self.judge(&single, &failed, hunt).await {
                            Verdict::Event => {
                                hunt.suspect = None;
                                applied.refused.extend(refused_events(single, &failed));
                            }
                            Verdict::View => {
                                self.pause_for(&failed).await;
                                applied.given_up = Some(GivenUp::Fenced);
                                break;
                            }
                            Verdict::Again => {
                                self.stuck(&failed.state, &failed.reason).await;
                                let retries_before = hunt.count_retry();
                                tokio::time::sleep(pause_before_another_look(retries_before)).await;
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

    /// Notes that the batch was applied, so the views that read it work.
    fn note_that_views_work(&mut self, batch: &Batch, hunt: Option<&mut Hunt>) {
        if hunt.is_none() && self.refused_in_a_row.is_empty() {
            return;
        }
        let views = self.views.iter().filter(|view| has_event_for(batch, view));
        let views: Vec<String> = views.map(|view| view.name.clone()).collect();
        for view in &views {
            self.refused_in_a_row.remove(view);
        }
        if let Some(hunt) = hunt {
            hunt.working_views.extend(views);
            hunt.suspect = None;
        }
    }

    /// Decides who is at fault when this batch of one event fails.
    async fn judge(&mut self, single: &Batch, failed: &Failed, hunt: &mut Hunt) -> Verdict {
        let suspect = hunt.suspect.get_or_insert_with(|| Suspect {
            failing_since: Instant::now(),
            retries: 0,
        });
        let mut facts = Facts {
            kind: failed.kind,
            fails_in_a_view: failed.view.is_some(),
            fails_without_events: false,
            another_works: false,
            another_fails: false,
            failures_in_a_row: 1,
            failing_for: suspect.failing_since.elapsed(),
            rest_works: false,
        };
        if failed.kind != Kind::Refused
            && single.event_count() > 0
            && self.gather_facts(&mut facts, single, failed, hunt).await.is_err()
        {
            // The connection was lost, so nothing is known.
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

    /// Finds out what works and what does not, by transactions that are rolled back.
    async fn gather_facts(
        &mut self,
        facts: &mut Facts,
        single: &Batch,
        failed: &Failed,
        hunt: &Hunt,
    ) -> Result<(), Stumble> {
        self.session().await;
        let (views, contracts) = (self.views.clone(), self.contracts.clone());
        let failed_before = failed.view.as_ref().and_then(|view| self.refused_in_a_row.get(view));
        facts.failures_in_a_row = 1 + failed_before.copied().unwrap_or(0);
        let session = self.session().await;
        // The view that fails. Where it is not known which one fails, all views are tried.
        let failing_view = views.iter().position(|view| Some(&view.name) == failed.view.as_ref());
        let is_failing_view = |view: usize| failing_view.is_none_or(|failing| failing == view);
        let no_events = Batch::default();
        let fails_the_same_way = |state: Option<String>| state.as_ref() == Some(&failed.state);
        let without_events = rehearse(session, &views, &contracts, &no_events, is_failing_view).await;
        facts.fails_without_events = fails_the_same_way(sqlstate_of(without_events)?);
        let mut comparison = Comparison::default();
        if let Some(view) = failing_view.and_then(|view| views.get(view)) {
            comparison.another_works =
                hunt.working_views.contains(&view.name) && matches!(failed.kind, Kind::Ambiguous);
        }
        let key = single
            .parts
            .first()
            .and_then(|part| part.events.first())
            .map(|event| event.key);
        for other in hunt.other_events(key, failing_view.and_then(|view| views.get(view))) {
            if comparison.another_works {
                break;
            }
            match sqlstate_of(rehearse(session, &views, &contracts, &other, is_failing_view).await)? {
                None => comparison.another_works = true,
                // An event that fails in another way proves nothing.
                state => comparison.failed += u32::from(fails_the_same_way(state)),
            }
        }
        facts.another_works = comparison.another_works;
        facts.another_fails = comparison.failed > 0;
        facts.failures_in_a_row += comparison.failed;
        let batch_for_others = if failing_view.is_some() { single } else { &no_events };
        let is_other_view = |view: usize| Some(view) != failing_view;
        let others = rehearse(session, &views, &contracts, batch_for_others, is_other_view).await;
        facts.rest_works = sqlstate_of(others)?.is_none() && has_room(session).await?;
        Ok(())
    }

    /// Pauses the view that failed.
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

/// The SQLSTATE with which a rehearsal failed. `None`: it worked.
///
/// # Errors
/// The connection was lost.
fn sqlstate_of(rehearsed: Result<(), Stumble>) -> Result<Option<String>, Stumble> {
    match rehearsed {
        Ok(()) => Ok(None),
        Err(stumble) if refusal::goes_on(&stumble.err) => Ok(Some(refusal::state(&stumble.err))),
        Err(stumble) => Err(stumble),
    }
}

/// Whether the batch has an event that the view reads.
fn has_event_for(batch: &Batch, view: &View) -> bool {
    let of_view = |part: &&Part| view.topics.iter().any(|topic| **topic == *part.place.topic);
    batch.parts.iter().filter(of_view).any(|part| !part.events.is_empty())
}

/// The event of this batch of one event, as refused.
fn refused_events(single: Batch, failed: &Failed) -> impl Iterator<Item = RefusedEvent> {
    single.parts.into_iter().map(|part| RefusedEvent {
        offset: part.events.first().map_or(part.from, |event| event.offset),
        place: part.place,
        reason: failed.reason.clone(),
    })
}

impl Hunt {
    /// Counts another retry of the suspect. Returns how many retries there were before.
    fn count_retry(&mut self) -> u32 {
        self.suspect.as_mut().map_or(0, |suspect| {
            suspect.retries += 1;
            suspect.retries - 1
        })
    }

    /// Some events of other keys that the view reads, each as a batch of its own. `None` as view: of any topic.
    fn other_events(&self, key: Option<i64>, view: Option<&View>) -> Vec<Batch> {
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
