//! The tables in which a key of a topic has one row, so that a trace can show the row's version and find the key's latest event.

use serde::Deserialize;

/// A view's table in which each key of a topic has a row.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ViewRow {
    pub topic: String,
    /// The view, as view-builder calls it.
    pub view: String,
    /// The table, such as `public.user_view`.
    pub table: String,
    /// The column that equals the record's key. It needs an index.
    pub key: String,
    /// The column with the version of the newest event that the row has.
    pub version: String,
    /// The column with the event's own time, in UTC: the time of its commit, or a little before. `None`: a trace by key looks through the partition instead.
    pub changed: Option<String>,
    /// The column that says when the view took the event up, in UTC.
    pub applied: Option<String>,
}

impl ViewRow {
    /// # Errors
    /// Names the field that is wrong.
    pub fn check(self) -> Result<Self, String> {
        let of = |field: &str, what: &str| format!("[[views.row]] `{}`, {field}: {what}", self.table);
        if !kafka_client::is_topic_name(&self.topic) {
            return Err(of("topic", "expected the name of a topic, such as user-events"));
        }
        if self.table.split('.').count() != 2 || self.table.split('.').any(|part| !is_name(part)) {
            return Err(of("table", "expected SCHEMA.TABLE, such as public.user_view"));
        }
        let columns = [
            ("key", Some(&self.key)),
            ("version", Some(&self.version)),
            ("changed", self.changed.as_ref()),
            ("applied", self.applied.as_ref()),
        ];
        for (field, column) in columns {
            if column.is_some_and(|column| !is_name(column)) {
                return Err(of(field, "expected the name of a column"));
            }
        }
        if self.view.is_empty() {
            return Err(of("view", "expected the name of a view, such as user_view"));
        }
        Ok(self)
    }
}

/// Letters of any script, digits and `_`. Names are quoted as well, so this only refuses what is surely a mistake.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|char| char.is_alphanumeric() || char == '_')
}

#[cfg(test)]
mod tests {
    use super::ViewRow;

    #[test]
    fn what_is_wrong_is_named() {
        let row = ViewRow {
            topic: "user-events".to_owned(),
            view: "user_view".to_owned(),
            table: "public.user_view".to_owned(),
            key: "user_id".to_owned(),
            version: "version".to_owned(),
            changed: Some("updated_at".to_owned()),
            applied: None,
        };
        assert_eq!(row.clone().check().as_ref(), Ok(&row));
        for (wrong, named) in [
            (
                ViewRow {
                    topic: "a b".to_owned(),
                    ..row.clone()
                },
                "topic",
            ),
            (
                ViewRow {
                    table: "user_view".to_owned(),
                    ..row.clone()
                },
                "table",
            ),
            (
                ViewRow {
                    key: "user_id; --".to_owned(),
                    ..row.clone()
                },
                "key",
            ),
            (
                ViewRow {
                    changed: Some(String::new()),
                    ..row.clone()
                },
                "changed",
            ),
            (
                ViewRow {
                    view: String::new(),
                    ..row
                },
                "view",
            ),
        ] {
            let refused = wrong.check().unwrap_err();
            assert!(refused.contains(&format!(", {named}: ")), "{refused}");
        }
    }
}
