# What the recipes of images/ share: blobs, layers, config, manifest, stamp.
#
# Sourced by build.sh, which then sources one recipe. A recipe sets
#
#   PACKAGES   the Debian packages whose files go into the image; their versions are part of the stamp
#   STAGES     the packages that recipe() stages with stage_debian; their versions and those of all they
#              depend on are part of the stamp
#   TOOLS      lines of "command package" that the recipe itself needs, beyond those below
#   USES       other recipes that it sources, by name; they are part of the stamp too
#   recipe     a function that calls layer_dir, layer_tar and set_config; $work is its scratch directory
#
# Everything works as an ordinary user: tar writes the owners, no file is ever chowned.
# Source of the format: OCI image-spec, image-layout.md, manifest.md, config.md, layer.md.
# shellcheck shell=bash

# One time for everything we write, so that the same packages give the same digests.
: "${SOURCE_DATE_EPOCH:=1735689600}"
export SOURCE_DATE_EPOCH LC_ALL=C

MEDIA=application/vnd.oci.image
COMMON_TOOLS='tar tar
gzip gzip
zstd zstd
jq jq
sha256sum coreutils
flock util-linux'

say() { printf '%s\n' "images: $*" >&2; }
die() { say "error: $*"; exit 1; }

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# need_packages PACKAGE… : installs what is missing as root, and names it to anyone else.
need_packages() {
    local package missing=()
    for package; do installed "$package" || missing+=("$package"); done
    [ ${#missing[@]} -eq 0 ] && return
    command -v apt-get >/dev/null && [ "$(id -u)" = 0 ] ||
        die "missing Debian packages; as root: apt-get install --no-install-recommends ${missing[*]}"
    say "installing ${missing[*]}"
    local install=(apt-get install -y -q --no-install-recommends "${missing[@]}")
    DEBIAN_FRONTEND=noninteractive "${install[@]}" >&2 || {
        apt-get update -q >&2
        DEBIAN_FRONTEND=noninteractive "${install[@]}" >&2
    } || die "apt-get could not install ${missing[*]}"
}

# need_tools : makes sure of each "command package" line of standard input.
need_tools() {
    local tool package missing=()
    while read -r tool package; do
        [ -z "$tool" ] || command -v "$tool" >/dev/null || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] || need_packages "${missing[@]}"
}

# apt_as_if_empty ARG… : apt-get for a system with nothing installed. Needs no root: it changes nothing
# but a cache of archives beside the images.
apt_as_if_empty() {
    mkdir -p "$out/.apt/archives/partial"
    : >"$out/.apt/status"
    apt-get -q -y -o Debug::NoLocking=1 -o APT::Sandbox::User= -o Dir::State::status="$out/.apt/status" \
        -o Dir::Cache::archives="$out/.apt/archives" --no-install-recommends "$@"
}

# need_lists : a fresh container has no lists of packages yet.
need_lists() {
    apt_as_if_empty --simulate install "$@" >/dev/null 2>&1 && return
    [ "$(id -u)" = 0 ] || die "apt knows no $*; as root: apt-get update"
    apt-get update -q >&2 || die "apt-get update failed"
}

# closure PACKAGE… : "package version architecture" of the packages and of all they depend on.
closure() {
    apt_as_if_empty --simulate install "$@" | sed -nE 's/^Inst ([^ ]+) \(([^ ]+) .*\[([^]]+)\]\).*/\1 \2 \3/p'
}

# stage_debian DIR PACKAGE… : the files of the packages and of all they depend on. No maintainer script
# runs: a recipe makes the accounts and directories that those would have made.
stage_debian() {
    local root=$1 package version arch link
    shift
    mkdir -p "$root"/usr/{bin,sbin,lib,lib64}
    for link in bin sbin lib lib64; do ln -s "usr/$link" "$root/$link"; done
    apt_as_if_empty --download-only install "$@" >&2 || die "apt-get could not download $*"
    while read -r package version arch; do
        dpkg-deb --fsys-tarfile "$out/.apt/archives/${package}_${version//:/%3a}_$arch.deb" |
            tar --extract --directory "$root" --keep-directory-symlink --no-same-owner --preserve-permissions
    done < <(closure "$@")
}

# stamp_of NAME… : changes when one of these recipes, the scripts, or a package's version changes.
stamp_of() {
    {
        find "$here/lib.sh" "$here/build.sh" "${@/#/$here/}" -type f -not -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum | sed "s|$here/||"
        # shellcheck disable=SC2086 # PACKAGES is a list of words
        [ -z "$PACKAGES" ] || dpkg-query -W -f '${Package} ${Version} ${Architecture}\n' $PACKAGES
        # shellcheck disable=SC2086 # so is STAGES
        [ -z "$STAGES" ] || closure $STAGES
        echo "$SOURCE_DATE_EPOCH"
    } | sha256sum | cut -d' ' -f1
}

# add_blob FILE : moves FILE into the layout; prints "DIGEST SIZE".
add_blob() {
    local digest size
    digest=$(sha256sum <"$1" | cut -d' ' -f1)
    size=$(stat -c %s "$1")
    mv "$1" "$layout/blobs/sha256/$digest"
    chmod 0644 "$layout/blobs/sha256/$digest"
    printf 'sha256:%s %s\n' "$digest" "$size"
}

# descriptor MEDIA_TYPE DIGEST SIZE : an OCI content descriptor.
descriptor() { jq -cn --arg t "$1" --arg d "$2" --argjson s "$3" '{mediaType: $t, digest: $d, size: $s}'; }

# layer_tar FILE [gzip|zstd|none] : FILE, a tar archive, becomes the next layer.
layer_tar() {
    local file=$1 how=${2:-gzip} type digest size
    diff_ids+=("sha256:$(sha256sum <"$file" | cut -d' ' -f1)")
    case $how in
        gzip) gzip -n -6 <"$file" >"$work/blob" && type=$MEDIA.layer.v1.tar+gzip ;;
        zstd) zstd -q -3 <"$file" >"$work/blob" && type=$MEDIA.layer.v1.tar+zstd ;;
        none) cp "$file" "$work/blob" && type=$MEDIA.layer.v1.tar ;;
        *) die "layer_tar: unknown compression '$how'" ;;
    esac
    read -r digest size < <(add_blob "$work/blob")
    layers+=("$(descriptor "$type" "$digest" "$size")")
}

# layer_dir DIR [gzip|zstd|none] : the contents of DIR, all owned by root, become the next layer.
layer_dir() {
    tar --create --file "$work/dir.tar" --directory "$1" --format=pax --sort=name \
        --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime \
        --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner .
    layer_tar "$work/dir.tar" "${2:-gzip}"
    rm -f "$work/dir.tar"
}

# set_config JSON : the "config" of the image: Env, Cmd, Entrypoint, User, WorkingDir, ExposedPorts …
set_config() { image_config=$1; }

# write_layout : config, manifest and index over the layers so far. The one image is tagged "latest".
write_layout() {
    local digest size config manifest
    jq -n --argjson config "$image_config" --arg arch "$(dpkg --print-architecture)" \
        --arg created "$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)" \
        '{created: $created, architecture: $arch, os: "linux", config: $config,
          rootfs: {type: "layers", diff_ids: $ARGS.positional}}' \
        --args "${diff_ids[@]}" >"$work/json"
    read -r digest size < <(add_blob "$work/json")
    config=$(descriptor $MEDIA.config.v1+json "$digest" "$size")

    printf '%s\n' "${layers[@]}" | jq -s --argjson config "$config" --arg t $MEDIA.manifest.v1+json \
        '{schemaVersion: 2, mediaType: $t, config: $config, layers: .}' >"$work/json"
    read -r digest size < <(add_blob "$work/json")
    manifest=$(descriptor $MEDIA.manifest.v1+json "$digest" "$size")

    jq -n --argjson manifest "$manifest" --arg t $MEDIA.index.v1+json \
        '{schemaVersion: 2, mediaType: $t,
          manifests: [$manifest + {annotations: {"org.opencontainers.image.ref.name": "latest"}}]}' \
        >"$layout/index.json"
    echo '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
}
