//! docker-compose.yml on a real engine, seen as its users see it: through `docker compose`, `docker exec`, curl and the published ports.
//! Every test's name begins with `compose::`, by which `./test` tells them from the others. One at a time: names and ports are fixed.

#![expect(clippy::print_stdout, reason = "what was measured, for whoever reads the run")]

mod compose;
