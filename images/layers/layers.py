#!/usr/bin/env python3
"""What is in the `layers` image, layer by layer, and what must come of it.

    layers.py write DIR VERIFY_SH   one tar archive per layer, for recipe.sh
    layers.py verify ROOT           compares an unpacked root with its own /manifest.txt

Each layer is written once below, as data. The same data, applied to a plain dictionary, gives
/manifest.txt: the expected outcome is derived without unpacking anything, by the rules of the OCI
image-spec (layer.md, "Representing Changes" and "Whiteouts").
"""

import hashlib
import io
import os
import stat
import sys
import tarfile

EPOCH = int(os.environ.get("SOURCE_DATE_EPOCH", "1735689600"))
WHITEOUT, OPAQUE = b".wh.", b".wh..wh..opq"


def entry(kind, path, data=b"", *, mode=None, uid=0, gid=0, mtime=EPOCH, target=b"", xattrs=None):
    """One archive member. `path` is relative to the root, as bytes: names are bytes."""
    default = {"d": 0o755, "l": 0o777}.get(kind, 0o644)
    return dict(kind=kind, path=path, data=data, mode=default if mode is None else mode, uid=uid, gid=gid,
                mtime=mtime, target=target, xattrs=xattrs or {})


def file(path, data=b"", **more):
    return entry("f", path, data, **more)


def directory(path, **more):
    return entry("d", path, **more)


def symlink(path, target, **more):
    return entry("l", path, target=target, **more)


def hardlink(path, target):
    return entry("h", path, target=target)


def fifo(path, **more):
    return entry("p", path, **more)


def whiteout(path):
    parent, _, name = path.rpartition(b"/")
    return file((parent + b"/" if parent else b"") + WHITEOUT + name)


def opaque(path):
    return file(path + b"/" + OPAQUE)


LONG = b"n" * 255  # NAME_MAX of every file system that matters
DEEP = b"deep/" + b"/".join([b"%02d-" % i + b"d" * 60 for i in range(6)])  # beyond ustar's prefix
MANY = [b"many/%03d" % i for i in range(300)]

LAYERS = [
    # 1: ground that later layers change
    [directory(b"plain"), file(b"plain/kept", b"kept\n"), file(b"plain/replaced", b"old\n"),
     file(b"plain/deleted", b"gone\n"), file(b"plain/returns", b"first\n"),
     directory(b"tree"), directory(b"tree/inner"), file(b"tree/inner/leaf", b"leaf\n"),
     directory(b"opaque"), file(b"opaque/below", b"hidden\n"), directory(b"opaque/sub"),
     file(b"opaque/sub/below", b"hidden\n"),
     directory(b"late-opaque"), file(b"late-opaque/below", b"hidden\n"),
     directory(b"swap"), file(b"swap/file-to-dir", b"file\n"), directory(b"swap/dir-to-file"),
     file(b"swap/dir-to-file/inner", b"hidden\n"), directory(b"swap/dir-to-link"),
     file(b"swap/dir-to-link/inner", b"hidden\n"), symlink(b"swap/link-to-dir", b"../plain"),
     symlink(b"swap/link-to-file", b"../plain/kept"), directory(b"work dir")],
    # 2: hard links within a layer
    [directory(b"links"), file(b"links/one", b"three names\n", mode=0o640, uid=1000, gid=33),
     hardlink(b"links/two", b"links/one"), directory(b"links/sub"), hardlink(b"links/sub/three", b"links/one")],
    # 3: symbolic links, absolute, relative, dangling, looping; through a linked directory
    [symlink(b"links/absolute", b"/plain/kept"), symlink(b"links/relative", b"../plain/kept"),
     symlink(b"links/dangling", b"/nowhere/at all"), symlink(b"links/self", b"self"),
     symlink(b"links/upwards", b"../../../../../../plain"), symlink(b"links/owned", b"one", uid=1000, gid=1000),
     symlink(b"links/long", b"/plain/" + b"./" * 90 + b"kept")],
    # 4: odd names, written with pax headers
    [directory(b"names"), file(b"names/two  spaces", b"a"), file(b"names/ leading and trailing ", b"b"),
     file(b"names/new\nline", b"c"), file(b"names/tab\tbell\x07", b"d"), file("names/größe-漢字-🦀".encode(), b"e"),
     file(b"names/-rf", b"f"), file(b"names/back\\slash", b"g"), file(b"names/\"quotes' $HOME `id` *?[a]", b"h"),
     file(b"names/" + LONG, b"i"), directory(b"names/" + LONG[:-1] + b"d"), file(b"names/.hidden", b"j"),
     file(b"names/...", b"k"), file(b"names/wh.not-a-whiteout", b"l"), symlink(b"names/link to\nline", b"new\nline")],
    # 5: the same in the GNU dialect, with bytes that are no UTF-8; and holes, written out in full: the
    #    image-spec advises against sparse members, and umoci, Docker and containerd refuse GNU's (type S)
    [file(b"names/latin-1-\xe9\xff", b"m"), file(b"names/g" + LONG[1:], b"n"),
     symlink(b"names/\xfe-link", b"latin-1-\xe9\xff"),
     file(b"sparse", b"head\n" + bytes(1 << 20) + b"middle\n" + bytes(2 << 20) + b"tail\n")],
    # 6: permissions and owners
    [directory(b"modes"), file(b"modes/setuid", b"#!/bin/sh\n", mode=0o4755), file(b"modes/setgid", mode=0o2755, gid=33),
     directory(b"modes/sticky", mode=0o1777), directory(b"modes/setgid-dir", mode=0o2775, uid=1000, gid=50),
     file(b"modes/none", b"secret\n", mode=0), directory(b"modes/closed", mode=0o700, uid=1000, gid=1000),
     file(b"modes/closed/inner", b"inner\n", uid=1000, gid=1000), file(b"modes/www", b"www\n", uid=33, gid=33),
     directory(b"modes/read-only", mode=0o555), file(b"modes/read-only/inner", b"r\n", mode=0o444),
     file(b"modes/nobody", uid=65534, gid=65534)],
    # 7: extended attributes that an ordinary user may set (none empty: pax reads that as "no such record")
    [directory(b"xattrs", xattrs={b"user.on-directory": b"yes"}),
     file(b"xattrs/file", b"x\n", xattrs={b"user.orbit": b"value", b"user.bytes": b"a=b\n\xc3\xa9"})],
    # 8: whiteouts: of files, of a tree, of nothing; and one whose name is made again beside it
    [whiteout(b"plain/deleted"), whiteout(b"tree"), whiteout(b"plain/never-was"), whiteout(b"plain/returns"),
     whiteout(b"names/back\\slash"), file(b"plain/replaced", b"new\n", mode=0o600, uid=1000, gid=1000)],
    # 9: opaque directories; the marker hides what is below, whether it comes before or after its siblings
    [directory(b"opaque"), opaque(b"opaque"), file(b"opaque/above", b"seen\n"),
     directory(b"late-opaque"), file(b"late-opaque/above", b"seen\n"), opaque(b"late-opaque")],
    # 10: what was one kind becomes another, and a deleted name returns
    [directory(b"swap/file-to-dir"), file(b"swap/file-to-dir/inner", b"inner\n"), file(b"swap/dir-to-file", b"file\n"),
     symlink(b"swap/dir-to-link", b"../plain"), directory(b"swap/link-to-dir"), file(b"swap/link-to-dir/own", b"own\n"),
     file(b"swap/link-to-file", b"own\n"), file(b"plain/returns", b"second\n")],
    # 11: a deleted tree returns without its old contents; a directory changes nothing but its mode
    [directory(b"tree"), file(b"tree/fresh", b"fresh\n"), directory(b"plain", mode=0o750, uid=0, gid=33)],
    # 12: empty directories, times, a FIFO, many entries, an empty file, one of some size
    [directory(b"empty"), directory(b"empty/a"), directory(b"empty/a/b", mode=0o711), fifo(b"fifo", mode=0o620),
     file(b"times", b"t\n", mtime=1), file(b"times-late", b"t\n", mtime=4102444800), directory(b"many"),
     *[file(path, b"%d\n" % i) for i, path in enumerate(MANY)], file(b"zero"),
     file(b"large", b"".join(hashlib.sha256(b"%d" % i).digest() for i in range(32768)))],
    # 13: parents that no layer names, deeper than a ustar header can say
    [file(DEEP + b"/leaf", b"deep\n"), hardlink(DEEP + b"/second", DEEP + b"/leaf")],
    # 14: a link from below is deleted, its other names stay; then the manifest (see main)
    [whiteout(b"links/two"), whiteout(b"links/dangling"), opaque(b"empty/a")],
]
GNU_LAYER = 5


# ---- what must come of it -------------------------------------------------------------------------------

def remove(tree, path):
    for known in [known for known in tree if known == path or known.startswith(path + b"/")]:
        del tree[known]


def parents(path):
    parts = path.split(b"/")[:-1]
    return [b"/".join(parts[:i + 1]) for i in range(len(parts))]


def apply(tree, absent, layer):
    """Changes `tree`, a map of path to entry, as the layer says. Whiteouts concern lower layers only."""
    for item in layer:
        parent, _, name = item["path"].rpartition(b"/")
        if name == OPAQUE:
            hidden = [path for path in tree if path.startswith(parent + b"/")]
        elif name.startswith(WHITEOUT):
            gone = (parent + b"/" if parent else b"") + name[len(WHITEOUT):]
            hidden = [path for path in tree if path == gone or path.startswith(gone + b"/")] or [gone]
        else:
            continue
        for path in hidden:
            tree.pop(path, None)
            absent.add(path)
    for item in layer:
        path = item["path"]
        if path.rpartition(b"/")[2].startswith(WHITEOUT):
            continue
        for parent in parents(path):
            tree.setdefault(parent, directory(parent))
        if item["kind"] == "h":
            item = tree[item["target"]]  # the very same object: one inode, several names
        elif not (item["kind"] == "d" and tree.get(path, item)["kind"] == "d"):
            gone = [known for known in tree if known.startswith(path + b"/")]
            absent.update(gone)
            remove(tree, path)
        tree[path] = item
    absent.difference_update(tree)


def escape(data):
    """As printf %b of a POSIX shell reads it. One word: blanks and everything odd in octal."""
    plain = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/+,:@%-"
    return "".join(chr(byte) if byte in plain else "\\0%03o" % byte for byte in data)


def unescape(word):
    out, i = bytearray(), 0
    while i < len(word):
        if word[i] == "\\":
            out.append(int(word[i + 2:i + 5], 8))
            i += 5
        else:
            out.append(ord(word[i]))
            i += 1
    return bytes(out)


def manifest():
    tree, absent = {}, set()
    for layer in LAYERS:
        apply(tree, absent, layer)
    lines = ["# type mode uid gid links mtime digest path [target]; verify.sh says more"]
    for path, item in sorted(tree.items()):
        kind, digest, target = item["kind"], "-", ""
        links = mtime = "-"
        if kind == "f":
            # Links are counted where the names stand in one layer and all remain: an overlay may copy up.
            names = [p for p, other in tree.items() if other is item]
            shared = any(h["kind"] == "h" and h["target"] == item["path"] for layer in LAYERS for h in layer)
            complete = len(names) == 1 + sum(
                h["kind"] == "h" and h["target"] == item["path"] for layer in LAYERS for h in layer)
            links = str(len(names)) if shared and complete else "-" if shared else "1"
            mtime = str(item["mtime"])
            digest = hashlib.sha256(item["data"]).hexdigest()
        elif kind == "d":
            inner = [p for p in tree if p.rpartition(b"/")[0] == path]
            digest, target = "=", str(len(inner))
        elif kind == "l":
            target = escape(item["target"])
        mode = "-" if kind == "l" else "%o" % item["mode"]
        lines.append(" ".join([kind, mode, str(item["uid"]), str(item["gid"]), links, mtime, digest,
                               "/" + escape(path), target]).rstrip())
        for name, value in sorted(item["xattrs"].items()):
            lines.append(" ".join(["x", "-", "-", "-", "-", "-", value.hex() or "-", "/" + escape(path), escape(name)]))
    lines += ["a - - - - - - /" + escape(path) for path in sorted(absent)]
    return ("\n".join(lines) + "\n").encode()


# ---- writing --------------------------------------------------------------------------------------------

def member(item):
    info = tarfile.TarInfo(os.fsdecode(item["path"]))
    info.type = {"f": tarfile.REGTYPE, "d": tarfile.DIRTYPE, "l": tarfile.SYMTYPE, "h": tarfile.LNKTYPE,
                 "p": tarfile.FIFOTYPE}[item["kind"]]
    info.mode, info.uid, info.gid, info.mtime = item["mode"], item["uid"], item["gid"], item["mtime"]
    info.linkname = os.fsdecode(item["target"])
    info.size = len(item["data"])
    for name, value in item["xattrs"].items():
        info.pax_headers["SCHILY.xattr." + name.decode()] = value.decode()
    return info


def write_layer(where, layer, dialect):
    with tarfile.open(where, "w", format=dialect, encoding="utf-8", errors="surrogateescape") as archive:
        for item in layer:
            archive.addfile(member(item), io.BytesIO(item["data"]))


def write(scratch, verify_sh):
    with open(verify_sh, "rb") as script:
        LAYERS[-1].append(file(b"verify.sh", script.read(), mode=0o755))
    LAYERS[-1].append(file(b"manifest.txt", manifest()))
    for number, layer in enumerate(LAYERS, 1):
        where = os.path.join(scratch, "%02d.tar" % number)
        write_layer(where, layer, tarfile.GNU_FORMAT if number == GNU_LAYER else tarfile.PAX_FORMAT)


# ---- verifying ------------------------------------------------------------------------------------------

def kind_of(mode):
    return {stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l", stat.S_IFIFO: "p"}.get(stat.S_IFMT(mode), "?")


def faults_of(root, line):
    kind, mode, uid, gid, links, mtime, digest, path, target = (line.split(" ") + [""])[:9]
    where = os.fsencode(root) + unescape(path)
    try:
        found = os.lstat(where)
    except (FileNotFoundError, NotADirectoryError):
        return [] if kind == "a" else ["absent"]
    if kind == "a":
        return ["there, expected absent"]
    if kind == "x":
        try:
            value = os.getxattr(where, unescape(target), follow_symlinks=False).hex() or "-"
        except OSError as error:
            value = error.strerror
        return [] if value == digest else [f"attribute {target} is {value}, expected {digest}"]
    if kind_of(found.st_mode) != kind:
        return [f"type is {kind_of(found.st_mode)}, expected {kind}"]
    pairs = [("uid", str(found.st_uid), uid), ("gid", str(found.st_gid), gid)]
    if kind != "l":
        pairs.append(("mode", "%o" % stat.S_IMODE(found.st_mode), mode))
    if kind == "l":
        pairs.append(("target", escape(os.readlink(where)), target))
    if kind == "d":
        pairs.append(("entries", str(len(os.listdir(where))), target))
    if kind == "f":
        with open(where, "rb") as content:
            pairs.append(("sha256", hashlib.sha256(content.read()).hexdigest(), digest))
        pairs += [("links", str(found.st_nlink), links), ("mtime", str(int(found.st_mtime)), mtime)]
    return [f"{what} is {is_}, expected {want}" for what, is_, want in pairs if want != "-" and is_ != want]


def verify(root):
    with open(os.path.join(root, "manifest.txt"), encoding="ascii") as text:
        lines = [line.rstrip("\n") for line in text if not line.startswith("#")]
    wrong = 0
    for line in lines:
        for fault in faults_of(root, line):
            wrong += 1
            print(f"differs: {line.split(' ')[7]}: {fault}")
    print(f"verified {len(lines)} lines, {wrong} differences")
    return 0 if lines and not wrong else 1


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write", scratch, verify_sh]:
            write(scratch, verify_sh)
        case ["verify", root]:
            sys.exit(verify(root))
        case _:
            sys.exit(__doc__)
