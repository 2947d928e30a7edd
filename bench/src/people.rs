//! Made-up users.

use stack::DEPARTMENTS;

/// The body of a `POST /api/users`. `run` and `index` make the address unique.
pub(crate) fn person(run: &str, index: u64) -> String {
    let department = DEPARTMENTS[usize::try_from(index).unwrap_or(0) % DEPARTMENTS.len()];
    format!(
        r#"{{"name":"홍길동","email":"gildong.hong.{run}.{index}@example.com","department":"{department}","status":"ACTIVE"}}"#
    )
}

#[cfg(test)]
mod tests {
    use super::person;

    #[test]
    fn a_person_is_json_with_an_address_of_its_own() {
        let [first, second] =
            [7, 8].map(|index| serde_json::from_str::<serde_json::Value>(&person("r", index)).unwrap());
        assert_eq!(first["department"], "Sales");
        assert_ne!(first["email"], second["email"]);
    }
}
