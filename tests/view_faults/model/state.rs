//! Computes what the views and the dead letters must be, one event after the other.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// An entity: the number of its topic, and its id.
pub(super) type Key = (usize, i64);

/// The contents of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// The item exists and has these values.
    Kept {
        name: String,
        group: String,
    },
    Deleted,
    /// Something that is not an event.
    Garbage,
}

/// An event with its place in its topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProducedEvent {
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) version: i64,
    pub(super) body: Body,
}

/// A row of the view. The name is none if the item was deleted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Row {
    pub(super) key: Key,
    pub(super) version: i64,
    pub(super) name: Option<String>,
    pub(super) group: Option<String>,
}

/// A dead letter: the number of its topic, its partition and its offset.
pub(super) type Letter = (usize, i32, i64);

#[derive(Debug, Default)]
struct Item {
    row: Option<Row>,
    letters: VecDeque<ProducedEvent>,
}

/// The views and dead letters as they must be once everything is applied.
#[derive(Debug, Default)]
pub(super) struct State {
    items: BTreeMap<Key, Item>,
    /// The names that a trigger of the view refuses.
    forbidden: BTreeSet<String>,
    discarded: BTreeSet<Letter>,
}

impl State {
    pub(super) fn forbid(&mut self, name: &str) {
        self.forbidden.insert(name.to_owned());
    }

    pub(super) fn allow_all(&mut self) {
        self.forbidden.clear();
    }

    /// The next event of `key`.
    pub(super) fn add_event(&mut self, key: Key, event: ProducedEvent) {
        let is_dead = self.is_dead(&event.body);
        let item = self.items.entry(key).or_default();
        if is_dead || !item.letters.is_empty() {
            item.letters.push_back(event);
        } else {
            item.row = row(key, &event);
        }
    }

    fn is_dead(&self, body: &Body) -> bool {
        match body {
            Body::Garbage => true,
            Body::Kept { name, .. } => self.forbidden.contains(name),
            Body::Deleted => false,
        }
    }

    /// An operator retries every dead letter.
    pub(super) fn retry_all(&mut self) {
        let keys: Vec<Key> = self.items.keys().copied().collect();
        for key in keys {
            self.retry(key);
        }
    }

    fn retry(&mut self, key: Key) {
        while let Some(first) = self.first_letter(key).cloned()
            && !self.is_dead(&first.body)
        {
            let item = self.items.entry(key).or_default();
            item.letters.pop_front();
            item.row = row(key, &first);
        }
    }

    /// An operator discards the first dead letter of the key.
    pub(super) fn discard(&mut self, key: Key) {
        if let Some(first) = self.items.entry(key).or_default().letters.pop_front() {
            self.discarded.insert((key.0, first.partition, first.offset));
            self.retry(key);
        }
    }

    pub(super) fn first_letter(&self, key: Key) -> Option<&ProducedEvent> {
        self.items.get(&key)?.letters.front()
    }

    /// The keys that have dead letters.
    pub(super) fn waiting(&self) -> Vec<Key> {
        let waiting = self.items.iter().filter(|(_, item)| !item.letters.is_empty());
        waiting.map(|(key, _)| *key).collect()
    }

    pub(super) fn rows(&self) -> BTreeSet<Row> {
        self.items.values().filter_map(|item| item.row.clone()).collect()
    }

    /// The open dead letters, and the discarded ones.
    pub(super) fn letters(&self) -> (BTreeSet<Letter>, BTreeSet<Letter>) {
        let open = self.items.iter().flat_map(|(key, item)| {
            item.letters
                .iter()
                .map(|letter| (key.0, letter.partition, letter.offset))
        });
        (open.collect(), self.discarded.clone())
    }
}

fn row(key: Key, told: &ProducedEvent) -> Option<Row> {
    let (name, group) = match &told.body {
        Body::Kept { name, group } => (Some(name.clone()), Some(group.clone())),
        Body::Deleted => (None, None),
        Body::Garbage => return None,
    };
    Some(Row {
        key,
        version: told.version,
        name,
        group,
    })
}
