//! The statement that sets one feature of a table as somebody has set it on the live one.

use postgres_protocol::escape::{escape_identifier, escape_literal};

use super::features::{Change, Feature, Kind};

/// Whether it is made on the generation before the swap, which must be short.
pub(super) fn takes_time(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Tablespace | Kind::Index | Kind::Constraint | Kind::IndexTablespace | Kind::NotNull
    )
}

/// Has the table in `schema` be as somebody has made the live one; none for what is an obstacle or cannot be set.
pub(super) fn statement(feature: &Feature, change: &Change, schema: &str) -> Option<String> {
    let (table, name) = (
        format!("{schema}.{}", escape_identifier(&feature.table)),
        escape_identifier(&feature.name),
    );
    let value = match change {
        Change::Set(value) => Some(value.as_str()),
        Change::Unset | Change::Overruled => None,
    };
    let or = |otherwise: &'static str| value.unwrap_or(otherwise);
    let comment = |on: String| format!("comment on {on} is {}", value.map_or("null".to_owned(), escape_literal));
    let alter = |what: String| format!("alter table {table} {what}");
    Some(match feature.kind {
        Kind::Table | Kind::Column | Kind::Identity | Kind::Unlogged | Kind::ForeignKey => return None,
        Kind::Tablespace => alter(format!("set tablespace {}", escape_identifier(or("pg_default")))),
        Kind::IndexTablespace => format!(
            "alter index {schema}.{name} set tablespace {}",
            escape_identifier(or("pg_default"))
        ),
        Kind::Index => {
            let made = value?.replacen(" ON public.", &format!(" ON {schema}."), 1);
            let made = made.replacen(" ON ONLY public.", &format!(" ON ONLY {schema}."), 1);
            format!("drop index if exists {schema}.{name}; {made}")
        }
        Kind::Constraint => {
            let gone = alter(format!("drop constraint if exists {name}"));
            match value {
                Some(value) => format!("{gone}; {}", alter(format!("add constraint {name} {value}"))),
                None => gone,
            }
        }
        Kind::NotNull => alter(format!(
            "alter column {name} {} not null",
            value.map_or("drop", |_| "set")
        )),
        Kind::Default => alter(match value {
            Some(value) => format!("alter column {name} set default {value}"),
            None => format!("alter column {name} drop default"),
        }),
        Kind::Statistics => alter(format!("alter column {name} set statistics {}", or("-1"))),
        Kind::Storage => alter(format!("alter column {name} set storage {}", value?)),
        Kind::Compression => alter(format!("alter column {name} set compression {}", or("default"))),
        Kind::ColumnOption => alter(format!("alter column {name} set ({})", value?)),
        Kind::IndexStatistics => format!("alter index {schema}.{name} {}", value?),
        Kind::ExtendedStatistics => match value {
            Some(value) => format!("drop statistics if exists {schema}.{name}; {value}"),
            None => format!("drop statistics if exists {schema}.{name}"),
        },
        Kind::Option => alter(match value {
            Some(value) => format!("set ({} = {})", feature.name, escape_literal(value)),
            None => format!("reset ({})", feature.name),
        }),
        Kind::ReplicaIdentity => alter(format!("replica identity {}", or("default"))),
        Kind::Cluster => alter(match value {
            Some(index) => format!("cluster on {index}"),
            None => "set without cluster".to_owned(),
        }),
        Kind::Trigger => {
            let gone = format!("drop trigger if exists {name} on {table}");
            value.map_or(gone.clone(), |value| format!("{gone}; {value}"))
        }
        Kind::TriggerState => alter(format!("{} trigger {name}", or("enable"))),
        Kind::Policy => {
            let gone = format!("drop policy if exists {name} on {table}");
            value.map_or(gone.clone(), |value| {
                format!("{gone}; create policy {name} on {table} {value}")
            })
        }
        Kind::RowSecurity => alter(format!(
            "{} row level security",
            match (value, feature.name.as_str()) {
                (Some(_), name) => name,
                (None, "force") => "no force",
                (None, _) => "disable",
            }
        )),
        Kind::Comment => comment(format!("table {table}")),
        Kind::ColumnComment => comment(format!("column {table}.{name}")),
        Kind::IndexComment => comment(format!("index {schema}.{name}")),
        Kind::ConstraintComment => comment(format!("constraint {name} on {table}")),
        Kind::TriggerComment => comment(format!("trigger {name} on {table}")),
    })
}

#[cfg(test)]
mod tests {
    use super::statement;
    use crate::commands::rebuild::features::{Change, Feature, Kind};

    fn made(kind: Kind, name: &str, value: Option<&str>) -> String {
        let feature = Feature {
            kind,
            table: "item".to_owned(),
            name: name.to_owned(),
        };
        let change = value.map_or(Change::Unset, |value| Change::Set(value.to_owned()));
        statement(&feature, &change, "public").expect("a statement")
    }

    #[test]
    fn names_and_texts_are_quoted() {
        assert_eq!(
            made(Kind::Comment, "", Some("it's \\ one")),
            r#"comment on table public."item" is  E'it''s \\ one'"#
        );
        assert_eq!(
            made(Kind::NotNull, "a \"b\"", Some("")),
            r#"alter table public."item" alter column "a ""b""" set not null"#
        );
    }

    #[test]
    fn what_was_taken_away_is_taken_away_again() {
        for (kind, name, expected) in [
            (
                Kind::Option,
                "fillfactor",
                r#"alter table public."item" reset (fillfactor)"#,
            ),
            (
                Kind::Default,
                "n",
                r#"alter table public."item" alter column "n" drop default"#,
            ),
            (
                Kind::RowSecurity,
                "force",
                r#"alter table public."item" no force row level security"#,
            ),
            (
                Kind::TriggerState,
                "t",
                r#"alter table public."item" enable trigger "t""#,
            ),
            (
                Kind::ColumnComment,
                "n",
                r#"comment on column public."item"."n" is null"#,
            ),
        ] {
            assert_eq!(made(kind, name, None), expected);
        }
    }
}
