"""Cases: extended attributes and ACLs. Rules A2, D4, X7."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Sequence

from layermount.testing.conformance.case import Collection, Layers, Showing, Trait, fails, same
from layermount.testing.conformance.children import ALICE, BOB
from layermount.testing.trees import Tree, directory, fifo, file, symlink

COLLECTION = Collection("xattrs")
case = COLLECTION.case

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
_NOBODY = 0xFFFFFFFF
_USER_OBJ, _USER, _GROUP_OBJ, _MASK, _OTHER = 1, 2, 4, 16, 32

_TREE: Tree = {
    "f": file(b"data", xattrs={"user.a": b"1", "user.b": b""}),
    "d": directory(xattrs={"user.d": b"d"}),
    "l": symlink("f"),
    "p": fifo(),
}


def acl(
    owner: int, group: int, mask: int, other: int, users: Sequence[tuple[int, int]] = ()
) -> bytes:
    """An ACL as its attribute holds it (include/uapi/linux/posix_acl_xattr.h).

    Args:
        owner: Permissions of the owner, as all of these three bits.
        group: Of the group.
        mask: The most that users and groups get.
        other: Of everybody else.
        users: Permissions of single users: (uid, three bits).
    """
    entries = [(_USER_OBJ, owner, _NOBODY), *((_USER, bits, uid) for uid, bits in users)]
    entries += [(_GROUP_OBJ, group, _NOBODY), (_MASK, mask, _NOBODY), (_OTHER, other, _NOBODY)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


@case(_TREE, upper={"u": file()})
def set_and_removed(shown: Showing) -> None:
    """A1: attributes of files and directories of any layer are set, replaced, removed."""
    for path in ("f", "d", "u"):
        before = sorted(shown.face.listxattr(path))
        shown.face.setxattr(path, "user.new", b"one", 0)
        same(shown.face.getxattr(path, "user.new"), b"one")
        same(sorted(shown.face.listxattr(path)), sorted([*before, "user.new"]))
        shown.face.setxattr(path, "user.new", b"", 0)
        same(shown.face.getxattr(path, "user.new"), b"")
        shown.face.removexattr(path, "user.new")
        fails(errno.ENODATA, shown.face.getxattr, path, "user.new")
        fails(errno.ENODATA, shown.face.removexattr, path, "user.new")
        same(sorted(shown.face.listxattr(path)), before)
    same(shown.face.getxattr("f", "user.a"), b"1")
    same(shown.face.getxattr("f", "user.b"), b"")
    same(shown.face.getxattr("d", "user.d"), b"d")


@case(_TREE)
def flags(shown: Showing) -> None:
    """A1: XATTR_CREATE is EEXIST for what is there, XATTR_REPLACE ENODATA for what is not."""
    for path in ("f", "d"):
        key = "user.a" if path == "f" else "user.d"
        fails(errno.EEXIST, shown.face.setxattr, path, key, b"2", os.XATTR_CREATE)
        fails(errno.ENODATA, shown.face.setxattr, path, "user.x", b"2", os.XATTR_REPLACE)
        shown.face.setxattr(path, key, b"2", os.XATTR_REPLACE)
        shown.face.setxattr(path, "user.x", b"3", os.XATTR_CREATE)
        same([shown.face.getxattr(path, name) for name in (key, "user.x")], [b"2", b"3"])


@case(_TREE)
def kinds_without_user_attributes(shown: Showing) -> None:
    """A1, D5: links and fifos have no `user.*` attributes: EPERM; unknown families EOPNOTSUPP."""
    for path in ("l", "p"):
        fails(errno.EPERM, shown.face.setxattr, path, "user.k", b"v", 0)
        same([key for key in shown.face.listxattr(path) if key.startswith("user.")], [])
    fails(errno.EOPNOTSUPP, shown.face.setxattr, "f", "nonsense.k", b"v", 0)
    fails(errno.EOPNOTSUPP, shown.face.getxattr, "f", "nonsense.k")
    fails(errno.ENOENT, shown.face.getxattr, "none", "user.k")


@case(_TREE)
def large_ones(shown: Showing) -> None:
    """A1: long values and long lists are told whole, whatever size is asked for first."""
    value = bytes(range(256)) * 8
    shown.face.setxattr("f", "user.long", value, 0)
    same(shown.face.getxattr("f", "user.long"), value)
    keys = [f"user.{'k' * 60}{number}" for number in range(10)]
    for key in keys:
        shown.face.setxattr("d", key, b"v", 0)
    same(sorted(shown.face.listxattr("d")), sorted([*keys, "user.d"]))
    fails((errno.E2BIG, errno.ERANGE), shown.face.setxattr, "f", "user.k", bytes(65537), 0)
    fails(errno.ERANGE, shown.face.setxattr, "f", "user." + "k" * 251, b"", 0)
    shown.show_again()
    same(shown.face.getxattr("f", "user.long"), value)


@case(
    {"d/f": file(b"data" * 3000), "d/g": file(), "e/x": file(), "m/x": file()},
    needs=[Trait.MOVES_LOWER_DIRECTORIES],
)
def own_marks_are_hidden(shown: Showing) -> None:
    """A2: what the overlay notes for itself is never seen, whatever was done."""
    face = shown.face
    face.chmod("d/f", 0o600)
    face.unlink("d/g")
    face.unlink("e/x")
    face.rmdir("e")
    face.mkdir("e", 0o755)
    face.rename("m", "moved", 0)
    face.link("d/f", "linked")
    face.rename("d/f", "file", 0)
    prefix = shown.layers.marks.prefix
    for path in (".", "d", "e", "moved", "linked", "file"):
        found = [key for key in face.listxattr(path) if ".overlay." in key]
        same(found, [], path)
        for record in ("opaque", "origin", "redirect", "metacopy", "impure"):
            fails(errno.ENODATA, face.getxattr, path, prefix + record)


@case({"d/f": file(b"f"), "d/g": file()}, upper={"u/x": file()})
def marks_of_an_overlay_inside(shown: Showing) -> None:
    """A2: what a user sets under the overlay's prefix is kept, and means nothing to this one."""
    prefix = shown.layers.marks.prefix
    for path in ("d", "u", "d/f"):
        for record in ("opaque", "origin", "overlay.opaque"):
            shown.face.setxattr(path, prefix + record, b"y", 0)
    shown.show_again()
    same(sorted(name for name, _ in shown.face.listdir("d")), ["f", "g"])
    same(shown.face.read("d/f"), b"f")
    for path in ("d", "u", "d/f"):
        for record in ("opaque", "origin", "overlay.opaque"):
            same(shown.face.getxattr(path, prefix + record), b"y", f"{path} {record}")
        found = sorted(key for key in shown.face.listxattr(path) if key.startswith(prefix))
        same(found, sorted(prefix + r for r in ("opaque", "origin", "overlay.opaque")), path)
        shown.face.removexattr(path, prefix + "opaque")
        fails(errno.ENODATA, shown.face.getxattr, path, prefix + "opaque")


@case({"f": file(b"f"), "d": directory(), "l": symlink("f")}, needs=[Trait.ROOT])
def other_families(shown: Showing) -> None:
    """A1: root sets `trusted.*` and `security.*`, of links too."""
    for path in ("f", "d", "l"):
        for key in ("trusted.k", "security.k"):
            shown.face.setxattr(path, key, b"v", 0)
            same(shown.face.getxattr(path, key), b"v", path)
            assert key in shown.face.listxattr(path), path


@case(
    {"f": file(xattrs={"trusted.k": b"v", "user.k": b"v"})},
    needs=[Trait.ROOT, Trait.OTHER_USERS],
)
def trusted_ones_are_hidden(shown: Showing) -> None:
    """A1: others see no `trusted.*`, and cannot set one."""
    same(shown.as_user(ALICE, lambda face: face.listxattr("f")), ["user.k"])
    shown.as_user(ALICE, lambda face: fails(errno.ENODATA, face.getxattr, "f", "trusted.k"))
    shown.as_user(ALICE, lambda face: fails(errno.EPERM, face.setxattr, "f", "trusted.k", b"", 0))


_OPEN: Tree = {"f": file(b"f", mode=0o640), "d": directory(), "l": symlink("f")}


@case(_OPEN)
def acl_and_mode(shown: Showing) -> None:
    """A1: an ACL sets the mode, chmod sets its mask, removing it leaves the mode."""
    uid = os.geteuid()
    shown.face.setxattr("f", ACCESS, acl(6, 4, 7, 0, [(uid, 7)]), 0)
    same(stat.S_IMODE(shown.face.stat("f").st_mode), 0o670)
    shown.face.chmod("f", 0o640)
    same(shown.face.getxattr("f", ACCESS), acl(6, 4, 4, 0, [(uid, 7)]))
    shown.face.removexattr("f", ACCESS)
    same(stat.S_IMODE(shown.face.stat("f").st_mode), 0o640)
    assert ACCESS not in shown.face.listxattr("f"), "it is listed"
    fails(errno.EOPNOTSUPP, shown.face.setxattr, "l", ACCESS, acl(6, 4, 4, 0), 0)
    fails(errno.EACCES, shown.face.setxattr, "f", DEFAULT, acl(6, 4, 4, 0), 0)
    fails(errno.EINVAL, shown.face.setxattr, "f", ACCESS, struct.pack("<I", 2) + b"short", 0)
    fails(errno.EINVAL, shown.face.setxattr, "f", ACCESS, acl(6, 4, 4, 8), 0)


@case(_OPEN, upper={"u": directory()})
def default_acl(shown: Showing) -> None:
    """N2: what is made in a directory with a default ACL inherits it, whatever the umask."""
    uid = os.geteuid()
    default = acl(7, 5, 7, 0, [(uid, 7)])
    for parent in ("d", "u"):
        shown.face.setxattr(parent, DEFAULT, default, 0)
        shown.face.create(f"{parent}/f", 0o666, b"")
        shown.face.mkdir(f"{parent}/sub", 0o777)
        shown.face.mkdir(f"{parent}/sub/deep", 0o777)
        shown.face.mknod(f"{parent}/p", stat.S_IFIFO | 0o666, 0)
        inherited = acl(6, 5, 6, 0, [(uid, 7)])
        same(shown.face.getxattr(f"{parent}/f", ACCESS), inherited, "file")
        same(stat.S_IMODE(shown.face.stat(f"{parent}/f").st_mode), 0o660)
        same(shown.face.getxattr(f"{parent}/p", ACCESS), inherited, "fifo")
        for path in (f"{parent}/sub", f"{parent}/sub/deep"):
            same(shown.face.getxattr(path, DEFAULT), default, path)
            same(shown.face.getxattr(path, ACCESS), acl(7, 5, 7, 0, [(uid, 7)]), path)
        fails(errno.ENODATA, shown.face.getxattr, f"{parent}/f", DEFAULT)


def _with_default_acl(layers: Layers) -> None:
    # In a user namespace there is nobody else to name.
    os.setxattr(layers.lowers[0] / "d", DEFAULT, acl(7, 5, 5, 5, [(os.geteuid(), 7)]))


@case({"d/f": file(b"f")}, prepare=_with_default_acl)
def default_acl_of_a_lower(shown: Showing) -> None:
    """C2, N2: a copied-up directory has its default ACL; the copy below does not inherit it."""
    shown.face.append("d/f", b"!")
    fails(errno.ENODATA, shown.face.getxattr, "d/f", ACCESS)
    same(stat.S_IMODE(shown.face.stat("d/f").st_mode), 0o644)
    shown.face.create("d/new", 0o666, b"")
    same(shown.face.getxattr("d/new", ACCESS), acl(6, 5, 4, 4, [(os.geteuid(), 7)]))


_GUARDED: Tree = {
    "f": file(b"f", mode=0o640, xattrs={ACCESS: acl(6, 0, 4, 0, [(ALICE.uid, 4)])}),
    "d": directory(mode=0o770, xattrs={ACCESS: acl(7, 0, 7, 0, [(ALICE.uid, 7)])}),
}


@case(_GUARDED, needs=[Trait.ROOT, Trait.OTHER_USERS])
def acl_enforced(shown: Showing) -> None:
    """A1, C2: an ACL of a lower's file counts, before the copy-up and after."""
    for _ in range(2):
        same(shown.as_user(ALICE, lambda face: face.read("f")), b"f")
        shown.as_user(ALICE, lambda face: fails(errno.EACCES, face.write, "f", b"x", 0))
        shown.as_user(BOB, lambda face: fails(errno.EACCES, face.read, "f"))
        shown.as_user(BOB, lambda face: fails(errno.EACCES, face.listdir, "d"))
        shown.face.utimens("f", 1, 1)
    shown.as_user(ALICE, lambda face: face.create("d/own", 0o600, b"own"))
    same(shown.face.stat("d/own").st_uid, ALICE.uid)
    shown.face.setxattr("f", ACCESS, acl(6, 0, 6, 0, [(BOB.uid, 6)]), 0)
    shown.as_user(ALICE, lambda face: fails(errno.EACCES, face.read, "f"))
    same(shown.as_user(BOB, lambda face: face.write("f", b"x", 0)), 1)
