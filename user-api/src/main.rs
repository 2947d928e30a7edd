//! `user-api`: see `--help`.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    rest::program::run(&user_api::PROGRAM).await
}
