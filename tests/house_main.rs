//! Tests of the repository itself: files that have to agree, and that no compiler compares.
mod house;
