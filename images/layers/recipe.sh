# The awkward image: a busybox under fourteen layers of everything a layer may legally hold.
#
# layers.py says what is in each layer and writes /manifest.txt, the expected outcome. In the image,
# `sh /verify.sh` compares the file system with it; out of it, `layers.py verify DIR` does, and reads
# more (extended attributes, which busybox cannot).
# shellcheck shell=bash disable=SC2034 # read by build.sh

PACKAGES=busybox-static
TOOLS='/usr/bin/python3 python3'
USES=busybox

# shellcheck source=images/busybox/recipe.sh
. "$here/busybox/recipe.sh"

recipe() {
    local tar compressions=(gzip zstd none) number=0
    stage_busybox "$work/root"
    layer_dir "$work/root" zstd
    mkdir "$work/tars"
    /usr/bin/python3 -B "$here/layers/layers.py" write "$work/tars" "$here/layers/verify.sh"
    for tar in "$work"/tars/*.tar; do
        layer_tar "$tar" "${compressions[number++ % 3]}"
    done
    set_config '{
        "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "ORBIT_LAYERS=all of them"],
        "Entrypoint": ["sh"],
        "Cmd": ["/verify.sh"],
        "WorkingDir": "/work dir"
    }'
}
