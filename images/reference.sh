#!/usr/bin/env bash
# Unpacks a built image with umoci, a reader that is not ours, so that ours can be compared with it.
#
#   images/reference.sh LAYOUT BUNDLE     the root directory comes to BUNDLE/rootfs
#
# Debian 12's umoci does not know zstd: such layers are recompressed into a copy of the layout first.
# As an ordinary user umoci maps every owner to that user, so compare owners as root only.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=images/lib.sh
. "$here/lib.sh"
[ "$#" = 2 ] || die "usage: $0 LAYOUT BUNDLE"
from=$1 bundle=$2
need_tools <<<"$COMMON_TOOLS
umoci umoci"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
layout=$work/layout layers=() diff_ids=()
mkdir -p "$layout/blobs/sha256"

blob() { printf '%s/blobs/%s\n' "$from" "${1/:/\/}"; }
manifest=$(blob "$(jq -r '.manifests[0].digest' "$from/index.json")")
while read -r type digest; do
    case $type in
        *+zstd) zstd -qdc "$(blob "$digest")" >"$work/tar" ;;
        *+gzip) gzip -dc "$(blob "$digest")" >"$work/tar" ;;
        *) cp "$(blob "$digest")" "$work/tar" ;;
    esac
    layer_tar "$work/tar" gzip
done < <(jq -r '.layers[] | .mediaType + " " + .digest' "$manifest")
set_config "$(jq '.config' "$(blob "$(jq -r '.config.digest' "$manifest")")")"
write_layout

rootless=()
[ "$(id -u)" = 0 ] || rootless=(--rootless)
umoci unpack "${rootless[@]}" --image "$layout:latest" "$bundle"
