use std::collections::BTreeMap;

use service::health::SaysOfItself;
use service::status::{Judgement, State};

use super::{AWAY, Found, NO_RELAY, PAUSED_OR_BEHIND, judge};
use crate::commands::status::figures::{Checkpoint, Figures, Parking, Partial, Pause, Slot};
use crate::continuity::parking_note::StoppedAt;
use crate::process::stop::Stop;

fn healthy() -> Figures {
    let mut figures = Figures {
        slot: Some(Slot {
            name: "relay".to_owned(),
            is_active: true,
            ..Slot::default()
        }),
        checkpoint: Some(Checkpoint {
            newest_row_at: Some("2026-11-30T10:31:00.123Z".to_owned()),
            ..Checkpoint::default()
        }),
        parking: Some(Parking::default()),
        ..Figures::default()
    };
    figures.outbox.oldest_unpublished_age_seconds = Some(0.0);
    figures
}

fn without_relay() -> Figures {
    let mut figures = healthy();
    if let Some(slot) = &mut figures.slot {
        slot.is_active = false;
    }
    figures
}

fn state(figures: &Figures, found: &Found) -> (State, u8) {
    let Judgement { verdict, exit_code, .. } = judge(figures, found);
    (verdict.state, exit_code)
}

fn stopped(exit_code: Option<u8>, park: bool) -> Found {
    Found {
        stopped_at: Some(StoppedAt {
            position: "0/10:1".parse().unwrap(),
            reason: "column `id` is null".to_owned(),
            exit_code,
            park,
        }),
        ..Found::default()
    }
}

#[test]
fn a_relay_that_publishes_is_well_until_a_row_waits_for_long() {
    let mut figures = healthy();
    assert_eq!(state(&figures, &Found::default()), (State::Well, 0));
    figures.outbox.oldest_unpublished_age_seconds = Some(9.0);
    assert_eq!(state(&figures, &Found::default()), (State::Well, 0));
    figures.outbox.oldest_unpublished_age_seconds = Some(11.0);
    assert_eq!(state(&figures, &Found::default()), (State::Behind, PAUSED_OR_BEHIND));
}

#[test]
fn parked_rows_are_told_and_are_no_problem_of_the_relay() {
    let mut figures = healthy();
    figures.parking = Some(Parking {
        rows: 4,
        ..Parking::default()
    });
    let judged = judge(&figures, &Found::default());
    assert_eq!((judged.verdict.state, judged.exit_code), (State::Well, 0));
    assert_eq!(judged.problems[0].commands, ["outbox-relay parked list"]);
}

#[test]
fn without_a_relay_the_command_that_goes_on_is_named() {
    let judged = judge(&without_relay(), &Found::default());
    assert_eq!((judged.verdict.state, judged.exit_code), (State::Stopped, NO_RELAY));
    assert_eq!(judged.problems[0].commands, ["outbox-relay run"]);
}

#[test]
fn a_stop_is_told_in_its_own_words_with_its_own_code() {
    let stop = Stop::RecoveryUnfinished {
        slot: "relay".to_owned(),
    };
    let found = Found {
        stops: vec![("checkpoint", stop.clone())],
        ..Found::default()
    };
    let judged = judge(&without_relay(), &found);
    assert_eq!((judged.verdict.state, judged.exit_code), (State::Stopped, 42));
    assert_eq!(
        (judged.problems.len(), &judged.problems[0].text),
        (1, &stop.to_string())
    );
    assert_eq!(judged.problems[0].commands[0], "outbox-relay recover");
}

#[test]
fn the_row_at_which_a_relay_stopped_is_told_until_somebody_has_decided() {
    let judged = judge(&without_relay(), &stopped(Some(31), false));
    assert_eq!((judged.verdict.state, judged.exit_code), (State::Stopped, 31));
    assert_eq!(judged.problems[0].commands, ["outbox-relay park 0/10:1"]);
    assert_eq!(state(&without_relay(), &stopped(None, false)), (State::Stopped, 30));
    assert_eq!(
        state(&without_relay(), &stopped(Some(31), true)),
        (State::Stopped, NO_RELAY)
    );
    assert_eq!(state(&healthy(), &stopped(Some(31), false)), (State::Well, 0));
}

#[test]
fn a_pause_is_told_before_a_lag_and_without_a_relay_it_is_no_pause() {
    let found = Found {
        pause: Some("paused; `outbox-relay resume` ends it".to_owned()),
        ..Found::default()
    };
    let paused = |mut figures: Figures| {
        figures.pause = Some(Pause::default());
        figures.outbox.oldest_unpublished_age_seconds = Some(99.0);
        figures
    };
    assert_eq!(state(&paused(healthy()), &found), (State::Paused, PAUSED_OR_BEHIND));
    assert_eq!(state(&paused(without_relay()), &found), (State::Paused, NO_RELAY));
    let judged = judge(&paused(healthy()), &found);
    assert_eq!(judged.problems.len(), 1, "the lag follows from the pause: {judged:?}");
    assert_eq!(judged.problems[0].commands, ["outbox-relay resume"]);
}

#[test]
fn a_server_that_is_away_is_named_with_what_is_known_all_the_same() {
    let mut figures = healthy();
    figures.checkpoint = None;
    figures.kafka.away_because = Some("Kafka at k:9092: no answer".to_owned());
    let judged = judge(&figures, &Found::default());
    assert_eq!((judged.verdict.state, judged.exit_code), (State::Away, AWAY));
    assert_eq!(
        judged.verdict.text,
        "no answer from Kafka; a relay reads the slot, which keeps 0 bytes of WAL"
    );
    let figures = Figures::default();
    let mut both = figures.clone();
    both.postgres.away_because = Some("away".to_owned());
    both.kafka.away_because = Some("away".to_owned());
    let judged = judge(&both, &Found::default());
    assert_eq!(
        judged.verdict.text,
        "no answer from Postgres and Kafka; nothing else is known"
    );
}

#[test]
fn what_the_relay_says_of_itself_counts_unless_it_is_a_standby() {
    let says = |reason: &str| {
        let mut figures = healthy();
        figures.relay = Some(SaysOfItself {
            is_ready: Some(false),
            reasons: BTreeMap::from([("kafka".to_owned(), reason.to_owned())]),
            ..SaysOfItself::default()
        });
        state(&figures, &Found::default())
    };
    assert_eq!(says("it does not answer"), (State::Behind, PAUSED_OR_BEHIND));
    assert_eq!(
        says("another relay has it; this one is a warm standby"),
        (State::Well, 0)
    );
}

/// A relay of which nobody knows whether rows wait.
fn of_unknown_age(checkpoint_age_seconds: f64, unconfirmed_bytes: i64) -> Figures {
    let mut figures = healthy();
    figures.outbox.table = Some("public.outbox".to_owned());
    figures.outbox.oldest_unpublished_age_seconds = None;
    figures.outbox.unknown_because =
        Some("permission denied; mend it by `grant select on public.outbox to relay_run`".to_owned());
    if let (Some(checkpoint), Some(slot)) = (&mut figures.checkpoint, &mut figures.slot) {
        checkpoint.age_seconds = Some(checkpoint_age_seconds);
        slot.unconfirmed_bytes = unconfirmed_bytes;
    }
    figures
}

#[test]
fn where_the_age_is_not_known_somebody_is_told_and_the_checkpoint_and_the_wal_judge() {
    let judged = judge(&of_unknown_age(3_600.0, 1_000), &Found::default());
    assert_eq!(
        (judged.verdict.state, judged.exit_code),
        (State::Well, 0),
        "a calm server"
    );
    assert!(judged.verdict.text.contains("not known"), "{judged:?}");
    assert_eq!(
        judged.problems[0].commands,
        ["grant select on public.outbox to relay_run"]
    );
    let silent = of_unknown_age(3_600.0, 64 << 20);
    assert_eq!(state(&silent, &Found::default()), (State::Behind, PAUSED_OR_BEHIND));
    let busy = of_unknown_age(5.0, 64 << 20);
    assert_eq!(state(&busy, &Found::default()), (State::Well, 0));
    let mut messages_alone = of_unknown_age(5.0, 0);
    messages_alone.outbox.table = None;
    assert_eq!(judge(&messages_alone, &Found::default()).problems, []);
}

#[test]
fn only_what_is_proven_is_told_as_published() {
    let text = |figures: &Figures, found: &Found| judge(figures, found).verdict.text;
    assert_eq!(
        text(&healthy(), &Found::default()),
        "everything that was committed is published"
    );
    let messages = Found {
        takes_messages: true,
        ..Found::default()
    };
    assert_eq!(text(&healthy(), &messages), "no row is known to wait");
    for change in [
        |checkpoint: &mut Checkpoint| checkpoint.partial = Some(Partial::default()),
        |checkpoint: &mut Checkpoint| checkpoint.newest_row_at = None,
    ] {
        let mut figures = healthy();
        if let Some(checkpoint) = &mut figures.checkpoint {
            change(checkpoint);
        }
        assert_eq!(text(&figures, &Found::default()), "no row is known to wait");
    }
}

#[test]
fn a_command_that_is_under_way_is_no_stop_while_somebody_reads_the_slot() {
    let slot = || "relay".to_owned();
    for (stop, command, code) in [
        (Stop::RecoveryUnfinished { slot: slot() }, "`recover`", 42),
        (Stop::InitUnfinished { slot: slot() }, "`init`", 3),
    ] {
        let found = Found {
            stops: vec![("slot", stop)],
            ..Found::default()
        };
        let judged = judge(&healthy(), &found);
        assert_eq!(
            (judged.verdict.state, judged.exit_code),
            (State::Behind, PAUSED_OR_BEHIND)
        );
        let problem = &judged.problems[0];
        assert!(problem.text.starts_with(command), "{problem:?}");
        assert!(
            problem.commands.is_empty(),
            "the same command again does not help: {problem:?}"
        );
        assert_eq!(state(&without_relay(), &found), (State::Stopped, code));
    }
}

#[test]
fn a_checkpoint_that_is_hidden_is_no_silence_of_kafka() {
    let mut figures = healthy();
    figures.checkpoint = None;
    figures.outbox.oldest_unpublished_age_seconds = None;
    let found = Found {
        hidden_checkpoint: Some("an open transaction hides the checkpoint".to_owned()),
        ..Found::default()
    };
    assert_eq!(state(&figures, &found), (State::Behind, PAUSED_OR_BEHIND));
}
