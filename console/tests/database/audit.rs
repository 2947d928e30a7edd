//! The audit: a row before each change, and none that cannot be written goes unnoticed.

use console::actions::audit::{self, Entry};
use console::postgres;
use serde_json::json;

use super::support::TestDatabase;

fn entry<'a>(before: &'a serde_json::Value, reason: &'a str) -> Entry<'a> {
    Entry {
        person: "kim",
        title: "Discard dead letter 17",
        command: "view-builder dead-letters discard 17",
        reason,
        before,
    }
}

#[tokio::test]
async fn a_change_is_written_before_it_begins_and_once_more_when_it_has_ended() {
    let database = TestDatabase::create().await;
    let setting = database.setting();
    let reader = postgres::Database::new(setting.target.clone());
    assert!(
        audit::read(&reader, None, 10).await.unwrap().is_empty(),
        "there is no table yet"
    );
    audit::prepare(&setting, &setting).await.unwrap();
    let before = json!({"waiting": 1});
    let id = audit::begin(&setting, &entry(&before, "it's <b>wrong</b>"))
        .await
        .unwrap();

    let begun = audit::read(&reader, None, 10).await.unwrap();
    assert_eq!(
        (begun.len(), begun[0].id, begun[0].ended_at, begun[0].exit_code),
        (1, id, None, None)
    );
    assert_eq!(
        (begun[0].who.as_str(), begun[0].reason.as_str()),
        ("kim", "it's <b>wrong</b>")
    );

    // A command may print what Postgres has no text for.
    audit::end(&setting, id, &json!({"waiting": 0}), Some(6), "a\0b")
        .await
        .unwrap();
    let ended = &audit::read(&reader, None, 10).await.unwrap()[0];
    assert!(ended.ended_at.is_some());
    assert_eq!(
        (ended.exit_code, ended.output.as_deref()),
        (Some(6), Some("a\u{fffd}b"))
    );
    assert_eq!((&ended.before, &ended.after), (&before, &Some(json!({"waiting": 0}))));
    // What has ended is history: nobody writes its end anew.
    audit::end(&setting, id, &json!({}), Some(0), "").await.unwrap();
    assert_eq!(audit::read(&reader, None, 10).await.unwrap()[0].exit_code, Some(6));

    let later = audit::begin(&setting, &entry(&before, "")).await.unwrap();
    let ids = async |before_id| {
        let rows = audit::read(&reader, before_id, 10).await.unwrap();
        rows.iter().map(|row| row.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(None).await, [later, id], "the newest first");
    assert_eq!(ids(Some(later)).await, [id]);
}

#[tokio::test]
async fn a_change_that_an_earlier_console_has_left_gets_an_end() {
    let database = TestDatabase::create().await;
    let setting = database.setting();
    audit::prepare(&setting, &setting).await.unwrap();
    let before = json!({});
    audit::begin(&setting, &entry(&before, "left")).await.unwrap();
    database
        .sql
        .batch_execute("update console_audit set at = at - interval '1 hour'")
        .await
        .unwrap();
    audit::begin(&setting, &entry(&before, "runs")).await.unwrap();
    let age = std::time::Duration::from_secs(600);
    assert_eq!(audit::end_left(&setting, age).await.unwrap(), 1);
    let rows = audit::read(&postgres::Database::new(setting.target.clone()), None, 10)
        .await
        .unwrap();
    assert_eq!((rows[0].reason.as_str(), rows[0].ended_at), ("runs", None));
    assert!(rows[1].ended_at.is_some() && rows[1].exit_code.is_none());
    let told = rows[1].output.as_deref().unwrap();
    assert!(told.contains("The console ended meanwhile"), "{told}");
}

#[tokio::test]
async fn the_reading_role_reads_it_and_cannot_write_it() {
    let database = TestDatabase::create().await;
    let role = format!("reader_of_{}", database.name());
    database
        .sql
        .batch_execute(&format!(
            "create role {role} login; alter role {role} set default_transaction_read_only = on"
        ))
        .await
        .unwrap();
    let reader = database.setting_as(&role);
    audit::prepare(&database.setting(), &reader).await.unwrap();
    let before = json!({});
    let refused = audit::begin(&reader, &entry(&before, ""))
        .await
        .map_err(|err| format!("{err:#}"));
    assert!(refused.is_err(), "{refused:?}");
    audit::begin(&database.setting(), &entry(&before, "")).await.unwrap();
    let rows = audit::read(&postgres::Database::new(reader.target.clone()), None, 10)
        .await
        .unwrap();
    assert_eq!(rows.len(), 1);
}
