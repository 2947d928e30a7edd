#!/usr/bin/env bash
# Makes what docker-compose.yml takes its passwords from: a file for each role in secrets/, with a random password, and the token of the console.
# A file that is there stays as it is, so this can be repeated.
set -euo pipefail
directory=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/secrets
roles=(postgres user_api post_api outbox_relay outbox_maintainer view_builder view_verifier console)

# make NAME: keeps secrets/NAME, or makes it of the standard output of the command that follows.
make() {
    local file=$directory/$1
    if [ -s "$file" ]; then
        echo "kept  secrets/$1"
        return
    fi
    (umask 022 && "${@:2}" >"$file.new")
    mv "$file.new" "$file"
    echo "made  secrets/$1"
}
# random BYTES, in hexadecimal
random() { od -An -v -tx1 -N"$1" /dev/urandom | tr -d ' \n'; }
# The console knows a token by its hash. The token is random and long, so nobody finds it by trying.
token_line() { echo "operator operator sha256:$(sha256sum <"$directory/console_token" | cut -d ' ' -f 1)"; }

# Nobody else on this machine reaches the files. They themselves are readable by all, since the users in the containers are others.
mkdir -p "$directory"
chmod 700 "$directory"
for role in "${roles[@]}"; do make "$role" random 24; done
# The token is for people: no container has it. A new token needs its own hash.
if [ ! -s "$directory/console_token" ]; then rm -f "$directory/console_tokens"; fi
make console_token random 32
chmod 600 "$directory/console_token"
make console_tokens token_line
echo
echo "The console will be at http://localhost:8080. Log in with the token in secrets/console_token."
