use bytes::Bytes;

use super::{Assignment, Limits, Record};
use crate::builder::claim::Start;
use crate::contract::Change;
use crate::contract::batch::RefusedEvent;
use crate::contract::event::{Event, Unappliable};
use crate::contract::letter::Letter;
use crate::contract::place::TopicPartition;
use crate::letters::{Known, LettersOfKey};

fn place(partition: i32) -> TopicPartition {
    TopicPartition {
        topic: "user-events".into(),
        partition,
    }
}

fn event(offset: i64) -> Event {
    Event {
        offset,
        key: offset,
        version: 1,
        change: Change::Created,
        entity: Some("{}".into()),
        committed_us: offset * 10,
        read_us: None,
    }
}

/// An assignment of these partitions: number, epoch and next offset of each.
fn holding(starts: &[(i32, i64, i64)]) -> Assignment {
    let mut assignment = Assignment::new(Limits { rows: 3, bytes: 10_000 });
    assignment.replace(
        starts
            .iter()
            .map(|&(partition, epoch, next_offset)| Start {
                place: place(partition),
                epoch,
                next_offset,
                new_from: next_offset,
                group_offset: None,
                known: Known::at(1),
            })
            .collect(),
    );
    assignment
}

/// Takes a record whose key is its offset. Returns the reason if the record becomes a dead letter.
fn take_any(
    assignment: &mut Assignment,
    partition: i32,
    offset: i64,
    event: Result<Option<Event>, Unappliable>,
) -> Option<String> {
    take_keyed(assignment, partition, offset, &offset.to_string(), event)
}

fn take_keyed(
    assignment: &mut Assignment,
    partition: i32,
    offset: i64,
    key: &str,
    event: Result<Option<Event>, Unappliable>,
) -> Option<String> {
    let letter = |reason| Letter {
        offset,
        key: Some(Bytes::copy_from_slice(key.as_bytes())),
        value: Bytes::new(),
        headers: Vec::new(),
        record_time_us: Some(offset * 10),
        reason,
    };
    let record = Record {
        offset,
        read_us: 1_000,
        epoch: Some(7),
        key: Some(key.as_bytes()),
        event,
        letter,
    };
    assignment.take(&place(partition), record)
}

/// Takes a record with a good event, whose key is its offset.
fn take(assignment: &mut Assignment, partition: i32, offset: i64) {
    assert_eq!(take_any(assignment, partition, offset, Ok(Some(event(offset)))), None);
}

fn bad_event() -> Result<Option<Event>, Unappliable> {
    Err(Unappliable("no".to_owned()))
}

/// The offsets of the next batch's events and letters, with the letters' reasons.
fn contents(assignment: &mut Assignment) -> (Vec<i64>, Vec<(i64, Option<String>)>) {
    let parts = assignment.next_batch().map(|batch| batch.parts).unwrap_or_default();
    let events = parts.iter().flat_map(|part| &part.events).map(|event| event.offset);
    let letters = parts.iter().flat_map(|part| &part.letters);
    (
        events.collect(),
        letters.map(|letter| (letter.offset, letter.reason.clone())).collect(),
    )
}

/// The next offset to read of each partition.
fn next_reads(assignment: &Assignment) -> Vec<i64> {
    assignment.next_reads().map(|(_, offset)| offset).collect()
}

/// Each part of the next batch as `(partition, epoch, from, to, number of events)`.
fn next_parts(assignment: &mut Assignment) -> Vec<(i32, i64, i64, i64, usize)> {
    assignment
        .next_batch()
        .map(|batch| batch.parts)
        .unwrap_or_default()
        .iter()
        .map(|part| (part.place.partition, part.epoch, part.from, part.to, part.events.len()))
        .collect()
}

#[test]
fn a_batch_takes_what_has_arrived_and_the_next_one_continues_it() {
    let mut assignment = holding(&[(0, 5, 10), (1, 7, 0), (2, 1, 0)]);
    take(&mut assignment, 0, 12);
    take(&mut assignment, 1, 0);
    assert_eq!(next_parts(&mut assignment), [(0, 5, 10, 13, 1), (1, 7, 0, 1, 1)]);
    take(&mut assignment, 0, 13);
    assignment.committed(&place(0), 13);
    assignment.committed(&place(1), 1);
    assert_eq!(next_parts(&mut assignment), [(0, 5, 13, 14, 1)]);
    assignment.committed(&place(0), 14);
    assert_eq!(next_parts(&mut assignment), []);
}

#[test]
fn a_tombstone_moves_the_position_and_nothing_else() {
    let mut assignment = holding(&[(0, 1, 0)]);
    assert_eq!(take_any(&mut assignment, 0, 4, Ok(None)), None);
    assert_eq!(next_parts(&mut assignment), [(0, 1, 0, 5, 0)]);
}

#[test]
fn what_comes_twice_or_belongs_to_others_is_dropped() {
    let mut assignment = holding(&[(0, 1, 10)]);
    take(&mut assignment, 0, 9);
    take(&mut assignment, 0, 10);
    take(&mut assignment, 0, 10);
    take(&mut assignment, 3, 10);
    assert_eq!(next_parts(&mut assignment), [(0, 1, 10, 11, 1)]);
}

#[test]
fn a_bad_event_becomes_a_letter_and_only_its_key_waits_behind_it() {
    let mut assignment = holding(&[(0, 1, 0)]);
    assert_eq!(
        take_keyed(&mut assignment, 0, 0, "7", bad_event()),
        Some("no".to_owned())
    );
    assert_eq!(take_keyed(&mut assignment, 0, 1, "7", Ok(Some(event(1)))), None);
    take(&mut assignment, 0, 2);
    assert!(!assignment.has_room(), "letters count as rows");
    let letters = vec![(0, Some("no".to_owned())), (1, None)];
    assert_eq!(contents(&mut assignment), (vec![2], letters));
    assert!(assignment.has_room());
}

#[test]
fn an_event_that_postgres_refuses_is_read_again_and_becomes_a_letter() {
    let mut assignment = holding(&[(0, 1, 0), (1, 1, 0)]);
    take(&mut assignment, 0, 0);
    take(&mut assignment, 0, 1);
    assert_eq!(next_parts(&mut assignment).len(), 1);
    take(&mut assignment, 0, 2);
    take(&mut assignment, 1, 0);
    assignment.committed(&place(0), 1);
    assignment.refused(RefusedEvent {
        place: place(0),
        offset: 1,
        reason: "too long".to_owned(),
    });
    assert_eq!(next_reads(&assignment), [1, 1]);
    assert_eq!(
        take_any(&mut assignment, 0, 1, Ok(Some(event(1)))),
        Some("too long".to_owned())
    );
    take(&mut assignment, 0, 2);
    let letters = vec![(1, Some("too long".to_owned()))];
    assert_eq!(contents(&mut assignment), (vec![2, 0], letters));
}

#[test]
fn a_batch_that_is_given_up_is_read_again_in_every_partition() {
    let mut assignment = holding(&[(0, 1, 5), (1, 1, 7)]);
    take(&mut assignment, 0, 5);
    take(&mut assignment, 1, 7);
    assert_eq!(next_parts(&mut assignment).len(), 2);
    take(&mut assignment, 1, 8);
    assignment.given_up();
    assert_eq!(next_reads(&assignment), [5, 7]);
    assert!(assignment.has_room());
    take(&mut assignment, 1, 7);
    assert_eq!(next_parts(&mut assignment), [(1, 1, 7, 8, 1)]);
}

#[test]
fn what_was_taken_while_a_key_was_thought_to_wait_is_read_again() {
    let mut assignment = holding(&[(0, 1, 0), (1, 1, 0)]);
    assert_eq!(
        take_keyed(&mut assignment, 0, 0, "7", bad_event()),
        Some("no".to_owned())
    );
    assert_eq!(take_keyed(&mut assignment, 0, 1, "7", Ok(Some(event(1)))), None);
    take(&mut assignment, 1, 0);
    let given_up = assignment.next_batch().unwrap();
    assert_eq!(given_up.parked_keys(), [(place(0), Bytes::from_static(b"7"))]);
    assignment.given_up();
    assignment.correct_letters(vec![LettersOfKey {
        place: place(0),
        key: Bytes::from_static(b"7"),
        first: None,
        discarded: vec![0],
    }]);
    assert_eq!(next_reads(&assignment), [0, 0]);
    assert_eq!(take_keyed(&mut assignment, 0, 0, "7", bad_event()), None);
    assert_eq!(take_keyed(&mut assignment, 0, 1, "7", Ok(Some(event(1)))), None);
    let batch = assignment.next_batch().unwrap();
    assert!(batch.parts.iter().all(|part| part.letters.is_empty()));
    assert_eq!(batch.event_count(), 1);
}

#[test]
fn reading_pauses_at_the_limits_and_goes_on_with_the_next_batch() {
    let mut assignment = holding(&[(0, 1, 0)]);
    for offset in 0..3 {
        assert!(assignment.has_room());
        take(&mut assignment, 0, offset);
    }
    assert!(!assignment.has_room());
    assert!(assignment.next_batch().is_some());
    assert!(assignment.has_room());
}

#[test]
fn a_new_assignment_forgets_what_waited() {
    let mut assignment = holding(&[(0, 1, 0)]);
    take(&mut assignment, 0, 0);
    take_any(&mut assignment, 0, 1, bad_event());
    assignment.replace(vec![Start {
        place: place(0),
        epoch: 2,
        next_offset: 0,
        new_from: 0,
        group_offset: None,
        known: Known::at(1),
    }]);
    assert_eq!(next_parts(&mut assignment), []);
    take(&mut assignment, 0, 0);
    assert_eq!(next_parts(&mut assignment), [(0, 2, 0, 1, 1)]);
}

#[test]
fn the_oldest_event_that_is_not_applied_is_known_until_it_is() {
    let oldest = |assignment: &Assignment| assignment.positions().next().and_then(|position| position.oldest_us);
    let mut assignment = holding(&[(0, 1, 5)]);
    assert_eq!(oldest(&assignment), None);
    take(&mut assignment, 0, 5);
    take_any(&mut assignment, 0, 6, bad_event());
    assert_eq!(next_parts(&mut assignment).len(), 1);
    assert_eq!(oldest(&assignment), Some(50), "in flight");
    take_any(&mut assignment, 0, 7, bad_event());
    take(&mut assignment, 0, 8);
    assignment.committed(&place(0), 7);
    assert_eq!(oldest(&assignment), Some(70), "a letter is one too");
    assert_eq!(next_parts(&mut assignment).len(), 1);
    take(&mut assignment, 0, 9);
    assignment.given_up();
    assert_eq!(oldest(&assignment), Some(70), "it comes again");
    take_any(&mut assignment, 0, 7, bad_event());
    take(&mut assignment, 0, 8);
    assert_eq!(next_parts(&mut assignment).len(), 1);
    assignment.committed(&place(0), 9);
    assert_eq!(oldest(&assignment), None);
}

#[test]
fn only_what_was_never_applied_before_is_measured() {
    let mut assignment = holding(&[]);
    assignment.replace(vec![Start {
        place: place(0),
        epoch: 2,
        next_offset: 3,
        new_from: 5,
        group_offset: None,
        known: Known::at(1),
    }]);
    for offset in 3..6 {
        take(&mut assignment, 0, offset);
    }
    let batch = assignment.next_batch().unwrap();
    let read: Vec<_> = batch.parts[0].events.iter().map(|event| event.read_us).collect();
    assert_eq!(read, [None, None, Some(1_000)]);
}

#[test]
fn a_batch_tells_how_far_the_log_was_read_and_what_is_dropped_does_not_count() {
    let mut assignment = holding(&[(0, 5, 10)]);
    let read = |assignment: &mut Assignment| {
        let batch = assignment.next_batch().expect("a batch");
        batch.parts[0].read.map(|read| (read.offset, read.epoch))
    };
    take(&mut assignment, 0, 12);
    assert_eq!(read(&mut assignment), Some((13, 7)));
    take(&mut assignment, 0, 13);
    assignment.given_up();
    assert!(assignment.next_batch().is_none());
}

#[test]
fn a_partition_that_is_held_back_is_not_settled() {
    let mut assignment = holding(&[(0, 5, 10), (1, 5, 10)]);
    assignment.hold_back(&place(1), true);
    let settled = |assignment: &Assignment| {
        assignment
            .positions()
            .map(|position| position.settled)
            .collect::<Vec<_>>()
    };
    assert_eq!(settled(&assignment), [true, false]);
    assignment.hold_back(&place(1), false);
    assert_eq!(settled(&assignment), [true, true]);
}
