//! `route.topic.replacement`, written as Java's `Matcher.replaceAll` takes it.

use regex_lite::Regex;

/// Rewrites a replacement of Java for our regex library, where `${1}x` is group 1 and then an x. Java takes as many digits as still name a group of
/// `regex`, and a backslash takes the next character as it is.
///
/// # Errors
/// Java would refuse it when it routes the first row: it names a group that `regex` does not have, or ends in the middle. Our library would put an empty
/// text in the group's place, and every row would go to a wrong topic.
pub(crate) fn rewrite_java_replacement(replacement: &str, regex: &Regex) -> Result<String, String> {
    let mut translated = String::with_capacity(replacement.len());
    let mut rest = replacement.chars();
    while let Some(character) = rest.next() {
        match character {
            '\\' => match rest.next() {
                Some('$') => translated.push_str("$$"),
                Some(literal) => translated.push(literal),
                None => return Err("expected a character after the last backslash".to_owned()),
            },
            '$' => {
                let (group, behind) = take_group(rest.as_str(), regex)?;
                translated.push_str("${");
                translated.push_str(group);
                translated.push('}');
                rest = behind.chars();
            }
            other => translated.push(other),
        }
    }
    Ok(translated)
}

/// The name or number of the group that stands behind a `$`, and what comes after it.
fn take_group<'t>(text: &'t str, regex: &Regex) -> Result<(&'t str, &'t str), String> {
    if let Some(braced) = text.strip_prefix('{') {
        let (name, behind) = braced.split_once('}').ok_or_else(|| "a ${ has no }".to_owned())?;
        if regex.capture_names().flatten().any(|known| known == name) {
            return Ok((name, behind));
        }
        return Err(format!("`route.topic.regex` has no group that is named `{name}`"));
    }
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let is_group = |length: &usize| {
        let number = text[..*length].parse::<usize>();
        number.is_ok_and(|number| number < regex.captures_len())
    };
    match (1..=digits).take_while(is_group).last() {
        Some(length) => Ok(text.split_at(length)),
        None if digits > 0 => Err(format!("`route.topic.regex` has no group ${}", &text[..1])),
        None => {
            Err("expected the number or the {name} of a group after `$`; write \\$ for the character itself".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use regex_lite::Regex;

    use super::rewrite_java_replacement;

    #[test]
    fn a_replacement_is_read_as_java_reads_it() {
        let regex = Regex::new("(?<name>us)er").unwrap();
        for (java, ours) in [
            ("$1x.${name}", "${1}x.${name}"),
            (r"x\.y\$1", "x.y$$1"),
            ("$0", "${0}"),
            ("$12", "${1}2"),
            ("plain", "plain"),
        ] {
            assert_eq!(rewrite_java_replacement(java, &regex).as_deref(), Ok(ours));
        }
    }

    #[test]
    fn what_java_refuses_is_refused() {
        let regex = Regex::new("(?<name>us)er").unwrap();
        for (java, named) in [
            ("x-${typo}", "`typo`"),
            ("x-$7", "$7"),
            ("x-$name", r"\$"),
            ("x-$", r"\$"),
            ("x-${name", "no }"),
            ("x-${1}", "`1`"),
            (r"x\", "backslash"),
        ] {
            let refused = rewrite_java_replacement(java, &regex).expect_err(java);
            assert!(refused.contains(named), "{refused}");
        }
    }
}
