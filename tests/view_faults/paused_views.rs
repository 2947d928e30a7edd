//! A view that cannot be kept is paused. It stays as it is, and all other views go on. When the pause ends, nothing is lost.

use rig::metrics::Metrics;
use rig::view_rig::DEADLINE;
use rig::{ViewRig, view_builder_exit};
use stack::Program;

use super::odd::{self, good, item, wait_until_readyz_says, wait_until_value_is};

const ITEMS: &str = "select count(*) from item";
const ODD_ITEMS: &str = "select count(*) from odd";
const PAUSES: &str = "select count(*) from view_pauses where view = 'odd'";
/// A builder compares an event with nine others before it pauses the view. Until then it may take events for bad ones.
const PARKED_MAX: i64 = 10;
const DEAD_LETTERS: &str = "select count(*) from view_dead_letters";

/// A rig with both views, and a builder that has applied ten events.
async fn rig_with_ten_applied_events(name: &str) -> (ViewRig, String, Program) {
    let (rig, topic) = odd::rig(name).await;
    let builder = rig.builder("builder");
    builder.start().expect("a start");
    rig.produce(&topic, good(&topic, 0..10)).await.expect("offsets");
    wait_until_value_is(&rig, &builder, ODD_ITEMS, "10").await;
    wait_until_value_is(&rig, &builder, ITEMS, "10").await;
    (rig, topic, builder)
}

/// Runs SQL as the superuser.
async fn run_sql(rig: &ViewRig, sql: &str) {
    rig.client()
        .await
        .expect("a client")
        .batch_execute(sql)
        .await
        .unwrap_or_else(|err| panic!("{sql}: {err:?}"));
}

async fn end_sessions(rig: &ViewRig) {
    run_sql(
        rig,
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'view_builder' and datname = current_database()",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_without_its_rights_is_paused_told_and_resumed_without_a_loss() {
    let (rig, topic, builder) = rig_with_ten_applied_events("paused_for_rights").await;
    run_sql(&rig, "alter table odd owner to postgres").await;
    rig.produce(&topic, good(&topic, 10..30)).await.expect("offsets");
    wait_until_value_is(&rig, &builder, PAUSES, "1").await;
    wait_until_value_is(&rig, &builder, ITEMS, "30").await;
    wait_until_value_is(&rig, &builder, DEAD_LETTERS, "0").await;
    wait_until_value_is(&rig, &builder, ODD_ITEMS, "10").await;
    wait_until_readyz_says(&builder, &["view odd is paused", "42501", "view-builder resume odd"]).await;
    builder.wait_ready(DEADLINE).await.expect("it is ready all the same");
    let metrics = Metrics::of(&builder).await.expect("metrics");
    assert!(metrics.value("view_paused", Some(("view", "odd"))) >= 1.0);
    let said = rig.assert_command(&["status"], view_builder_exit::VIEW_PAUSED).await;
    assert!(said.contains("view odd is paused") && said.contains("42501"), "{said}");

    let verify = "-- source: views\nselect null::text, id, version, name from item\n-- view: odd\nselect null::text, id, version, name from odd";
    std::fs::write(rig.views().join("odd/verify.sql"), verify).expect("verify.sql");
    let said = rig.assert_command(&["verify"], view_builder_exit::VIEW_PAUSED).await;
    assert!(said.contains("view odd is paused"), "{said}");

    let said = rig.assert_command(&["resume", "odd"], view_builder_exit::REFUSED).await;
    assert!(said.contains("odd stays paused"), "{said}");
    run_sql(&rig, "alter table odd owner to view_builder").await;
    rig.assert_command(&["resume", "odd"], view_builder_exit::SUCCESS).await;
    wait_until_value_is(&rig, &builder, ODD_ITEMS, "30").await;
    wait_until_value_is(&rig, &builder, ITEMS, "30").await;
    rig.assert_command(&["status"], view_builder_exit::SUCCESS).await;
    let fine = stack::eventually_ok(DEADLINE, "the warning is gone", || async {
        let text = reqwest::get(builder.url("/readyz")).await?.text().await?;
        anyhow::ensure!(!text.contains("paused"), "{text}");
        Ok(())
    });
    fine.await.expect("no warning");
    builder.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_whose_statement_cannot_be_prepared_is_paused() {
    let (rig, topic, builder) = rig_with_ten_applied_events("paused_unprepared").await;
    run_sql(&rig, "alter table odd rename column name to title").await;
    end_sessions(&rig).await;
    rig.produce(&topic, good(&topic, 10..30)).await.expect("offsets");
    wait_until_value_is(&rig, &builder, PAUSES, "1").await;
    wait_until_value_is(&rig, &builder, ITEMS, "30").await;
    wait_until_value_is(&rig, &builder, ODD_ITEMS, "10").await;
    run_sql(&rig, "alter table odd rename column title to name").await;
    rig.assert_command(&["resume", "odd"], view_builder_exit::SUCCESS).await;
    wait_until_value_is(&rig, &builder, ODD_ITEMS, "30").await;
    builder.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_that_fails_with_every_event_is_paused_before_it_parks_many() {
    let (rig, topic, builder) = rig_with_ten_applied_events("paused_for_a_trigger").await;
    run_sql(&rig, "insert into odd_switch values ('42P01')").await;
    rig.produce(&topic, good(&topic, 10..50)).await.expect("offsets");
    wait_until_value_is(&rig, &builder, PAUSES, "1").await;
    wait_until_value_is(&rig, &builder, ITEMS, "50").await;
    let parked: i64 = rig
        .value(DEAD_LETTERS)
        .await
        .expect("a count")
        .parse()
        .expect("a number");
    assert!(parked <= PARKED_MAX, "{parked} good events wait as dead letters");
    run_sql(&rig, "delete from odd_switch").await;
    rig.assert_command(&["resume", "odd"], view_builder_exit::SUCCESS).await;
    if parked > 0 {
        rig.assert_command(&["dead-letters", "retry", "--all"], view_builder_exit::SUCCESS)
            .await;
    }
    wait_until_value_is(&rig, &builder, ODD_ITEMS, "50").await;
    builder.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_who_resume_at_once_set_positions_back_once_and_not_to_the_beginning() {
    let (rig, topic, builder) = rig_with_ten_applied_events("resumed_twice").await;
    rig.assert_command(&["pause", "odd"], view_builder_exit::SUCCESS).await;
    rig.produce(&topic, good(&topic, 10..30)).await.expect("offsets");
    wait_until_value_is(&rig, &builder, ITEMS, "30").await;
    builder.stop().await.expect("a clean end");
    // Both builders have seen the pause by the time that the first one may write.
    let locked = rig.client().await.expect("a client");
    locked
        .batch_execute("begin; lock table view_positions in share row exclusive mode")
        .await
        .expect("a lock");
    let release_lock = async {
        tokio::time::sleep(std::time::Duration::from_secs(4)).await;
        locked.batch_execute("commit").await.expect("the end of the lock");
    };
    let resume = ["resume", "odd"];
    let (first, second, ()) = tokio::join!(rig.command(&resume), rig.command(&resume), release_lock);
    let (first, second) = (first.expect("a command"), second.expect("a command"));
    assert_eq!((first.0, second.0), (Some(0), Some(0)), "{} {}", first.1, second.1);
    let said = format!("{}{}", first.1, second.1);
    assert!(
        said.contains("odd is resumed; 2 partitions") && said.contains("somebody else has ended that"),
        "{said}"
    );
    let positions =
        "select string_agg(coalesce(next_offset::text, 'null'), ',' order by partition) from view_positions";
    assert_eq!(rig.value(positions).await.expect("positions"), "5,5");
    builder.start().expect("a start");
    wait_until_value_is(&rig, &builder, ODD_ITEMS, "30").await;
    builder.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_every_view_is_paused_positions_go_on_and_nothing_is_lost() {
    let (rig, topic, builder) = rig_with_ten_applied_events("paused_all").await;
    rig.assert_command(&["pause", "odd", "--reason", "a look"], view_builder_exit::SUCCESS)
        .await;
    rig.assert_command(&["pause", "item"], view_builder_exit::SUCCESS).await;
    rig.assert_command(&["pause", "item"], view_builder_exit::REFUSED).await;
    rig.produce(&topic, good(&topic, 10..30)).await.expect("offsets");
    rig.wait_until_applied(&topic).await.expect("positions");
    wait_until_value_is(&rig, &builder, ITEMS, "10").await;
    rig.assert_command(&["resume", "odd"], view_builder_exit::SUCCESS).await;
    wait_until_value_is(&rig, &builder, ODD_ITEMS, "30").await;
    wait_until_value_is(&rig, &builder, ITEMS, "10").await;
    rig.assert_command(&["rebuild", "item"], view_builder_exit::SUCCESS)
        .await;
    wait_until_value_is(&rig, &builder, ITEMS, "30").await;
    wait_until_value_is(&rig, &builder, "select count(*) from view_pauses", "0").await;
    rig.produce(&topic, good(&topic, 30..40)).await.expect("offsets");
    wait_until_value_is(&rig, &builder, ODD_ITEMS, "40").await;
    wait_until_value_is(&rig, &builder, ITEMS, "40").await;
    rig.assert_command(&["pause", "odd"], view_builder_exit::SUCCESS).await;
    rig.assert_command(&["drop", "odd", "--yes"], view_builder_exit::SUCCESS)
        .await;
    wait_until_value_is(&rig, &builder, "select count(*) from view_pause_positions", "0").await;
    builder.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_builder_with_mended_sql_resumes_the_view_by_itself() {
    let (rig, topic, builder) = rig_with_ten_applied_events("paused_mended_sql").await;
    run_sql(&rig, "alter table odd rename column name to title").await;
    end_sessions(&rig).await;
    wait_until_value_is(&rig, &builder, PAUSES, "1").await;
    rig.produce(&topic, good(&topic, 10..30)).await.expect("offsets");
    wait_until_value_is(&rig, &builder, ITEMS, "30").await;
    builder.stop().await.expect("a clean end");
    // Without a change, the view stays paused, and a start works all the same.
    builder.start().expect("a start");
    builder.wait_ready(DEADLINE).await.expect("it is ready");
    wait_until_value_is(&rig, &builder, PAUSES, "1").await;
    builder.stop().await.expect("a clean end");
    let table = std::fs::read_to_string(rig.views().join("odd/table.sql")).expect("table.sql");
    let table = table.replace(
        "name text);\ncreate table if not exists odd_switch",
        "title text);\ncreate table if not exists odd_switch",
    );
    let table = table
        .replace("new.name", "new.title")
        .replace("with check (name", "with check (title");
    let apply = odd::odd_apply(&topic)
        .replace("(id, version, name)", "(id, version, title)")
        .replace("name = excluded.name", "title = excluded.title");
    rig.write_view("odd", &table, &apply);
    builder.start().expect("a start");
    wait_until_value_is(&rig, &builder, ODD_ITEMS, "30").await;
    wait_until_value_is(&rig, &builder, PAUSES, "0").await;
    builder.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_dead_letter_is_retried_past_a_paused_view() {
    let (rig, topic, builder) = rig_with_ten_applied_events("paused_beside_letters").await;
    run_sql(
        &rig,
        "create function no_20() returns trigger language plpgsql as $$ begin raise exception 'no'; end $$;
        create trigger no_20 before insert on item for each row when (new.id = 20) execute function no_20()",
    )
    .await;
    rig.produce(&topic, [item(&topic, 20, "good")]).await.expect("offsets");
    wait_until_value_is(&rig, &builder, DEAD_LETTERS, "1").await;
    rig.produce(&topic, good(&topic, 21..30)).await.expect("offsets");
    wait_until_value_is(&rig, &builder, ODD_ITEMS, "19").await;
    rig.assert_command(&["pause", "odd"], view_builder_exit::SUCCESS).await;
    run_sql(&rig, "drop trigger no_20 on item").await;
    let said = rig
        .assert_command(&["dead-letters", "retry", "--all"], view_builder_exit::REFUSED)
        .await;
    assert!(said.contains("view odd is paused and reads this topic"), "{said}");
    assert_eq!(rig.value(DEAD_LETTERS).await.expect("a count"), "1");
    rig.assert_command(&["resume", "odd"], view_builder_exit::SUCCESS).await;
    wait_until_value_is(&rig, &builder, ODD_ITEMS, "19").await;
    rig.assert_command(&["dead-letters", "retry", "--all"], view_builder_exit::SUCCESS)
        .await;
    wait_until_value_is(&rig, &builder, ITEMS, "20").await;
    wait_until_value_is(&rig, &builder, ODD_ITEMS, "20").await;
    builder.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_events_since_the_pause_were_removed_resume_says_to_rebuild() {
    let (rig, topic, builder) = rig_with_ten_applied_events("paused_too_long").await;
    rig.assert_command(&["pause", "odd"], view_builder_exit::SUCCESS).await;
    rig.produce(&topic, good(&topic, 10..30)).await.expect("offsets");
    wait_until_value_is(&rig, &builder, ITEMS, "30").await;
    rig.delete_records_before(&topic, 0, 8).await.expect("removed records");
    let said = rig.assert_command(&["resume", "odd"], view_builder_exit::REFUSED).await;
    assert!(said.contains("view-builder rebuild odd"), "{said}");
    wait_until_value_is(&rig, &builder, PAUSES, "1").await;
    wait_until_value_is(&rig, &builder, ODD_ITEMS, "10").await;
    builder.stop().await.expect("a clean end");
}

/// Pauses a view while a replay is to mend it, and resumes it. Returns whether the view is complete afterwards.
async fn is_mended_after_a_pause(name: &str, bug: &str) -> bool {
    let (rig, topic) = odd::rig(name).await;
    let builder = rig.builder("builder");
    builder.start().expect("a start");
    rig.produce(&topic, good(&topic, 0..10)).await.expect("offsets");
    wait_until_value_is(&rig, &builder, ODD_ITEMS, "10").await;
    builder.stop().await.expect("a clean end");
    // Rows were lost, and a replay is to bring them back.
    run_sql(&rig, "delete from odd").await;
    rig.assert_command(
        &[
            "replay", "--group", name, "--topic", &topic, "--from", "earliest", "--yes",
        ],
        view_builder_exit::SUCCESS,
    )
    .await;
    let faulty = rig.faulty_builder("faulty").with_env("VIEW_BUILDER_BUG", bug);
    let pause = faulty.command_of("faulty-pause", &["pause", "odd"]);
    pause.start().expect("a pause");
    assert!(
        pause.exited(DEADLINE).await.expect("an end").success(),
        "{}",
        pause.log_tail(9)
    );
    builder.start().expect("a start");
    rig.produce(&topic, good(&topic, 10..20)).await.expect("offsets");
    rig.wait_until_applied(&topic).await.expect("positions");
    wait_until_value_is(&rig, &builder, ITEMS, "20").await;
    wait_until_value_is(&rig, &builder, ODD_ITEMS, "0").await;
    let resume = faulty.command_of("faulty-resume", &["resume", "odd"]);
    resume.start().expect("a resume");
    assert!(
        resume.exited(DEADLINE).await.expect("an end").success(),
        "{}",
        resume.log_tail(9)
    );
    // In both partitions these events come after everything that is read again.
    rig.produce(&topic, good(&topic, [100, 101])).await.expect("offsets");
    for id in [100, 101] {
        wait_until_value_is(
            &rig,
            &builder,
            &format!("select count(*) from odd where id = {id}"),
            "1",
        )
        .await;
    }
    builder.stop().await.expect("a clean end");
    rig.value(ODD_ITEMS).await.expect("a count") == "22"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_in_a_replay_and_its_end_lose_nothing() {
    assert!(is_mended_after_a_pause("paused_in_a_replay", "").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resuming_without_a_replay_is_caught() {
    assert!(!is_mended_after_a_pause("planted_resume", "ResumeWithoutReplay").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pausing_at_the_highest_position_is_caught() {
    assert!(!is_mended_after_a_pause("planted_pause", "PauseAtTheHighest").await);
}
