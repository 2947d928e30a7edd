//! Waiting for a part that is away: said once in the log, and for as long as it lasts in `/readyz`.

use service::Readiness;

use crate::process::measure::Trouble;

/// One part that can be away.
#[derive(Debug)]
pub struct Outage {
    part: &'static str,
    trouble: Trouble,
    readiness: Readiness,
    reason: Option<String>,
}

impl Outage {
    #[must_use]
    pub fn of(part: &'static str, trouble: Trouble, readiness: Readiness) -> Self {
        Self {
            part,
            trouble,
            readiness,
            reason: None,
        }
    }

    /// The part is away for this reason. Logged when it begins and when the reason becomes another.
    pub fn goes_on(&mut self, reason: impl Into<String>) {
        self.trouble.note();
        let reason = reason.into();
        if self.reason.as_ref() == Some(&reason) {
            return;
        }
        tracing::warn!(waiting.for = self.part, reason, "waiting");
        self.readiness.not_ready(self.part, reason.clone());
        self.reason = Some(reason);
    }

    /// Whether the part is away.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.reason.is_some()
    }

    /// The part works.
    pub fn ends(&mut self) {
        if self.reason.take().is_some() {
            tracing::info!(waiting.for = self.part, "it is back");
        }
        self.readiness.ready(self.part);
    }
}
