//! Changes. Each is a command of the pipeline's programs, and is in the audit before it begins: without a row there, nothing is changed.

pub mod audit;
mod probe;

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Redirect, Response};

pub use self::probe::Probe;
use crate::app::App;
use crate::programs::{CommandLine, Job, JobState, Refused};
use crate::web::access::{Refusal, Session};
use crate::web::notice::notice;

/// How long an answer waits for a command that may end soon.
const PATIENCE: Duration = Duration::from_millis(900);

/// Most characters of a reason.
const REASON_CHARS_MAX: usize = 500;

/// The reason that a command is given: what a person has typed, without space around it.
///
/// # Errors
/// There is none, it is too long, or it has more than one line.
pub fn reason_in(text: &str) -> Result<&str, String> {
    let reason = text.trim();
    if reason.is_empty() || reason.chars().count() > REASON_CHARS_MAX || reason.contains(char::is_control) {
        return Err(format!("say why, in one line of at most {REASON_CHARS_MAX} characters"));
    }
    Ok(reason)
}

/// The flag `--reason` with this reason. It is one word, so that no reason is taken for a flag of its own.
///
/// # Errors
/// As [`reason_in`].
pub fn reason_flag(text: &str) -> Result<String, Refusal> {
    let reason = reason_in(text).map_err(Refusal::Field)?;
    Ok(format!("--reason={reason}"))
}

/// A change that somebody wants.
#[derive(Clone, Debug)]
pub struct Action {
    /// For people, such as `Discard dead letter 17`.
    pub title: String,
    pub command: CommandLine,
    /// What is written into the audit as the state before and after.
    pub probe: Probe,
    /// Why, in the person's words; may be empty.
    pub reason: String,
    /// The page that has begun it.
    pub back: String,
}

/// Carries out the change, and leads to the page of its result.
///
/// The order: 1. the state before is read; 2. the audit has the row; 3. the command runs; 4. the state after, the exit code and the output are added to the row. If the console is
/// killed between 2 and 4, the next one says so in the row.
pub async fn perform(app: &App, operator: &Session, action: Action) -> Response {
    match begin(app, operator, action).await {
        Ok(job) => {
            job.wait(Some(PATIENCE)).await;
            Redirect::to(&format!("/jobs/{}", job.number)).into_response()
        }
        Err(reason) => notice(StatusCode::SERVICE_UNAVAILABLE, "Nothing is changed", &reason),
    }
}

async fn begin(app: &App, operator: &Session, action: Action) -> Result<Arc<Job>, String> {
    let database = app.settings.pipeline.views.command_database();
    let unwritten = app.jobs.note_unwritten();
    let before = action.probe.read(app).await;
    let entry = audit::Entry {
        person: &operator.name,
        title: &action.title,
        command: &action.command.for_people(),
        reason: &action.reason,
        before: &before,
    };
    let row = audit::begin(database, &entry)
        .await
        .map_err(|err| format!("The audit cannot be written: {err:#}"))?;
    tracing::info!(
        person = operator.name,
        command = entry.command,
        audit.id = row,
        "a change begins"
    );
    let job = app.jobs.begin(
        &app.settings,
        action.title.clone(),
        action.command.clone(),
        &operator.name,
        &action.back,
    );
    let job = match job {
        Ok(job) => job,
        Err(refused) => {
            let told = words_of(refused);
            audit::end(database, row, &before, None, told)
                .await
                .map_err(|err| format!("{told}; {err:#}"))?;
            return Err(told.to_owned());
        }
    };
    metrics::counter!("console_changes_total").increment(1);
    let (app, running) = (app.clone(), Arc::clone(&job));
    tokio::spawn(async move {
        let state = running.wait(None).await;
        let exit_code = match state {
            JobState::Ended { exit_code, .. } => exit_code,
            JobState::Running => None,
        };
        let after = action.probe.read(&app).await;
        let database = app.settings.pipeline.views.command_database();
        tracing::info!(audit.id = row, exit_code, "a change has ended");
        if let Err(err) = audit::end(database, row, &after, exit_code, &running.output()).await {
            tracing::error!(
                error = format!("{err:#}"),
                audit.id = row,
                "the end of a change is not in the audit"
            );
        }
        drop(unwritten);
    });
    Ok(job)
}

fn words_of(refused: Refused) -> &'static str {
    match refused {
        Refused::Same => "The same command runs already; wait until it has ended.",
        Refused::TooMany => "Eight commands run already; wait until one has ended.",
        Refused::Ending => "The console is about to end.",
    }
}

#[cfg(test)]
mod tests {
    use super::reason_flag;

    #[test]
    fn a_reason_is_one_word_of_the_command() {
        assert_eq!(reason_flag(" -x "), Ok("--reason=-x".to_owned()));
        for wrong in ["", " ", "two\nlines", &"x".repeat(501)] {
            assert!(reason_flag(wrong).is_err(), "{wrong}");
        }
    }
}
