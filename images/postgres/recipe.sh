# A real database: Debian's PostgreSQL 15 on a busybox's shell, run as its own user. A fresh start makes a cluster
# first; one that finds a cluster in its data directory, as a clone of a snapshot does, goes straight on.
# shellcheck shell=bash disable=SC2034 # read by build.sh

PACKAGES=busybox-static
STAGES=postgresql-15
USES=busybox

# shellcheck source=images/busybox/recipe.sh
. "$here/busybox/recipe.sh"

recipe() {
    local root=$work/root
    # shellcheck disable=SC2086 # a list of words
    stage_debian "$root" $STAGES
    # What a server in a test never reads is most of the size: documents, Perl, and the compiler of expressions.
    rm -rf "$root"/usr/share/{doc,man,locale,info,lintian,bash-completion,perl*,postgresql-common,common-licenses} \
        "$root"/usr/lib/systemd "$root"/var/cache "$root"/usr/lib/*/perl* "$root"/usr/lib/postgresql/15/lib/bitcode \
        "$root"/usr/lib/postgresql/15/lib/llvmjit* "$root"/usr/lib/llvm-* "$root"/usr/lib/*/libLLVM* \
        "$root"/usr/lib/*/libz3* "$root"/usr/bin/perl* "$root"/usr/share/gcc "$root"/usr/lib/*/gconv
    install -m 0755 "$(busybox_binary)" "$root/bin/busybox"
    ln -sf busybox "$root/bin/sh"
    mkdir -p "$root"/{tmp,proc,sys,dev,run,var/lib/postgresql}
    chmod 1777 "$root/tmp" "$root/var/lib/postgresql"
    accounts "$root" 'postgres:x:999:999:postgres:/var/lib/postgresql:/bin/sh'
    install -m 0755 "$here/postgres/serve.sh" "$root/usr/bin/serve-postgres"
    layer_dir "$root" gzip
    set_config '{
        "Env": ["PATH=/usr/lib/postgresql/15/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "PGDATA=/var/lib/postgresql/data", "LANG=C.UTF-8"],
        "Entrypoint": ["serve-postgres"],
        "User": "postgres",
        "WorkingDir": "/var/lib/postgresql",
        "StopSignal": "SIGINT",
        "ExposedPorts": {"5432/tcp": {}}
    }'
}
