//! The answer of `outbox-relay status` and of `view-builder status`, as a script reads it.

use std::time::Duration;

use serde_json::Value;
use stack::{Program, checkout};

use crate::json_schema;

/// The command promises to answer within five seconds, and gives up its last question after four and a half. A busy machine may be late with that.
pub const TOOK_MILLISECONDS_MAX: u64 = 8_000;
const DEADLINE: Duration = Duration::from_secs(60);
/// How a line of JSON begins.
const BEGINNING: &str = "{\"format\":";

/// One answer.
#[derive(Clone, Debug)]
pub struct Status(Value);

impl Status {
    /// Runs `status --json` of the program, with its environment. Asserts that the answer fits its schema, came in time, and has the exit code of the
    /// process.
    ///
    /// # Panics
    /// It is not so.
    pub async fn of(program: &Program) -> Self {
        let command = program.command_of(&format!("{}-status", program.name()), &["status", "--json"]);
        let before = command.log_text().len();
        command.start().expect("a start");
        let ended = command.exited(DEADLINE).await.expect("an end");
        let said = command.log_text()[before..].to_owned();
        let mut answers = Self::all_in(&said);
        assert_eq!(answers.len(), 1, "one line of JSON: {said}");
        let answer = answers.remove(0);
        assert_eq!(answer.0["exit_code"].as_i64(), ended.code().map(i64::from), "{said}");
        let took = answer.0["took_milliseconds"].as_u64().expect("a number");
        assert!(took <= TOOK_MILLISECONDS_MAX, "{took} ms: {said}");
        answer
    }

    /// Every answer in a text, as `--watch` prints them. Asserts that each fits its schema.
    ///
    /// # Panics
    /// One does not.
    #[must_use]
    pub fn all_in(text: &str) -> Vec<Self> {
        let lines = text.lines().filter(|line| line.starts_with(BEGINNING));
        lines
            .map(|line| Self::parse(line).unwrap_or_else(|what| panic!("{what}: {line}")))
            .collect()
    }

    fn parse(line: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(line).map_err(|err| err.to_string())?;
        let program = value["program"].as_str().unwrap_or_default();
        let file = checkout::root().join(format!("docs/{program}-status.schema.json"));
        let schema = std::fs::read_to_string(&file).map_err(|err| format!("{}: {err}", file.display()))?;
        let schema = serde_json::from_str(&schema).map_err(|err| format!("{}: {err}", file.display()))?;
        let misfits = json_schema::misfits(&schema, &value);
        if misfits.is_empty() {
            Ok(Self(value))
        } else {
            Err(misfits.join("; "))
        }
    }

    /// The word of the verdict.
    #[must_use]
    pub fn state(&self) -> &str {
        self.0["verdict"]["state"].as_str().unwrap_or_default()
    }

    /// The exit code of the command.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        self.0["exit_code"]
            .as_i64()
            .and_then(|code| i32::try_from(code).ok())
            .unwrap_or(-1)
    }

    /// What is at a JSON pointer, such as `/slot/is_active`; null if there is nothing.
    #[must_use]
    pub fn at(&self, pointer: &str) -> Value {
        self.0.pointer(pointer).cloned().unwrap_or_default()
    }

    /// The texts of all problems.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        self.strings("/problems", "text")
    }

    /// The commands of all problems, in their order.
    #[must_use]
    pub fn commands(&self) -> Vec<String> {
        let problems = self.at("/problems");
        let problems = problems.as_array().into_iter().flatten();
        let commands = problems.flat_map(|problem| {
            problem["commands"]
                .as_array()
                .into_iter()
                .flatten()
                .cloned()
                .collect::<Vec<_>>()
        });
        commands
            .filter_map(|command| Some(command.as_str()?.to_owned()))
            .collect()
    }

    fn strings(&self, list: &str, member: &str) -> Vec<String> {
        let list = self.at(list);
        let items = list.as_array().into_iter().flatten();
        items
            .filter_map(|item| Some(item[member].as_str()?.to_owned()))
            .collect()
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}
