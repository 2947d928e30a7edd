//! `view-builder`: keeps SQL views in step with Kafka topics.

fn main() -> std::process::ExitCode {
    view_builder::cli::main()
}
