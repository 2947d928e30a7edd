//! Fields of an event's value that the console shows as `•••`.

use serde_json::Value;

/// What stands in the place of a hidden text.
const HIDDEN: &str = "•••";

/// The fields that are hidden: paths such as `user.email`. An item of a list has its list's path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mask(Vec<Vec<String>>);

impl Mask {
    /// # Errors
    /// Names the path that is wrong.
    pub fn parse(paths: &[String]) -> Result<Self, String> {
        let parse = |path: &String| {
            let names: Vec<String> = path.split('.').map(str::to_owned).collect();
            if names.iter().any(String::is_empty) {
                return Err(format!(
                    "mask `{path}`: expected names with dots between, such as user.email"
                ));
            }
            Ok(names)
        };
        paths.iter().map(parse).collect::<Result<_, _>>().map(Self)
    }

    /// Whether anything is hidden.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value for people: JSON with indents, and the fields hidden. A value that is no JSON is shown as it is if nothing is masked; otherwise nothing of it is
    /// shown, because nobody can tell where its fields are.
    #[must_use]
    pub fn show(&self, bytes: &[u8]) -> String {
        match serde_json::from_slice::<Value>(bytes) {
            Ok(mut value) => {
                self.hide(&mut value);
                serde_json::to_string_pretty(&value).unwrap_or_default()
            }
            Err(_) if self.is_empty() => String::from_utf8_lossy(bytes).into_owned(),
            Err(_) => format!(
                "{HIDDEN} ({} bytes that are no JSON; fields are masked, so none of it is shown)",
                bytes.len()
            ),
        }
    }

    /// Hides the fields in a value.
    pub fn hide(&self, value: &mut Value) {
        for path in &self.0 {
            hide_at(value, path);
        }
    }

    /// Whether the field of this name is hidden wherever it is, such as a column of a view's row: the last word of a path counts.
    #[must_use]
    pub fn hides_name(&self, name: &str) -> bool {
        self.0.iter().any(|path| path.last().is_some_and(|last| last == name))
    }
}

fn hide_at(value: &mut Value, path: &[String]) {
    match (value, path) {
        (Value::Array(items), _) => items.iter_mut().for_each(|item| hide_at(item, path)),
        (Value::Null, []) => {}
        (value, []) => *value = Value::String(HIDDEN.to_owned()),
        (Value::Object(members), [name, rest @ ..]) => {
            if let Some(member) = members.get_mut(name) {
                hide_at(member, rest);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Mask;

    fn mask(paths: &[&str]) -> Mask {
        let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        Mask::parse(&paths).unwrap()
    }

    #[test]
    fn a_masked_field_is_hidden_and_all_others_are_shown() {
        let mut value = json!({"user": {"email": "a@b", "name": null, "status": "ACTIVE"}, "email": "c@d"});
        mask(&["user.email", "user.name"]).hide(&mut value);
        assert_eq!(
            value,
            json!({"user": {"email": "•••", "name": null, "status": "ACTIVE"}, "email": "c@d"})
        );
    }

    #[test]
    fn whole_objects_and_items_of_lists_are_hidden_too() {
        let mut value = json!({"users": [{"email": "a"}, {"email": "b"}], "card": {"number": 7}});
        mask(&["users.email", "card"]).hide(&mut value);
        assert_eq!(
            value,
            json!({"users": [{"email": "•••"}, {"email": "•••"}], "card": "•••"})
        );
    }

    #[test]
    fn nothing_is_shown_of_what_is_no_json_once_fields_are_masked() {
        assert_eq!(mask(&[]).show(b"secret <b>"), "secret <b>");
        let shown = mask(&["user.email"]).show(b"{\"user\": {\"email\": \"a@b\"");
        assert!(!shown.contains("a@b") && shown.starts_with("•••"), "{shown}");
    }

    #[test]
    fn a_path_with_an_empty_name_is_refused() {
        assert!(Mask::parse(&["user..email".to_owned()]).is_err());
    }
}
