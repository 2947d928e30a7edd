use std::process::ExitCode;

use clap::Parser;
use service::{Shutdown, admin, logging};
use user_api::{Cli, Command, Config};

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::init();
    let ended = match cli.command {
        Some(Command::Migrate) => migrate(&cli.config).await,
        Some(Command::Health) => health(&cli.config),
        None => serve(&cli.config).await,
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            tracing::error!(error = format!("{err:#}"), "ended");
            ExitCode::FAILURE
        }
    }
}

async fn serve(config: &Config) -> anyhow::Result<()> {
    let metrics = admin::install_metrics()?;
    user_api::run(config, metrics, Shutdown::on_signals()?).await
}

#[expect(clippy::print_stdout, reason = "a person runs it and wants to see what it did")]
async fn migrate(config: &Config) -> anyhow::Result<()> {
    let applied = user_api::migrate(config).await?;
    for name in &applied {
        println!("applied {name}");
    }
    if applied.is_empty() {
        println!("nothing to apply");
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the answer is for whoever asks")]
fn health(config: &Config) -> anyhow::Result<()> {
    print!("{}", service::health::ask(config.listen)?);
    Ok(())
}
