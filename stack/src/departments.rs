//! Where made-up people work.

/// The departments of the quick start's and the benchmarks' users, where nobody asks for others.
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
