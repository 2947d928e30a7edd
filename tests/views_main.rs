//! Tests of view-builder with faults, on real PostgreSQL and real Apache Kafka. The name of every test begins with `view_faults::`, so that `./test`
//! can tell them from the others.

mod view_faults;
