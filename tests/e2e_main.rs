//! The built programs on real PostgreSQL and real Apache Kafka, seen only through what their users see: REST, psql, and Kafka's own
//! console consumer. Every test's name begins with `e2e::`, by which `./test` tells them from the others.

mod e2e;
