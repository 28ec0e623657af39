# The small image: Debian's static busybox, every applet a hard link, one layer.
# shellcheck shell=bash disable=SC2034 # read by build.sh

PACKAGES=busybox-static

# busybox_binary : as the package installs it, so not whichever `busybox` comes first in PATH.
busybox_binary() { dpkg -L busybox-static | grep -m1 '/bin/busybox$'; }

# accounts DIR [PASSWD_LINE…] : /etc/passwd and /etc/group, with what an image adds to the usual ones.
accounts() {
    local root=$1 line name gid
    shift
    mkdir -p "$root/etc"
    cat >"$root/etc/passwd" <<'PASSWD'
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
user:x:1000:1000:an ordinary user:/home/user:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
PASSWD
    cat >"$root/etc/group" <<'GROUP'
root:x:0:
daemon:x:1:
tty:x:5:
staff:x:50:user
www-data:x:33:
user:x:1000:
nogroup:x:65534:
GROUP
    for line; do
        IFS=: read -r name _ _ gid _ <<<"$line"
        echo "$line" >>"$root/etc/passwd"
        echo "$name:x:$gid:" >>"$root/etc/group"
    done
    chmod 0644 "$root/etc/passwd" "$root/etc/group"
}

# stage_busybox DIR : the root directory of a busybox system. Also the base of other recipes.
stage_busybox() {
    local root=$1 applet
    mkdir -p "$root"/{bin,sbin,etc,dev,proc,sys,run,tmp,home/user,root,usr/bin,usr/sbin,var/tmp,var/www}
    chmod 1777 "$root/tmp" "$root/var/tmp"
    chmod 0700 "$root/root"
    install -m 0755 "$(busybox_binary)" "$root/bin/busybox"
    while read -r applet; do
        [ "$applet" = bin/busybox ] || ln "$root/bin/busybox" "$root/$applet"
    done < <("$root/bin/busybox" --list-full)
    accounts "$root"
}

recipe() {
    stage_busybox "$work/root"
    layer_dir "$work/root" gzip
    set_config '{
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "Cmd": ["sh"]
    }'
}
