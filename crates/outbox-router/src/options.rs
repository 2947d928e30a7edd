//! The router's options, by Debezium's names.

use regex_lite::Regex;

use crate::replacement::rewrite_java_replacement;

/// Options of the router. [`RouterOptions::parse`] knows their names and defaults.
#[derive(Clone, Debug)]
pub struct RouterOptions {
    /// `table.field.event.id` (default `id`): column of the event's id, sent as header `id`.
    pub id_column: String,
    /// `table.field.event.key` (default `aggregateid`): column of the record's key.
    pub key_column: String,
    /// `table.field.event.payload` (default `payload`): column of the record's value.
    pub payload_column: String,
    /// `route.by.field` (default `aggregatetype`): column whose value chooses the topic.
    pub route_column: String,
    /// `route.topic.regex` (default `(?<routedByValue>.*)`): must match the whole value. `\d`, `\w`, `\s` and `(?i)` mean ASCII, as in Java.
    /// `\p{...}`, lookaround and backreferences are not supported.
    pub topic_regex: Regex,
    /// `route.topic.replacement` (default `outbox.event.${routedByValue}`): the topic's name, with `$1` or `${name}` from the regex.
    pub topic_replacement: String,
    /// `table.fields.additional.placement`: further columns, as headers or as the partition.
    pub additional: Vec<Additional>,
    /// `route.tombstone.on.empty.payload` (default false): an empty or blank payload becomes a null value.
    pub tombstone_on_empty_payload: bool,
    /// `table.op.invalid.behavior` (default `warn`): what to do about an update of an outbox row.
    pub invalid_operation: InvalidOperation,
}

/// One item of `table.fields.additional.placement`: `column:header:alias`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Additional {
    pub column: String,
    pub placement: Placement,
    /// The header's name. If none is given, it is the column's name.
    pub alias: String,
}

/// Where an additional column goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    Header,
    Partition,
}

/// What to do about an update of an outbox row. Only inserts are events. Deletes are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidOperation {
    /// Log a warning and ignore the update.
    Warn,
    /// Log an error and ignore the update.
    Error,
    /// Stop.
    Fatal,
}

/// An option that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("router option `{name}`: {reason}")]
pub struct InvalidOption {
    name: String,
    reason: String,
}

const KNOWN_OPTIONS: [&str; 10] = [
    "table.field.event.id",
    "table.field.event.key",
    "table.field.event.payload",
    "table.field.event.type",
    "route.by.field",
    "route.topic.regex",
    "route.topic.replacement",
    "table.fields.additional.placement",
    "route.tombstone.on.empty.payload",
    "table.op.invalid.behavior",
];

impl RouterOptions {
    /// Reads `NAME=VALUE` settings; Debezium's prefix `transforms.outbox.` may stand before a name.
    ///
    /// # Errors
    /// Names the option that is unknown or whose value is wrong, and what would be right.
    pub fn parse<S: AsRef<str>>(settings: &[S]) -> Result<Self, InvalidOption> {
        let mut options = Self::default();
        for setting in settings
            .iter()
            .map(AsRef::as_ref)
            .map(str::trim)
            .filter(|setting| !setting.is_empty())
        {
            let (name, value) = setting
                .split_once('=')
                .ok_or_else(|| invalid(setting, "expected NAME=VALUE"))?;
            let name = name.trim().trim_start_matches("transforms.outbox.");
            options.set(name, value.trim())?;
        }
        // Only now the regex is known whose groups it names.
        options.topic_replacement = rewrite_java_replacement(&options.topic_replacement, &options.topic_regex)
            .map_err(|reason| {
                invalid(
                    "route.topic.replacement",
                    &format!("{}: {reason}", options.topic_replacement),
                )
            })?;
        Ok(options)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), InvalidOption> {
        let column = || match value {
            "" => Err(invalid(name, "expected a column's name")),
            _ => Ok(value.to_owned()),
        };
        match name {
            "table.field.event.id" => self.id_column = column()?,
            "table.field.event.key" => self.key_column = column()?,
            "table.field.event.payload" => self.payload_column = column()?,
            // Debezium accepts this option and never uses it. The type becomes a header by table.fields.additional.placement.
            "table.field.event.type" => {
                column()?;
            }
            "route.by.field" => self.route_column = column()?,
            "route.topic.regex" => {
                self.topic_regex = compile_whole_match(value).map_err(|err| invalid(name, &err.to_string()))?
            }
            "route.topic.replacement" if value.is_empty() => return Err(invalid(name, "expected a topic's name")),
            "route.topic.replacement" => value.clone_into(&mut self.topic_replacement),
            "table.fields.additional.placement" => {
                self.additional = value
                    .split(',')
                    .filter(|item| !item.trim().is_empty())
                    .map(|item| Additional::parse(item).map_err(|reason| invalid(name, &reason)))
                    .collect::<Result<_, _>>()?;
            }
            "route.tombstone.on.empty.payload" => {
                self.tombstone_on_empty_payload = value.parse().map_err(|_| invalid(name, "expected true or false"))?;
            }
            "table.op.invalid.behavior" => {
                self.invalid_operation = match value {
                    "warn" => InvalidOperation::Warn,
                    "error" => InvalidOperation::Error,
                    "fatal" => InvalidOperation::Fatal,
                    _ => return Err(invalid(name, "expected warn, error or fatal")),
                };
            }
            _ => {
                return Err(invalid(
                    name,
                    &format!("not known; the known options are {}", KNOWN_OPTIONS.join(", ")),
                ));
            }
        }
        Ok(())
    }
}

impl Default for RouterOptions {
    fn default() -> Self {
        Self {
            id_column: "id".to_owned(),
            key_column: "aggregateid".to_owned(),
            payload_column: "payload".to_owned(),
            route_column: "aggregatetype".to_owned(),
            #[expect(clippy::unwrap_used, reason = "a constant that the tests compile")]
            topic_regex: compile_whole_match("(?<routedByValue>.*)").unwrap(),
            topic_replacement: "outbox.event.${routedByValue}".to_owned(),
            additional: Vec::new(),
            tombstone_on_empty_payload: false,
            invalid_operation: InvalidOperation::Warn,
        }
    }
}

impl Additional {
    fn parse(item: &str) -> Result<Self, String> {
        let mut parts = item.trim().split(':');
        // `split` always gives a first part. An empty one is refused below.
        let column = parts.next().unwrap_or_default().trim();
        let placement = match parts
            .next()
            .map(|placement| placement.trim().to_ascii_lowercase())
            .as_deref()
        {
            Some("header") => Placement::Header,
            Some("partition") => Placement::Partition,
            Some("envelope") => return Err(format!("`{item}`: placement envelope is not supported; use header")),
            _ => return Err(format!("`{item}`: expected COLUMN:header[:ALIAS] or COLUMN:partition")),
        };
        let alias = parts
            .next()
            .map(str::trim)
            .filter(|alias| !alias.is_empty())
            .unwrap_or(column);
        if column.is_empty() || parts.next().is_some() {
            return Err(format!("`{item}`: expected COLUMN:header[:ALIAS] or COLUMN:partition"));
        }
        Ok(Self {
            column: column.to_owned(),
            placement,
            alias: alias.to_owned(),
        })
    }
}

/// Compiles a pattern that must match the whole text, like Java's `Matcher.matches()`.
fn compile_whole_match(pattern: &str) -> Result<Regex, regex_lite::Error> {
    Regex::new(&format!("^(?:{pattern})$"))
}

fn invalid(name: &str, reason: &str) -> InvalidOption {
    InvalidOption {
        name: name.to_owned(),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Additional, Placement, RouterOptions};

    #[test]
    fn debezium_names_are_taken_with_and_without_their_prefix() {
        let options = RouterOptions::parse(&[
            "transforms.outbox.table.field.event.key=account",
            "table.fields.additional.placement=type:header:eventType, shard:partition",
        ])
        .unwrap();
        assert_eq!(options.key_column, "account");
        assert_eq!(
            options.additional,
            [
                Additional {
                    column: "type".to_owned(),
                    placement: Placement::Header,
                    alias: "eventType".to_owned()
                },
                Additional {
                    column: "shard".to_owned(),
                    placement: Placement::Partition,
                    alias: "shard".to_owned()
                },
            ]
        );
    }

    #[test]
    fn classes_are_asciis_as_in_java() {
        let digits = super::compile_whole_match(r"(?<n>\d+)").unwrap();
        assert!(digits.is_match("123") && !digits.is_match("\u{661}\u{662}"));
    }

    #[test]
    fn a_wrong_option_is_refused_by_name() {
        for (setting, named) in [
            ("table.field.event.kye=x", "`table.field.event.kye`: not known"),
            ("route.tombstone.on.empty.payload=yes", "expected true or false"),
            ("route.topic.regex=(", "`route.topic.regex`"),
            (r"route.topic.regex=\p{L}+", "`route.topic.regex`"),
            ("table.fields.additional.placement=type", "COLUMN:header"),
            (
                "table.fields.additional.placement=type:envelope",
                "envelope is not supported",
            ),
            (
                "route.topic.replacement=x-${typo}",
                "`route.topic.replacement`: x-${typo}: ",
            ),
            ("route.by.field", "expected NAME=VALUE"),
        ] {
            let message = RouterOptions::parse(&[setting]).unwrap_err().to_string();
            assert!(message.contains(named), "{message}");
        }
    }
}
