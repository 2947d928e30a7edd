//! Downloads the servers of the tests if that was not done before, and prints where they are. `./test compose` builds images from them.

use anyhow::Context;
use stack::kafka;
use stack::postgres_binaries::Binaries;

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stdout, reason = "a script reads it")]
async fn main() -> anyhow::Result<()> {
    let postgres = Binaries::downloaded(18).await?.directory;
    let server = postgres.parent().context("PostgreSQL's programs are in no directory")?;
    println!("POSTGRES_SERVER={}", server.display());
    println!("KAFKA_JARS={}", kafka::jars(kafka::VERSION).await?.display());
    Ok(())
}
