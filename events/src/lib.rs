//! The contract between the programs: what an event says, where it travels, how its record is marked.
//!
//! `user-api` and `post-api` write events into their outbox. `outbox-relay` carries them without reading them. `view-builder` reads them.

pub mod position;

use serde::{Deserialize, Serialize};

pub use position::{POSITION_HEADER, Position};

/// Topic of the users' events; its key is the user's id in decimal.
pub const USER_TOPIC: &str = "user-events";
/// Topic of the posts' events; its key is the post's id in decimal.
pub const POST_TOPIC: &str = "post-events";
/// Partitions of each topic. Part of the contract: another number sends a key's later events to another partition.
pub const PARTITIONS: i32 = 8;
/// `aggregatetype` of a user's outbox row; the relay routes it to [`USER_TOPIC`].
pub const USER_AGGREGATE: &str = "user";
/// `aggregatetype` of a post's outbox row; the relay routes it to [`POST_TOPIC`].
pub const POST_AGGREGATE: &str = "post";

/// What happened to a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum UserEventType {
    UserCreated,
    UserUpdated,
    UserDeleted,
}

/// One event of [`USER_TOPIC`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UserEvent {
    pub event_type: UserEventType,
    pub user_id: i64,
    /// The user after the change; null in a `USER_DELETED`, which carries no personal data.
    pub user: Option<User>,
    /// When the event was written: local date-time, UTC, without zone.
    pub timestamp: String,
    /// 1, 2, 3… per user, without gaps; a deletion counts as well.
    pub version: i64,
}

/// A user as an event carries it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    pub id: i64,
    pub name: String,
    pub email: String,
    pub department: Option<String>,
    /// `ACTIVE` or `INACTIVE`.
    pub status: String,
    /// Local date-time, UTC, without zone; at most microseconds.
    pub created_at: String,
    pub updated_at: String,
}

/// What happened to a post.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PostEventType {
    PostCreated,
    PostUpdated,
    PostDeleted,
}

/// One event of [`POST_TOPIC`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PostEvent {
    pub event_type: PostEventType,
    pub post_id: i64,
    /// The post after the change; null in a `POST_DELETED`.
    pub post: Option<Post>,
    pub timestamp: String,
    /// 1, 2, 3… per post, without gaps; a deletion counts as well.
    pub version: i64,
}

/// A post as an event carries it. Its author's name is not part of it: that belongs to the user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Post {
    pub id: i64,
    pub title: String,
    pub content: String,
    pub author_id: i64,
    pub created_at: String,
    pub updated_at: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_event_reads_as_the_replaced_system_wrote_it() {
        let text = r#"{"eventType":"USER_CREATED","userId":1,"user":{"id":1,"name":"홍길동","email":"hong@example.com","department":"개발팀","status":"ACTIVE","createdAt":"2026-11-22T10:53:53.21721","updatedAt":"2026-11-22T10:53:53.217245"},"timestamp":"2026-11-22T10:53:53.217515","version":1}"#;
        let event: UserEvent = serde_json::from_str(text).expect("a valid event");
        assert_eq!(event.event_type, UserEventType::UserCreated);
        assert_eq!(event.user.as_ref().map(|user| user.name.as_str()), Some("홍길동"));
        assert_eq!(
            serde_json::to_string(&event).expect("serializable"),
            text,
            "the same fields in the same order"
        );
    }

    #[test]
    fn a_deletion_carries_no_user() {
        let text =
            r#"{"eventType":"USER_DELETED","userId":1,"user":null,"timestamp":"2026-11-22T10:53:53","version":2}"#;
        let event: UserEvent = serde_json::from_str(text).expect("a valid event");
        assert_eq!(event.user, None);
    }
}
