//! `outbox-relay` with places where a test can make trouble; see `faults`.

fn main() -> std::process::ExitCode {
    outbox_relay::cli::main()
}
