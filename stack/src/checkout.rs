//! Where the checkout and the built programs are.

use std::path::{Path, PathBuf};

use anyhow::Context;

/// The folder of the checkout that this crate was compiled in. Its SQL, documents and scripts are read from there.
#[must_use]
pub fn root() -> &'static Path {
    let stack = Path::new(env!("CARGO_MANIFEST_DIR"));
    stack.parent().unwrap_or(stack)
}

/// The directory that has the built programs. Cargo puts them into the directory of the quick start, and puts tests one directory below.
///
/// # Errors
/// The programs are not built.
pub fn programs_directory() -> anyhow::Result<PathBuf> {
    let this_program = std::env::current_exe().context("cannot tell where this program is")?;
    let found = this_program.ancestors().skip(1).take(3).find(|directory| {
        ["user-api", "post-api", "outbox-relay", "view-builder", "console"]
            .iter()
            .all(|name| directory.join(name).is_file())
    });
    found.map(Path::to_owned).with_context(|| {
        format!(
            "the programs are not built beside {}: run cargo build --release --workspace",
            this_program.display()
        )
    })
}
