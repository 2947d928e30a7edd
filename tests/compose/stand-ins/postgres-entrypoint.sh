#!/usr/bin/env bash
# As much of the official image's entrypoint as docker-compose.yml relies on: makes the cluster once, with a superuser `postgres` who has the
# password of POSTGRES_PASSWORD_FILE, and becomes the server.
set -euo pipefail
if [ "$1" != postgres ]; then exec "$@"; fi
shift
as_postgres=(setpriv --reuid=999 --regid=999 --clear-groups)
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    install -d -o postgres -g postgres -m 700 "$PGDATA"
    password=$(mktemp)
    cat "$POSTGRES_PASSWORD_FILE" >"$password"
    chown postgres "$password"
    "${as_postgres[@]}" /opt/postgresql/bin/initdb --pgdata="$PGDATA" --username=postgres --pwfile="$password" \
        --auth-local=trust --auth-host=scram-sha-256 --encoding=UTF8
    rm "$password"
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
fi
exec "${as_postgres[@]}" /opt/postgresql/bin/postgres -D "$PGDATA" -c 'listen_addresses=*' -c unix_socket_directories=/var/run/postgresql "$@"
