use service::status::State;

use super::{Found, judge};
use crate::commands::status::figures::{Figures, Partition, Rebuild, View};

fn healthy() -> Figures {
    let mut figures = Figures::default();
    figures.group.members = Some(1);
    figures.total.partitions = 8;
    figures.total.lag_events = Some(0);
    figures.total.lag_seconds = Some(0.0);
    figures
}

/// State, exit code, and the commands of the first problem.
fn judged(figures: &Figures, found: &Found) -> (State, u8, Vec<String>) {
    let judged = judge(figures, found);
    let commands = judged.problems.first().map(|problem| problem.commands.clone());
    (judged.verdict.state, judged.exit_code, commands.unwrap_or_default())
}

fn one(text: &str) -> Vec<String> {
    vec![text.to_owned()]
}

#[test]
fn builders_that_keep_up_are_well_and_slow_ones_are_behind() {
    let mut figures = healthy();
    assert_eq!(judged(&figures, &Found::default()), (State::Well, 0, vec![]));
    (figures.total.lag_events, figures.total.lag_seconds) = (Some(5), Some(9.0));
    assert_eq!(judged(&figures, &Found::default()).1, 0);
    figures.total.lag_seconds = Some(11.0);
    assert_eq!(judged(&figures, &Found::default()).0, State::Behind);
    assert_eq!(judged(&figures, &Found::default()).1, 8);
}

#[test]
fn without_a_builder_the_command_is_named_and_where_nobody_tells_of_the_group_somebody_is_warned() {
    let mut figures = healthy();
    figures.group.members = Some(0);
    assert_eq!(
        judged(&figures, &Found::default()),
        (State::Stopped, 8, one("view-builder run"))
    );
    figures.group.members = None;
    let judgement = judge(&figures, &Found::default());
    assert_eq!((judgement.verdict.state, judgement.exit_code), (State::Well, 0));
    assert!(judgement.problems[0].text.contains("is not known"), "{judgement:?}");
}

#[test]
fn what_an_operator_has_to_decide_has_the_codes_of_always() {
    let partition = Found {
        paused_partitions: one("a/0 is paused; to go on: `view-builder accept a/0 --from beginning`"),
        ..Found::default()
    };
    let accept = one("view-builder accept a/0 --from beginning");
    assert_eq!(judged(&healthy(), &partition), (State::Paused, 4, accept));
    let view = Found {
        paused_views: one("view v is paused; mend that, then: `view-builder resume v`"),
        ..Found::default()
    };
    assert_eq!(
        judged(&healthy(), &view),
        (State::Paused, 7, one("view-builder resume v"))
    );
    let mut letters = healthy();
    letters.total.dead_letters = Some(3);
    let list = one("view-builder dead-letters list");
    assert_eq!(judged(&letters, &Found::default()), (State::Behind, 6, list));
    let untold = Found {
        untold: one("a/0 has no leader in kafka"),
        ..Found::default()
    };
    assert_eq!(judged(&healthy(), &untold).1, 1);
}

#[test]
fn a_server_that_is_away_is_named_first_with_what_is_known_all_the_same() {
    let mut figures = healthy();
    figures.total.dead_letters = Some(3);
    figures.kafka.away_because = Some("kafka does not answer".to_owned());
    figures.group.members = None;
    let judgement = judge(&figures, &Found::default());
    assert_eq!((judgement.verdict.state, judgement.exit_code), (State::Away, 9));
    assert_eq!(
        judgement.verdict.text,
        "no answer from Kafka; positions of 8 partitions are known, and 3 dead letters"
    );
}

#[test]
fn a_rebuild_that_nobody_goes_on_with_is_told_and_no_failure() {
    let mut figures = healthy();
    let rebuild = |is_running| View {
        view: "v".to_owned(),
        rebuild: Some(Rebuild {
            is_running,
            ..Rebuild::default()
        }),
        ..View::default()
    };
    figures.views = vec![rebuild(true)];
    assert_eq!(judge(&figures, &Found::default()).problems, []);
    figures.views = vec![rebuild(false)];
    let (state, code, commands) = judged(&figures, &Found::default());
    assert_eq!((state, code), (State::Well, 0));
    assert_eq!(commands, ["view-builder rebuild v", "view-builder rebuild v --abandon"]);
}

#[test]
fn events_whose_age_nobody_knows_are_behind() {
    let mut figures = healthy();
    (figures.total.lag_events, figures.total.lag_seconds) = (Some(1_000_000), None);
    let partition = |lag_events, lag_seconds| Partition {
        lag_events: Some(lag_events),
        lag_seconds,
        ..Partition::default()
    };
    figures.partitions = vec![partition(1_000_000, None), partition(0, Some(0.0))];
    let judgement = judge(&figures, &Found::default());
    assert_eq!((judgement.verdict.state, judgement.exit_code), (State::Behind, 8));
    assert!(judgement.verdict.text.starts_with("1000000 events"), "{judgement:?}");
}
