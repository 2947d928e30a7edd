//! `post-api`: see `--help`.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    rest::program::run(&post_api::PROGRAM).await
}
