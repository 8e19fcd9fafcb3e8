#!/bin/sh
# Once, when the database is made: the user that workers and clients log in as. Its rights come with `andp db roles --apply`.
set -eu
psql --no-psqlrc -v ON_ERROR_STOP=1 -U "$POSTGRES_USER" -d "$POSTGRES_DB" <<'SQL'
\set password `cat "$ANDP_WORKER_PASSWORD_FILE"`
CREATE ROLE andp_worker NOLOGIN;
CREATE ROLE andp_host LOGIN PASSWORD :'password' IN ROLE andp_worker;
SQL
