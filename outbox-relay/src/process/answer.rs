//! What a command has to say.

/// What a command prints when it ends, and the exit code with which the process ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Empty: nothing is printed.
    pub text: String,
    pub exit_code: u8,
}

impl From<String> for Answer {
    fn from(text: String) -> Self {
        Self { text, exit_code: 0 }
    }
}
