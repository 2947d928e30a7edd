//! Made-up people. Each has a Korean name, a department, a status, and an address that no other run uses.

use serde::Serialize;
use stack::random::Random;

/// The most common family names, in Korean and in Latin letters. The first ones are repeated, because they are much more common than the others.
const FAMILY: [(&str, &str); 24] = [
    ("김", "kim"),
    ("김", "kim"),
    ("김", "kim"),
    ("김", "kim"),
    ("이", "lee"),
    ("이", "lee"),
    ("이", "lee"),
    ("박", "park"),
    ("박", "park"),
    ("최", "choi"),
    ("정", "jung"),
    ("강", "kang"),
    ("조", "cho"),
    ("윤", "yoon"),
    ("장", "jang"),
    ("임", "lim"),
    ("한", "han"),
    ("오", "oh"),
    ("서", "seo"),
    ("신", "shin"),
    ("권", "kwon"),
    ("황", "hwang"),
    ("안", "ahn"),
    ("남궁", "namgung"),
];

const GIVEN: [(&str, &str); 24] = [
    ("민준", "minjun"),
    ("서준", "seojun"),
    ("도윤", "doyun"),
    ("예준", "yejun"),
    ("시우", "siwoo"),
    ("하준", "hajun"),
    ("지호", "jiho"),
    ("주원", "juwon"),
    ("지훈", "jihoon"),
    ("준서", "junseo"),
    ("현우", "hyunwoo"),
    ("길동", "gildong"),
    ("서연", "seoyeon"),
    ("서윤", "seoyun"),
    ("지우", "jiwoo"),
    ("서현", "seohyun"),
    ("하은", "haeun"),
    ("민서", "minseo"),
    ("하윤", "hayun"),
    ("윤서", "yunseo"),
    ("지유", "jiyu"),
    ("채원", "chaewon"),
    ("수아", "sua"),
    ("은별", "eunbyeol"),
];

/// One in so many is inactive.
const INACTIVE_ONE_IN: u64 = 8;

/// The body of a `POST /api/users`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Person<'a> {
    pub name: String,
    pub email: String,
    pub department: &'a str,
    pub status: &'static str,
}

/// The person with the number `index`. `run` makes the address unique; everything else depends only on `seed` and `index`.
pub(crate) fn person<'a>(seed: u64, run: &str, index: u64, departments: &'a [String]) -> Person<'a> {
    // Seed and index go through the generator one after the other, so that neighbouring persons differ.
    let start = Random::seeded(seed).next_u64() ^ index;
    let mut random = Random::seeded(start);
    let mut below = |count: usize| usize::try_from(random.below(count as u64)).unwrap_or(0);
    let (family, family_latin) = FAMILY[below(FAMILY.len())];
    let (given, given_latin) = GIVEN[below(GIVEN.len())];
    let department = &departments[below(departments.len())];
    let status = if random.below(INACTIVE_ONE_IN) == 0 {
        "INACTIVE"
    } else {
        "ACTIVE"
    };
    Person {
        name: format!("{family}{given}"),
        email: format!("{given_latin}.{family_latin}.{run}.{index}@example.com"),
        department,
        status,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use stack::DEPARTMENTS;

    use super::person;

    #[test]
    fn a_seed_repeats_its_people_but_for_their_addresses() {
        let departments = DEPARTMENTS.map(str::to_owned);
        let (first, second) = (person(1, "a", 7, &departments), person(1, "b", 7, &departments));
        assert_eq!(
            (&first.name, first.department, first.status),
            (&second.name, second.department, second.status)
        );
        assert_ne!(first.email, second.email);
    }

    #[test]
    fn a_thousand_people_fill_every_department_with_both_statuses() {
        let departments = DEPARTMENTS.map(str::to_owned);
        let people: Vec<_> = (0..1000).map(|index| person(1, "a", index, &departments)).collect();
        let emails: HashSet<_> = people.iter().map(|person| &person.email).collect();
        assert_eq!(emails.len(), 1000);
        let groups: HashSet<_> = people.iter().map(|person| (person.department, person.status)).collect();
        assert_eq!(groups.len(), 2 * DEPARTMENTS.len());
    }
}
