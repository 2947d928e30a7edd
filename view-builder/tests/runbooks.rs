//! Every `view-builder …` that a runbook tells a person to type is a command of this program.

use std::fs;
use std::path::Path;

use clap::Parser as _;
use view_builder::settings::Cli;

#[test]
fn every_command_of_the_runbooks_is_one() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/runbooks");
    let pages = fs::read_dir(folder).expect("the runbooks");
    let mut commands = 0;
    for page in pages.map(|entry| entry.expect("an entry").path()) {
        let text = fs::read_to_string(&page).expect("a page");
        for command in commands_in(&text) {
            commands += 1;
            if let Err(err) = Cli::try_parse_from(words(&command)) {
                panic!("{}: `{command}` is no command: {err}", page.display());
            }
        }
    }
    assert!(commands > 20, "only {commands} commands were found");
}

/// The lines in blocks of code and the texts between backquotes that begin with the program's name. A comment behind a command is left out.
fn commands_in(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::trim);
    let quoted = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("```"))
        .flat_map(|line| line.split('`').skip(1).step_by(2));
    let begins = |text: &&str| text.starts_with("view-builder ");
    lines
        .chain(quoted)
        .filter(begins)
        .map(|text| text.split('#').next().unwrap_or_default().trim_end().to_owned())
        .collect()
}

/// The words as a shell hands them to the program, whose settings come from the environment.
fn words(command: &str) -> Vec<String> {
    let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
    if words[1] == "health" {
        return words;
    }
    let database = ["--database-url", "postgres://u@h/d"].map(str::to_owned);
    words.into_iter().chain(database).collect()
}
