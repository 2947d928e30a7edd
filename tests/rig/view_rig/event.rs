//! Events for a topic, as the contract describes them.

use serde_json::{Value, json};

/// A record to produce.
#[derive(Clone, Debug)]
pub struct Event {
    pub partition: i32,
    pub key: Option<String>,
    /// None: a tombstone.
    pub value: Option<String>,
}

impl Event {
    /// The event of `topic` that describes a change. `entity` is what the entity is after the change; none: it was deleted. The names in the event
    /// follow from the topic's name, as docs/views.md describes: `order-line-events` carries `orderLine`, `orderLineId` and `ORDER_LINE_CREATED`.
    #[must_use]
    pub fn of(topic: &str, partition: i32, id: i64, version: i64, entity: Option<&Value>) -> Self {
        let aggregate = topic.strip_suffix("-events").unwrap_or(topic);
        let mut name = String::new();
        for (at, word) in aggregate.split('-').enumerate() {
            let (first, rest) = word.split_at(1);
            name += &if at == 0 {
                first.to_owned()
            } else {
                first.to_uppercase()
            };
            name += rest;
        }
        let change = match (entity, version) {
            (None, _) => "DELETED",
            (Some(_), 1) => "CREATED",
            (Some(_), _) => "UPDATED",
        };
        let value = json!({
            "eventType": format!("{}_{change}", aggregate.replace('-', "_").to_uppercase()),
            format!("{name}Id"): id,
            name: entity,
            "version": version,
        });
        Self {
            partition,
            key: Some(id.to_string()),
            value: Some(value.to_string()),
        }
    }
}
