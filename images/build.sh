#!/usr/bin/env bash
# Builds the OCI image layouts that tests and examples use, from Debian packages.
#
#   images/build.sh [NAME…]     all recipes, or the named ones
#
# The layouts go to target/images/NAME, or $ORBIT_IMAGES_DIR/NAME. One whose recipe and packages have not
# changed since is left alone. A layout appears whole or not at all: it is built beside and renamed.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${ORBIT_IMAGES_DIR:-$(dirname "$here")/target/images}
# shellcheck source=images/lib.sh
. "$here/lib.sh"

build() {
    local name=$1 stamp started=$SECONDS
    PACKAGES='' STAGES='' TOOLS='' USES=''
    # shellcheck source=/dev/null
    . "$here/$name/recipe.sh"
    need_tools <<<"$COMMON_TOOLS
$TOOLS"
    # shellcheck disable=SC2086 # a list of words
    need_packages $PACKAGES
    # shellcheck disable=SC2086 # so is this
    [ -z "$STAGES" ] || need_lists $STAGES

    # shellcheck disable=SC2086 # a list of words
    stamp=$(stamp_of "$name" $USES)
    if [ "$(cat "$out/$name.stamp" 2>/dev/null)" = "$stamp" ] && [ -e "$out/$name/index.json" ]; then
        say "$name is up to date"
        return
    fi

    work=$(mktemp -d "$out/.$name.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    layout=$work/layout layers=() diff_ids=() image_config='{}'
    mkdir -p "$layout/blobs/sha256"
    recipe
    write_layout
    chmod -R u=rwX,go=rX "$layout"
    rm -rf "${out:?}/$name" "$out/$name.stamp"
    mv "$layout" "$out/$name"
    echo "$stamp" >"$out/$name.stamp"
    say "$name built: ${#layers[@]} layers, $(du -sh "$out/$name" | cut -f1), $((SECONDS - started)) s"
}

[ "$#" -gt 0 ] || {
    # shellcheck disable=SC2046 # recipe names are words
    set -- $(cd "$here" && printf '%s\n' */recipe.sh | sed 's|/recipe.sh$||')
}
for name; do [ -f "$here/$name/recipe.sh" ] || die "no recipe $here/$name/recipe.sh"; done

mkdir -p "$out"
exec 9>"$out/.lock"
flock 9 # two builds at once would rename over each other
umask 022
# A subshell each, so that one recipe's names do not reach the next.
for name; do (build "$name") || exit; done
