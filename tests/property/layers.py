"""Random layers and values, drawn from a `random.Random`: hypothesis's own, or a seeded one."""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path, PurePosixPath
from random import Random

from layermount.layer.base import DIRECTORY, REGULAR
from layermount.testing import trees
from layermount.testing.trees import Entry, Tree


def is_initial_namespace() -> bool:
    """Whether this is the machine's own user namespace, in which every id is somebody."""
    text = Path("/proc/self/uid_map").read_text(encoding="ascii")
    return text.split() == ["0", "0", "4294967295"]


#: Few, so that layers meet.
NAMES = ("a", "b", "c")
#: Never "..", never absolute: a link in a plain directory must not lead out of it.
LINK_TARGETS = ("a", "b", "a/b", "c/b", "missing", ".")
CONTENTS = (b"", b"x", b"hello", bytes(5000), b"y" * 9000)
MODES = (0o644, 0o600, 0o755, 0o444, 0o000, 0o4755, 0o2755, 0o1777, 0o2770)
#: Without privilege the engine needs what its user needs to read, and to change a directory.
USER_MODES = (0o755, 0o700, 0o4755, 0o2755, 0o1777, 0o2770)
USER_FILE_MODES = (*USER_MODES, 0o444, 0o555)
OWNERS = (-1, 0, 1, 1000)
TIMES = (0, 1, 1_234_567_890_123_456_789, trees.LONG_AGO_NS + 1)
KEYS = ("user.k", "user.l", "user.overlay.opaque", "user.overlay.overlay.x")
ROOT_KEYS = ("trusted.k", "trusted.overlay.opaque", "trusted.overlay.overlay.x", "security.k")
ACL_KEYS = ("system.posix_acl_access", "system.posix_acl_default")
VALUES = (b"", b"y", b"value", bytes(200))
XATTR_FLAGS = (0, 0, 0, os.XATTR_CREATE, os.XATTR_REPLACE)
NODES = ((stat.S_IFIFO | 0o644, 0), (stat.S_IFSOCK | 0o600, 0), (stat.S_IFREG | 0o640, 0))
USER_NODES = ((stat.S_IFIFO | 0o744, 0), (stat.S_IFSOCK | 0o700, 0), (stat.S_IFREG | 0o740, 0))
DEVICES = (
    (stat.S_IFCHR | 0o666, os.makedev(1, 3)),
    (stat.S_IFCHR | 0o666, 0),
    (stat.S_IFBLK | 0o600, os.makedev(7, 250)),
)
#: What is no plain name.
ODD_NAMES = (".", "..", "n" * 256)

#: In a user namespace there are only those that it maps.
_USERS = (1, 1000) if is_initial_namespace() else (os.geteuid(),)
_KINDS = "fffffdddddwwllhhp"


def acl(random: Random) -> bytes:
    """A POSIX ACL as the attribute holds it: include/uapi/linux/posix_acl_xattr.h."""
    none = 0xFFFFFFFF
    entries = [(0x01, 7, none)]
    if random.choice((True, False)):
        entries.append((0x02, random.choice((5, 6)), random.choice(_USERS)))
    entries.append((0x04, random.choice((0, 5, 7)), none))
    entries.append((0x10, random.choice((0, 5, 7)), none))
    entries.append((0x20, random.choice((0, 4)), none))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def layers(random: Random, *, root: bool) -> list[Tree]:
    """One to three lowers, nearest first.

    Args:
        random: Where the choices come from.
        root: With what only root may make: devices, other owners, trusted attributes.
    """
    return [_layer(random, root=root) for _ in range(random.choice((1, 2, 2, 3, 3)))]


def _layer(random: Random, *, root: bool) -> Tree:
    count = random.randint(1, 9)
    return _tidy({_path(random): _entry(random, root=root) for _ in range(count)})


def _path(random: Random) -> str:
    return "/".join(random.choice(NAMES) for _ in range(random.choice((1, 1, 2, 2, 3))))


def _entry(random: Random, *, root: bool) -> Entry:
    match random.choice(f"{_KINDS}c" if root else _KINDS):
        case "f":
            return _file(random, root=root)
        case "d":
            return _directory(random, root=root)
        case "w":
            return trees.whiteout()
        case "l":
            return trees.symlink(random.choice(LINK_TARGETS))
        case "h":
            return trees.hardlink(_path(random))
        case "p":
            return trees.fifo()
        case _:
            return trees.device(1, 3)


def _file(random: Random, *, root: bool) -> Entry:
    return trees.file(
        random.choice(CONTENTS),
        mode=random.choice(MODES if root else USER_FILE_MODES),
        owner=random.choice((None, None, (1, 1), (1000, 0))) if root else None,
        xattrs=_xattrs(random, ACL_KEYS[0], root=root),
    )


def _directory(random: Random, *, root: bool) -> Entry:
    return trees.directory(
        mode=random.choice((0o755, 0o755, 0o755, 0o700, 0o2775, 0o1777)),
        xattrs=_xattrs(random, random.choice(ACL_KEYS), root=root),
        opaque=random.choice((False, False, False, False, True)),
    )


def _xattrs(random: Random, acl_key: str, *, root: bool) -> dict[str, bytes]:
    xattrs = {}
    if random.randrange(4) == 3:
        xattrs[random.choice(KEYS + ROOT_KEYS if root else KEYS)] = random.choice(VALUES)
    if random.randrange(6) == 5:
        xattrs[acl_key] = acl(random)
    return xattrs


def _tidy(tree: dict[str, Entry]) -> Tree:
    """What of a random tree can be built: parents are directories, links lead to files."""
    kept = {}
    for path, entry in tree.items():
        above = [str(parent) for parent in PurePosixPath(path).parents]
        if all(tree[parent].kind == DIRECTORY for parent in above if parent in tree):
            kept[path] = entry
    return {path: entry for path, entry in kept.items() if _is_whole(kept, entry)}


def _is_whole(kept: Tree, entry: Entry) -> bool:
    if entry.same_as is None:
        return True
    first = kept.get(entry.same_as)
    return first is not None and first.kind == REGULAR and first.same_as is None
