//! The program that people run contains nothing of the crash tests.

#[test]
fn the_released_program_has_no_failpoints_and_no_planted_bugs() {
    let directory = stack::checkout::programs_directory().expect("the programs");
    let read = |name: &str| std::fs::read(directory.join(name)).unwrap_or_else(|err| panic!("{name}: {err}"));
    let has = |program: &[u8], text: &str| program.windows(text.len()).any(|window| window == text.as_bytes());
    let (released, faulty) = (read("outbox-relay"), read("outbox-relay-faults"));
    for text in ["OUTBOX_RELAY", "FAILPOINT_HITS", "SecondCommitsFirst", "commit.before"] {
        assert!(has(&faulty, text), "the crash tests' program has {text}");
        assert!(!has(&released, text), "the released program has no {text}");
    }
}
