//! Which events of a round are poison, and what is wrong with each.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use stack::random::Random;

/// A status that the view's constraint refuses. An event with it looks good to view-builder, and only PostgreSQL refuses it.
pub(super) const REFUSED_STATUS: &str = "REFUSED";

/// Which of a round's events are poison. Event number `index` is of user `index % users`.
pub(super) struct Plan {
    users: u64,
    poison_events: BTreeSet<u64>,
    /// The users that get at least one poison event, counted from 0.
    poisoned_users: BTreeSet<u64>,
}

impl Plan {
    /// Makes `percent` of the events poison. The same seed gives the same plan.
    pub(super) fn new(seed: u64, percent: u32, users: u64, events: u64) -> Self {
        let mut random = Random::seeded(seed);
        let poison_events: BTreeSet<u64> = (0..events).filter(|_| random.below(100) < u64::from(percent)).collect();
        Self {
            users,
            poisoned_users: poison_events.iter().map(|index| index % users).collect(),
            poison_events,
        }
    }

    pub(super) fn is_poison(&self, event: u64) -> bool {
        self.poison_events.contains(&event)
    }

    pub(super) fn gets_poison(&self, user: u64) -> bool {
        self.poisoned_users.contains(&user)
    }

    /// How many users get at least one poison event.
    pub(super) fn poisoned_users(&self) -> usize {
        self.poisoned_users.len()
    }

    /// How many of the `events` that follow the first `warm_up` events are of users without poison.
    pub(super) fn good_events(&self, warm_up: u64, events: u64) -> u64 {
        let indexes = warm_up..warm_up + events;
        indexes.filter(|index| !self.gets_poison(index % self.users)).count() as u64
    }
}

/// An event of user `id` that cannot be applied. Six kinds of mistakes follow one another; PostgreSQL alone sees the last one.
pub(super) fn poison_payload(id: i64, index: u64) -> String {
    let time = "2026-01-01T00:00:00";
    let user = |status: &str| {
        json!({"id": id, "name": "홍길동", "email": "gildong@example.com", "department": null,
            "status": status, "createdAt": time, "updatedAt": time})
    };
    let update = |version: Value, user: Value| json!({"eventType": "USER_UPDATED", "userId": id, "version": version, "timestamp": time, "user": user});
    let mistakes = [
        json!({"eventType": "USER_PROMOTED", "userId": id, "version": 2, "user": null}),
        update(Value::Null, Value::Null),
        update(json!(2), Value::Null),
        json!({"eventType": "USER_UPDATED", "userId": -id, "version": 2, "user": null}),
        // The status is longer than the view's column.
        update(json!(1_000_000_000), user(&"ACTIVE".repeat(10))),
        update(json!(1_000_000_000), user(REFUSED_STATUS)),
    ];
    mistakes[usize::try_from(index).unwrap_or(0) % mistakes.len()].to_string()
}

#[cfg(test)]
mod tests {
    use super::{Plan, poison_payload};

    #[test]
    fn a_plan_is_the_same_for_both_rounds_of_a_pair() {
        let [one, other] = [7, 7].map(|seed| Plan::new(seed, 1, 1_000, 12_500));
        assert_eq!(one.poison_events, other.poison_events);
        let poison = one.poison_events.len();
        assert!((60..200).contains(&poison), "{poison}");
        assert!(one.poison_events.iter().all(|index| one.gets_poison(index % 1_000)));
        let good_users = (1_000 - one.poisoned_users()) as u64;
        assert_eq!(one.good_events(2_500, 10_000), good_users * 10);
    }

    #[test]
    fn poison_is_json_of_several_kinds() {
        let payloads = [0, 1, 2, 3, 4, 5].map(|index| poison_payload(5, index));
        for payload in &payloads {
            assert!(serde_json::from_str::<serde_json::Value>(payload).is_ok(), "{payload}");
        }
        assert_ne!(payloads[0], payloads[1]);
    }
}
