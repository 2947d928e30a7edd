//! The SQL of users.
//!
//! A change of a user can only be written by `change!`, which writes its event in the same statement: one transaction, one round trip, and no change
//! without its event. The event's version is the row's own. An update holds the row's lock until it has committed, so that a user's events commit,
//! and thus are published, in the order of their versions.
//!
//! JSON texts are made by the database, in the order of the answer's fields.

/// The answer's user, from a row `u`.
macro_rules! user {
    () => {
        "(select row_to_json(answer)::text from (select u.id, u.name, u.email, u.department, u.status, \
            u.created_at as \"createdAt\", u.updated_at as \"updatedAt\", u.version) as answer)"
    };
}

/// A change of one user with its event. Returns `id`, `version` and `body`, which is a JSON text, or no row if there is no such user. `$change`
/// writes the row and returns it as the event shows it. `$event_id` is the parameter that has the event's id.
macro_rules! change {
    ($event_type:literal, $event_id:literal, $user:literal, $change:literal) => {
        rest::change_with_event!(
            row: "u",
            change: $change,
            aggregate: "user",
            event_id: $event_id,
            event_type: $event_type,
            state: $user,
            answer: "select u.id, u.version, ", user!(), " as body from u",
        )
    };
}

/// $1 name, $2 email, $3 department, $4 status, $5 the event's id.
pub const CREATE: &str = change!(
    "USER_CREATED",
    "$5",
    "jsonb_build_object('id', u.id, 'name', u.name, 'email', u.email, 'department', u.department,
        'status', u.status, 'createdAt', u.created_at, 'updatedAt', u.updated_at)",
    "insert into users (name, email, department, status)
        values ($1, $2, $3, $4)
        returning id, name, email, department, status, created_at, updated_at, version"
);

/// $1 name, $2 email, $3 department, $4 status, $5 id, $6 versions of which the row must have one, or null,
/// $7 the event's id.
///
/// If an update had to wait for another update of the same user, it compares with the version that the other one has written.
pub const UPDATE: &str = change!(
    "USER_UPDATED",
    "$7",
    "jsonb_build_object('id', u.id, 'name', u.name, 'email', u.email, 'department', u.department,
        'status', u.status, 'createdAt', u.created_at, 'updatedAt', u.updated_at)",
    "update users
        set name = $1, email = $2, department = $3, status = $4,
            updated_at = clock_timestamp() at time zone 'utc', version = version + 1
        where id = $5 and ($6::bigint[] is null or version = any($6))
        returning id, name, email, department, status, created_at, updated_at, version"
);

/// $1 id, $2 versions as in [`UPDATE`], $3 the event's id. The event carries no personal data. Its version is the next one after the user's last.
pub(crate) const DELETE: &str = change!(
    "USER_DELETED",
    "$3",
    "null",
    "delete from users
        where id = $1 and ($2::bigint[] is null or version = any($2))
        returning id, name, email, department, status, created_at, updated_at, version + 1 as version"
);

/// $1 the id of an event. Returns the row that the change which wrote this event would have returned, and no row if the change was not made.
pub(crate) const ANSWER_OF: &str = concat!(
    "select (o.payload ->> 'userId')::bigint as id, u.version, ",
    user!(),
    " as body from outbox as o left join lateral (select * from jsonb_to_record(nullif(o.payload -> 'user', 'null'))
            as told(id bigint, name text, email text, department text, status text, \"createdAt\" timestamp, \"updatedAt\" timestamp)
        ) as told on true
        cross join lateral (select told.id, told.name, told.email, told.department, told.status,
            told.\"createdAt\" as created_at, told.\"updatedAt\" as updated_at, (o.payload ->> 'version')::bigint as version) as u
    where o.id = $1"
);

/// $1 id. Returns `id`, `version` and `body`, which is a JSON text.
pub(crate) const READ: &str = concat!(
    "select u.id, u.version, ",
    user!(),
    " as body from users as u where u.id = $1"
);

/// $1 to $5 a `rest::listing::Part`. Returns a `rest::listing::Batch`.
pub(crate) const LIST: &str = concat!(
    "with candidates as materialized (
        select id, octet_length(name) + octet_length(email) + octet_length(coalesce(department, '')) + 200 as bytes
        from users where id > $1 and id <= $2 order by id limit $3
    ), chosen as (
        select id from (
            select id, sum(bytes) over (order by id) as bytes, row_number() over (order by id) as number from candidates
        ) as sized where bytes <= $4 or number <= $5
    )
    select string_agg(body, ',' order by id) as items, max(id) as last_key, count(*) as count,
        (select count(*) from candidates) as candidates, (select max(id) from candidates) as last_candidate
    from (select u.id, ",
    user!(),
    " as body from users as u join chosen on chosen.id = u.id) as batch"
);

#[cfg(test)]
mod tests {
    use super::{CREATE, DELETE, UPDATE};

    #[test]
    fn every_change_writes_an_event_of_the_contract() {
        for (statement, event_type) in [
            (CREATE, events::UserEventType::UserCreated),
            (UPDATE, events::UserEventType::UserUpdated),
            (DELETE, events::UserEventType::UserDeleted),
        ] {
            let name = serde_json::to_value(event_type).unwrap();
            let name = name.as_str().unwrap();
            assert!(statement.contains(&format!(
                "::uuid, '{}', u.id::text, '{name}', jsonb_build_object('eventType', '{name}'",
                events::USER_AGGREGATE
            )));
        }
    }
}
