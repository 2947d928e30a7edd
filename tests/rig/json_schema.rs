//! Compares JSON with a JSON Schema of this repository.
//!
//! It knows the keywords that those schemas use, and refuses every other one, so that no keyword is passed over. A library that knows all of them would
//! bring some twenty-five crates.

use serde_json::{Map, Value};

/// What in `value` does not fit the schema, each with its path. Empty: it fits.
///
/// # Panics
/// The schema has a keyword that is not known here.
#[must_use]
pub fn misfits(schema: &Value, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare(schema, value, "$", &mut found);
    found
}

fn compare(schema: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
    let schema = schema.as_object().expect("a schema is an object");
    for (keyword, wanted) in schema {
        match keyword.as_str() {
            "$schema" | "title" | "description" => {}
            "type" if !has_type(wanted, value) => found.push(format!("{path} is {value}, and not of type {wanted}")),
            "enum" if !wanted.as_array().is_some_and(|values| values.contains(value)) => {
                found.push(format!("{path} is {value}, and none of {wanted}"));
            }
            "minimum" if value.as_f64().is_some_and(|number| Some(number) < wanted.as_f64()) => {
                found.push(format!("{path} is {value}, and less than {wanted}"));
            }
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    compare(wanted, item, &format!("{path}[{index}]"), found);
                }
            }
            "required" => {
                let names = wanted.as_array().into_iter().flatten().filter_map(Value::as_str);
                let object = value.as_object();
                let missing = names.filter(|name| object.is_some_and(|object| !object.contains_key(*name)));
                found.extend(missing.map(|name| format!("{path}.{name} is missing")));
            }
            "properties" | "additionalProperties" => {}
            "type" | "enum" | "minimum" => {}
            unknown => panic!("the schema has the keyword {unknown} at {path}"),
        }
    }
    if let Some(object) = value.as_object() {
        compare_members(schema, object, path, found);
    }
}

fn compare_members(schema: &Map<String, Value>, object: &Map<String, Value>, path: &str, found: &mut Vec<String>) {
    for (name, member) in object {
        let path = format!("{path}.{name}");
        let known = schema.get("properties").and_then(|properties| properties.get(name));
        match known.or_else(|| schema.get("additionalProperties")) {
            Some(Value::Bool(true)) | None => {}
            Some(Value::Bool(false)) => found.push(format!("{path} is not in the schema")),
            Some(wanted) => compare(wanted, member, &path, found),
        }
    }
}

fn has_type(wanted: &Value, value: &Value) -> bool {
    let is = |name: &str| match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        unknown => panic!("the schema has the type {unknown}"),
    };
    match wanted {
        Value::String(name) => is(name),
        Value::Array(names) => names.iter().filter_map(Value::as_str).any(is),
        other => panic!("the schema has the type {other}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::misfits;

    #[test]
    fn what_does_not_fit_is_named_with_its_path() {
        let schema = json!({
            "type": "object",
            "properties": {
                "state": {"type": "string", "enum": ["well", "away"]},
                "bytes": {"type": ["integer", "null"], "minimum": 0},
                "texts": {"type": "object", "additionalProperties": {"type": "string"}},
                "list": {"type": "array", "items": {"type": "number"}},
            },
            "required": ["state"],
            "additionalProperties": false,
        });
        let good = json!({"state": "well", "bytes": null, "texts": {"a": "b"}, "list": [1, 1.5]});
        assert_eq!(misfits(&schema, &good), [""; 0]);
        let bad = json!({"bytes": -1, "texts": {"a": 1}, "list": ["x"], "more": 1});
        let found = misfits(&schema, &bad).join("\n");
        for told in [
            "$.state is missing",
            "$.bytes is -1",
            "$.texts.a is 1",
            "$.list[0] is",
            "$.more is not",
        ] {
            assert!(found.contains(told), "{told}: {found}");
        }
        assert_eq!(misfits(&schema, &json!({"state": "ill"})).len(), 1);
    }
}
