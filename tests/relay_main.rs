//! The relay alone, on real PostgreSQL and real Apache Kafka. Every test's name begins with `relay::`, by which `./test` tells them from
//! the others; `E2E_POSTGRES` says which PostgreSQL they run on.

mod relay;
