# A real service: Debian's redis on a busybox's shell, run as its own user.
# shellcheck shell=bash disable=SC2034 # read by build.sh

PACKAGES=busybox-static
STAGES=redis-server
USES=busybox

# shellcheck source=images/busybox/recipe.sh
. "$here/busybox/recipe.sh"

recipe() {
    local root=$work/root
    # shellcheck disable=SC2086 # a list of words
    stage_debian "$root" $STAGES
    # What a service in a test never reads is most of the size.
    rm -rf "$root"/usr/share/{doc,man,locale,info,lintian,bash-completion,perl*} "$root"/usr/lib/systemd "$root"/var/cache
    install -m 0755 "$(busybox_binary)" "$root/bin/busybox"
    ln -sf busybox "$root/bin/sh"
    mkdir -p "$root"/{data,tmp,proc,sys,dev,run} && chmod 1777 "$root/tmp" "$root/data"
    accounts "$root" 'redis:x:999:999:redis:/data:/bin/false'
    layer_dir "$root" gzip
    set_config '{
        "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        "Entrypoint": ["redis-server", "--dir", "/data", "--save", "", "--protected-mode", "no"],
        "User": "redis",
        "WorkingDir": "/data",
        "ExposedPorts": {"6379/tcp": {}}
    }'
}
