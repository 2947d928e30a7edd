//! Changes: commands of the programs, each written into the audit before and after.
