//! `view-builder` with places where a test can make trouble; see `view_builder::process::faults`.

#[path = "main.rs"]
mod program;

fn main() -> std::process::ExitCode {
    program::main()
}
