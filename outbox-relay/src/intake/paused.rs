//! Rows that are parked although they could be published, and the row at which decoding has paused.

use anyhow::Context as _;
use events::Position;

use super::{Intake, Table};
use crate::continuity::progress::RowFate;
use crate::kafka::KnownRoutes;
use crate::parking::keys::{ParkedKeys, TopicKeyHash};
use crate::parking::record::{ParkedRow, ParkedText};
use crate::process::row_name::RowPosition;
use crate::process::stop::RelayError;
use outbox_router::{Plan, RowScratch};
use pg_replication::Lsn;
use pg_replication::pgoutput::{self, Message, Tuple};
use pg_replication::{Frame, Frames};

/// Which rows are parked although nothing may be wrong with them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Claims {
    keys: ParkedKeys,
    ordered: Option<RowPosition>,
    /// Added to a row's position before it is compared with those of parked rows: see [`crate::continuity::positions`].
    positions_raised_by: u64,
    /// Later rows of a parked row's key are published, and not parked (`--poison-order skip`).
    skips_order: bool,
    /// False if no row can be claimed. Then nothing else has to be checked for each row.
    pub(super) may_claim: bool,
}

/// Why a row is parked that could be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// An operator ordered it, by `outbox-relay park`.
    Ordered,
    /// An earlier row of its key is parked. This is the position of the first.
    Behind(RowPosition),
}

/// The row that decoding paused at.
#[derive(Debug)]
pub(crate) struct PausedRow {
    /// Bytes of its frame.
    pub(crate) length: usize,
    pub(crate) position: Position,
    pub(crate) id: Option<String>,
    pub(crate) topic: Option<String>,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) row: ParkedRow,
}

impl Claims {
    #[must_use]
    pub(crate) fn new(
        keys: ParkedKeys,
        ordered: Option<RowPosition>,
        skips_order: bool,
        positions_raised_by: u64,
    ) -> Self {
        let may_claim = ordered.is_some() || (!keys.is_empty() && !skips_order);
        Self {
            keys,
            ordered,
            positions_raised_by,
            skips_order,
            may_claim,
        }
    }

    #[must_use]
    pub(crate) fn is_ordered(&self, position: RowPosition) -> bool {
        self.ordered == Some(position)
    }

    /// Notes a row that was parked.
    pub(crate) fn note_parked(&mut self, topic_key: Option<TopicKeyHash>, position: RowPosition) {
        self.ordered.take_if(|ordered| *ordered == position);
        if let Some(topic_key) = topic_key {
            self.keys.add(topic_key, position.raised_by(self.positions_raised_by));
        }
        self.may_claim = self.ordered.is_some() || (!self.keys.is_empty() && !self.skips_order);
    }

    /// Why the row has to be parked. `None`: it need not be. A row that cannot be routed gets `None` as well: it turns out to be poison when it is written.
    #[cold]
    pub(super) fn find_claim(
        &self,
        plan: &Plan,
        tuple: &Tuple<'_>,
        scratch: &mut RowScratch,
        known_routes: &KnownRoutes,
        position: Position,
    ) -> Option<Claim> {
        let position = row_position(&position);
        if self.is_ordered(position) {
            return Some(Claim::Ordered);
        }
        if self.skips_order || self.keys.is_empty() {
            return None;
        }
        let topic_key = plan.route(tuple, scratch, |routed, _| {
            let key = routed.key?;
            Some(match known_routes.get(routed.route) {
                Some(Ok(destination)) => TopicKeyHash::of(&destination.topic, &key),
                _ => TopicKeyHash::of(&plan.topic(routed.route), &key),
            })
        });
        let position = position.raised_by(self.positions_raised_by);
        // A row that cannot be routed, or has no key, has no order to keep.
        self.keys
            .first_parked_before(topic_key.ok().flatten()?, position)
            .map(Claim::Behind)
    }
}

impl PausedRow {
    /// The row's position, without the time of its commit.
    #[must_use]
    pub(crate) fn row_position(&self) -> RowPosition {
        row_position(&self.position)
    }

    /// Hash of topic and key. `None` if one of the two is missing: such a row has no order to keep.
    #[must_use]
    pub(crate) fn topic_key(&self) -> Option<TopicKeyHash> {
        Some(TopicKeyHash::of(self.topic.as_deref()?, self.key.as_deref()?))
    }
}

impl Intake {
    /// The row in the first frame of `buffer`, at which decoding paused.
    ///
    /// # Errors
    /// The buffer begins with something else.
    pub(crate) fn paused_row(&mut self, buffer: &[u8]) -> Result<PausedRow, RelayError> {
        let Some((Frame::Data(bytes), length)) = Frames::new(buffer).peek().context("replication stream")? else {
            return Err(anyhow::anyhow!("decoding paused at no row").into());
        };
        let RowFate::Publish { index } = self.progress.fate_of_next_row().context("replication stream")? else {
            return Err(anyhow::anyhow!("decoding paused at a row that is published already").into());
        };
        let position = Position {
            commit_lsn: self.commit_lsn.0,
            index,
            commit_timestamp_us: self.newest_commit_us,
        };
        let mut paused = PausedRow {
            length,
            position,
            id: None,
            topic: None,
            key: None,
            row: ParkedRow::Table(Vec::new()),
        };
        match pgoutput::decode(bytes).context("replication stream")? {
            Message::Insert { relation, tuple } => {
                let Some(Table::Outbox(plan)) = self.tables.get(&relation) else {
                    return Err(anyhow::anyhow!("decoding paused at a row of another table").into());
                };
                paused.row = ParkedRow::of_table(plan.columns(), &tuple).context("replication stream")?;
                paused.read_id_topic_and_key(plan, &tuple);
            }
            Message::Emitted(emitted) => {
                paused.row = ParkedRow::Message(ParkedText::of(emitted.content));
                let outbox = self.messages.as_ref().context("decoding paused at a message")?;
                let mut values = Vec::new();
                // If the content cannot be read, its id, topic and key are unknown.
                if let Ok(columns) = outbox.read(emitted.content, &mut values) {
                    paused.read_id_topic_and_key(outbox.plan(), &Tuple::from_encoded(columns, &values));
                }
            }
            _ => return Err(anyhow::anyhow!("decoding paused at no row").into()),
        }
        Ok(paused)
    }

    /// Passes the row that decoding paused at, since it was parked. Decoding goes on behind it.
    ///
    /// # Errors
    /// No transaction is open.
    pub(crate) fn pass_paused_row(&mut self, row: &PausedRow) -> Result<(), RelayError> {
        self.batch.add(row.length, self.newest_commit_us);
        Ok(self.progress.row_decoded().context("replication stream")?)
    }
}

impl PausedRow {
    fn read_id_topic_and_key(&mut self, plan: &Plan, tuple: &Tuple<'_>) {
        self.id = plan.id_of(tuple).map(str::to_owned);
        (self.topic, self.key) = plan.topic_and_key_of(tuple);
    }
}

fn row_position(position: &Position) -> RowPosition {
    RowPosition {
        commit_lsn: Lsn(position.commit_lsn),
        index: position.index,
    }
}
