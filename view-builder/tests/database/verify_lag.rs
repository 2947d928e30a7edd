//! `view-builder verify` calls nothing a difference whose event may be on its way.

use view_builder::commands::verify::compare::{State, compare};
use view_builder::process::failure::Failure;

use super::support::comparison::{
    DifferingRow, Meanwhile, NeverThere, Undecided, WAIT, World, assert_every_bucket_is, differing_rows, report,
    undecided,
};
use super::support::{deletion, user};

#[tokio::test]
async fn what_arrives_during_the_wait_was_lag() {
    let mut world = World::equal().await;
    world.insert_user(6, 1, None).await;
    world
        .change_source("update users set name = 'new', version = 2 where id = 1; delete from users where id = 3")
        .await;
    let (source, view) = world.sides_of_user_view().await;
    let mut arrival = Meanwhile {
        events: vec![
            user(6, 1, "n", None, "ACTIVE"),
            user(1, 2, "new", Some("개발팀"), "ACTIVE"),
            deletion(3, 2),
        ],
        world: &mut world,
        source: "",
        waits: 0,
    };
    let outcome = compare(&source, &view, Some(&mut arrival), WAIT, false).await.unwrap();
    assert_eq!(arrival.waits, 1);
    assert_eq!(differing_rows(&outcome), []);
    let three_caught_up = Undecided {
        caught_up: 3,
        ..Undecided::default()
    };
    assert_eq!(undecided(&outcome), three_caught_up);
    assert_every_bucket_is(&outcome, State::CaughtUp);
}

#[tokio::test]
async fn a_row_that_changes_during_the_wait_is_looked_at_until_it_rests() {
    let mut world = World::equal().await;
    world.edit_views("delete from user_view where user_id in (1, 2)").await;
    let (source, view) = world.sides_of_user_view().await;
    let mut arrival = Meanwhile {
        world: &mut world,
        events: Vec::new(),
        source: "update users set version = 2 where id = 1; delete from users where id = 2",
        waits: 0,
    };
    let outcome = compare(&source, &view, Some(&mut arrival), WAIT, false).await.unwrap();
    assert_eq!(arrival.waits, 2);
    assert_eq!(differing_rows(&outcome), [DifferingRow::missing(1, 2)]);
    let the_deleted_one = Undecided {
        caught_up: 1,
        ..Undecided::default()
    };
    assert_eq!(undecided(&outcome), the_deleted_one);
}

#[tokio::test]
async fn a_view_that_is_behind_is_not_called_different() {
    let world = World::equal().await;
    world.insert_user(6, 1, None).await;
    world
        .edit_views("update user_view set name = 'x' where user_id = 1")
        .await;
    let outcome = world.compare_user_view(&mut NeverThere).await;
    assert_eq!(differing_rows(&outcome), []);
    let two_undecided = Undecided {
        undecided: 2,
        ..Undecided::default()
    };
    assert_eq!(undecided(&outcome), two_undecided);
    assert_every_bucket_is(&outcome, State::Undecided);
    let report = report(outcome, 20, false);
    assert!(matches!(report.verdict(), Err(Failure::Lagging)));
    let text = report.to_string();
    assert!(
        text.contains("2 rows not decided: the view is behind by 3 events"),
        "{text}"
    );
}
