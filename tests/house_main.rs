//! The repository itself: what has to agree between files that no compiler holds against each other.
mod house;
