//! `${NAME}` in the pipeline's file: a variable of the environment.

/// The text with each `${NAME}` replaced by the variable's value.
///
/// # Errors
/// A variable is not set, has a character that would end a string of the file, or its closing brace is missing. The message shows no value.
pub(super) fn fill_in(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once("${") {
        filled.push_str(before);
        let name = behind
            .split_once('}')
            .map(|(name, _)| name)
            .filter(|name| is_name(name))
            .ok_or_else(|| {
                let line = text[..text.len() - behind.len()].lines().count();
                format!("line {line}: expected ${{NAME}}, the name of a variable of the environment")
            })?;
        let value =
            variable(name).ok_or_else(|| format!("${{{name}}}: there is no such variable in the environment"))?;
        if value.contains(['"', '\'', '\\']) || value.contains(char::is_control) {
            return Err(format!(
                "${{{name}}}: the variable has a quote, a backslash or a control character"
            ));
        }
        filled.push_str(&value);
        rest = &behind[name.len() + 1..];
    }
    filled.push_str(rest);
    Ok(filled)
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|char| char.is_ascii_alphanumeric() || char == '_')
}

#[cfg(test)]
mod tests {
    use super::fill_in;

    fn environment(name: &str) -> Option<String> {
        match name {
            "HOST" => Some("db:5432".to_owned()),
            "NESTED" => Some("${HOST}".to_owned()),
            "QUOTE" => Some("a\"\nb = \"c".to_owned()),
            _ => None,
        }
    }

    #[test]
    fn variables_are_filled_in_once_and_the_rest_stays_as_it_is() {
        let filled = fill_in("a = \"${HOST}/x$y\" # ${HOST}\nb = \"${NESTED}\"", environment);
        assert_eq!(filled.as_deref(), Ok("a = \"db:5432/x$y\" # db:5432\nb = \"${HOST}\""));
    }

    #[test]
    fn a_variable_that_cannot_be_used_is_named() {
        for (text, named) in [
            ("\n${ABSENT}", "${ABSENT}: there is no such variable"),
            ("\na = \"${QUOTE}\"", "${QUOTE}: "),
            ("\n\na = \"${HOST\"\nb = 1", "line 3: "),
            ("a = \"${}\"", "line 1: "),
        ] {
            let refused = fill_in(text, environment).expect_err(text);
            assert!(refused.contains(named), "{text}: {refused}");
        }
    }
}
