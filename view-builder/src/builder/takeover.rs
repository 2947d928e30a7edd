//! Turns the partitions that Kafka's group assigned to this process into the offsets to start reading at.
//!
//! 1. Claim the partitions in Postgres. From then on no earlier holder can move their positions.
//! 2. Ask Kafka where they begin and end. Asked before the claim, an earlier holder could still apply events beyond the end that Kafka told, and
//!    the position would look as if it were not in the topic.
//! 3. Decide for each partition: it is read, or paused, or it waits for Kafka.
//! 4. Store where they begin before anything is read, since a batch can move a position only from where Postgres has it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;

use crate::builder::beginning::{Beginning, Paused};
use crate::builder::claim::{Claim, Start};
use crate::builder::parting::Mark;
use crate::builder::waiting::{Found, Waiting};
use crate::continuity::offsets::{Bounds, Offsets, offsets};
use crate::continuity::start::{Lost, start, start_after_pause};
use crate::continuity::topic_ids::TopicIds;
use crate::contract::place::TopicPartition;
use crate::kafka::{GroupConsumer, Observer, lock};
use crate::process::failure::Failure;
use crate::process::faults;
use crate::views::database::Database;

/// Pause before Kafka is asked again. A leader that was just elected needs a moment to know its end.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// For this long Kafka is asked again if some leaders do not answer, since they may just be changing. All partitions wait meanwhile. After that the
/// partitions without an answer wait on, and the others begin.
const PARTIAL_MAX: Duration = Duration::from_secs(2);

/// The partitions of an assignment, by what was decided for them.
#[derive(Clone, Debug, Default)]
pub struct TakenOver {
    /// The partitions that are read.
    pub starts: Vec<Start>,
    /// The partitions that are not read, since nothing proves that the view can go on at their positions.
    pub paused: Vec<Paused>,
    /// The topics' ids of the partitions that are read.
    pub ids: Vec<(TopicPartition, TopicIds)>,
    /// How far the logs of these partitions were read.
    pub marks: Vec<Mark>,
    /// The partitions of which Kafka does not tell now.
    pub waiting: Vec<Waiting>,
}

/// The clients that a takeover asks.
#[derive(Clone)]
pub struct ClientsToAsk {
    pub consumer: Arc<GroupConsumer>,
    pub observer: Arc<Observer>,
    /// Whether Kafka is being asked now, and its last error. So if the takeover takes long, `/readyz` can say whether it waits for Kafka or for
    /// Postgres.
    pub question: Arc<Question>,
}

/// Whether a job waits for an answer of Kafka.
#[derive(Debug, Default)]
pub struct Question {
    is_asked: AtomicBool,
    error: Mutex<Option<String>>,
}

impl Question {
    fn begin(&self) {
        *lock(&self.error) = None;
        self.is_asked.store(true, Ordering::Relaxed);
    }

    fn end(&self) {
        self.is_asked.store(false, Ordering::Relaxed);
    }

    fn failed(&self, error: String) {
        *lock(&self.error) = Some(error);
    }

    /// Why there is no answer yet. `None`: nothing is being asked.
    #[must_use]
    pub fn unanswered(&self) -> Option<String> {
        let is_asked = self.is_asked.load(Ordering::Relaxed);
        is_asked.then(|| lock(&self.error).clone().unwrap_or_else(|| "no answer".to_owned()))
    }
}

impl ClientsToAsk {
    /// Asks Kafka where the partitions begin and end. `None`: the assignment was revoked meanwhile. Waits for as long as Kafka is away.
    async fn ask(&self, generation: u64, places: &[TopicPartition]) -> Option<Offsets> {
        self.question.begin();
        let answer = self.ask_until_answered(generation, places).await;
        self.question.end();
        answer
    }

    async fn ask_until_answered(&self, generation: u64, places: &[TopicPartition]) -> Option<Offsets> {
        let began = Instant::now();
        loop {
            if self.consumer.context().generation() != generation {
                return None;
            }
            let (observer, asked_for) = (self.observer.clone(), places.to_vec());
            match tokio::task::spawn_blocking(move || offsets(&observer, &asked_for)).await {
                Ok(Ok(answer)) if is_worth_another_question(&answer, places, began.elapsed()) => {}
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(err)) => {
                    let error = format!("{err:#}");
                    tracing::debug!(error, "kafka does not tell where the partitions begin and end");
                    self.question.failed(error);
                }
                Err(err) => tracing::error!(error = %err, "asking kafka failed"),
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }
}

/// Takes over the partitions of the assignment with this generation. `None`: it was revoked meanwhile.
///
/// Waits for as long as Postgres is away, or Kafka tells of no topic at all. A partition of which Kafka does not tell waits by itself.
///
/// # Errors
/// Only with the planted bug that one partition without continuity ends the whole builder.
pub async fn take_over(
    database: &mut Database,
    clients: &ClientsToAsk,
    generation: u64,
    places: &[TopicPartition],
    owner: &str,
) -> Result<Option<TakenOver>, Failure> {
    let claims = database.claim(places, owner).await;
    let Some(mut answer) = clients.ask(generation, places).await else {
        return Ok(None);
    };
    let is_any_lost = claims.iter().any(|claim| is_lost(claim, &answer));
    if needs_second_answer(is_any_lost) {
        tokio::time::sleep(RETRY_INTERVAL).await;
        match clients.ask(generation, places).await {
            Some(second) => answer = second,
            None => return Ok(None),
        }
    }
    faults::hold("takeover.asked").await;
    decide(database, claims, &answer).await.map(Some)
}

/// Begins partitions that have waited for Kafka to tell of them. A partition whose position does not seem to be in the topic waits for a second
/// answer that says so.
///
/// # Errors
/// As [`take_over`].
pub async fn begin_found(database: &mut Database, found: Found) -> Result<TakenOver, Failure> {
    let is_doubtful =
        |waiting: &Waiting| needs_second_answer(is_lost(&waiting.claim, &found.offsets)) && !waiting.seemed_lost;
    let (doubtful, certain): (Vec<Waiting>, Vec<Waiting>) = found.waiting.into_iter().partition(is_doubtful);
    let claims: Vec<Claim> = certain.into_iter().map(|waiting| waiting.claim).collect();
    let mut taken = decide(database, claims, &found.offsets).await?;
    taken.waiting.extend(doubtful.into_iter().map(|waiting| Waiting {
        seemed_lost: true,
        ..waiting
    }));
    Ok(taken)
}

/// Whether the position of the claimed partition is not in the topic, as Kafka answers.
fn is_lost(claim: &Claim, answer: &Offsets) -> bool {
    let bounds = answer.at(&claim.place).ok();
    bounds.is_some_and(|bounds| start(claim.known_with(bounds)).is_err())
}

/// Decides by Kafka's answer where each claimed partition begins, and stores that.
async fn decide(database: &mut Database, claims: Vec<Claim>, answer: &Offsets) -> Result<TakenOver, Failure> {
    let mut taken = TakenOver::default();
    let mut changed = Vec::new();
    for claim in claims {
        let bounds = match answer.at(&claim.place) {
            Ok(bounds) => bounds,
            Err(untold) => {
                taken.waiting.push(Waiting {
                    claim,
                    untold,
                    seemed_lost: false,
                });
                continue;
            }
        };
        match decide_beginning(claim, bounds, &mut taken) {
            Ok((beginning, is_changed)) => {
                taken.starts.push(beginning.start.clone());
                if is_changed {
                    changed.push(beginning);
                }
            }
            Err(paused) => {
                planted::end_all_for_one(&paused)?;
                tracing::error!(place = %paused.claim.place, reason = paused.lost.advice(&paused.claim.place),
                    "the partition is not read; all others go on");
                taken.paused.push(*paused);
            }
        }
    }
    if !changed.is_empty() {
        planted::hold_around(database.begin(&changed)).await;
        // The letters from a lost end on are put aside now, so the letters are read again. Otherwise a new event at the offset of a discarded
        // letter would be dropped.
        let has_lost_end = |start: &&mut Start| {
            let mut with_lost_end = changed.iter().filter(|beginning| beginning.ended_at.is_some());
            with_lost_end.any(|beginning| beginning.start.place == start.place)
        };
        database
            .read_letters(taken.starts.iter_mut().filter(has_lost_end))
            .await;
    }
    database.pause_partitions(&taken.paused).await;
    Ok(taken)
}

/// Decides where the claimed partition begins. Also returns whether that has to be stored.
fn decide_beginning(claim: Claim, bounds: &Bounds, taken: &mut TakenOver) -> Result<(Beginning, bool), Box<Paused>> {
    let known = claim.known_with(bounds);
    let (next_offset, ended_at) = match start_after_pause(known, claim.paused_end) {
        Ok(start) => start,
        Err(lost) => return Err(Box::new(Paused { claim, lost })),
    };
    let told = bounds.topic_id.as_deref();
    let (before, former) = (claim.next_offset, claim.ids.clone());
    let is_learned = told.is_some() && former.now.is_none();
    let (was_paused, read) = (claim.was_paused, claim.read);
    let beginning = match ended_at {
        Some(ended_at) => Beginning::after_lost_end(claim, told, next_offset, ended_at),
        None => Beginning::of(claim, known.topic, told, next_offset, bounds.beginning),
    };
    let place = &beginning.start.place;
    if let Some(notice) = &beginning.notice {
        tracing::warn!(%place, topic.id.before = former.now, topic.id.now = told, position.before = before,
            position.now = next_offset, notice = notice.kind, "{}", notice.text);
    } else if before != Some(next_offset) {
        tracing::info!(%place, position.before = before, position.now = next_offset,
            "the partition begins at another offset than its position");
    }
    let is_changed = before != Some(next_offset) || is_learned || was_paused || beginning.is_anew || ended_at.is_some();
    let ids = former.followed_by(told, beginning.is_anew);
    taken.marks.push(Mark {
        place: place.clone(),
        // Nothing was read of a topic that was made anew, nor after a lost end.
        read: read.filter(|_| !beginning.is_anew && ended_at.is_none()),
        leader_epoch: bounds.epoch,
        topic_id: ids.now.clone(),
    });
    taken.ids.push((place.clone(), ids));
    Ok((beginning, is_changed))
}

/// Whether the paused partition could be read now, by Kafka's answer.
#[must_use]
pub fn can_be_read(paused: &Paused, offsets: &Offsets) -> bool {
    let Ok(bounds) = offsets.at(&paused.claim.place) else {
        return false;
    };
    let decided: Result<i64, Lost> = start(paused.claim.known_with(bounds));
    decided.is_ok()
}

/// Whether to ask Kafka once more, before the partitions of which it does not tell have to wait and the others begin.
fn is_worth_another_question(answer: &Offsets, places: &[TopicPartition], waited: Duration) -> bool {
    (answer.is_partial() && waited < PARTIAL_MAX) || planted::waits_for_all_leaders(answer, places)
}

/// A leader that was just elected may not know the end yet. So an answer by which the position is not in the topic has to come twice.
fn needs_second_answer(is_lost: bool) -> bool {
    is_lost && !planted::believes_one_answer()
}

/// The planted bugs and the failpoints of a takeover. Without the feature `faults` none of them is there.
mod planted {
    use std::future::Future;

    use super::{Offsets, Paused, TopicPartition};
    use crate::process::failure::Failure;
    use crate::process::faults::{self, Bug};

    pub(super) fn waits_for_all_leaders(answer: &Offsets, places: &[TopicPartition]) -> bool {
        faults::is_planted(Bug::WaitForAllLeaders) && places.iter().any(|place| answer.at(place).is_err())
    }

    pub(super) fn believes_one_answer() -> bool {
        faults::is_planted(Bug::BelieveOneLaggingEnd)
    }

    pub(super) fn end_all_for_one(paused: &Paused) -> Result<(), Failure> {
        if faults::is_planted(Bug::EndAllForOne) {
            return Err(anyhow::anyhow!(paused.lost.advice(&paused.claim.place)).into());
        }
        Ok(())
    }

    pub(super) async fn hold_around(begin: impl Future<Output = ()>) {
        faults::hold("begin.before").await;
        begin.await;
        faults::hold("begin.after").await;
    }
}
