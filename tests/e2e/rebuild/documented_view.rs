//! Somebody who follows docs/views.md word for word gets a view, and no builder is restarted.

use rig::rest::{Rest, user};
use rig::view_builder_exit;
use stack::{Pipeline, checkout, eventually_ok};

use super::{DEADLINE, LEFT_BEHIND, ViewsFolder, assert_command, query_number, query_text, start_workload};
use crate::e2e::rows::{assert_view_equals_users, in_views, wait_for_view};

/// The view that the page makes.
const VIEW: &str = "email_domains";
/// The command that the page types.
const PAGE_COMMAND: &str = "view-builder rebuild email_domains";
/// The arguments of that command.
const REBUILD: [&str; 2] = ["rebuild", VIEW];
/// The query that the page shows.
const DOMAINS: &str = "select domain || ' ' || users from email_domains where users > 0 order by users desc limit 3";
/// How many rows differ from the view's definition.
const WRONG_ROWS: &str = "
    select count(*) from (
        (select domain, users from email_domains where users > 0
         except all select lower(split_part(email, '@', 2)), count(*) from user_view group by 1)
        union all
        (select lower(split_part(email, '@', 2)), count(*) from user_view group by 1
         except all select domain, users from email_domains where users > 0)) as difference";

/// The phases share one pipeline, because its start is most of the time. Clients write until the view is checked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_about_views_leads_to_a_view_and_nobody_is_restarted() {
    let page = std::fs::read_to_string(checkout::root().join("docs/views.md")).expect("docs/views.md");
    assert!(page.contains(&format!("\n{PAGE_COMMAND}\n")), "the page's command");
    let pipeline = crate::e2e::shared::builder().start().await.expect("a pipeline");
    let views = ViewsFolder::copy(&pipeline, "views");
    let workload = start_workload(&pipeline, 200).await;
    for file in ["table.sql", "apply.sql"] {
        let path = format!("sql/views/{VIEW}/{file}");
        views.write(VIEW, file, &file_on_page(&page, &path));
    }

    sql_that_postgres_refuses_is_named_as_the_page_says(&pipeline, &views, &page).await;
    the_command_adds_the_view_and_applies_no_topic_again(&pipeline, &views).await;
    the_running_builder_keeps_the_view(&pipeline).await;
    the_running_builder_takes_changed_sql(&pipeline, &views).await;
    drop(workload.stop().await);
    the_view_is_what_its_definition_says(&pipeline).await;
    a_dropped_view_is_gone_and_the_others_are_kept(&pipeline, &views).await;
    let starts = pipeline
        .view_builder
        .log_text()
        .matches("the views are installed")
        .count();
    assert_eq!(starts, 1, "the builder was never restarted");
    pipeline.stop().await.expect("a clean end");
}

/// The text of a file that the page shows.
fn file_on_page(page: &str, path: &str) -> String {
    let at = page
        .find(&format!("`{path}`:"))
        .unwrap_or_else(|| panic!("docs/views.md shows no {path}"));
    let block = page[at..].split("```").nth(1).expect("a block of code");
    block.strip_prefix("sql\n").expect("SQL").to_owned()
}

/// Leaves `apply.sql` as it was.
async fn sql_that_postgres_refuses_is_named_as_the_page_says(pipeline: &Pipeline, views: &ViewsFolder, page: &str) {
    let right = views.read(VIEW, "apply.sql");
    let expression = "entity ->> 'email'";
    views.write(VIEW, "apply.sql", &right.replace(expression, "emial"));
    let log = assert_command(pipeline, views.path(), &REBUILD, view_builder_exit::VIEW_REFUSED).await;
    let line = right.lines().position(|line| line.contains(expression));
    let line = line.expect("a line") + 1;
    let told = format!("{VIEW}/apply.sql:{line}: column \"emial\" does not exist");
    assert!(log.replace('\\', "").contains(&told), "{told}\n{log}");
    assert!(page.contains(&format!("sql/views/{told}")), "the page tells this line");
    assert_eq!(query_number(pipeline, LEFT_BEHIND).await, 0);
    views.write(VIEW, "apply.sql", &right);
}

async fn the_command_adds_the_view_and_applies_no_topic_again(pipeline: &Pipeline, views: &ViewsFolder) {
    let positions = "select coalesce(min(next_offset), -1) from view_positions";
    let before = query_number(pipeline, positions).await;
    assert_command(pipeline, views.path(), &REBUILD, 0).await;
    let after = query_number(pipeline, positions).await;
    assert!(before <= after, "no topic is applied again: {before}, {after}");
    assert!(!in_views(pipeline, DOMAINS).await.is_empty(), "the page's query");
    let grant = format!("select has_table_privilege('post_api', '{VIEW}', 'select')::text");
    assert_eq!(query_text(pipeline, &grant).await, "true", "as for every view");
}

async fn the_running_builder_keeps_the_view(pipeline: &Pipeline) {
    create_user_and_wait_for_domain(pipeline, "first.example", 1).await;
}

/// Changes the SQL so that each user counts ten times, and then back.
async fn the_running_builder_takes_changed_sql(pipeline: &Pipeline, views: &ViewsFolder) {
    let right = views.read(VIEW, "apply.sql");
    views.write(VIEW, "apply.sql", &right.replace("sum(n)\nfrom", "sum(n) * 10\nfrom"));
    assert_command(pipeline, views.path(), &REBUILD, 0).await;
    let first = "select users from email_domains where domain = 'first.example'";
    assert_eq!(query_number(pipeline, first).await, 10);
    create_user_and_wait_for_domain(pipeline, "second.example", 10).await;
    views.write(VIEW, "apply.sql", &right);
    assert_command(pipeline, views.path(), &REBUILD, 0).await;
}

/// Creates a user with a new domain, and waits until the view counts `expected` users of this domain.
async fn create_user_and_wait_for_domain(pipeline: &Pipeline, domain: &str, expected: i64) {
    let mut body = user("n", "d", "ACTIVE");
    body["email"] = format!("n@{domain}").into();
    Rest::of(pipeline).create_user(&body).await.expect("a user");
    let query = format!("select users from email_domains where domain = '{domain}'");
    eventually_ok(DEADLINE, "the new domain", || async {
        let rows = in_views(pipeline, &query).await;
        anyhow::ensure!(rows == [[Some(expected.to_string())]], "{rows:?}");
        Ok(())
    })
    .await
    .expect("the view is kept");
}

async fn the_view_is_what_its_definition_says(pipeline: &Pipeline) {
    assert_view_equals_users(pipeline, DEADLINE).await;
    eventually_ok(DEADLINE, "the view is what its definition says", || async {
        let wrong = query_number(pipeline, WRONG_ROWS).await;
        anyhow::ensure!(wrong == 0, "{wrong}");
        Ok(())
    })
    .await
    .expect("a right view");
}

async fn a_dropped_view_is_gone_and_the_others_are_kept(pipeline: &Pipeline, views: &ViewsFolder) {
    assert_command(pipeline, views.path(), &["drop", VIEW, "--yes"], 0).await;
    let is_gone = format!("select to_regclass('{VIEW}') is null");
    assert_eq!(query_text(pipeline, &is_gone).await, "t");
    let created = Rest::of(pipeline)
        .create_user(&user("n", "d", "ACTIVE"))
        .await
        .expect("a user");
    wait_for_view(pipeline, created["id"].as_i64().expect("an id"), 1, DEADLINE).await;
}
