//! The statement by which a service changes one of its rows.

/// Makes the text of a statement that changes one row, writes the change's event to the outbox, and returns the answer. Since it is one statement,
/// there is one transaction, one round trip, and no change without its event. If there is no row to change, it returns no row.
///
/// - `row` is a name for the row as the change has left it. `state` and `answer` use this name;
/// - `change` changes the row and returns it with `id` and `version`, which is the event's version;
/// - `aggregate` is the kind of thing that the row is, such as `user`. It is the event's aggregate type. The event's fields `userId` and `user` and
///   its topic are named after it;
/// - `event_id` is the parameter that has the event's id;
/// - `state` is SQL for the row as the event shows it, as jsonb; `null` for a deletion;
/// - `answer` is the select that gives the answer.
#[macro_export]
macro_rules! change_with_event {
    (
        row: $row:literal,
        change: $change:literal,
        aggregate: $aggregate:literal,
        event_id: $event_id:literal,
        event_type: $event_type:literal,
        state: $state:literal,
        answer: $($answer:expr),+ $(,)?
    ) => {
        concat!(
            "with ", $row, " as (", $change, "), event as (
                insert into outbox (id, aggregatetype, aggregateid, type, payload)
                select ",
            $event_id, "::uuid, '", $aggregate, "', ", $row, ".id::text, '", $event_type, "', jsonb_build_object(",
            "'eventType', '", $event_type, "', '", $aggregate, "Id', ", $row, ".id, '", $aggregate, "', ", $state, ",
                    'timestamp', clock_timestamp() at time zone 'utc', 'version', ", $row, ".version)
                from ", $row, "
            ) ",
            $($answer),+
        )
    };
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_event_is_written_by_the_statement_that_changes_the_row() {
        let statement = change_with_event!(
            row: "t",
            change: "delete from things where id = $1 returning id, version",
            aggregate: "thing",
            event_id: "$2",
            event_type: "THING_DELETED",
            state: "null",
            answer: "select ", "t.id from t",
        );
        let words: Vec<&str> = statement.split_whitespace().collect();
        assert_eq!(
            words.join(" "),
            "with t as (delete from things where id = $1 returning id, version), event as ( \
             insert into outbox (id, aggregatetype, aggregateid, type, payload) \
             select $2::uuid, 'thing', t.id::text, 'THING_DELETED', \
             jsonb_build_object('eventType', 'THING_DELETED', 'thingId', t.id, 'thing', null, \
             'timestamp', clock_timestamp() at time zone 'utc', 'version', t.version) from t ) select t.id from t"
        );
    }
}
