//! How the catalog is changed: all builders are kept out, and thrown out.

/// Keeps every builder, and every claim, out until the transaction ends; waits for the batches under way. Whoever changes the catalog takes
/// it before anything else, or a builder that holds a position and wants a view's table would wait for us while we wait for it.
pub(crate) const LOCK: &str = "lock table view_positions in share row exclusive mode";

/// Throws out every builder, so that it reads the catalog.
pub(crate) const RENEW: &str = "update view_positions set epoch = epoch + 1";
