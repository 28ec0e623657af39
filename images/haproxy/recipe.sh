# A program that drops its privileges: Debian's haproxy on a busybox's shell. Its master stays root; its worker opens
# the port, locks itself into an empty directory, and becomes haproxy.
# shellcheck shell=bash disable=SC2034 # read by build.sh

PACKAGES=busybox-static
STAGES=haproxy
USES=busybox

# shellcheck source=images/busybox/recipe.sh
. "$here/busybox/recipe.sh"

recipe() {
    local root=$work/root
    # shellcheck disable=SC2086 # a list of words
    stage_debian "$root" $STAGES
    # What a proxy in a test never reads is most of the size.
    rm -rf "$root"/usr/share/{doc,man,locale,info,lintian,bash-completion,perl*,common-licenses,vim} \
        "$root"/usr/lib/systemd "$root"/var/cache "$root"/usr/lib/*/perl* "$root"/usr/bin/perl* \
        "$root"/usr/lib/*/gconv
    install -m 0755 "$(busybox_binary)" "$root/bin/busybox"
    ln -sf busybox "$root/bin/sh"
    mkdir -p "$root"/{tmp,proc,sys,dev,run,var/lib/haproxy,etc/haproxy}
    chmod 1777 "$root/tmp"
    accounts "$root" 'haproxy:x:99:99:haproxy:/var/lib/haproxy:/bin/false'
    install -m 0644 "$here/haproxy/haproxy.cfg" "$root/etc/haproxy/haproxy.cfg"
    layer_dir "$root" gzip
    set_config '{
        "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        "Entrypoint": ["haproxy", "-W", "-db", "-f", "/etc/haproxy/haproxy.cfg"],
        "StopSignal": "SIGUSR1",
        "ExposedPorts": {"8080/tcp": {}}
    }'
}
