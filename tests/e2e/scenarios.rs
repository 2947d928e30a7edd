//! The four things that a person tries first.

use std::time::Duration;

use serde_json::{Value, json};
use stack::{Pipeline, eventually, eventually_ok};

use super::{rows, shared};
use rig::rest::{Rest, id, user};

const DEADLINE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_created_user_is_in_the_view_and_in_the_statistics() {
    let pipeline = shared::pipeline().await;
    let rest = Rest::of(&pipeline);
    let department = "신설 개발팀";
    let created = rest
        .create_user(&user("홍길동", department, "ACTIVE"))
        .await
        .expect("a user");
    let idle = rest
        .create_user(&user("김철수", department, "INACTIVE"))
        .await
        .expect("a user");
    let row = in_view(&pipeline, &created).await;
    in_view(&pipeline, &idle).await;

    for field in [
        "name",
        "email",
        "department",
        "status",
        "createdAt",
        "updatedAt",
        "version",
    ] {
        assert_eq!(row[field], created[field], "{field}");
    }
    let sql = format!(
        "select user_count, active_users, inactive_users from department_stats where department = '{department}'"
    );
    let stats = rows::in_views(&pipeline, &sql).await;
    assert_eq!(stats, [["2", "1", "1"].map(|count| Some(count.to_owned()))]);
    let answered = rest.get_posts("/department-stats").await.expect("statistics");
    let of_department = answered
        .as_array()
        .expect("an array")
        .iter()
        .find(|row| row["department"] == department);
    assert_eq!(of_department.expect("the department")["userCount"], 2);
}

#[tokio::test]
async fn a_post_shows_its_authors_name_and_is_found_by_department() {
    let pipeline = shared::pipeline().await;
    let rest = Rest::of(&pipeline);
    let department = "기획/전략팀";
    let author = rest
        .create_user(&user("이영희", department, "ACTIVE"))
        .await
        .expect("a user");
    in_view(&pipeline, &author).await;

    let post = rest.create_post("안녕하세요", id(&author)).await.expect("a post");
    assert_eq!(post["title"], "안녕하세요");
    assert_author(&post, &author);
    assert_author(&rest.post(id(&post)).await.expect("the post"), &author);
    // The path has the slash of a department's name percent-encoded, and the Korean letters as they are.
    let found = rest.get_posts("/by-department/기획%2F전략팀").await.expect("posts");
    assert_eq!(ids(&found), [id(&post)]);
}

#[tokio::test]
async fn an_updated_user_shows_in_posts_that_are_there_already() {
    let pipeline = shared::pipeline().await;
    let rest = Rest::of(&pipeline);
    let mut body = user("박지성", "영업 1팀", "ACTIVE");
    let author = rest.create_user(&body).await.expect("a user");
    in_view(&pipeline, &author).await;
    let post = rest.create_post("첫 글", id(&author)).await.expect("a post");

    body["name"] = json!("박지성 수정");
    body["department"] = json!("영업 2팀");
    let updated = rest.update_user(id(&author), &body).await.expect("an update");
    assert_eq!(updated["version"], 2);
    rows::wait_for_view(&pipeline, id(&author), 2, DEADLINE).await;
    assert_author(&rest.post(id(&post)).await.expect("the post"), &updated);
    assert_eq!(
        rest.get_posts("/by-department/영업 1팀").await.expect("posts"),
        json!([])
    );
    assert_eq!(
        ids(&rest.get_posts("/by-department/영업 2팀").await.expect("posts")),
        [id(&post)]
    );
}

#[tokio::test]
async fn a_deleted_user_leaves_the_view_and_the_posts_stay() {
    let pipeline = shared::pipeline().await;
    let rest = Rest::of(&pipeline);
    let author = rest
        .create_user(&user("최민수", "감사팀", "ACTIVE"))
        .await
        .expect("a user");
    in_view(&pipeline, &author).await;
    let post = rest.create_post("남는 글", id(&author)).await.expect("a post");

    rest.delete_user(id(&author)).await.expect("a deletion");
    let sql = format!("select 1 from user_view where user_id = {}", id(&author));
    eventually(DEADLINE, "the user has left the view", || async {
        rows::in_views(&pipeline, &sql).await.is_empty().then_some(())
    })
    .await;
    let left = rest.post(id(&post)).await.expect("the post");
    assert_eq!(left["title"], "남는 글");
    for field in ["authorName", "authorEmail", "authorDepartment"] {
        assert_eq!(left.get(field), Some(&Value::Null), "{field}");
    }
    assert_eq!(rest.get_posts("/by-department/감사팀").await.expect("posts"), json!([]));
    let stats = rows::in_views(&pipeline, "select 1 from department_stats where department = '감사팀'").await;
    assert!(stats.is_empty(), "an empty department has no statistics");
}

#[tokio::test]
async fn posts_of_authors_who_move_and_go_are_told_by_all_views() {
    let pipeline = shared::pipeline().await;
    let rest = Rest::of(&pipeline);
    let mut body = user("세종대왕", "한글 1팀", "ACTIVE");
    let author = rest.create_user(&body).await.expect("a user");
    let gone = rest
        .create_user(&user("장영실", "한글 1팀", "INACTIVE"))
        .await
        .expect("a user");
    for title in ["하나", "둘"] {
        rest.create_post(title, id(&author)).await.expect("a post");
    }
    rest.create_post("셋", id(&gone)).await.expect("a post");
    rows::assert_post_views_are_right(&pipeline, DEADLINE).await;
    body["department"] = json!("한글 2팀");
    rest.update_user(id(&author), &body).await.expect("an update");
    rest.delete_user(id(&gone)).await.expect("a deletion");
    rows::assert_post_views_are_right(&pipeline, DEADLINE).await;
    let sql = "select department, active_users, authors, posts, posts_per_user::integer from department_performance
        where department like '한글%'";
    let told = rows::in_views(&pipeline, sql).await;
    assert_eq!(
        told,
        [["한글 2팀", "1", "1", "2", "2"].map(|value| Some(value.to_owned()))]
    );
}

/// Waits until the user is in the view. Returns the row as post-api answers it.
async fn in_view(pipeline: &Pipeline, user: &Value) -> Value {
    let rest = Rest::of(pipeline);
    let path = format!("/users/{}", id(user));
    let row = eventually_ok(DEADLINE, "the user is in the view", || rest.get_posts(&path)).await;
    row.unwrap_or_else(|err| panic!("{err:#}\n{}", rows::logs(pipeline)))
}

fn assert_author(post: &Value, author: &Value) {
    assert_eq!(post["authorId"], author["id"]);
    assert_eq!(post["authorName"], author["name"]);
    assert_eq!(post["authorEmail"], author["email"]);
    assert_eq!(post["authorDepartment"], author["department"]);
}

fn ids(posts: &Value) -> Vec<i64> {
    posts.as_array().expect("an array").iter().map(id).collect()
}
