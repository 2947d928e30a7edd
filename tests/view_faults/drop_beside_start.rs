//! A builder that starts looks which tables its views lack, and makes them. If an operator drops a view meanwhile, its tables must not come back.

use rig::ViewRig;
use rig::view_rig::{DEADLINE, Event};
use serde_json::json;
use stack::eventually_ok;

use super::odd::wait_until_value_is;
use super::rig_itself;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_that_is_dropped_beside_a_start_leaves_no_table() {
    assert_eq!(
        tables_after_a_drop("drop_beside_start", "", rig_itself::TABLE).await,
        "0"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_a_start_adds_to_the_view_is_dropped_with_it() {
    let added = format!(
        "{}\ncreate table if not exists item_note (id bigint primary key);",
        rig_itself::TABLE
    );
    assert_eq!(tables_after_a_drop("drop_beside_change", "", &added).await, "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partitioned_table_of_the_view_is_dropped_with_it() {
    let partitioned = format!(
        "{}
create table if not exists item_by_day (id bigint, day date) partition by range (day);
create table if not exists item_by_day_rest partition of item_by_day default;",
        rig_itself::TABLE
    );
    assert_eq!(tables_after_a_drop("drop_partitioned", "", &partitioned).await, "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drop_that_waits_for_no_start_is_caught() {
    assert_eq!(
        tables_after_a_drop("planted_drop", "DropBesideStarts", rig_itself::TABLE).await,
        "1"
    );
}

/// A start reads which views there are, and then an operator drops the view. Returns how many tables of the view there are afterwards. The start
/// brings `table_sql` with it.
async fn tables_after_a_drop(name: &str, bug: &str, table_sql: &str) -> String {
    let rig = ViewRig::new(name).await;
    let topic = rig.topic("item");
    rig.create_topic(&topic, 1, &[]).await.expect("a topic");
    rig.write_view("item", rig_itself::TABLE, &rig_itself::apply(&topic));
    let builder = rig.builder("builder");
    builder.start().expect("a start");
    let event = Event::of(&topic, 0, 1, 1, Some(&json!({"name": "n"})));
    rig.produce(&topic, [event]).await.expect("an offset");
    wait_until_value_is(&rig, &builder, "select count(*) from item", "1").await;
    builder.stop().await.expect("a clean end");

    rig.write_view("item", table_sql, &rig_itself::apply(&topic));
    let release_file = rig.logs().join("goes_on");
    let starting = rig
        .faulty_builder("starting")
        .env(
            "VIEW_BUILDER_FAILPOINT",
            &format!("install.read=until:{}@1", release_file.display()),
        )
        .env(
            "VIEW_BUILDER_FAILPOINT_HITS",
            &rig.logs().join("hits").to_string_lossy(),
        );
    starting.start().expect("a start");
    eventually_ok(DEADLINE, "the start has read the catalog", || async {
        anyhow::ensure!(rig.logs().join("hits").exists(), "not yet");
        Ok(())
    })
    .await
    .expect("the failpoint");
    let arguments = ["drop", "item", "--yes"];
    let drop_command = rig
        .faulty_builder("drops")
        .env("VIEW_BUILDER_BUG", bug)
        .command_of("drops", &arguments);
    drop_command.start().expect("a drop");
    eventually_ok(DEADLINE, "the drop waits, or is over", || async {
        let waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted and database =
            (select oid from pg_database where datname = current_database())";
        let waits = rig.query(waiting).await?[0][0].as_deref() == Some("1");
        anyhow::ensure!(
            waits || drop_command.log_text().contains("is kept no longer"),
            "{}",
            drop_command.log_tail(9)
        );
        Ok(())
    })
    .await
    .expect("a drop");
    std::fs::write(&release_file, "").expect("a file");
    let status = drop_command.exited(DEADLINE).await.expect("an end");
    assert!(status.success(), "{}", drop_command.log_tail(9));
    eventually_ok(DEADLINE, "the start has installed", || async {
        anyhow::ensure!(
            starting.log_text().contains("the views are installed"),
            "{}",
            starting.log_tail(9)
        );
        Ok(())
    })
    .await
    .expect("it installs");
    let tables = rig
        .query("select count(*) from pg_class where relname in ('item', 'item_note', 'item_by_day', 'item_by_day_rest') and relkind in ('r', 'p')")
        .await;
    tables.expect("an answer")[0][0].clone().expect("a number")
}
