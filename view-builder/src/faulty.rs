//! `view-builder` with places where a test can make trouble; see `view_builder::process::faults`.

fn main() -> std::process::ExitCode {
    view_builder::cli::main()
}
