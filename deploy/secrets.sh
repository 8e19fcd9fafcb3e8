#!/bin/sh
# Make the secrets that compose.yaml mounts, with new passwords:  sh deploy/secrets.sh [FOLDER]
# The folder is closed to other users of this machine. Its files are not: in a container another user reads them.
set -eu
folder=${1:-$(dirname "$0")/secrets}
if [ -e "$folder/andp_database_url" ]; then
    echo "$folder has secrets already; servers that were started with them know no others" >&2
    exit 1
fi
password() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

(umask 077 && mkdir -p "$folder")
chmod 700 "$folder"
umask 022
owner=$(password)
worker=$(password)
broker=$(password)
cd "$folder"
echo '*' > .gitignore
printf %s "$owner" > postgres_password
printf %s "$worker" > andp_worker_password
printf %s "postgresql://andp:$owner@postgres:5432/andp" > andp_owner_url
printf %s "amqp://andp:$broker@rabbitmq:5672//" > andp_broker_url
printf 'default_user = andp\ndefault_pass = %s\n' "$broker" > rabbitmq_user.conf
printf %s "postgresql://andp_host:$worker@postgres:5432/andp" > andp_database_url  # last: its being there says all is
