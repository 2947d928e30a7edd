//! Whether a program can do its work right now, and if not, why.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

/// The reasons for which a program is not ready, by the part that each concerns. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<RwLock<BTreeMap<&'static str, String>>>);

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
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(part);
    }

    /// `part` does not work, for this reason: one line, without secrets.
    pub fn not_ready(&self, part: &'static str, reason: impl Into<String>) {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(part, reason.into());
    }

    /// What does not work, and why; empty when the program is ready.
    #[must_use]
    pub fn reasons(&self) -> BTreeMap<&'static str, String> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
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
}
