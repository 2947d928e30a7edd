//! The view-builder under faults, on real PostgreSQL and real Apache Kafka. Every test's name begins with `view_faults::`, by which
//! `./test` tells them from the others.

mod view_faults;
