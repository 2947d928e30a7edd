//! Tests of docker-compose.yml on a real engine, as its users use it: through `docker compose`, `docker exec`, curl and the published ports. The name
//! of every test begins with `compose::`, so that `./test` can tell them from the others. They run one at a time, because names and ports are fixed.

#![expect(clippy::print_stdout, reason = "what was measured, for whoever reads the run")]

mod compose;
