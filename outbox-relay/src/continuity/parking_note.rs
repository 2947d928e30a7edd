//! What the checkpoint says of parked rows. It travels in the transaction that parks or publishes them, so it is never wrong about them.

use serde::{Deserialize, Serialize};

use crate::continuity::progress::Published;
use crate::process::row_name::RowPosition;

/// The checkpoint's part about parking; left out where there is nothing to say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ParkingNote {
    /// Rows that are parked now. A start reads the parking topic where there are any, and not otherwise.
    pub rows: u64,
    /// The row at which the relay stopped last, until it is passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<StoppedAt>,
}

/// A row at which the relay stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoppedAt {
    pub position: RowPosition,
    pub reason: String,
    /// The exit code of that stop. Absent from checkpoints of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// An operator's order: the next `run` parks it, whatever --poison says.
    #[serde(default)]
    pub park: bool,
}

impl ParkingNote {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The row that an operator wants parked.
    #[must_use]
    pub fn ordered(&self) -> Option<RowPosition> {
        self.stopped.as_ref().filter(|row| row.park).map(|row| row.position)
    }

    /// Forgets the row at which the relay stopped once it is passed.
    pub fn pass(&mut self, published: &Published) {
        self.stopped.take_if(|stopped| stopped.position.is_passed_by(published));
    }
}
