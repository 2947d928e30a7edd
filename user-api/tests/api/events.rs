//! A change and its event are one: both or neither, and numbered without gaps.

use events::{UserEvent, UserEventType};
use reqwest::Method;
use serde_json::json;
use sqlx::Executor;

use crate::{ready, user};

#[tokio::test]
async fn each_change_writes_one_event_that_tells_it() {
    let program = ready().await;
    let created = program.post("/api/users", &user("hong@example.com")).await;
    let updated = json!({"name": "수정", "email": "hong@example.com", "status": "INACTIVE"});
    let updated = program.put("/api/users/1", &updated).await;
    let deleted = program.delete("/api/users/1").await;
    let answers = [&created, &updated, &deleted];
    let answered = answers.map(|answer| answer.header("event-version").parse::<i64>().unwrap());
    let (created, updated) = (created.json(), updated.json());

    let rows = program.database().outbox::<UserEvent>().await;
    assert_eq!(rows.len(), 3);
    for (row, (event_type, name, answered)) in rows.iter().zip([
        (UserEventType::UserCreated, "USER_CREATED", Some(&created)),
        (UserEventType::UserUpdated, "USER_UPDATED", Some(&updated)),
        (UserEventType::UserDeleted, "USER_DELETED", None),
    ]) {
        assert_eq!(row.aggregate_type, events::USER_AGGREGATE);
        assert_eq!((row.aggregate_id.as_str(), row.event_type.as_str()), ("1", name));
        let event = &row.event;
        assert_eq!((event.event_type, event.user_id), (event_type, 1));
        let told = event.user.as_ref().map(|user| serde_json::to_value(user).unwrap());
        let answered = answered.cloned().map(|mut user| {
            user.as_object_mut().unwrap().remove("version");
            user
        });
        assert_eq!(told, answered);
        assert_eq!(event.timestamp.as_bytes()[10], b'T');
    }
    let versions: Vec<_> = rows.iter().map(|row| row.event.version).collect();
    assert_eq!(versions, [1, 2, 3]);
    assert_eq!(versions, answered, "every answer tells its event's version");
}

#[tokio::test]
async fn the_outbox_is_not_sampled_and_the_users_little() {
    ready().await.database().assert_samples_are_small("users").await;
}

#[tokio::test]
async fn a_refused_request_writes_no_event() {
    let program = ready().await;
    program.post("/api/users", &user("hong@example.com")).await;
    program.post("/api/users", &user("hong@example.com")).await.problem(409);
    program.post("/api/users", &json!({})).await.problem(422);
    program.put("/api/users/7", &user("x@example.com")).await.problem(404);
    program.delete("/api/users/7").await.problem(404);
    assert_eq!(program.database().outbox::<UserEvent>().await.len(), 1);
}

#[tokio::test]
async fn a_change_whose_event_fails_is_not_made() {
    let program = ready().await;
    let before = program.post("/api/users", &user("hong@example.com")).await.json();
    let mut sql = program.database().sql().await;
    sql.execute(
        "create function refuse() returns trigger language plpgsql as \
            $$ begin raise exception 'secret reason'; end $$; \
        create trigger refuse before insert on outbox for each row execute function refuse()",
    )
    .await
    .unwrap();
    for answer in [
        program.post("/api/users", &user("other@example.com")).await,
        program.put("/api/users/1", &user("other@example.com")).await,
        program.delete("/api/users/1").await,
    ] {
        answer.problem(500);
        assert!(!answer.text.contains("secret reason"), "{}", answer.text);
    }
    assert!(program.log().contains("secret reason"), "the log knows why");
    assert_eq!(program.get("/api/users").await.json(), json!([before]));

    sql.execute("alter table outbox rename to elsewhere").await.unwrap();
    program
        .post("/api/users", &user("other@example.com"))
        .await
        .problem(503);
    assert_eq!(program.get("/api/users").await.json(), json!([before]));
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_updates_of_one_user_are_numbered_without_gaps() {
    let program = std::sync::Arc::new(ready().await);
    program.post("/api/users", &user("hong@example.com")).await;
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..32 {
        let program = std::sync::Arc::clone(&program);
        tasks.spawn(async move {
            let mut versions = Vec::new();
            for round in 0..5 {
                let mut change = user("hong@example.com");
                change["name"] = json!(format!("{task}-{round}"));
                let body = change.to_string();
                let updated = program.send(Method::PUT, "/api/users/1", body).await;
                assert_eq!(updated.status, 200, "{}", updated.text);
                let updated = updated.json();
                assert_eq!(updated["name"], change["name"]);
                versions.push(updated["version"].as_i64().unwrap());
            }
            versions
        });
    }
    let mut answered: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
    answered.sort_unstable();
    assert_eq!(answered, (2..=161).collect::<Vec<_>>());

    let events = program.database().outbox::<UserEvent>().await;
    let mut told: Vec<_> = events.iter().map(|row| row.event.version).collect();
    told.sort_unstable();
    assert_eq!(told, (1..=161).collect::<Vec<_>>());
}
