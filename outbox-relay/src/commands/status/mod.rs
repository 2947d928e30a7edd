//! `status`: how the relay's part of the pipeline is, for the person on call and for scripts. It works also while the relay, Postgres or Kafka is away.
//!
//! [`look`] asks, [`judge`] decides what is wrong, and [`people`] and [`figures`] say it. The frame around them, which view-builder has as well, is
//! [`service::status`].

mod figures;
mod judge;
mod kafka_look;
mod look;
mod people;
mod postgres_look;

use std::time::Instant;

use service::Shutdown;
use service::status::{Program, Report, watch};

#[cfg(test)]
pub(crate) use self::judge::CODES;
use crate::process::answer::Answer;
use crate::process::stop::{RelayError, Stop};
use crate::settings::Config;
use crate::settings::status::StatusOptions;

const PROGRAM: Program = Program {
    name: env!("CARGO_PKG_NAME"),
    version: env!("CARGO_PKG_VERSION"),
};

/// Looks once, or with `--watch` until `shutdown`. What it sees while it watches is printed at once, and the answer is empty.
///
/// # Errors
/// A setting that Kafka's client does not take ([`Stop::Config`]). A server that is away is no error.
pub async fn status(config: &Config, options: &StatusOptions, shutdown: Shutdown) -> Result<Answer, RelayError> {
    let Some(every) = options.watch else {
        return Ok(look_once(config, options).await?);
    };
    let watched = watch::until_shutdown(every.into(), options.json, shutdown, async || {
        Ok(look_once(config, options).await?.text)
    });
    watched.await?;
    Ok(Answer::from(String::new()))
}

async fn look_once(config: &Config, options: &StatusOptions) -> Result<Answer, Stop> {
    let began = Instant::now();
    let (figures, found) = look::look(config, options.admin_listen).await?;
    let judgement = judge::judge(&figures, &found);
    let exit_code = judgement.exit_code;
    let report = Report::new(PROGRAM, began, judgement, figures);
    let text = if options.json {
        report
            .json_line()
            .map_err(|err| Stop::Config { what: err.to_string() })?
    } else {
        report.text(&people::table(&report.figures))
    };
    Ok(Answer { text, exit_code })
}
