# A web server: Debian's nginx on a busybox's shell. Its master is root, its workers are www-data.
# shellcheck shell=bash disable=SC2034 # read by build.sh

PACKAGES=busybox-static
STAGES=nginx
USES=busybox

# shellcheck source=images/busybox/recipe.sh
. "$here/busybox/recipe.sh"

recipe() {
    local root=$work/root
    # shellcheck disable=SC2086 # a list of words
    stage_debian "$root" $STAGES
    # What a server in a test never reads is most of the size.
    rm -rf "$root"/usr/share/{doc,man,locale,info,lintian,bash-completion,perl*,common-licenses} \
        "$root"/usr/lib/systemd "$root"/var/cache "$root"/usr/lib/*/perl* "$root"/usr/bin/perl* \
        "$root"/usr/lib/*/gconv "$root"/etc/nginx/sites-*
    install -m 0755 "$(busybox_binary)" "$root/bin/busybox"
    ln -sf busybox "$root/bin/sh"
    mkdir -p "$root"/{tmp,proc,sys,dev,run,var/lib/nginx,var/log/nginx,var/www/html,etc/nginx/conf.d}
    chmod 1777 "$root/tmp"
    accounts "$root"
    install -m 0644 "$here/nginx/nginx.conf" "$root/etc/nginx/nginx.conf"
    printf '%s\n' '<!doctype html><title>nginx</title><h1>It works</h1>' >"$root/var/www/html/index.html"
    layer_dir "$root" gzip
    set_config '{
        "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        "Entrypoint": ["nginx", "-g", "daemon off;"],
        "StopSignal": "SIGQUIT",
        "ExposedPorts": {"80/tcp": {}}
    }'
}
