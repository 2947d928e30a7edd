//! The program that people run contains nothing of the fault tests.

#[test]
fn the_released_program_has_no_failpoints_and_no_planted_bugs() {
    let directory = stack::checkout::programs_directory().expect("the programs");
    let read = |name: &str| std::fs::read(directory.join(name)).unwrap_or_else(|err| panic!("{name}: {err}"));
    let has = |program: &[u8], text: &str| program.windows(text.len()).any(|window| window == text.as_bytes());
    let (released, faulty) = (read("view-builder"), read("view-builder-faults"));
    for text in ["VIEW_BUILDER", "FAILPOINT_HITS", "UnknownIsFailed", "commit.answered"] {
        assert!(has(&faulty, text), "the fault tests' program has {text}");
        assert!(!has(&released, text), "the released program has no {text}");
    }
}
