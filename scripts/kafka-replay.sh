#!/usr/bin/env bash
# Prints the events of a topic, or has a consumer group read them again: --help.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
    cat <<'TEXT'
Usage: kafka-replay.sh [OPTIONS]

Without -r: prints each record as "key: value"; on a terminal for as long as it runs, into a pipe up to the topic's end.
With -r:    has that consumer group read the topic again. The views' group, view-builder, is set back while everything runs;
            another group has to be stopped first.

  -t, --topic NAME        the topic (user-events)
  -s, --servers HOSTS     Kafka's bootstrap servers (localhost:9092; in containers the stack's own)
  -o, --offset WHERE      earliest, latest, an offset, or a time such as 2026-11-25T08:00:00Z (earliest)
  -p, --partition N       only this partition (all)
  -r, --reset-group NAME  set this group back instead of printing
  -y, --yes               with -r: do not ask
  -h, --help              this text

Environment: DATABASE_URL, the views' database (postgres://view_builder@localhost:15432/materialized_view_db);
             VIEW_BUILDER, the program (view-builder from target/release or from the PATH; where there is none, the service
             view-builder of docker-compose.yml, with its own database and Kafka).
TEXT
}

topic=user-events servers= offset=earliest group='' arguments=()

value_of() {
    if [ $# -lt 2 ] || [ -z "$2" ]; then
        echo "Option $1 needs a value" >&2
        usage >&2
        exit 1
    fi
}

while [ $# -gt 0 ]; do
    case $1 in
    -t | --topic) value_of "$@" && topic=$2 && shift 2 ;;
    -s | --servers) value_of "$@" && servers=$2 && shift 2 ;;
    -o | --offset) value_of "$@" && offset=$2 && shift 2 ;;
    -p | --partition) value_of "$@" && arguments+=(--partition "$2") && shift 2 ;;
    -r | --reset-group) value_of "$@" && group=$2 && shift 2 ;;
    -y | --yes) arguments+=(--yes) && shift ;;
    -h | --help) usage && exit 0 ;;
    *)
        echo "Unknown option: $1" >&2
        usage >&2
        exit 1
        ;;
    esac
done

compose=(docker compose --project-directory "$root")
program=("${VIEW_BUILDER:-$root/target/release/view-builder}")
if [ ! -x "${program[0]}" ]; then
    if program=("$(command -v view-builder)"); then
        :
    elif [ -n "$("${compose[@]}" ps --quiet view-builder 2>/dev/null)" ]; then
        program=("${compose[@]}" run --rm --no-deps view-builder)
    else
        echo "view-builder is not built and no container runs it: run ./quickstart once, or cargo build --release, or docker compose up, or set VIEW_BUILDER" >&2
        exit 1
    fi
fi
if [ "${program[0]}" != docker ]; then
    servers=${servers:-localhost:9092}
    export DATABASE_URL=${DATABASE_URL:-postgres://view_builder@localhost:15432/materialized_view_db}
fi
replay=("${program[@]}" replay ${servers:+--kafka "$servers"} --topic "$topic" --from "$offset" ${arguments[@]+"${arguments[@]}"})

if [ -z "$group" ]; then
    if [ -t 1 ]; then
        echo "Action: Viewing messages of '$topic' from $offset. Press Ctrl+C to stop." >&2
        replay+=(--follow)
    fi
    exec "${replay[@]}"
fi

# One key answers, as it always did; view-builder itself asks for a line.
if [[ " ${arguments[*]-} " != *" --yes "* ]]; then
    echo "!!! WARNING !!!" >&2
    echo "Group '$group' will process the records of topic '$topic' again, from $offset." >&2
    read -r -n 1 -p "Are you sure you want to continue? (y/N) " answer || true
    echo >&2
    if [[ ${answer:-} != [yY] ]]; then
        echo "Operation cancelled."
        exit 0
    fi
    replay+=(--yes)
fi
"${replay[@]}" --group "$group"
echo "Reset complete: group '$group' reads '$topic' again."
