//! Routes one outbox row by the options that the command line gives: `cargo run --example route -- NAME=VALUE…`.

#![expect(clippy::print_stdout, reason = "the example prints what becomes of the row")]

use std::error::Error;

use outbox_router::{Column, Plan, RouterOptions, RowScratch, partition_of_key};
use pg_replication::pgoutput::Tuple;

/// PostgreSQL's `text`.
const TEXT: u32 = 25;
const PARTITIONS: i32 = 8;

fn main() -> Result<(), Box<dyn Error>> {
    let settings: Vec<String> = std::env::args().skip(1).collect();
    let options = RouterOptions::parse(&settings)?;
    let row = [
        ("id", "0d5ff2a4"),
        ("aggregatetype", "user"),
        ("aggregateid", "7"),
        ("type", "UserCreated"),
        ("payload", r#"{"name":"Ada"}"#),
    ];
    let columns = row.map(|(name, _)| Column {
        name: name.to_owned(),
        type_oid: TEXT,
    });
    let plan = Plan::new(&options, columns.to_vec())?;

    let values = row.map(|(_, value)| Some(value.as_bytes()));
    let bytes = Tuple::encode(&values)?;
    let tuple = Tuple::from_encoded(5, &bytes);
    plan.route(&tuple, &mut RowScratch::default(), |record, headers| {
        let text = |bytes: Option<&[u8]>| {
            bytes
                .map_or_else(|| "null".into(), String::from_utf8_lossy)
                .into_owned()
        };
        println!("topic      {}", plan.topic(record.route));
        println!(
            "partition  {}",
            partition_of_key(record.key.as_deref().unwrap_or_default(), PARTITIONS)
        );
        println!("key        {}", text(record.key.as_deref()));
        println!("value      {}", text(record.value.as_deref()));
        println!("header     id = {}", record.id);
        for (name, value) in headers {
            println!("header     {name} = {}", text(value.as_deref()));
        }
    })?;
    Ok(())
}
