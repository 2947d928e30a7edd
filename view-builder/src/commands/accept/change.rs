//! What is written where a partition goes on although its topic has lost events.

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error};

use super::LockedPosition;
use crate::continuity::start::Lost;
use crate::contract::place::TopicPartition;

/// The partition of this position goes on at `next_offset`, although this was lost.
pub(super) struct Change<'a> {
    pub(super) client: &'a Client,
    pub(super) place: &'a TopicPartition,
    pub(super) held: &'a LockedPosition,
    pub(super) lost: Lost,
    pub(super) next_offset: i64,
}

impl Change<'_> {
    pub(super) async fn write(&self, topic_id: Option<&str>) -> Result<(), Error> {
        self.set_position(topic_id).await?;
        self.set_highest_offset().await?;
        self.adapt_pauses().await?;
        if self.is_other_topic() && self.held.reached() > Some(0) {
            self.note_what_paused_views_lack().await?;
        }
        self.put_letters_aside().await
    }

    /// The offsets of before are those of a topic that another one has replaced.
    fn is_other_topic(&self) -> bool {
        self.lost == Lost::FormerTopic
    }

    /// Up to where the view has had the topic as it is now. Events below are a replay.
    fn highest_after(&self) -> Option<i64> {
        match self.lost {
            Lost::FormerTopic => None,
            Lost::BelowBeginning { .. } => self.held.highest_offset,
            Lost::BeyondEnd { end, .. } => Some(self.held.reached()?.min(end)),
        }
    }

    async fn set_position(&self, topic_id: Option<&str>) -> Result<(), Error> {
        let ids = self.held.ids.clone();
        let mut ids = ids.followed_by(topic_id, self.is_other_topic() && topic_id.is_some());
        // An operator says that it is the topic now, whatever was before.
        ids.former.retain(|former| Some(former) != ids.now.as_ref());
        self.execute(
            "update view_positions set
                next_offset = $3, epoch = epoch + 1, group_offset = null, topic_id = $4, former_topic_ids = $5,
                letters_version = letters_version + 1, breaks = breaks + 1, paused = null,
                paused_end = null, read_to = null, read_epoch = null
             where topic = $1 and partition = $2",
            &[&self.next_offset, &ids.now, &ids.former],
        )
        .await
    }

    /// A statement of its own: the one before has let the trigger keep a higher offset.
    async fn set_highest_offset(&self) -> Result<(), Error> {
        self.execute(
            "update view_positions set highest_offset = $3 where topic = $1 and partition = $2",
            &[&self.highest_after()],
        )
        .await
    }

    /// A paused view that has all of before goes on with the others. One that lacks events has no more than what lies before, and nothing at all
    /// of another topic.
    async fn adapt_pauses(&self) -> Result<(), Error> {
        self.execute(
            "update view_pause_positions set
                lacks = lacks or $4 and next_offset is distinct from $5,
                next_offset = case
                    when $4 or next_offset >= $5 then $3
                    when next_offset is not null then least(next_offset, $3)
                end
             where topic = $1 and partition = $2",
            &[&self.next_offset, &self.is_other_topic(), &self.held.reached()],
        )
        .await
    }

    /// A paused view without a pause position of the partition has nothing of the former topic either.
    async fn note_what_paused_views_lack(&self) -> Result<(), Error> {
        self.execute(
            "insert into view_pause_positions (view, topic, partition, next_offset, lacks)
             select view, topic, $2, $3, true from view_pauses join view_sources using (view) where topic = $1
             on conflict do nothing",
            &[&self.next_offset],
        )
        .await
    }

    async fn put_letters_aside(&self) -> Result<(), Error> {
        let aside_from = if self.is_other_topic() { 0 } else { self.next_offset };
        self.execute(
            "select put_dead_letters_aside($1, $2, $3, $4)",
            &[&aside_from, &self.held.ids.now],
        )
        .await
    }

    /// Runs a statement whose $1 and $2 are the partition; `more` are its parameters from $3 on.
    async fn execute(&self, sql: &str, more: &[&(dyn ToSql + Sync)]) -> Result<(), Error> {
        let (topic, partition) = (&*self.place.topic, self.place.partition);
        let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&topic, &partition];
        parameters.extend(more);
        self.client.execute(sql, &parameters).await.map(|_| ())
    }
}
