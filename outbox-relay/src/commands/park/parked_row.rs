//! The row of an entry, as the stream had it: encoded again, and completed from the outbox table.

use anyhow::Context as _;

use crate::outbox::messages::MessageOutbox;
use crate::outbox::partitions::names_of_detached_tables;
use crate::outbox::rows::first_row;
use crate::outbox::table::table_name;
use crate::parking::record::{Entry, ParkedRow, ParkedText};
use crate::process::stop::RelayError;
use crate::settings::Config;
use outbox_router::{Column, Plan};
use pg_replication::pgoutput::Tuple;
use pg_replication::{Connection, Mode, quote_identifier, quote_literal};

/// The row as the stream had it, with the plan of its columns.
pub(super) fn encode_row(config: &Config, row: &ParkedRow) -> Result<(Plan, u16, Vec<u8>), String> {
    match row {
        ParkedRow::Table(columns) => {
            let described = columns.iter().map(|column| Column {
                name: column.name.clone(),
                type_oid: column.type_oid,
            });
            let plan = Plan::new(&config.outbox.router, described.collect()).map_err(|err| err.to_string())?;
            let values = columns.iter().map(|column| column.value.bytes());
            let values: Vec<Option<Vec<u8>>> = values.collect::<Result<_, _>>()?;
            let values: Vec<Option<&[u8]>> = values.iter().map(Option::as_deref).collect();
            let count = u16::try_from(values.len()).map_err(|err| err.to_string())?;
            let bytes = Tuple::encode(&values).map_err(|err| err.to_string())?;
            Ok((plan, count, bytes))
        }
        ParkedRow::Message(content) => {
            let outbox = MessageOutbox::of(config)
                .ok_or("it is a message, and --message-prefix is not given to this command")?;
            let content = content.bytes()?.ok_or("it is a message, and its content is null")?;
            let mut values = Vec::new();
            let count = outbox
                .read(&content, &mut values)
                .map_err(|err| format!("it is a message, and {err}"))?;
            Ok((outbox.plan().clone(), count, values))
        }
    }
}

/// Takes from the outbox table what was too large to be parked.
pub(super) async fn complete_from_table(config: &Config, entry: &mut Entry) -> Result<Result<(), String>, RelayError> {
    let omitted: Vec<String> = entry.row.omitted().into_iter().map(str::to_owned).collect();
    if omitted.is_empty() {
        return Ok(Ok(()));
    }
    let names = omitted.join(", ");
    let ParkedRow::Table(columns) = &mut entry.row else {
        return Ok(Err("it is a message whose content was too large to be parked, so that it cannot be published from here; discard it".to_owned()));
    };
    let Some(id) = entry.id.as_ref() else {
        return Ok(Err(format!(
            "{names} was too large to be parked, and the row has no id to find it by"
        )));
    };
    let mut connection = Connection::open(&config.source.target, Mode::Replication).await?;
    let detached = names_of_detached_tables(&mut connection, config).await?;
    let mut connection = Connection::open(&config.source.target, Mode::Sql).await?;
    let selected: Vec<String> = omitted.iter().map(|name| quote_identifier(name)).collect();
    for table in std::iter::once(table_name(config)).chain(detached) {
        let sql = format!(
            "select {} from {table} where {} = {}",
            selected.join(", "),
            quote_identifier(&config.outbox.router.id_column),
            quote_literal(id)
        );
        let answer = connection.query(&sql).await.context("cannot read the outbox table")?;
        // The row is in one of these tables at most.
        let Some(row) = first_row(&answer) else { continue };
        for name in &omitted {
            let column = columns.iter_mut().find(|column| column.name == *name);
            let column = column.context("a column vanished")?;
            let value = row.nullable(name)?;
            column.value = value.map_or_else(Default::default, |text| ParkedText::of(text.as_bytes()));
        }
        return Ok(Ok(()));
    }
    Ok(Err(format!(
        "{names} was too large to be parked, and the row with id `{id}` is in the outbox table no more; discard it"
    )))
}
