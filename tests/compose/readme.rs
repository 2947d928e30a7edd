//! Runs the commands of README's section on docker, word for word.

use super::project::Stack;

const HEADING: &str = "## Start it with docker";

/// The beginnings of commands, in README's order, each with a text that the command must print. The other commands are run as well.
const EXPECTED: [(&str, &str); 7] = [
    ("curl -X POST http://localhost:8081/api/users", "홍길동"),
    ("curl 'http://localhost:8082/api/posts/users/1?minVersion=1'", "개발팀"),
    ("docker exec -it postgres psql", "홍길동"),
    ("docker exec -it kafka kafka-topics", "user-events"),
    ("docker exec -it kafka kafka-console-consumer", "USER_CREATED"),
    ("docker exec -it kafka kafka-consumer-groups", "CURRENT-OFFSET"),
    ("docker compose run --rm verify", "user_view"),
];

#[test]
fn the_commands_of_readme_do_what_it_says() {
    let stack = Stack::copy();
    let readme = std::fs::read_to_string(stack.path().join("README.md")).expect("README.md");
    let (_, section) = readme.split_once(HEADING).expect("the section");
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
    let mut expected = EXPECTED.iter().peekable();
    for command in commands(section) {
        let answer = stack.run_on_a_terminal(&command);
        println!("$ {command}\n{answer}");
        if let Some((_, wanted)) = expected.next_if(|(start, _)| command.starts_with(start)) {
            assert!(answer.contains(wanted), "{command} printed no {wanted}:\n{answer}");
        }
    }
    assert_eq!(
        expected.next(),
        None,
        "README's section lacks a command, or has another order"
    );
}

/// The commands in all blocks of shell. A line that ends with a backslash continues on the next line.
fn commands(section: &str) -> Vec<String> {
    let mut commands = Vec::new();
    let mut command = String::new();
    let mut inside = false;
    for line in section.lines() {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            _ if inside => {
                command.push_str(line);
                command.push('\n');
                if !line.ends_with('\\') {
                    commands.push(std::mem::take(&mut command));
                }
            }
            _ => {}
        }
    }
    assert!(!commands.is_empty(), "no commands");
    commands
}
