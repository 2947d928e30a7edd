//! What an operator does with letters. Each change is a command of view-builder.

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};

use crate::actions::{self, Action, Probe};
use crate::app::App;
use crate::programs::{CommandLine, Program};
use crate::web::access::{Change, Refusal};

/// Which letters to retry: the one of this id, those of this reason, or all.
#[derive(Debug, Default)]
struct Retry {
    id: String,
    reason: String,
    all: String,
}

/// Which letter to give up, and why.
#[derive(Debug, Default)]
struct Discard {
    id: String,
    reason: String,
    /// The id once more, typed by the person.
    confirm: String,
}

pub(super) async fn retry(State(app): State<App>, change: Change) -> Response {
    let field = |name: &str| change.fields.text(name).to_owned();
    let form = Retry {
        id: field("id"),
        reason: field("reason"),
        all: field("all"),
    };
    match retry_action(&form) {
        Ok(action) => actions::perform(&app, &change.operator, action).await,
        Err(wrong) => refused(&wrong),
    }
}

pub(super) async fn discard(State(app): State<App>, change: Change) -> Response {
    let field = |name: &str| change.fields.text(name).to_owned();
    let form = Discard {
        id: field("id"),
        reason: field("reason"),
        confirm: field("confirm"),
    };
    match discard_action(&form) {
        Ok(action) => actions::perform(&app, &change.operator, action).await,
        Err(wrong) => refused(&wrong),
    }
}

fn refused(wrong: &str) -> Response {
    Refusal::Field(format!("nothing is changed: {wrong}")).into_response()
}

/// # Errors
/// Says what is wrong.
fn retry_action(form: &Retry) -> Result<Action, String> {
    let (title, which, ids) = if !form.id.is_empty() {
        let id = id_in(&form.id)?;
        (format!("Retry dead letter {id}"), id.to_string(), vec![id])
    } else if !form.reason.is_empty() {
        (
            "Retry dead letters of a reason".to_owned(),
            format!("--all-with-reason={}", form.reason),
            Vec::new(),
        )
    } else if form.all == "yes" {
        ("Retry all dead letters".to_owned(), "--all".to_owned(), Vec::new())
    } else {
        return Err("name a letter or a reason".to_owned());
    };
    Ok(Action {
        title,
        command: CommandLine::new(Program::ViewBuilder, &["dead-letters", "retry", &which]),
        probe: Probe::Letters(ids),
        reason: String::new(),
        back: "/letters".to_owned(),
    })
}

/// # Errors
/// Says what is missing or wrong.
fn discard_action(form: &Discard) -> Result<Action, String> {
    let id = id_in(&form.id)?;
    if form.confirm.trim() != id.to_string() {
        return Err(format!("type the letter's number, {id}, to confirm"));
    }
    let reason = actions::reason_in(&form.reason)?;
    let reason_flag = format!("--reason={reason}");
    Ok(Action {
        title: format!("Discard dead letter {id}"),
        command: CommandLine::new(
            Program::ViewBuilder,
            &["dead-letters", "discard", &reason_flag, &id.to_string()],
        ),
        probe: Probe::Letters(vec![id]),
        reason: reason.to_owned(),
        back: "/letters".to_owned(),
    })
}

fn id_in(text: &str) -> Result<i64, String> {
    let id = text.trim().parse().ok().filter(|id| *id > 0);
    id.ok_or_else(|| "a letter has a number".to_owned())
}

#[cfg(test)]
mod tests {
    use super::{Discard, Retry, discard_action, retry_action};

    #[test]
    fn a_retry_is_of_one_letter_of_a_reason_or_of_all() {
        let command = |form: Retry| retry_action(&form).map(|action| action.command.arguments.join(" "));
        assert_eq!(
            command(Retry {
                id: "17".to_owned(),
                ..Retry::default()
            })
            .as_deref(),
            Ok("dead-letters retry 17")
        );
        assert_eq!(
            command(Retry {
                reason: "--all".to_owned(),
                ..Retry::default()
            })
            .as_deref(),
            Ok("dead-letters retry --all-with-reason=--all")
        );
        assert_eq!(
            command(Retry {
                all: "yes".to_owned(),
                ..Retry::default()
            })
            .as_deref(),
            Ok("dead-letters retry --all")
        );
        for wrong in [
            Retry::default(),
            Retry {
                id: "--all".to_owned(),
                ..Retry::default()
            },
        ] {
            assert!(command(wrong).is_err());
        }
    }

    #[test]
    fn a_letter_is_discarded_with_a_reason_by_who_has_typed_its_number() {
        let form = |id: &str, reason: &str, confirm: &str| Discard {
            id: id.to_owned(),
            reason: reason.to_owned(),
            confirm: confirm.to_owned(),
        };
        let action = discard_action(&form("17", " sent twice ", "17")).unwrap();
        assert_eq!(
            action.command.arguments,
            ["dead-letters", "discard", "--reason=sent twice", "17"]
        );
        assert_eq!(action.reason, "sent twice");
        let long = "x".repeat(501);
        for (reason, confirm) in [
            ("", "17"),
            ("why", ""),
            ("why", "18"),
            ("two\nlines", "17"),
            (&long, "17"),
        ] {
            assert!(
                discard_action(&form("17", reason, confirm)).is_err(),
                "{reason} {confirm}"
            );
        }
    }
}
