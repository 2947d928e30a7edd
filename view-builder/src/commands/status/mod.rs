//! `view-builder status`: how the views are kept, for the person on call and for scripts. It works also while the builders, Postgres or Kafka are away.
//!
//! [`look`] asks, [`judge`] decides what is wrong, and [`people`] and [`figures`] say it. The frame around them, which outbox-relay has as well, is
//! [`service::status`].

mod ahead;
mod figures;
mod judge;
mod kafka_look;
mod look;
mod people;
mod postgres_look;

use std::time::Instant;

use service::Shutdown;
use service::status::{Program, Report, watch};

use crate::process::failure::Failure;
use crate::settings::StatusConfig;

const PROGRAM: Program = Program {
    name: env!("CARGO_PKG_NAME"),
    version: env!("CARGO_PKG_VERSION"),
};

/// What `status` prints, and the exit code with which it ends.
#[derive(Debug)]
pub struct Answer {
    /// Empty: everything was printed while it watched.
    pub text: String,
    pub exit_code: u8,
}

/// Looks once, or with `--watch` until Ctrl-C.
///
/// # Errors
/// A setting or a token that Kafka's client does not take. A server that is away is no error.
pub async fn status(config: &StatusConfig) -> Result<Answer, Failure> {
    let Some(every) = config.options.watch else {
        return look_once(config).await;
    };
    let shutdown = Shutdown::on_signals().map_err(anyhow::Error::from)?;
    let watched = watch::until_shutdown(every.into(), config.options.json, shutdown, async || {
        look_once(config)
            .await
            .map(|answer| answer.text)
            .map_err(anyhow::Error::from)
    });
    watched.await?;
    Ok(Answer {
        text: String::new(),
        exit_code: 0,
    })
}

async fn look_once(config: &StatusConfig) -> Result<Answer, Failure> {
    let began = Instant::now();
    let (figures, found) = look::look(config).await?;
    let judgement = judge::judge(&figures, &found);
    let exit_code = judgement.exit_code;
    let report = Report::new(PROGRAM, began, judgement, figures);
    let text = if config.options.json {
        report.json_line()?
    } else {
        report.text(&people::table(&report.figures))
    };
    Ok(Answer { text, exit_code })
}
