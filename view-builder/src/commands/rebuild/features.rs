//! Finds out what people have set on a view's tables (an index, a default, a comment, …), by comparing three sets of tables.
//!
//! - *live*: the tables as people have left them.
//! - *own*: the tables as the live view's `table.sql` alone makes them. For this it is run in a schema of its own, and rolled back.
//! - *made*: the tables of the new generation, as the new `table.sql` makes them.
//!
//! If live and own differ in a thing, somebody has set it, and the rebuild carries it over to the new tables. But if made and own differ in the
//! same thing, the new SQL has changed it too. Then the new SQL wins, and the rebuild says so.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::{Client, Error};

const FEATURES: &str = include_str!("features.sql");

/// What can be set on a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    // In the order in which features are set on the new tables: a later one may need an earlier one.
    Table,
    Column,
    Identity,
    Unlogged,
    ForeignKey,
    Tablespace,
    Index,
    Constraint,
    IndexTablespace,
    NotNull,
    Default,
    Statistics,
    Storage,
    Compression,
    ColumnOption,
    IndexStatistics,
    ExtendedStatistics,
    Option,
    ReplicaIdentity,
    Cluster,
    Trigger,
    TriggerState,
    Policy,
    RowSecurity,
    Comment,
    ColumnComment,
    IndexComment,
    ConstraintComment,
    TriggerComment,
}

/// The name that `features.sql` gives to each kind.
const KIND_NAMES: [(Kind, &str); 29] = [
    (Kind::Table, "table"),
    (Kind::Column, "column"),
    (Kind::Identity, "identity"),
    (Kind::Unlogged, "unlogged"),
    (Kind::ForeignKey, "foreign key"),
    (Kind::Tablespace, "tablespace"),
    (Kind::Index, "index"),
    (Kind::Constraint, "constraint"),
    (Kind::IndexTablespace, "index tablespace"),
    (Kind::NotNull, "not null"),
    (Kind::Default, "default"),
    (Kind::Statistics, "statistics"),
    (Kind::Storage, "storage"),
    (Kind::Compression, "compression"),
    (Kind::ColumnOption, "column option"),
    (Kind::IndexStatistics, "index statistics"),
    (Kind::ExtendedStatistics, "extended statistics"),
    (Kind::Option, "option"),
    (Kind::ReplicaIdentity, "replica identity"),
    (Kind::Cluster, "cluster"),
    (Kind::Trigger, "trigger"),
    (Kind::TriggerState, "trigger state"),
    (Kind::Policy, "policy"),
    (Kind::RowSecurity, "row security"),
    (Kind::Comment, "comment"),
    (Kind::ColumnComment, "column comment"),
    (Kind::IndexComment, "index comment"),
    (Kind::ConstraintComment, "constraint comment"),
    (Kind::TriggerComment, "trigger comment"),
];

/// One thing that can be set on one table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Feature {
    pub(super) kind: Kind,
    pub(super) table: String,
    /// Name of the column, the index, the option, …. Empty if the feature is about the table itself.
    pub(super) name: String,
}

/// The features of a set of tables, with their values. In the values every schema is called `public`, so that values of two schemas can be
/// compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Features(BTreeMap<Feature, String>);

/// How somebody has changed a feature of the live tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Gave it this value.
    Set(String),
    /// Removed what the view's own SQL says.
    Unset,
    /// Changed it, but the new SQL says something else than both the old SQL and the live table. So the new SQL wins.
    Overruled,
}

impl Features {
    /// Reads the features of all tables in `schema`. The session's search path must be `pg_catalog` alone, so that Postgres writes out every name
    /// in full.
    pub(super) async fn read(client: &Client, schema: &str) -> Result<Self, Error> {
        let rows = client.query(FEATURES, &[&schema]).await?;
        let features = rows.iter().map(|row| {
            let feature = Feature {
                kind: kind_named(row.get("kind")),
                table: row.get("of_table"),
                name: row.get("name"),
            };
            (feature, row.get("value"))
        });
        Ok(Self(features.collect()))
    }

    pub(super) fn get(&self, feature: &Feature) -> Option<&str> {
        self.0.get(feature).map(String::as_str)
    }

    pub(super) fn has_table(&self, table: &str) -> bool {
        let feature = Feature {
            kind: Kind::Table,
            table: table.to_owned(),
            name: String::new(),
        };
        self.0.contains_key(&feature)
    }

    /// Tables that are live (`self`) and in `made`, but that the view's own SQL does not make.
    pub(super) fn foreign_tables(&self, own: &Self, made: &Self) -> Vec<String> {
        let tables = self.0.keys().filter(|feature| feature.kind == Kind::Table);
        let tables = tables.map(|feature| &feature.table);
        let foreign = tables.filter(|table| made.has_table(table) && !own.has_table(table));
        foreign.cloned().collect()
    }

    /// What somebody has changed on the live tables (`self`), in the order in which it is to be set on the tables of `made`. Tables that `made`
    /// lacks are left out.
    pub(super) fn changed_from(&self, own: &Self, made: &Self) -> Vec<(Feature, Change)> {
        let features: BTreeSet<&Feature> = self.0.keys().chain(own.0.keys()).collect();
        let mut changes = Vec::new();
        for feature in features {
            if !made.has_table(&feature.table) || !self.has_table(&feature.table) {
                continue;
            }
            let (live, own, made) = (self.get(feature), own.get(feature), made.get(feature));
            if live == own || live == made {
                continue;
            }
            let change = match live {
                _ if made != own => Change::Overruled,
                Some(value) => Change::Set(value.to_owned()),
                None => Change::Unset,
            };
            changes.push((feature.clone(), change));
        }
        changes
    }
}

/// # Panics
/// `KIND_NAMES` lacks the kind. If it were skipped, a rebuild would lose the setting without a word.
fn kind_named(name: &str) -> Kind {
    let known = KIND_NAMES.iter().find(|(_, known)| *known == name);
    let (kind, _) = known.unwrap_or_else(|| panic!("features.sql gives the kind `{name}`, which KIND_NAMES lacks"));
    *kind
}

impl Feature {
    /// The feature as people read it, such as `index "by_name" of user_view`.
    pub(super) fn for_people(&self) -> String {
        let kind = KIND_NAMES
            .iter()
            .find(|(kind, _)| *kind == self.kind)
            .map_or("", |(_, name)| name);
        if self.name.is_empty() {
            format!("{kind} of {}", self.table)
        } else {
            format!("{kind} {} of {}", self.name, self.table)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Change, Feature, Features, Kind};

    fn feature(kind: Kind, name: &str) -> Feature {
        Feature {
            kind,
            table: "item".to_owned(),
            name: name.to_owned(),
        }
    }

    fn features(list: &[(Kind, &str, &str)]) -> Features {
        let table = (feature(Kind::Table, ""), String::new());
        let others = list
            .iter()
            .map(|(kind, name, value)| (feature(*kind, name), (*value).to_owned()));
        Features(std::iter::once(table).chain(others).collect())
    }

    #[test]
    fn what_differs_from_the_own_sql_was_set_by_somebody() {
        let own = features(&[(Kind::Option, "fillfactor", "50"), (Kind::Default, "name", "'x'")]);
        let live = features(&[(Kind::Option, "fillfactor", "70"), (Kind::Index, "by_name", "…")]);
        assert_eq!(
            live.changed_from(&own, &own),
            [
                (feature(Kind::Index, "by_name"), Change::Set("…".to_owned())),
                (feature(Kind::Default, "name"), Change::Unset),
                (feature(Kind::Option, "fillfactor"), Change::Set("70".to_owned())),
            ]
        );
        assert_eq!(live.changed_from(&live, &own), []);
    }

    #[test]
    fn the_new_sql_has_the_last_word_where_it_changes_the_same_thing() {
        let own = features(&[(Kind::Option, "fillfactor", "50")]);
        let live = features(&[(Kind::Option, "fillfactor", "70")]);
        let made = features(&[(Kind::Option, "fillfactor", "90")]);
        let fillfactor = feature(Kind::Option, "fillfactor");
        assert_eq!(live.changed_from(&own, &made), [(fillfactor, Change::Overruled)]);
        assert_eq!(live.changed_from(&own, &live), [], "it is there already");
    }

    #[test]
    fn a_table_without_a_successor_is_nobodys_concern() {
        let live = features(&[(Kind::Index, "by_name", "…")]);
        assert_eq!(live.changed_from(&Features::default(), &Features::default()), []);
    }
}
