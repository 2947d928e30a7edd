# What a new machine lacks to build and run the pipeline, and how to get it. Sourced by ./quickstart and ./test.
# With the variable with_browser also what tests of the console need.
# On Debian and Ubuntu it is installed by apt-get, after saying what and why; elsewhere it is named.

missing_packages=()
missing_words=()

# need PACKAGE WHY COMMAND...: COMMAND succeeds where the prerequisite is there.
need() {
    local package=$1 why=$2
    shift 2
    if ! "$@" >/dev/null 2>&1; then
        missing_packages+=("$package")
        missing_words+=("$(printf '%-26s %s' "$package" "$why")")
    fi
}

java_is_new_enough() {
    local java=java version
    if [ -n "${JAVA_HOME:-}" ] && [ -x "$JAVA_HOME/bin/java" ]; then java=$JAVA_HOME/bin/java; fi
    version=$("$java" -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1)
    [ "${version:-0}" -ge 17 ]
}

# The newest Debian releases have no Java 17 any more, but a newer default.
java_package() {
    if apt-cache show openjdk-17-jre-headless >/dev/null 2>&1; then
        echo openjdk-17-jre-headless
    else
        echo default-jre-headless
    fi
}

install_packages() {
    local sudo=()
    if [ "$(id -u)" -ne 0 ]; then
        if ! command -v sudo >/dev/null; then
            echo "Run this as root, then start again: apt-get install ${missing_packages[*]}" >&2
            return 1
        fi
        sudo=(sudo)
    fi
    "${sudo[@]}" apt-get update -qq
    local index
    for index in "${!missing_packages[@]}"; do
        if [ "${missing_packages[index]}" = java ]; then missing_packages[index]=$(java_package); fi
    done
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        "${missing_packages[@]}"
}

ensure_packages() {
    need g++ "compiles librdkafka, the Kafka client" c++ --version
    need make "compiles librdkafka and OpenSSL" make --version
    need perl "configures OpenSSL's build" perl -MFindBin -e 1
    need java "runs Apache Kafka (Java 17 or newer)" java_is_new_enough
    need maven "downloads Apache Kafka and PostgreSQL" mvn --version
    need xz-utils "unpacks PostgreSQL" xz --version
    need postgresql-client "psql: makes the databases, and shows you what is in them" psql --version
    need curl "talks to the APIs, and fetches Rust" curl --version
    need ca-certificates "downloads over TLS" test -e /etc/ssl/certs/ca-certificates.crt -o -d /etc/pki
    if [ -n "${with_browser:-}" ]; then
        need chromium "the browser in which the console is tested" "${CHROMIUM:-chromium}" --version
        need nodejs "runs Playwright, which drives the browser" node --version
        need npm "installs Playwright" npm --version
    fi
    if [ ${#missing_packages[@]} -eq 0 ]; then return; fi
    if command -v apt-get >/dev/null; then
        echo "Missing on this machine; apt-get installs it now:"
        printf '  %s\n' "${missing_words[@]}"
        install_packages
    else
        echo "Missing on this machine (Debian's package names; your system's may differ). Install it and start again:" >&2
        printf '  %s\n' "${missing_words[@]}" >&2
        return 1
    fi
}

# The toolchain itself is pinned in rust-toolchain.toml; rustup fetches it at cargo's first run.
ensure_rust() {
    if ! command -v cargo >/dev/null && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
        PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    fi
    if ! command -v cargo >/dev/null; then
        echo "Missing on this machine: Rust; its installer rustup (https://rustup.rs) puts it into ${CARGO_HOME:-$HOME/.cargo} now"
        curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs |
            sh -s -- -y --quiet --no-modify-path --profile minimal --default-toolchain none
        PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    fi
    if ! command -v rustup >/dev/null; then
        local wanted have
        wanted=$(sed -n 's/^channel = "\(.*\)"/\1/p' "$root/rust-toolchain.toml")
        have=$(cargo --version | cut -d ' ' -f 2)
        if [ "$(printf '%s\n%s\n' "$wanted" "$have" | sort -V | head -n 1)" != "$wanted" ]; then
            echo "This cargo is $have, without rustup; $wanted or newer is needed: https://rustup.rs" >&2
            return 1
        fi
    fi
}

ensure_prerequisites() {
    ensure_packages
    ensure_rust
}

# ensure_promtool: sets PROMTOOL, for tests of deploy/monitoring. The package `prometheus` would bring a service that starts with the machine, so only
# the tool is taken out of it.
ensure_promtool() {
    local kept=${XDG_CACHE_HOME:-/var/cache}/transactional-outbox/promtool folder
    if [ -n "${PROMTOOL:-}" ]; then return; fi
    if command -v promtool >/dev/null; then
        export PROMTOOL=promtool
        return
    fi
    export PROMTOOL=$kept
    if [ -x "$kept" ]; then return; fi
    if ! command -v apt-get >/dev/null; then
        echo "Missing on this machine: promtool, of Prometheus 2.42 or newer, which checks deploy/monitoring. Install it and start again." >&2
        return 1
    fi
    echo "Missing on this machine: promtool, which checks deploy/monitoring; it is taken out of the package prometheus now"
    folder=$(mktemp -d) || return 1
    if (cd "$folder" && download_package prometheus && dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/promtool) &&
        mkdir -p "${kept%/*}" && mv "$folder/usr/bin/promtool" "$kept.$$" && mv "$kept.$$" "$kept"; then
        rm -rf "$folder"
        return
    fi
    rm -rf "$folder"
    echo "promtool could not be taken out of the package prometheus" >&2
    return 1
}

# download_package PACKAGE: into this folder. A machine whose lists of packages are empty or old gets them first.
download_package() {
    if apt-get download -qq "$1" 2>/dev/null; then return; fi
    if [ "$(id -u)" -eq 0 ]; then apt-get update -qq; else sudo apt-get update -qq; fi
    apt-get download -qq "$1"
}
