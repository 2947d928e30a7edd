//! The departments of made-up people.

/// The default departments for the users of the quick start and of the benchmarks.
pub const DEPARTMENTS: [&str; 8] = [
    "개발팀",
    "기획팀",
    "디자인팀",
    "마케팅팀",
    "영업팀",
    "인사팀",
    "Engineering",
    "Sales",
];
