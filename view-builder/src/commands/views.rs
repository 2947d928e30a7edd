//! `view-builder views`: the views in a directory.

use std::fmt::Write as _;

use crate::process::failure::Failure;
use crate::settings::ViewsConfig;
use crate::views::view;

/// The views in the directory: name, what it is, topics and tables.
///
/// # Errors
/// A view's folder is incomplete.
pub fn views(config: &ViewsConfig) -> Result<String, Failure> {
    let mut text = String::new();
    for view in view::load_all(&config.folder.views)? {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{}: {}\n  topics: {}\n  tables: {}",
            view.name,
            view.summary,
            view.topics.join(", "),
            view.tables().join(", ")
        );
    }
    Ok(text)
}
