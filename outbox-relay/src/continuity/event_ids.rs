//! A set of event ids that takes little memory: `recover` holds the ids of a whole outbox.

use std::collections::HashSet;

/// A set of event ids. A UUID takes 16 bytes, and any other id is stored as text.
#[derive(Clone, Debug, Default)]
pub struct EventIds {
    uuids: HashSet<u128>,
    others: HashSet<Box<str>>,
}

impl EventIds {
    pub fn insert(&mut self, id: &str) {
        match uuid::Uuid::try_parse(id) {
            Ok(uuid) => self.uuids.insert(uuid.as_u128()),
            Err(_) => self.others.insert(id.into()),
        };
    }

    /// Returns whether the id was there.
    pub fn remove(&mut self, id: &str) -> bool {
        match uuid::Uuid::try_parse(id) {
            Ok(uuid) => self.uuids.remove(&uuid.as_u128()),
            Err(_) => self.others.remove(id),
        }
    }

    #[must_use]
    pub fn contains(&self, id: &str) -> bool {
        match uuid::Uuid::try_parse(id) {
            Ok(uuid) => self.uuids.contains(&uuid.as_u128()),
            Err(_) => self.others.contains(id),
        }
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.uuids.len() + self.others.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::EventIds;

    #[test]
    fn ids_of_any_kind_are_found_again() {
        let mut ids = EventIds::default();
        for id in ["8f1a2b3c-0000-4000-8000-000000000001", "order-7"] {
            ids.insert(id);
            assert!(ids.contains(id));
        }
        assert!(ids.remove("order-7") && !ids.remove("order-7"));
        assert_eq!(ids.len(), 1);
    }
}
