//! The relay may be away for any time. Clients do not notice, and nothing is lost.

use std::time::{Duration, Instant};

use super::{rows, shared};
use rig::rest::{Rest, id, user};

const USERS: i64 = 300;
/// An answer that waits for the relay, Kafka or the view would take longer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

#[tokio::test]
async fn changes_made_while_the_relay_is_away_all_arrive_when_it_is_back() {
    let pipeline = shared::pipeline_alone().await;
    let rest = Rest::of(&pipeline);
    rows::assert_view_equals_users(&pipeline, Duration::from_secs(60)).await;
    let before = rows::user_view(&pipeline).await;
    pipeline.users_relay.stop().await.expect("a clean end");

    for number in 0..USERS {
        let start = Instant::now();
        let body = user("세종", "집현전", "ACTIVE");
        let created = rest.create_user(&body).await.expect("a user");
        if number % 3 == 0 {
            rest.update_user(id(&created), &body).await.expect("an update");
        }
        if number % 5 == 0 {
            rest.delete_user(id(&created)).await.expect("a deletion");
        }
        assert!(start.elapsed() < ANSWER_MAX, "user-api answers without the relay");
    }
    assert_eq!(
        rows::user_view(&pipeline).await,
        before,
        "nothing reaches the view without the relay"
    );

    pipeline.users_relay.start().expect("a start");
    pipeline
        .users_relay
        .wait_ready(Duration::from_secs(30))
        .await
        .expect("a ready relay");
    rows::assert_view_equals_users(&pipeline, Duration::from_secs(60)).await;
}
