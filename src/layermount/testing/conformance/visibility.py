"""Cases: which layer is seen, what is hidden, how paths lead. Rules V, T, B, D."""

from __future__ import annotations

import errno
import os

from layermount.layer.base import DIRECTORY, FIFO, LINK, REGULAR
from layermount.layer.marks import OCI
from layermount.testing.conformance.case import Collection, Showing, Trait, fails, same
from layermount.testing.trees import (
    Tree,
    build,
    differences,
    directory,
    fifo,
    file,
    merged,
    snapshot,
    symlink,
    whiteout,
    without,
)

COLLECTION = Collection("visibility")
case = COLLECTION.case


def names(shown: Showing, path: str = ".") -> list[str]:
    """The names in a directory, sorted."""
    return sorted(name for name, _ in shown.face.listdir(path))


@case({"a": file(b"near"), "n": file()}, {"a": file(b"far"), "f": file(b"f")})
def nearest_lower_wins(shown: Showing) -> None:
    """V1: of several entries of one name the nearest layer's is shown."""
    same(shown.face.read("a"), b"near")
    same(shown.face.read("f"), b"f")
    same(names(shown), ["a", "f", "n"])


@case({"a": file(b"lower")}, upper={"a": file(b"upper", mode=0o600)})
def upper_wins(shown: Showing) -> None:
    """V1: the upper is the nearest layer, for data and for metadata."""
    same(shown.face.read("a"), b"upper")
    same(shown.face.stat("a").st_mode & 0o7777, 0o600)


@case({"d": file(b"x")}, {"d/below": file(), "other": file()})
def file_hides_directory(shown: Showing) -> None:
    """V2: what is no directory hides its namesakes with all that is below them."""
    fails(errno.ENOTDIR, shown.face.stat, "d/below")
    same(shown.face.read("d"), b"x")


@case({"d/n": file()}, {"d": symlink("other")}, {"d/f": file(), "other/o": file()})
def directories_merge_down_to_something_else(shown: Showing) -> None:
    """V2: a directory merges with deeper ones, up to a layer that has something else there."""
    same(names(shown, "d"), ["n"])


@case({"d/n": file(b"n")}, {"d/f": file(b"f")}, {"d/g/h": file(b"h")}, upper={"d/u": file()})
def directories_merge(shown: Showing) -> None:
    """V2: all layers' directories of one name are one directory."""
    same(names(shown, "d"), ["f", "g", "n", "u"])
    same(shown.face.read("d/g/h"), b"h")


@case({"d": directory(mode=0o700)}, {"d": directory(mode=0o755), "d/f": file()})
def directory_metadata_is_the_nearest(shown: Showing) -> None:
    """V1, A1: a merged directory has the metadata of its nearest layer."""
    same(shown.face.stat("d").st_mode & 0o7777, 0o700)


@case(
    {"gone": whiteout(), "d/gone": whiteout(), "d/own": file()},
    {"gone": file(), "d/gone/deep": file(), "d/kept": file()},
)
def whiteouts_hide(shown: Showing) -> None:
    """V3: a whiteout hides the name in deeper layers and is not seen itself."""
    for path in ("gone", "d/gone"):
        fails(errno.ENOENT, shown.face.stat, path)
        fails(errno.ENOENT, shown.face.read, path)
    fails(errno.ENOENT, shown.face.stat, "d/gone/deep")
    same(names(shown), ["d"])
    same(names(shown, "d"), ["kept", "own"])


@case({"a": whiteout(), "d/b": whiteout()}, upper={"a": file(b"new"), "d/b": file(b"new")})
def layers_above_a_whiteout(shown: Showing) -> None:
    """V3: a whiteout hides nothing in the layers above it."""
    same(shown.face.read("a"), b"new")
    same(shown.face.read("d/b"), b"new")


@case({"a": whiteout()}, {"b": file(b"b")}, {"a": file(b"a")})
def whiteout_of_nothing_near(shown: Showing) -> None:
    """V3: a whiteout reaches through layers that have no such name."""
    same(names(shown), ["b"])


@case({"d": directory(opaque=True), "d/n": file()}, {"d/f": file(), "d/n/x": file()})
def opaque_directory_hides(shown: Showing) -> None:
    """V4: an opaque directory hides its namesakes in deeper layers, not what it holds."""
    same(names(shown, "d"), ["n"])
    fails(errno.ENOENT, shown.face.stat, "d/f")


@case({"d/m": file()}, {"d": directory(opaque=True), "d/n": file()}, {"d/f": file()})
def opaque_in_the_middle(shown: Showing) -> None:
    """V2, V4: layers above an opaque directory merge with it; layers below do not."""
    same(names(shown, "d"), ["m", "n"])


@case(
    {"d": directory(opaque=True), "d/n": file(), "gone": whiteout(), "both": whiteout()},
    {"d/f": file(), "gone": file(), "both": file()},
    needs=[Trait.OCI_LOWERS],
    lower_marks=OCI,
)
def oci_marks(shown: Showing) -> None:
    """D1, V3, V4: `.wh.NAME` deletes a name, `.wh..wh..opq` makes a directory opaque."""
    same(names(shown), ["d"])
    same(names(shown, "d"), ["n"])


@case({".wh.a": file(b"x"), "a": file(b"a"), "d/.wh..wh..opq": file()}, {"d/f": file()})
def no_reserved_names(shown: Showing) -> None:
    """T4: `.wh.x` is an ordinary file where the marks are the kernel's."""
    same(shown.face.read(".wh.a"), b"x")
    same(shown.face.read("a"), b"a")
    same(names(shown, "d"), [".wh..wh..opq", "f"])


_LAYERS: tuple[Tree, ...] = (
    {
        "a": file(b"a", mode=0o600),
        "d/one": file(b"1"),
        "d/gone": whiteout(),
        "link": symlink("a"),
        "opaque": directory(opaque=True),
        "opaque/in": file(b"in"),
    },
    {
        "a": directory(),
        "d/gone": file(),
        "d/two": fifo(),
        "opaque/out": file(),
        "e/f/g": file(b"g" * 10000),
    },
    {"e/f": file(b"hidden"), "e/h": symlink("nowhere"), "b": file(b"b", xattrs={"user.k": b"v"})},
)


@case(*_LAYERS)
def whole_tree(shown: Showing) -> None:
    """V1, V2, V3, V4: the whole of several layers, with all that is seen of each entry."""
    plain = snapshot(build(shown.layers.target.parent / "plain", merged(_LAYERS)))
    blank = ("inode", "nlink")
    found = differences(without(snapshot(shown.face), *blank), without(plain, *blank))
    # The root is the upper's; its time is when the layers were made.
    same([line for line in found if not line.startswith(".:")], [])


@case({"a": file(), "d/b": file(), "l": symlink("a"), "p": fifo()})
def kinds_in_listings(shown: Showing) -> None:
    """V1: a listing tells each entry's kind."""
    found = dict(shown.face.listdir("."))
    same(found, {"a": REGULAR, "d": DIRECTORY, "l": LINK, "p": FIFO})


@case({"d/e/f": file(b"f"), "l": symlink("d/e"), "up": symlink("d/../d/e/f")})
def links_on_the_way(shown: Showing) -> None:
    """T2: links on the way are followed; the last component is what it is."""
    same(shown.face.read("l/f"), b"f")
    same(shown.face.readlink("l"), "d/e")
    with shown.face.open("up", os.O_RDONLY) as fd:
        same(os.pread(fd, 10, 0), b"f")
    fails(errno.ELOOP, shown.face.read, "up")
    fails(errno.EINVAL, shown.face.readlink, "d")


@case({"a": symlink("b"), "b": symlink("a"), "c": symlink("c/d")})
def links_in_a_circle(shown: Showing) -> None:
    """T2: links without an end are ELOOP."""
    for path in ("a/x", "c/x"):
        fails(errno.ELOOP, shown.face.stat, path)
    same(names(shown), ["a", "b", "c"])


@case(
    {"d/f": file(b"f"), "abs": symlink("/d"), "out": symlink("../../../d"), "d/up": symlink("..")},
    needs=[Trait.OWN_ROOT],
)
def no_way_out(shown: Showing) -> None:
    """T1, T2: absolute targets count from the root of the tree, `..` stays at it."""
    same(shown.face.read("abs/f"), b"f")
    same(shown.face.read("out/f"), b"f")
    same(shown.face.read("d/up/d/f"), b"f")
    same(shown.face.read("../../d/f"), b"f")


@case({"d/f": file(b"f")})
def dots_and_slashes(shown: Showing) -> None:
    """T1: `.` and doubled slashes collapse, `..` goes up."""
    for path in ("d//f", "./d/./f", "d/../d/f", "d/.//../d/f"):
        same(shown.face.read(path), b"f", path)
    fails(errno.ENOTDIR, shown.face.stat, "d/f/")
    fails(errno.ENOTDIR, shown.face.stat, "d/f/.")
    fails(errno.ENOENT, shown.face.stat, "missing/../d")


_ODD_NAMES = (
    " ", "a b", "\n", "-", "...", "..a", "a\\b", "a,b:c", "ü", "%s", "*", "n" * 255,
    os.fsdecode(b"\xff\xfe"), os.fsdecode(b"\x01\x7f"), "Case", "case",
)  # fmt: skip


@case({name: file(name.encode(errors="surrogateescape")) for name in _ODD_NAMES})
def names_of_any_bytes(shown: Showing) -> None:
    """T3: names are any bytes, up to 255, upper and lower case are different."""
    same(names(shown), sorted(_ODD_NAMES))
    for name in _ODD_NAMES:
        data = name.encode(errors="surrogateescape")
        same(shown.face.read(name), data, repr(name))
        shown.face.append(name, b"!")
        same(shown.face.read(name), data + b"!", repr(name))
        shown.face.unlink(name)
    same(names(shown), [])


@case()
def new_names_of_any_bytes(shown: Showing) -> None:
    """T3: such names can be made, and moved to."""
    for name in _ODD_NAMES:
        shown.face.create("new", 0o644, b"x")
        shown.face.rename("new", name, 0)
    same(names(shown), sorted(_ODD_NAMES))


@case({"d": directory()})
def names_that_are_too_long(shown: Showing) -> None:
    """T3: a name of 256 bytes is ENAMETOOLONG, whatever is done with it."""
    long = "d/" + "n" * 256
    fails(errno.ENAMETOOLONG, shown.face.stat, long)
    fails(errno.ENAMETOOLONG, shown.face.mkdir, long, 0o755)
    fails(errno.ENAMETOOLONG, shown.face.create, long, 0o644, b"")
    fails(errno.ENAMETOOLONG, shown.face.rename, "d", "n" * 256, 0)
    fails(errno.ENAMETOOLONG, shown.face.unlink, long)


@case({"f": file(b"inside"), "out": symlink("/etc"), "d": directory()})
def links_in_layers_are_only_shown(shown: Showing) -> None:
    """B2: replacing a link, or writing beside it, touches nothing that it leads to."""
    same(shown.face.readlink("out"), "/etc")
    shown.face.rename("f", "out", 0)
    same(shown.face.read("out"), b"inside")
    assert os.path.isdir("/etc"), "what the link led to is gone"


@case({"a": file(b"a"), "d/f": file()}, read_only=True)
def without_an_upper(shown: Showing) -> None:
    """L4, A1: a tree without an upper is read and never changed: every change is EROFS."""
    face = shown.face
    same(face.read("a"), b"a")
    fails(errno.EROFS, face.create, "new", 0o644, b"")
    fails(errno.EROFS, face.write, "a", b"x", 0)
    fails(errno.EROFS, face.truncate, "a", 0)
    fails(errno.EROFS, face.mkdir, "new", 0o755)
    fails(errno.EROFS, face.unlink, "a")
    fails(errno.EROFS, face.rmdir, "d")
    fails(errno.EROFS, face.rename, "a", "b", 0)
    fails(errno.EROFS, face.link, "a", "b")
    fails(errno.EROFS, face.symlink, "b", "a")
    fails(errno.EROFS, face.chmod, "a", 0o600)
    fails(errno.EROFS, face.utimens, "a", 1, 1)
    fails(errno.EROFS, face.setxattr, "a", "user.k", b"v", 0)
    assert not face.access("a", os.W_OK), "access(2) allows writing"


@case({"d/f": file()})
def statfs(shown: Showing) -> None:
    """A1: space and limits are those of a real filesystem."""
    found = shown.face.statfs()
    assert found.f_blocks >= found.f_bfree >= found.f_bavail >= 0, found
    assert found.f_blocks > 0, found
    same(found.f_namemax, 255)
