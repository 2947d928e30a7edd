use clap::Parser;
use service::{Shutdown, admin, logging};
use user_api::{Cli, Command};

#[tokio::main]
#[expect(clippy::print_stdout, reason = "`migrate` prints what it did")]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    logging::init();
    match cli.command {
        Some(Command::Migrate) => {
            let applied = user_api::migrate(&cli.config).await?;
            for name in &applied {
                println!("applied {name}");
            }
            if applied.is_empty() {
                println!("nothing to apply");
            }
            Ok(())
        }
        None => {
            let metrics = admin::install_metrics()?;
            user_api::run(&cli.config, metrics, Shutdown::on_signals()?).await
        }
    }
}
