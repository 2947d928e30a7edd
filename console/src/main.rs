//! `console`: see `--help`.

fn main() -> std::process::ExitCode {
    console::cli::main()
}
