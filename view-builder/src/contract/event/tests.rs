use super::{Event, Unappliable};
use crate::contract::{Change, Contract};

const USER: &str = r#"{"id":7,"name":"홍길동","email":"h@x","department":null,"status":"ACTIVE","createdAt":"2025-01-01T00:00:00","updatedAt":"2025-01-01T00:00:00"}"#;

fn parse(key: &str, value: impl AsRef<[u8]>) -> Result<Event, Unappliable> {
    let contract = Contract::of(events::USER_TOPIC).unwrap();
    Event::parse(&contract, 4, 99, Some(key.as_bytes()), value.as_ref())
}

fn event(event_type: &str, user: &str, rest: &str) -> String {
    format!(r#"{{"eventType": "{event_type}", "userId": 7, "user": {user}, "timestamp": "t"{rest}}}"#)
}

/// An update of `USER`, in which `from` is replaced by `to`.
fn parse_edited_user(from: &str, to: &str) -> Result<Event, Unappliable> {
    assert!(USER.contains(from), "{from}");
    parse("7", event("USER_UPDATED", &USER.replace(from, to), r#","version":3"#))
}

#[test]
fn an_update_carries_its_entity_as_written() {
    let event = parse("7", event("USER_UPDATED", USER, r#","version":3,"extra":{"a":[1]}"#)).unwrap();
    assert_eq!(
        event,
        Event {
            offset: 4,
            key: 7,
            version: 3,
            change: Change::Updated,
            entity: Some(USER.into()),
            committed_us: 99,
            read_us: None,
        }
    );
}

#[test]
fn a_deletion_keeps_nothing_of_the_user() {
    for user in ["null", USER] {
        let event = parse("7", event("USER_DELETED", user, r#","version":4"#)).unwrap();
        assert_eq!((event.change, event.entity), (Change::Deleted, None));
    }
}

#[test]
fn what_our_own_apis_never_write_is_accepted_where_a_view_can_take_it() {
    for (from, to) in [
        ("T00:00:00\",\"updated", "T00:00:00Z\",\"updated"),
        ("T00:00:00\",\"updated", "T00:00:00.123456789+09:00\",\"updated"),
        (r#""department":null,"#, r#""department":"개발팀","unknown":1.5e9,"#),
        (r#""name":"홍길동""#, r#""name":"a\\u0000b""#),
    ] {
        assert!(parse_edited_user(from, to).is_ok(), "{to}");
    }
    let longest = "가".repeat(255);
    assert!(parse_edited_user("홍길동", &longest).is_ok());
}

#[test]
fn a_refusal_names_the_field_and_no_value() {
    let refusal_of_user = |from: &str, to: &str| parse_edited_user(from, to).unwrap_err().0;
    let refusal_of_value = |value: &str| parse("7", value).unwrap_err().0;
    for (reason, expected) in [
        (
            refusal_of_value(""),
            "the value is no event: EOF while parsing a value at line 1 column 0",
        ),
        (
            refusal_of_value("hello"),
            "the value is no event: expected value at line 1 column 1",
        ),
        (
            refusal_of_value("[]"),
            "the value is no event: invalid type at line 1 column 0",
        ),
        (
            refusal_of_value(&event("USER_UPDATED", USER, "")),
            "the value is no event: missing field `version` at line 1 column",
        ),
        (
            refusal_of_value(&event("USER_UPDATED", USER, r#","version":"4""#)),
            "the value is no event: invalid type at line 1",
        ),
        (
            refusal_of_value(&event("USER_UPDATED", USER, r#","version":0"#)),
            "version must be 1 or more",
        ),
        (
            refusal_of_value(&event("USER_UPDATED", USER, r#","version":1,"version":2"#)),
            "duplicate field `version`",
        ),
        (
            refusal_of_value(&(event("USER_UPDATED", USER, r#","version":1"#) + " x")),
            "trailing characters at line 1",
        ),
        (
            refusal_of_value(&event("USER_RENAMED", USER, r#","version":1"#)),
            "unknown eventType: expected USER_CREATED, USER_UPDATED or USER_DELETED",
        ),
        (
            refusal_of_value(&event("USER_CREATED", "null", r#","version":1"#)),
            "user must not be null",
        ),
        (
            refusal_of_value(&event("USER_CREATED", "[]", r#","version":1"#)),
            "user: invalid",
        ),
        (
            refusal_of_value(r#"{"eventType":null,"userId":7,"version":1}"#),
            "invalid type",
        ),
        (
            refusal_of_value(r#"{"eventType":"USER_DELETED","version":1}"#),
            "missing field `userId`",
        ),
        (refusal_of_user(r#""홍길동""#, "null"), "user: invalid type at line 1"),
        (refusal_of_user(r#""name":"홍길동","#, ""), "user: missing field `name`"),
        (
            refusal_of_user("홍길동", &"n".repeat(256)),
            "user: name is longer than 255 characters",
        ),
        (
            refusal_of_user("ACTIVE", &"s".repeat(51)),
            "user: status is longer than 50 characters",
        ),
        (
            refusal_of_user("홍길동", "secret\\u0000"),
            "user: a text holds the character U+0000",
        ),
        (refusal_of_user(r#""id":7"#, r#""id":8"#), "user: id is not userId"),
        (
            refusal_of_user(r#""createdAt":"2025-01-01T00:00:00""#, r#""createdAt":1735689600000"#),
            "user: invalid type",
        ),
        (
            refusal_of_user("2025-01-01T00:00:00\",\"up", "2025-02-30T00:00:00\",\"up"),
            "user: createdAt is no date-time",
        ),
        (
            parse("8", event("USER_CREATED", USER, r#","version":1"#))
                .unwrap_err()
                .0,
            "the record's key is not its userId",
        ),
        (
            parse("07", event("USER_CREATED", USER, r#","version":1"#))
                .unwrap_err()
                .0,
            "the record's key is not its userId",
        ),
        (
            parse("7", [b'"', 0xff, b'"']).unwrap_err().0,
            "the value is not UTF-8 from byte 1",
        ),
    ] {
        assert!(reason.contains(expected), "{reason:?} should tell {expected:?}");
        assert!(!reason.contains("secret"), "{reason}");
    }
    let contract = Contract::of(events::USER_TOPIC).unwrap();
    let no_key = Event::parse(
        &contract,
        0,
        0,
        None,
        event("USER_CREATED", USER, r#","version":1"#).as_bytes(),
    );
    assert_eq!(no_key.unwrap_err().0, "the record has no key");
}

#[test]
fn another_aggregate_needs_no_rust() {
    let contract = Contract::of("order-line-events").unwrap();
    let value = br#"{"version":2,"orderLineId":-5,"eventType":"ORDER_LINE_UPDATED","orderLine":{"any":"thing"}}"#;
    let event = Event::parse(&contract, 0, 0, Some(b"-5"), value).unwrap();
    assert_eq!((event.key, event.entity.as_deref()), (-5, Some(r#"{"any":"thing"}"#)));
}
