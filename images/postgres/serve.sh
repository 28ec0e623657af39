#!/bin/busybox sh
# Makes a cluster where there is none, and serves it. It trusts everyone: it is reachable from its sandbox alone,
# and through the port that its test published on loopback.
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --no-sync --no-instructions --auth=trust --username=postgres --encoding=UTF8 --locale=C.UTF-8 >/dev/null
    echo 'host all all all trust' >>"$PGDATA/pg_hba.conf"
    cat >>"$PGDATA/postgresql.conf" <<'CONF'
listen_addresses = '*'
unix_socket_directories = '/tmp'
# Its files are thrown away: nothing need survive a power cut.
fsync = off
synchronous_commit = off
full_page_writes = off
CONF
fi
exec postgres "$@"
