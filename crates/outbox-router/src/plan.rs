//! Applies the router's options: once to the columns of a table, and then to each of its rows.

use std::borrow::Cow;

use super::options::{Placement, RouterOptions};
use super::values::{BYTEA, RowScratch, connect_text, decode_bytea};
use pg_replication::pgoutput::{DecodeError, Tuple, Value};

const INT4: u32 = 23;

/// A column of the outbox table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub type_oid: u32,
}

/// Which columns of a table the router reads, and what each of them becomes.
#[derive(Clone, Debug)]
pub struct Plan {
    columns: Vec<Column>,
    id: usize,
    key: usize,
    payload: usize,
    route: usize,
    headers: Vec<(usize, String)>,
    partition: Option<usize>,
    options: RouterOptions,
}

/// A table that the options do not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("the outbox table has no column `{column}`, which {option} names; its columns are {present}")]
    MissingColumn {
        column: String,
        option: &'static str,
        present: String,
    },
    #[error("column `{column}` cannot be the partition: its type must be int")]
    PartitionType { column: String },
    #[error(transparent)]
    Garbled(#[from] DecodeError),
}

/// A row that cannot become a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    #[error("column `{0}` is null, but a record needs it")]
    NullColumn(String),
    #[error("column `{0}` holds no UTF-8 text")]
    NotText(String),
    #[error("column `{0}` holds no valid bytea")]
    NotBytea(String),
    #[error("column `{0}` holds no partition number")]
    NotAPartition(String),
    #[error(transparent)]
    Garbled(#[from] DecodeError),
}

/// A header of a record: its name and its value. A column that is null gives a null value.
pub type Header<'a> = (&'a str, Option<Cow<'a, [u8]>>);

/// The record that a row becomes. It borrows from the read buffer wherever the record has the same bytes as Postgres' text.
#[derive(Debug)]
pub struct Routed<'a> {
    /// The event's id.
    pub id: &'a str,
    /// The value that chooses the topic; [`Plan::topic`] turns it into the topic's name.
    pub route: &'a str,
    pub key: Option<Cow<'a, [u8]>>,
    pub value: Option<Cow<'a, [u8]>>,
    /// A partition that the row itself asks for.
    pub partition: Option<i32>,
}

impl Plan {
    /// Finds the options' columns in a table.
    ///
    /// # Errors
    /// A column that an option names is missing, or its type does not fit.
    pub fn new(options: &RouterOptions, columns: Vec<Column>) -> Result<Self, PlanError> {
        let find_column = |name: &str, option: &'static str| {
            columns
                .iter()
                .position(|column| column.name == name)
                .ok_or_else(|| PlanError::MissingColumn {
                    column: name.to_owned(),
                    option,
                    present: columns
                        .iter()
                        .map(|column| column.name.as_str())
                        .collect::<Vec<_>>()
                        .join(", "),
                })
        };
        let mut headers = Vec::new();
        let mut partition = None;
        for additional in &options.additional {
            let index = find_column(&additional.column, "table.fields.additional.placement")?;
            match additional.placement {
                Placement::Header => headers.push((index, additional.alias.clone())),
                Placement::Partition if columns[index].type_oid != INT4 => {
                    return Err(PlanError::PartitionType {
                        column: additional.column.clone(),
                    });
                }
                Placement::Partition => partition = Some(index),
            }
        }
        Ok(Self {
            id: find_column(&options.id_column, "table.field.event.id")?,
            key: find_column(&options.key_column, "table.field.event.key")?,
            payload: find_column(&options.payload_column, "table.field.event.payload")?,
            route: find_column(&options.route_column, "route.by.field")?,
            headers,
            partition,
            columns,
            options: options.clone(),
        })
    }

    /// Routes one row. Calls `then` with the record and its additional headers, in the order of the option.
    ///
    /// # Errors
    /// The row lacks what a record needs.
    pub fn route<'a, T>(
        &self,
        tuple: &Tuple<'a>,
        scratch: &mut RowScratch,
        then: impl FnOnce(Routed<'_>, &mut dyn Iterator<Item = Header<'_>>) -> T,
    ) -> Result<T, RouteError> {
        let values = scratch.read_values(tuple)?;
        let outcome = self.read_record(&values).map(|routed| {
            let mut headers = self.headers.iter().map(|(index, alias)| {
                (
                    alias.as_str(),
                    values
                        .get(*index)
                        .and_then(|value| connect_text(value, self.columns[*index].type_oid)),
                )
            });
            then(routed, &mut headers)
        });
        scratch.take_back(values);
        outcome
    }

    /// The event's id in a row, also in a row that cannot be routed. `None` if the id is null or is not UTF-8.
    #[must_use]
    pub fn id_of<'a>(&self, tuple: &Tuple<'a>) -> Option<&'a str> {
        match tuple.values().nth(self.id)?.ok()? {
            Value::Text(bytes) => std::str::from_utf8(bytes).ok(),
            Value::Null | Value::Unchanged => None,
        }
    }

    /// The table's columns, in order.
    #[must_use]
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Topic and key of a row, also of a row that cannot be routed. Each is `None` if its column is null or cannot be read.
    #[must_use]
    pub fn topic_and_key_of(&self, tuple: &Tuple<'_>) -> (Option<String>, Option<Vec<u8>>) {
        let Ok(values) = tuple.values().collect::<Result<Vec<_>, _>>() else {
            return (None, None);
        };
        let route = self.required_text(&values, self.route).ok();
        let key = self.optional_bytes(&values, self.key).ok().flatten();
        (route.map(|route| self.topic(route)), key.map(Cow::into_owned))
    }

    fn read_record<'a>(&self, values: &[Value<'a>]) -> Result<Routed<'a>, RouteError> {
        let partition = match self.partition {
            None => None,
            Some(index) => self
                .optional_text(values, index)?
                .map(str::parse)
                .transpose()
                .map_err(|_| RouteError::NotAPartition(self.column_name(index)))?,
        };
        Ok(Routed {
            id: self.required_text(values, self.id)?,
            route: self.required_text(values, self.route)?,
            key: self.optional_bytes(values, self.key)?,
            value: self
                .optional_bytes(values, self.payload)?
                .filter(|value| !(self.options.tombstone_on_empty_payload && self.is_blank_payload(value))),
            partition,
        })
    }

    /// Name of the topic for a value of `route.by.field`. A value that the regex does not match is the topic's name itself, as in Debezium.
    #[must_use]
    pub fn topic(&self, route: &str) -> String {
        if !self.options.topic_regex.is_match(route) {
            return route.to_owned();
        }
        self.options
            .topic_regex
            .replace(route, self.options.topic_replacement.as_str())
            .into_owned()
    }

    /// Whether Java's `toString().trim().isEmpty()` is true: all characters are control characters or blanks, up to U+0020. A bytea never counts as
    /// empty.
    fn is_blank_payload(&self, value: &[u8]) -> bool {
        self.columns[self.payload].type_oid != BYTEA && value.iter().all(|byte| *byte <= b' ')
    }

    fn column_name(&self, index: usize) -> String {
        self.columns[index].name.clone()
    }

    fn optional_text<'a>(&self, values: &[Value<'a>], index: usize) -> Result<Option<&'a str>, RouteError> {
        match values.get(index) {
            Some(Value::Text(bytes)) => std::str::from_utf8(bytes)
                .map(Some)
                .map_err(|_| RouteError::NotText(self.column_name(index))),
            _ => Ok(None),
        }
    }

    fn required_text<'a>(&self, values: &[Value<'a>], index: usize) -> Result<&'a str, RouteError> {
        self.optional_text(values, index)?
            .ok_or_else(|| RouteError::NullColumn(self.column_name(index)))
    }

    fn optional_bytes<'a>(&self, values: &[Value<'a>], index: usize) -> Result<Option<Cow<'a, [u8]>>, RouteError> {
        match values.get(index) {
            Some(Value::Text(bytes)) if self.columns[index].type_oid == BYTEA => decode_bytea(bytes)
                .map(|bytes| Some(Cow::Owned(bytes)))
                .ok_or_else(|| RouteError::NotBytea(self.column_name(index))),
            Some(value) => Ok(connect_text(value, self.columns[index].type_oid)),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Column, Plan, PlanError, RouteError};
    use crate::{RouterOptions, RowScratch};
    use pg_replication::pgoutput::Tuple;

    fn columns(payload_type: u32) -> Vec<Column> {
        [
            ("id", 2950),
            ("aggregatetype", 25),
            ("aggregateid", 25),
            ("type", 25),
            ("payload", payload_type),
            ("urgent", 16),
            ("shard", 23),
        ]
        .map(|(name, type_oid)| Column {
            name: name.to_owned(),
            type_oid,
        })
        .to_vec()
    }

    const ROW: [Option<&[u8]>; 7] = [
        Some(b"e1"),
        Some(b"user"),
        Some(b"k1"),
        Some(b"Created"),
        Some(b"{}"),
        Some(b"t"),
        Some(b"5"),
    ];

    /// Topic, key, value, partition, headers of a routed row, as text.
    type Flat = (
        String,
        Option<String>,
        Option<String>,
        Option<i32>,
        Vec<(String, Option<String>)>,
    );

    fn route(settings: &[&str], payload_type: u32, row: &[Option<&[u8]>]) -> Result<Flat, RouteError> {
        let plan = Plan::new(&RouterOptions::parse(settings).unwrap(), columns(payload_type)).unwrap();
        let bytes = Tuple::encode(row).unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        plan.route(
            &Tuple::from_encoded(7, &bytes),
            &mut RowScratch::default(),
            |routed, headers| {
                (
                    plan.topic(routed.route),
                    routed.key.map(|key| text(&key)),
                    routed.value.map(|value| text(&value)),
                    routed.partition,
                    headers
                        .map(|(name, value)| (name.to_owned(), value.map(|value| text(&value))))
                        .collect(),
                )
            },
        )
    }

    #[test]
    fn the_defaults_are_debeziums() {
        let (topic, key, value, partition, headers) = route(&[], 3802, &ROW).unwrap();
        assert_eq!(topic, "outbox.event.user");
        assert_eq!(
            (key.as_deref(), value.as_deref(), partition),
            (Some("k1"), Some("{}"), None)
        );
        assert_eq!(headers, []);
    }

    #[test]
    fn the_pipelines_own_options_give_its_contract() {
        let (topic, _, _, _, headers) = route(
            &[
                "route.topic.replacement=${routedByValue}-events",
                "table.fields.additional.placement=type:header:eventType,urgent:header",
            ],
            3802,
            &ROW,
        )
        .unwrap();
        assert_eq!(topic, "user-events");
        assert_eq!(
            headers,
            [
                ("eventType".to_owned(), Some("Created".to_owned())),
                ("urgent".to_owned(), Some("true".to_owned()))
            ]
        );
    }

    #[test]
    fn a_value_that_the_regex_does_not_match_whole_is_the_topic() {
        let settings = ["route.topic.regex=(us)er-(.*)", "route.topic.replacement=$1_$2"];
        assert_eq!(route(&settings, 3802, &ROW).unwrap().0, "user");
        let mut row = ROW;
        row[1] = Some(b"user-eu");
        assert_eq!(route(&settings, 3802, &row).unwrap().0, "us_eu");
    }

    #[test]
    fn a_null_payload_is_a_tombstone_and_a_blank_one_only_by_option() {
        let mut row = ROW;
        row[4] = None;
        assert_eq!(route(&[], 3802, &row).unwrap().2, None);
        row[4] = Some(b" \t\n");
        assert_eq!(route(&[], 25, &row).unwrap().2.as_deref(), Some(" \t\n"));
        assert_eq!(
            route(&["route.tombstone.on.empty.payload=true"], 25, &row).unwrap().2,
            None
        );
        row[4] = Some("\u{3000}".as_bytes());
        assert!(
            route(&["route.tombstone.on.empty.payload=true"], 25, &row)
                .unwrap()
                .2
                .is_some(),
            "U+3000 is not blank to Java's trim"
        );
    }

    #[test]
    fn a_bytea_payload_is_its_bytes() {
        let mut row = ROW;
        row[4] = Some(b"\\x6869");
        assert_eq!(route(&[], 17, &row).unwrap().2.as_deref(), Some("hi"));
        row[4] = Some(b"\\x6");
        assert_eq!(route(&[], 17, &row), Err(RouteError::NotBytea("payload".to_owned())));
    }

    #[test]
    fn the_row_may_choose_its_partition() {
        assert_eq!(
            route(&["table.fields.additional.placement=shard:partition"], 3802, &ROW)
                .unwrap()
                .3,
            Some(5)
        );
        let mut row = ROW;
        row[6] = None;
        assert_eq!(
            route(&["table.fields.additional.placement=shard:partition"], 3802, &row)
                .unwrap()
                .3,
            None
        );
    }

    #[test]
    fn a_row_without_id_or_route_is_refused_by_column() {
        for (index, name) in [(0, "id"), (1, "aggregatetype")] {
            let mut row = ROW;
            row[index] = None;
            assert_eq!(route(&[], 3802, &row), Err(RouteError::NullColumn(name.to_owned())));
        }
    }

    #[test]
    fn a_table_without_a_named_column_is_refused() {
        let options = RouterOptions::parse(&["table.field.event.key=account"]).unwrap();
        assert!(
            matches!(Plan::new(&options, columns(3802)), Err(PlanError::MissingColumn { column, .. }) if column == "account")
        );
    }
}
