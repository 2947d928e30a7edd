//! Prometheus' text format, as far as our own programs write it.

/// One line of `/metrics`.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample<'a> {
    pub name: &'a str,
    pub labels: Vec<(&'a str, String)>,
    pub value: f64,
}

impl Sample<'_> {
    /// The value of a label; empty where there is none.
    #[must_use]
    pub fn label(&self, name: &str) -> &str {
        let label = self.labels.iter().find(|(known, _)| *known == name);
        label.map_or("", |(_, value)| value.as_str())
    }
}

/// The samples of a page. Lines that are none are passed over.
#[must_use]
pub fn samples(text: &str) -> Vec<Sample<'_>> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(sample).collect()
}

/// The sum of all series of a name. `None`: there is none.
#[must_use]
pub fn sum(samples: &[Sample<'_>], name: &str) -> Option<f64> {
    let values = samples.iter().filter(|sample| sample.name == name);
    values.map(|sample| sample.value).reduce(|a, b| a + b)
}

fn sample(line: &str) -> Option<Sample<'_>> {
    let (name, rest) = match line.find(['{', ' ']) {
        Some(end) => line.split_at(end),
        None => return None,
    };
    let (labels, value) = match rest.strip_prefix('{') {
        Some(rest) => read_labels(rest)?,
        None => (Vec::new(), rest),
    };
    let value = value.split_whitespace().next()?.parse().ok()?;
    Some(Sample { name, labels, value })
}

/// The labels up to `}`, and what is behind it.
fn read_labels(mut rest: &str) -> Option<(Vec<(&str, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start_matches(',');
        if let Some(behind) = rest.strip_prefix('}') {
            return Some((labels, behind));
        }
        let (name, value) = rest.split_once("=\"")?;
        let mut text = String::new();
        let mut chars = value.char_indices();
        let end = loop {
            match chars.next()? {
                (at, '"') => break at,
                (_, '\\') => match chars.next()?.1 {
                    'n' => text.push('\n'),
                    other => text.push(other),
                },
                (_, char) => text.push(char),
            }
        };
        labels.push((name, text));
        rest = &value[end + 1..];
    }
}

#[cfg(test)]
mod tests {
    use super::{samples, sum};

    #[test]
    fn lines_are_read_with_their_labels() {
        let text = "# HELP a b\n# TYPE a gauge\na{topic=\"user-events\",partition=\"3\"} 12\na{topic=\"x\\\"}y\",partition=\"4\"} 0.5\nb 7\nc NaN\nnonsense\n";
        let read = samples(text);
        assert_eq!(read.len(), 4);
        assert_eq!(
            (read[0].label("topic"), read[0].label("partition"), read[0].value),
            ("user-events", "3", 12.0)
        );
        assert_eq!(read[1].label("topic"), "x\"}y");
        assert_eq!(read[0].label("absent"), "");
        assert_eq!(
            (sum(&read, "a"), sum(&read, "b"), sum(&read, "d")),
            (Some(12.5), Some(7.0), None)
        );
    }
}
