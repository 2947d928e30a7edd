# What a person does here more than twice; `just` lists it.

_list:
    @just --list --unsorted

# the whole pipeline on this machine; `just quickstart --help`
quickstart *arguments:
    ./quickstart {{arguments}}

# all checks and tests, or some parts of them
test *parts:
    ./test {{parts}}

# the fast checks, before a commit
check: format
    ./test clippy unit

# format the code
format:
    cargo fmt --all

# one end-to-end test by (a part of) its name
e2e name:
    cargo build --release --workspace --bins
    cargo test --release --workspace --test e2e -- --nocapture {{name}}

# the relay's tests by (a part of) their name, on PostgreSQL 15 to 18
relay version *names:
    cargo build --release --workspace --bins
    cargo build --release --workspace --bin outbox-relay-faults --bin view-builder-faults --features outbox-relay/faults,view-builder/faults
    E2E_POSTGRES={{version}} cargo test --release --workspace --test relay -- --test-threads 4 {{names}}

# the view-builder under faults, by (a part of) the tests' names
views *names:
    cargo build --release --workspace --bins
    cargo build --release --workspace --bin outbox-relay-faults --bin view-builder-faults --features outbox-relay/faults,view-builder/faults
    cargo test --release --workspace --test views -- --test-threads 6 {{names}}

# kill relay, walsender, PostgreSQL and Kafka at random, and compare the ledgers; `just storm --help`
storm *arguments:
    cargo build --release --workspace --bins
    target/release/kill-storm {{arguments}}

# an integration test on PostgreSQL 18 or 15
integration version package *arguments:
    cargo build --release --workspace --bins
    target/release/with-postgres {{version}} cargo test --release --package {{package}} {{arguments}}

# the console in a browser, by (a part of) the tests' names
console-test *names:
    cargo build --release --workspace --bins
    cd tests/console && PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD=1 npm ci --no-audit --no-fund
    cargo test --release --workspace --test console -- --test-threads 1 {{names}}

# licences, advisories and sources of the dependencies (needs cargo-deny)
deny:
    cargo deny check

# whether the crates that stand alone could be published: cargo packs them and compiles what it has packed
publishable:
    cargo publish --dry-run --allow-dirty -p pg-replication -p outbox-router -p kafka-client
