#!/usr/bin/env bash
# Makes what docker-compose.yml takes its passwords from: a file for each role in secrets/, with a random password.
# A file that is there stays as it is, so this can be repeated.
set -euo pipefail
directory=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/secrets
roles=(postgres user_api post_api outbox_relay outbox_maintainer view_builder view_verifier)

# Nobody else on this machine reaches the files. They themselves are readable by all, since the users in the containers are others.
mkdir -p -m 700 "$directory"
for role in "${roles[@]}"; do
    file=$directory/$role
    if [ -s "$file" ]; then
        echo "kept  secrets/$role"
        continue
    fi
    (umask 022 && od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >"$file.new")
    mv "$file.new" "$file"
    echo "made  secrets/$role"
done
