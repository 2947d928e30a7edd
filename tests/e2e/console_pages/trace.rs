//! `/trace` follows an event wherever it is.

use stack::eventually_ok;

use super::page::Page;
use super::server::{DEADLINE, Sent, Server, alone, shared};

async fn until_it_says(server: &Server, address: &str, wanted: &str) -> Page {
    eventually_ok(DEADLINE, "the trace", || async {
        let page = server.get(address).await;
        anyhow::ensure!(page.text.contains(wanted), "no `{wanted}` in {address}: {}", page.text);
        Ok(page)
    })
    .await
    .expect("the trace")
}

async fn event_of(server: &Server, user: i64) -> String {
    server
        .in_users(&format!(
            "select id from outbox where aggregateid = '{user}' order by created_at desc limit 1"
        ))
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_in_the_views_is_found_by_id_key_and_place() {
    let server = shared().await;
    let user = server.create_user("traced", "trace").await;
    let id = event_of(&server, user).await;
    let by_id = until_it_says(&server, &format!("/trace?id={id}"), "in all views").await;
    let (partition, offset) = by_id.places()[0].split_once('/').expect("a place");
    let by_key = server.get(&format!("/trace?topic=user-events&key={user}")).await;
    let by_place = server
        .get(&format!(
            "/trace?topic=user-events&partition={partition}&offset={offset}"
        ))
        .await;
    for page in [&by_id, &by_key, &by_place] {
        for part in [
            id.as_str(),
            "in all views",
            "Written",
            "after the row was written",
            "user_view",
            "which is this event",
            "after the commit",
            "activity",
        ] {
            assert!(page.text.contains(part), "{part} in {}: {}", page.address, page.text);
        }
        assert_eq!(page.places(), by_id.places(), "{}", page.address);
        assert!(!page.source.contains("secret.example"), "{}", page.text);
        page.assert_harmless();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_latest_event_of_a_key_is_found_also_before_a_view_has_it() {
    let server = alone().await;
    let user = server.create_user("late", "trace").await;
    let key = format!("/trace?topic=user-events&key={user}");
    until_it_says(&server, &key, "in all views").await;
    server.pipeline.view_builder.stop().await.expect("it stops");
    let change =
        serde_json::json!({"name": "later", "email": "late@secret.example", "department": "trace", "status": "ACTIVE"});
    let address = server.pipeline.user_api.url(&format!("/api/users/{user}"));
    reqwest::Client::new()
        .put(address)
        .json(&change)
        .send()
        .await
        .expect("an answer")
        .error_for_status()
        .expect("a change");
    let id = event_of(&server, user).await;
    for address in [&key, &format!("/trace?id={id}")] {
        let page = until_it_says(&server, address, "on its way to the views").await;
        assert!(
            page.text.contains(&id) && page.text.contains("waiting"),
            "{}",
            page.text
        );
    }
    server.pipeline.view_builder.start().expect("it starts");
    let page = until_it_says(&server, &key, "in all views").await;
    assert!(
        page.text.contains("has version 2, which is this event"),
        "{}",
        page.text
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_whose_row_is_gone_is_traced_by_its_place_and_key() {
    let server = shared().await;
    let user = server.create_user("gone", "trace").await;
    let id = event_of(&server, user).await;
    let key = format!("/trace?topic=user-events&key={user}");
    until_it_says(&server, &key, "in all views").await;
    server
        .in_users(&format!(
            "with gone as (delete from outbox where id = '{id}' returning 1) select count(*) from gone"
        ))
        .await;
    let page = server.get(&key).await;
    assert!(
        page.text.contains("in all views") && page.text.contains("no row"),
        "{}",
        page.text
    );
    let page = server.get(&format!("/trace?id={id}")).await;
    assert!(page.text.contains("not found in its topic"), "{}", page.text);
    let search = page
        .attributes("a", "href")
        .into_iter()
        .find(|link| link.starts_with("/events?id="));
    let found = server.get(search.expect("a search that goes further")).await;
    assert_eq!(found.places().len(), 1, "{}", found.text);
    let never = server.get("/trace?id=00000000-0000-4000-8000-000000000000").await;
    assert!(never.text.contains("not found in its topic"), "{}", never.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_and_what_waits_behind_it_are_named() {
    let server = shared().await;
    let send = |value: &[u8]| {
        server.produce(&[Sent {
            topic: "user-events",
            key: b"trace-dead",
            value,
            headers: Vec::new(),
        }]);
    };
    send(b"no event");
    send(b"not one either");
    let key = "/trace?topic=user-events&key=trace-dead";
    let page = until_it_says(&server, key, "waits behind a dead letter").await;
    let letters =
        "select string_agg(id::text, ' ' order by record_offset) from view_dead_letters where key = 'trace-dead'";
    let letters = server.in_views(letters).await;
    let (first, second) = letters.split_once(' ').expect("two letters");
    assert!(
        page.text
            .contains(&format!("as letter {second} , behind letter {first}")),
        "{}",
        page.text
    );
    let offset = server
        .in_views(&format!(
            "select partition || '&offset=' || record_offset from view_dead_letters where id = {first}"
        ))
        .await;
    let page = server
        .get(&format!("/trace?topic=user-events&partition={offset}"))
        .await;
    assert!(
        page.text.contains("dead letter letter") && page.text.contains("a dead letter"),
        "{}",
        page.text
    );
    page.assert_harmless();
}
