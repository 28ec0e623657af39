#!/bin/sh
# Compares the file system this runs in with /manifest.txt, using busybox alone.
#
#   verify.sh [ROOT]    ROOT is prefixed to every path; empty by default
#
# Prints a line per difference and a closing count; exits 1 where anything differs.
# Columns: type mode uid gid links mtime digest path [target]; `-` is "not compared". Odd bytes of a name
# are written \0ooo, as printf %b reads them. Types: f file, d directory, l symbolic link, p FIFO,
# a absent, x extended attribute (counted only: busybox cannot read them).
root=$1
checked=0 wrong=0 unread=0

differs() {
    wrong=$((wrong + 1))
    printf 'differs: %s: %s is %s, expected %s\n' "$path" "$1" "$2" "$3"
}

same() { # WHAT FOUND EXPECTED
    [ "$3" = - ] || [ "$2" = "$3" ] || differs "$1" "$2" "$3"
}

while read -r type mode uid gid links mtime digest path target; do
    case $type in '' | '#'*) continue ;; esac
    if [ "$type" = x ]; then
        unread=$((unread + 1))
        continue
    fi
    checked=$((checked + 1))
    # The dot guards a newline at the end, which $() would drop.
    name=$(printf '%b.' "$root$path") && name=${name%.}
    if [ "$type" = a ]; then
        if [ -e "$name" ] || [ -L "$name" ]; then differs presence there absent; fi
        continue
    fi
    found=
    if [ -L "$name" ]; then found=l
    elif [ -f "$name" ]; then found=f
    elif [ -d "$name" ]; then found=d
    elif [ -p "$name" ]; then found=p
    fi
    if [ "$found" != "$type" ]; then
        differs type "${found:-absent}" "$type"
        continue
    fi
    # shellcheck disable=SC2046 # five words
    set -- $(stat -c '%a %u %g %h %Y' -- "$name")
    same uid "$2" "$uid"
    same gid "$3" "$gid"
    if [ "$type" = l ]; then
        link=$(readlink -- "$name"; echo .) && link=${link%??}
        same target "$link" "$(printf '%b' "$target")"
        continue
    fi
    same mode "$1" "$mode"
    if [ "$type" = f ]; then
        same links "$4" "$links"
        same mtime "$5" "$mtime"
        same sha256 "$(sha256sum <"$name" | cut -d' ' -f1)" "$digest"
    fi
    # A directory marked `=` in the digest column lists exactly the names that follow as its target.
    if [ "$type" = d ] && [ "$digest" = = ]; then
        same entries "$(ls -A -- "$name" | wc -l)" "$target"
    fi
done <"$root/manifest.txt"

printf 'verified %d paths, %d differ, %d extended attributes not read\n' "$checked" "$wrong" "$unread"
[ "$checked" -gt 0 ] && [ "$wrong" -eq 0 ]
