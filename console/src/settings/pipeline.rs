//! The file that names the parts of the pipeline.

use std::path::Path;

use pg_replication::Target;
use serde::Deserialize;
use service::Secret;

use super::mask::Mask;
use super::variables;
use super::view_row::ViewRow;

/// The parts of the pipeline.
#[derive(Clone, Debug)]
pub struct Pipeline {
    /// The fields of values that are not shown.
    pub mask: Mask,
    pub outboxes: Vec<Outbox>,
    pub views: Views,
}

/// An outbox, with the slot and the relay that read it.
#[derive(Clone, Debug)]
pub struct Outbox {
    /// As people call it; unique.
    pub name: String,
    pub database: Database,
    pub slot: String,
    /// The outbox table, with its schema.
    pub table: String,
    /// The topics that its rows go to.
    pub topics: Vec<String>,
    /// The relay's admin address, such as `http://127.0.0.1:8083`, without a slash at the end. `None`: nobody asks the relay.
    pub relay: Option<String>,
    /// The checkpoint topic of its relay; `None`: the relay's default.
    pub checkpoint_topic: Option<String>,
    /// The role for `outbox-relay` commands. `None`: the role of `database`.
    pub command_database: Option<Database>,
}

/// The views' database and its builders.
#[derive(Clone, Debug)]
pub struct Views {
    pub database: Database,
    /// The consumer group of the builders.
    pub group: String,
    /// Where a key of a topic has one row in a view.
    pub rows: Vec<ViewRow>,
    /// The builders' admin addresses.
    pub builders: Vec<String>,
    /// The role for `view-builder` commands, and for the audit. `None`: the role of `database`.
    pub command_database: Option<Database>,
    /// For `verify`: the database whose outbox feeds a topic, as that command takes them. Empty: `verify` is not offered.
    pub verify_sources: Vec<(String, Secret)>,
}

/// A database and how to log in there.
#[derive(Clone, Debug)]
pub struct Database {
    /// As the operator has given it, for the commands.
    pub url: Secret,
    pub target: Target,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PipelineFile {
    #[serde(default)]
    mask: Vec<String>,
    outbox: Vec<OutboxTable>,
    views: ViewsTable,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OutboxTable {
    name: String,
    database_url: String,
    slot: String,
    #[serde(default = "default_table")]
    table: String,
    topics: Vec<String>,
    relay: Option<String>,
    checkpoint_topic: Option<String>,
    command_database_url: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ViewsTable {
    database_url: String,
    #[serde(default = "default_group")]
    group: String,
    #[serde(default)]
    row: Vec<ViewRow>,
    #[serde(default)]
    builders: Vec<String>,
    command_database_url: Option<String>,
    #[serde(default)]
    verify_sources: std::collections::BTreeMap<String, String>,
}

fn default_table() -> String {
    "public.outbox".to_owned()
}

fn default_group() -> String {
    "view-builder".to_owned()
}

impl Pipeline {
    /// Reads the file.
    ///
    /// # Errors
    /// It cannot be read, or a field is wrong: the message names the field, and shows no value that may have a password.
    pub fn read(path: &Path) -> Result<Self, String> {
        let named = |what: &str| format!("--pipeline {}: {what}", path.display());
        let text = std::fs::read_to_string(path).map_err(|err| named(&format!("cannot be read: {err}")))?;
        let text = variables::fill_in(&text, |name| std::env::var(name).ok()).map_err(|err| named(&err))?;
        Self::parse(&text).map_err(|err| named(&err))
    }

    /// # Errors
    /// As [`Pipeline::read`].
    pub fn parse(text: &str) -> Result<Self, String> {
        // The whole error would show the line, and that may be a URL with a password.
        let file: PipelineFile = toml::from_str(text).map_err(|err| {
            let line = err.span().map_or(1, |span| text[..span.start].lines().count().max(1));
            format!("line {line}: {}", err.message())
        })?;
        if file.outbox.is_empty() {
            return Err("[[outbox]]: at least one is needed".to_owned());
        }
        let mut outboxes: Vec<Outbox> = Vec::new();
        for table in file.outbox {
            let outbox = table.check()?;
            if outboxes.iter().any(|known| known.name == outbox.name) {
                return Err(format!("[[outbox]] `{}`: there are two with this name", outbox.name));
            }
            outboxes.push(outbox);
        }
        Ok(Self {
            mask: Mask::parse(&file.mask)?,
            outboxes,
            views: file.views.check()?,
        })
    }

    /// The topics of all outboxes, each once, in the order of the file.
    #[must_use]
    pub fn topics(&self) -> Vec<&str> {
        let mut topics: Vec<&str> = Vec::new();
        for topic in self.outboxes.iter().flat_map(|outbox| &outbox.topics) {
            if !topics.contains(&topic.as_str()) {
                topics.push(topic);
            }
        }
        topics
    }

    /// The outbox whose rows go to the topic.
    #[must_use]
    pub fn outbox_of(&self, topic: &str) -> Option<&Outbox> {
        self.outboxes
            .iter()
            .find(|outbox| outbox.topics.iter().any(|known| known == topic))
    }
}

impl OutboxTable {
    fn check(self) -> Result<Outbox, String> {
        let of = |field: &str, what: &str| format!("[[outbox]] `{}`, {field}: {what}", self.name);
        let is_name =
            |text: &str| !text.is_empty() && text.chars().all(|char| char.is_alphanumeric() || "_-.".contains(char));
        if !is_name(&self.name) {
            return Err(of("name", "expected letters, digits, `_`, `-` or `.`"));
        }
        if !is_name(&self.slot) {
            return Err(of(
                "slot",
                "expected the name of a replication slot, such as users_relay",
            ));
        }
        if self.table.split('.').count() != 2 || self.table.split('.').any(str::is_empty) {
            return Err(of("table", "expected SCHEMA.TABLE, such as public.outbox"));
        }
        if self.topics.is_empty() {
            return Err(of("topics", "expected at least one topic"));
        }
        if let Some(wrong) = self.topics.iter().find(|topic| !kafka_client::is_topic_name(topic)) {
            return Err(of("topics", &format!("`{wrong}` is no name of a topic")));
        }
        Ok(Outbox {
            database: Database::parse(&self.database_url).map_err(|err| of("database_url", &err))?,
            relay: self
                .relay
                .as_deref()
                .map(admin_address)
                .transpose()
                .map_err(|err| of("relay", &err))?,
            command_database: optional_database(self.command_database_url.as_deref())
                .map_err(|err| of("command_database_url", &err))?,
            name: self.name,
            slot: self.slot,
            table: self.table,
            topics: self.topics,
            checkpoint_topic: self.checkpoint_topic,
        })
    }
}

impl ViewsTable {
    fn check(self) -> Result<Views, String> {
        let of = |field: &str, what: &str| format!("[views], {field}: {what}");
        if self.group.trim().is_empty() {
            return Err(of(
                "group",
                "expected the name of a consumer group, such as view-builder",
            ));
        }
        let builders = self.builders.iter().map(|text| admin_address(text));
        for (topic, url) in &self.verify_sources {
            Target::parse(url).map_err(|err| of(&format!("verify_sources.{topic}"), &err.to_string()))?;
        }
        Ok(Views {
            database: Database::parse(&self.database_url).map_err(|err| of("database_url", &err))?,
            group: self.group,
            rows: self.row.into_iter().map(ViewRow::check).collect::<Result<_, _>>()?,
            builders: builders.collect::<Result<_, _>>().map_err(|err| of("builders", &err))?,
            command_database: optional_database(self.command_database_url.as_deref())
                .map_err(|err| of("command_database_url", &err))?,
            verify_sources: self
                .verify_sources
                .into_iter()
                .map(|(topic, url)| (topic, Secret::from(url)))
                .collect(),
        })
    }
}

impl Views {
    /// The database as commands and the audit log in there.
    #[must_use]
    pub fn command_database(&self) -> &Database {
        self.command_database.as_ref().unwrap_or(&self.database)
    }
}

impl Outbox {
    /// The database as `outbox-relay` commands log in there.
    #[must_use]
    pub fn command_database(&self) -> &Database {
        self.command_database.as_ref().unwrap_or(&self.database)
    }
}

impl Database {
    /// # Errors
    /// It is no URL of a database. The message does not show it.
    pub fn parse(url: &str) -> Result<Self, String> {
        let target = Target::parse(url).map_err(|err| err.to_string())?;
        Ok(Self {
            url: Secret::from(url.to_owned()),
            target,
        })
    }
}

fn optional_database(url: Option<&str>) -> Result<Option<Database>, String> {
    url.map(Database::parse).transpose()
}

/// `http://HOST:PORT`, without what may stand behind it.
fn admin_address(text: &str) -> Result<String, String> {
    let trimmed = text.trim_end_matches('/');
    let place = trimmed.strip_prefix("http://").unwrap_or_default();
    if place.is_empty() || place.contains(['/', '@', '?', '#']) {
        return Err("expected the address of an admin port, such as http://127.0.0.1:8083".to_owned());
    }
    Ok(trimmed.to_owned())
}

#[cfg(test)]
mod tests {
    use super::Pipeline;

    const FILE: &str = r#"
mask = ["user.email"]

[[outbox]]
name = "users"
database_url = "postgres://reader:hunter2@localhost:15432/users_db"
slot = "users_relay"
topics = ["user-events"]
relay = "http://127.0.0.1:8083/"

[views]
database_url = "postgres://reader:hunter2@localhost:15432/materialized_view_db"
builders = ["http://127.0.0.1:8084"]
"#;

    #[test]
    fn a_file_names_the_parts_and_the_rest_has_defaults() {
        let pipeline = Pipeline::parse(FILE).unwrap();
        let users = &pipeline.outboxes[0];
        assert_eq!(
            (users.table.as_str(), users.relay.as_deref()),
            ("public.outbox", Some("http://127.0.0.1:8083"))
        );
        assert_eq!(pipeline.views.group, "view-builder");
        assert_eq!(pipeline.topics(), ["user-events"]);
        assert!(pipeline.mask.hides_name("email"));
        assert_eq!(
            pipeline.outbox_of("user-events").map(|outbox| outbox.name.as_str()),
            Some("users")
        );
    }

    #[test]
    fn what_is_wrong_is_named_and_no_password_is_shown() {
        for (from, to, named) in [
            ("slot = \"users_relay\"", "slott = \"users_relay\"", "`slott`"),
            ("slot = \"users_relay\"", "slot = \"\"", "[[outbox]] `users`, slot"),
            ("[\"user-events\"]", "[\"user events\"]", "[[outbox]] `users`, topics"),
            ("[\"user-events\"]", "[]", "[[outbox]] `users`, topics"),
            ("http://127.0.0.1:8083/", "127.0.0.1:8083", "[[outbox]] `users`, relay"),
            (
                "http://127.0.0.1:8084",
                "http://127.0.0.1:8084/metrics",
                "[views], builders",
            ),
            ("/materialized_view_db\"", "\"", "[views], database_url"),
            ("mask = [\"user.email\"]", "mask = [\".email\"]", "mask `.email`"),
            (
                "topics = ",
                "table = \"outbox\"\ntopics = ",
                "[[outbox]] `users`, table",
            ),
            ("relay = ", "relay = 7 #", "line 9"),
        ] {
            assert!(FILE.contains(from), "{from}");
            let refused = Pipeline::parse(&FILE.replacen(from, to, 1)).map(drop).expect_err(to);
            assert!(refused.contains(named), "{to}: {refused}");
            assert!(!refused.contains("hunter2"), "{refused}");
        }
        let twice = FILE.replacen("[views]", "[[outbox]]\nname = \"users\"\ndatabase_url = \"postgres://u@h/d\"\nslot = \"s\"\ntopics = [\"t\"]\n[views]", 1);
        let refused = Pipeline::parse(&twice).map(drop).expect_err("two of a name");
        assert!(refused.contains("two with this name"), "{refused}");
        let shown = format!("{:?}", Pipeline::parse(FILE).unwrap());
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
