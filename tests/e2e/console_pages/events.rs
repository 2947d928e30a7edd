//! Searches on `/events`, and one record by its link.

use std::collections::BTreeSet;

use stack::eventually_ok;

use super::server::{DEADLINE, Server, shared};

/// Creates users of a department, and waits until the topic has them.
async fn create_users(server: &Server, department: &str, count: usize) -> Vec<i64> {
    let mut ids = Vec::new();
    for number in 0..count {
        ids.push(server.create_user(&format!("{department}-{number}"), department).await);
    }
    eventually_ok(DEADLINE, "the topic has the users", || async {
        let page = server
            .get(&format!("/events?field=user.department={department}&n=500"))
            .await;
        anyhow::ensure!(page.places().len() == count, "{}", page.text);
        Ok(())
    })
    .await
    .expect("the users");
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_are_found_by_key_id_header_and_field() {
    let server = shared().await;
    let ids = create_users(&server, "search", 3).await;
    let event = server
        .in_users(&format!("select id from outbox where aggregateid = '{}'", ids[1]))
        .await;
    for search in [
        format!("key={}", ids[1]),
        format!("id={event}"),
        "field=user.name=search-1".to_owned(),
        format!("header=id={event}"),
        format!("key={}&field=user.status=ACTIVE&header=eventType=USER_CREATED", ids[1]),
    ] {
        let page = server.get(&format!("/events?{search}")).await;
        assert_eq!(page.places().len(), 1, "{search}: {}", page.text);
        assert!(
            page.text.contains(&format!(" {} USER_CREATED ", ids[1])),
            "{search}: {}",
            page.text
        );
        page.assert_harmless();
    }
    for search in [
        format!("key={}&field=user.status=INACTIVE", ids[1]),
        "from=2100-01-01T00:00:00Z".to_owned(),
    ] {
        let page = server.get(&format!("/events?{search}")).await;
        assert!(
            page.places().is_empty() && page.text.contains("No record is like this"),
            "{search}: {}",
            page.text
        );
    }
    let page = server
        .get("/events?field=user.department=search&from=10m&order=oldest")
        .await;
    assert_eq!(page.places().len(), 3, "{}", page.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_search_that_stops_goes_on_from_there_and_shows_each_record_once() {
    let server = shared().await;
    create_users(&server, "paged", 13).await;
    for order in ["newest", "oldest"] {
        let (mut address, mut seen, mut pages) = (
            format!("/events?field=user.department=paged&n=5&order={order}"),
            BTreeSet::new(),
            0,
        );
        loop {
            let page = server.get(&address).await;
            for place in page.places() {
                assert!(seen.insert(place.to_owned()), "{order}: {place} is shown twice");
            }
            pages += 1;
            let next = page
                .attributes("a", "href")
                .into_iter()
                .find(|link| link.contains("&at="));
            match next {
                Some(next) => address = next.to_owned(),
                None => break,
            }
        }
        assert_eq!(seen.len(), 13, "{order}");
        assert!(pages >= 3, "{order}: {pages} pages");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_has_a_link_with_its_position_in_parts_and_masked_fields_hidden() {
    let server = shared().await;
    let ids = create_users(&server, "linked", 2).await;
    let list = server.get(&format!("/events?key={}", ids[0])).await;
    assert!(!list.source.contains("secret.example"), "{}", list.text);
    let place = list.places()[0].to_owned();
    let page = server.get(&format!("/events/user-events/{place}")).await;
    assert!(
        !page.source.contains("secret.example") && page.text.contains("•••"),
        "{}",
        page.text
    );
    for part in [
        "Commit LSN",
        "Index in the transaction",
        "Committed",
        "\"name\": \"linked-0\"",
        "USER_CREATED",
    ] {
        assert!(page.text.contains(part), "{part}: {}", page.text);
    }
    page.assert_harmless();

    let lsn = page
        .text
        .split("Commit LSN ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .expect("an LSN");
    let from_position = server.get(&format!("/events?position={lsn}&n=1")).await;
    assert_eq!(from_position.places(), [place.as_str()], "{}", from_position.text);

    let (partition, offset) = place.split_once('/').expect("a place");
    let from_offset = server
        .get(&format!("/events?partition={partition}&offset={offset}&n=1"))
        .await;
    assert_eq!(from_offset.places(), [place.as_str()], "{}", from_offset.text);
    // A transaction ends behind each batch of the relay, and no reader gets its end.
    let behind = server.get(&format!("/events/user-events/{partition}/1000000")).await;
    assert_eq!(behind.status, 404, "{}", behind.text);
    assert_eq!(server.get("/events/secrets/0/0").await.status, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_finds_out_a_masked_field_by_searching() {
    let server = shared().await;
    create_users(&server, "masked", 1).await;
    for address in [
        "/events?field=user.email=masked-0@secret.example",
        "/events/tail?field=user.email=x",
    ] {
        let answer = reqwest::get(server.console().url(address)).await.expect("an answer");
        assert_eq!(answer.status(), 422, "{address}");
        let text = answer.text().await.expect("a text");
        assert!(text.contains("is masked"), "{address}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_follows_a_topic_gets_what_comes_and_nothing_else() {
    let server = shared().await;
    let mut tail = reqwest::get(server.console().url("/events/tail?field=user.department=followed"))
        .await
        .expect("an answer");
    assert_eq!(tail.headers()["content-type"], "text/event-stream");
    // It begins at the topic's end, at some moment after the answer.
    let creating = async {
        for number in 0.. {
            server.create_user(&format!("other-{number}"), "elsewhere").await;
            server.create_user(&format!("followed-{number}"), "followed").await;
        }
    };
    let receiving = async {
        let mut text = String::new();
        while !text.contains("event: rows") || !text.ends_with("\n\n") {
            let chunk = tail.chunk().await.expect("the tail goes on").expect("it has no end");
            text.push_str(&String::from_utf8_lossy(&chunk));
        }
        text
    };
    let text = tokio::select! {
        () = creating => unreachable!("it goes on"),
        text = tokio::time::timeout(DEADLINE, receiving) => text.expect("a record in time"),
    };
    assert!(
        text.contains("&quot;followed&quot;") && !text.contains("elsewhere"),
        "{text}"
    );
    assert!(!text.contains("secret.example"), "{text}");
}
