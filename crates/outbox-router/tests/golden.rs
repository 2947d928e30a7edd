//! The router against what the real Debezium router wrote for the same rows, on a real PostgreSQL.

use std::borrow::Cow;
use std::collections::BTreeMap;

use outbox_router::{Column, Plan, RouterOptions, RowScratch, partition_of_key};
use pg_replication::pgoutput::Tuple;
use pg_replication::{Connection, Mode, Target};
use serde::Deserialize;

/// Cases in which ours differs, and why.
const DIFFERENT: [(&str, &str); 10] = [
    (
        "key_date__string_converter",
        "ours writes Postgres' text, Debezium days since 1970",
    ),
    (
        "additional_header_of_numeric",
        "ours writes Postgres' text, Debezium a struct",
    ),
    (
        "additional_header_of_date",
        "ours writes Postgres' text, Debezium days since 1970",
    ),
    (
        "additional_header_of_time",
        "ours writes Postgres' text, Debezium microseconds",
    ),
    (
        "additional_header_of_timestamp_3",
        "ours writes Postgres' text, Debezium milliseconds since 1970",
    ),
    (
        "additional_header_of_timestamptz",
        "ours writes Postgres' text, Debezium ISO 8601",
    ),
    (
        "additional_header_of_int_array",
        "ours writes Postgres' text, Debezium JSON",
    ),
    (
        "additional_header_column_default_null",
        "ours keeps an explicit null, Debezium takes the column's default",
    ),
    (
        "route_regex_lookahead",
        "our regex library has no look-around; the option is refused by name",
    ),
    ("tracing_span_context__otel", "ours does not trace"),
];

#[derive(Deserialize)]
struct Case {
    name: String,
    options: BTreeMap<String, String>,
    sql: Vec<String>,
    records: Vec<Record>,
}

#[derive(Debug, PartialEq, Deserialize)]
struct Record {
    topic: String,
    partition: Option<i32>,
    key: Option<String>,
    headers: Vec<(String, Option<String>)>,
    value: Option<String>,
}

#[tokio::test]
async fn every_recorded_row_becomes_the_record_that_debezium_made_of_it() {
    let url = std::env::var("TEST_DATABASE_URL")
        .expect("TEST_DATABASE_URL is not set: run `./test unit`, which starts a PostgreSQL and sets it");
    let cases: Vec<Case> = serde_json::from_str(include_str!("golden/router-cases.json")).unwrap();
    let mut wrong = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        let outcome = run(case, &url, index).await;
        let differs = DIFFERENT.iter().any(|(name, _)| *name == case.name);
        match outcome {
            Ok(records) if records == case.records && !differs => {}
            Ok(records) if records == case.records => {
                wrong.push(format!("{}: agrees now, take it off the list", case.name))
            }
            _ if differs => {}
            Ok(records) => wrong.push(format!(
                "{}:\n  ours     {records:?}\n  debezium {:?}",
                case.name, case.records
            )),
            Err(err) => wrong.push(format!("{}: {err}", case.name)),
        }
    }
    assert!(cases.len() > 70, "the golden file is cut short");
    assert!(
        wrong.is_empty(),
        "{} of {} cases differ\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
}

async fn run(case: &Case, url: &str, index: usize) -> Result<Vec<Record>, String> {
    let settings: Vec<String> = case
        .options
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let options = RouterOptions::parse(&settings).map_err(|err| err.to_string())?;
    let text = |err: anyhow::Error| format!("{err:#}");
    let mut connection = Connection::open(&Target::parse(url).expect("a URL"), Mode::Sql)
        .await
        .map_err(text)?;
    let schema = format!("golden_{index}_{}", std::process::id());
    connection
        .rows(&format!("create schema {schema}; set search_path to {schema}"))
        .await
        .map_err(text)?;
    for statement in &case.sql {
        connection.rows(statement).await.map_err(text)?;
    }
    let answer = connection
        .query("select * from outbox order by ctid")
        .await
        .map_err(text)?;
    connection
        .rows(&format!("drop schema {schema} cascade"))
        .await
        .map_err(text)?;
    let columns: Vec<Column> = answer
        .columns
        .iter()
        .map(|(name, type_oid)| Column {
            name: name.clone(),
            type_oid: *type_oid,
        })
        .collect();
    let column_count = u16::try_from(columns.len()).expect("few columns");
    let plan = Plan::new(&options, columns).map_err(|err| err.to_string())?;
    let mut records = Vec::new();
    for row in &answer.rows {
        let values: Vec<Option<&[u8]>> = row.iter().map(|value| value.as_deref().map(str::as_bytes)).collect();
        let bytes = Tuple::encode(&values).expect("short values");
        let record = plan
            .route(
                &Tuple::from_encoded(column_count, &bytes),
                &mut RowScratch::default(),
                |routed, additional| {
                    let mut headers = vec![("id".to_owned(), Some(base64(routed.id.as_bytes())))];
                    headers.extend(additional.map(|(name, value)| (name.to_owned(), value.as_deref().map(base64))));
                    Record {
                        topic: plan.topic(routed.route),
                        partition: routed
                            .partition
                            .or(routed.key.as_deref().map(|key| partition_of_key(key, 8))),
                        key: routed.key.as_deref().map(base64),
                        headers,
                        value: routed.value.map(|value: Cow<'_, [u8]>| base64(&value)),
                    }
                },
            )
            .map_err(|err| err.to_string())?;
        records.push(record);
    }
    // The recorded order is by partition; ours is by row.
    records.sort_by_key(|record| {
        case.records
            .iter()
            .position(|recorded| recorded.headers.first() == record.headers.first())
    });
    Ok(records)
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0u32, |group, byte| (group << 8) | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = DIGITS[(group >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}
