//! Whether a program can do its work right now, and if not, why.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The reasons for which a program is not ready, by the part that each concerns, and warnings: what somebody has to look at
/// although the program works. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<RwLock<State>>);

/// Texts by part.
pub type Reasons = BTreeMap<&'static str, String>;

#[derive(Debug, Default)]
struct State {
    reasons: Reasons,
    warnings: Reasons,
}

impl Readiness {
    /// Starts not ready: `part` has to report [`Readiness::ready`] first.
    #[must_use]
    pub fn waiting_for(part: &'static str) -> Self {
        let readiness = Self::default();
        readiness.not_ready(part, "starting");
        readiness
    }

    /// `part` works.
    pub fn ready(&self, part: &'static str) {
        self.write().reasons.remove(part);
    }

    /// `part` does not work, for this reason: one line, without secrets.
    pub fn not_ready(&self, part: &'static str, reason: impl Into<String>) {
        self.write().reasons.insert(part, reason.into());
    }

    /// `part` works, and somebody has to look at this: one line, without secrets.
    pub fn warn(&self, part: &'static str, warning: impl Into<String>) {
        self.write().warnings.insert(part, warning.into());
    }

    /// Nobody has to look at `part`.
    pub fn fine(&self, part: &'static str) {
        self.write().warnings.remove(part);
    }

    /// What does not work, and why; empty when the program is ready.
    #[must_use]
    pub fn reasons(&self) -> Reasons {
        self.read().reasons.clone()
    }

    /// What somebody has to look at.
    #[must_use]
    pub fn warnings(&self) -> Reasons {
        self.read().warnings.clone()
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::Readiness;

    #[test]
    fn is_ready_only_when_every_part_is() {
        let readiness = Readiness::waiting_for("kafka");
        readiness.not_ready("postgres", "connection refused");
        readiness.ready("kafka");
        assert_eq!(
            readiness.reasons().into_iter().collect::<Vec<_>>(),
            [("postgres", "connection refused".to_owned())]
        );
        readiness.ready("postgres");
        assert!(readiness.reasons().is_empty());
    }

    #[test]
    fn a_warning_is_no_reason() {
        let readiness = Readiness::default();
        readiness.warn("dead-letters", "2 events wait");
        assert!(readiness.reasons().is_empty());
        assert_eq!(readiness.warnings()["dead-letters"], "2 events wait");
        readiness.fine("dead-letters");
        assert!(readiness.warnings().is_empty());
    }
}
