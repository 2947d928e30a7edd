#!/usr/bin/env bash
# In the container `databases`: makes the databases and roles, and gives each role the password of its secret. Safe to repeat.
set -euo pipefail
PGPASSWORD=$(</run/secrets/postgres)
export PGPASSWORD PGDATABASE=postgres
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --file /deploy/cluster.sql
for role in user_api post_api outbox_relay outbox_maintainer view_builder view_verifier console; do
    # Read by psql itself: an argument would be seen in the list of processes.
    ROLE=$role psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --set "role=$role" <<'SQL'
\set password `cat "/run/secrets/$ROLE"`
alter role :"role" password :'password';
SQL
done
echo "databases and roles are there"
