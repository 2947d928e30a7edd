//! Tests of the relay alone, on real PostgreSQL and real Apache Kafka. The name of every test begins with `relay::`, so that `./test` can tell them
//! from the others. `E2E_POSTGRES` says which PostgreSQL they run on.

mod relay;
