use super::{Assignment, Limits, Start, Stop};
use crate::batch::TopicPartition;
use crate::contract::Change;
use crate::event::{Event, Unappliable};

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
        committed_us: 0,
    }
}

fn holding(starts: &[(i32, i64, i64)]) -> Assignment {
    let mut assignment = Assignment::new(Limits { rows: 3, bytes: 10_000 });
    assignment.replace(
        starts
            .iter()
            .map(|&(partition, epoch, next_offset)| Start {
                place: place(partition),
                epoch,
                next_offset,
            })
            .collect(),
    );
    assignment
}

fn take(assignment: &mut Assignment, partition: i32, offset: i64) {
    assert_eq!(
        assignment.take(&place(partition), offset, Ok(Some(event(offset)))),
        None
    );
}

/// Partition, epoch, from, to and events of each part of the next batch.
fn next(assignment: &mut Assignment) -> Vec<(i32, i64, i64, i64, usize)> {
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
    assert_eq!(next(&mut assignment), [(0, 5, 10, 13, 1), (1, 7, 0, 1, 1)]);
    take(&mut assignment, 0, 13);
    assignment.committed(&place(0), 13);
    assignment.committed(&place(1), 1);
    assert_eq!(next(&mut assignment), [(0, 5, 13, 14, 1)]);
    assignment.committed(&place(0), 14);
    assert_eq!(next(&mut assignment), []);
}

#[test]
fn a_tombstone_moves_the_position_and_nothing_else() {
    let mut assignment = holding(&[(0, 1, 0)]);
    assert_eq!(assignment.take(&place(0), 4, Ok(None)), None);
    assert_eq!(next(&mut assignment), [(0, 1, 0, 5, 0)]);
}

#[test]
fn what_comes_twice_or_belongs_to_others_is_dropped() {
    let mut assignment = holding(&[(0, 1, 10)]);
    take(&mut assignment, 0, 9);
    take(&mut assignment, 0, 10);
    take(&mut assignment, 0, 10);
    take(&mut assignment, 3, 10);
    assert_eq!(next(&mut assignment), [(0, 1, 10, 11, 1)]);
}

#[test]
fn a_bad_event_stops_its_partition_before_it_and_no_other() {
    let mut assignment = holding(&[(0, 1, 0), (1, 1, 0)]);
    take(&mut assignment, 0, 0);
    let stop = assignment.take(&place(0), 2, Err(Unappliable("no".to_owned())));
    assert_eq!(stop.map(|stop| stop.offset), Some(2));
    take(&mut assignment, 0, 3);
    take(&mut assignment, 1, 0);
    assert_eq!(next(&mut assignment), [(0, 1, 0, 2, 1), (1, 1, 0, 1, 1)]);
    assignment.committed(&place(0), 2);
    assignment.committed(&place(1), 1);
    take(&mut assignment, 0, 4);
    assert_eq!(next(&mut assignment), []);
    assert_eq!(assignment.stops().count(), 1);
}

#[test]
fn an_event_that_postgres_refuses_drops_what_was_taken_behind_it() {
    let mut assignment = holding(&[(0, 1, 0), (1, 1, 0)]);
    take(&mut assignment, 0, 0);
    take(&mut assignment, 0, 1);
    assert_eq!(next(&mut assignment).len(), 1);
    take(&mut assignment, 0, 2);
    take(&mut assignment, 1, 0);
    assignment.committed(&place(0), 1);
    assignment.refused(Stop {
        place: place(0),
        offset: 1,
        reason: "no".to_owned(),
    });
    take(&mut assignment, 0, 3);
    assert_eq!(next(&mut assignment), [(1, 1, 0, 1, 1)]);
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
fn a_new_assignment_forgets_what_waited_and_what_was_stopped() {
    let mut assignment = holding(&[(0, 1, 0)]);
    take(&mut assignment, 0, 0);
    assignment.take(&place(0), 1, Err(Unappliable("no".to_owned())));
    assignment.replace(vec![Start {
        place: place(0),
        epoch: 2,
        next_offset: 0,
    }]);
    assert_eq!(next(&mut assignment), []);
    assert_eq!(assignment.stops().count(), 0);
    take(&mut assignment, 0, 0);
    assert_eq!(next(&mut assignment), [(0, 2, 0, 1, 1)]);
}
