"""Random layers, paths and values: what the state machine is fed with."""

from __future__ import annotations

import enum
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import PurePosixPath

from hypothesis import strategies as st

from layermount.layer.base import DIRECTORY, REGULAR
from layermount.linux import files
from layermount.testing import trees
from layermount.testing.trees import Entry, Tree

NAMES = ("a", "b", "c")
#: Never "..", never absolute: a link in a plain directory must not lead out of it.
LINK_TARGETS = ("a", "b", "a/b", "c/b", "missing", ".")


def acl(user: int, group: int, other: int, named: dict[int, int], mask: int) -> bytes:
    """A POSIX ACL as the attribute holds it: include/uapi/linux/posix_acl_xattr.h."""
    none = 0xFFFFFFFF
    entries = [(0x01, user, none)]
    entries += [(0x02, permissions, uid) for uid, permissions in sorted(named.items())]
    entries += [(0x04, group, none), (0x10, mask, none), (0x20, other, none)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


contents = st.sampled_from((b"", b"x", b"hello", bytes(5000), b"y" * 9000))
modes = st.sampled_from((0o644, 0o600, 0o755, 0o444, 0o000, 0o4755, 0o2755, 0o1777, 0o2770))
owners = st.tuples(*(st.sampled_from((-1, 0, 1, 1000)),) * 2)
times = st.sampled_from((0, 1, 1_234_567_890_123_456_789, trees.LONG_AGO_NS + 1))
acls = st.builds(
    acl,
    st.just(7),
    st.sampled_from((0, 5, 7)),
    st.sampled_from((0, 4)),
    st.sampled_from(({}, {1: 6}, {1000: 5})),
    st.sampled_from((0, 5, 7)),
)
keys = st.sampled_from(("user.k", "user.l", "user.overlay.opaque", "user.overlay.overlay.x"))
root_keys = st.sampled_from(
    ("trusted.k", "trusted.overlay.opaque", "trusted.overlay.overlay.x", "security.k")
)
values = st.sampled_from((b"", b"y", b"value", bytes(200)))
xattr_flags = st.sampled_from((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE))
rename_flags = st.sampled_from(
    (0, 0, 0, files.RENAME_NOREPLACE, files.RENAME_EXCHANGE, files.RENAME_EXCHANGE, 3)
)
nodes = st.sampled_from(
    (
        (stat.S_IFIFO | 0o644, 0),
        (stat.S_IFSOCK | 0o600, 0),
        (stat.S_IFREG | 0o640, 0),
    )
)
devices = st.sampled_from(
    (
        (stat.S_IFCHR | 0o666, os.makedev(1, 3)),
        (stat.S_IFCHR | 0o666, os.makedev(0, 0)),
        (stat.S_IFBLK | 0o600, os.makedev(7, 250)),
    )
)


class Kind(enum.Enum):
    """Which of the existing paths to take one of."""

    ANY = "any"
    FILE = "file"
    DIRECTORY = "directory"


@dataclass(frozen=True, slots=True)
class Place:
    """A path that is chosen when it is needed: one of those that exist, or a name below it.

    Attributes:
        number: Which of the existing paths of that kind, counted round and round.
        name: The name below it; None means the existing path itself.
    """

    kind: Kind
    number: int
    name: str | None


def _places(kind: Kind, *names: str | None) -> st.SearchStrategy[Place]:
    return st.builds(Place, st.just(kind), st.integers(0, 15), st.sampled_from(names))


#: Mostly what is there, sometimes a name that need not be.
_some = _places(Kind.ANY, None, *NAMES)
new_places = st.one_of(*[_places(Kind.DIRECTORY, *NAMES, "d")] * 5, _some)
any_places = st.one_of(*[_places(Kind.ANY, None)] * 5, _some)
file_places = st.one_of(*[_places(Kind.FILE, None)] * 5, _some)
all_places = new_places | any_places
directory_places = st.one_of(*[_places(Kind.DIRECTORY, None)] * 5, _some)
#: What is no plain name.
odd_names = st.sampled_from((".", "..", "n" * 256))

_paths = st.one_of(
    st.sampled_from(NAMES),
    st.lists(st.sampled_from(NAMES), min_size=2, max_size=2).map("/".join),
    st.lists(st.sampled_from(NAMES), min_size=3, max_size=3).map("/".join),
)


def _directories(*, root: bool) -> st.SearchStrategy[Entry]:
    xattrs = st.dictionaries(keys | root_keys if root else keys, values, max_size=1)
    default = st.dictionaries(st.just("system.posix_acl_default"), acls, max_size=1)
    return st.builds(
        _directory,
        st.sampled_from((0o755, 0o755, 0o700, 0o2775, 0o1777)),
        xattrs,
        default,
        st.booleans(),
    )


def _directory(
    mode: int, xattrs: dict[str, bytes], default: dict[str, bytes], opaque: bool
) -> Entry:
    return trees.directory(mode=mode, xattrs=xattrs | default, opaque=opaque)


def _files(*, root: bool) -> st.SearchStrategy[Entry]:
    xattrs = st.dictionaries(keys | root_keys if root else keys, values, max_size=1)
    access = st.dictionaries(st.just("system.posix_acl_access"), acls, max_size=1)
    owner = st.sampled_from((None, None, (1, 1), (1000, 0))) if root else st.none()

    def make(
        data: bytes,
        mode: int,
        xattrs: dict[str, bytes],
        access: dict[str, bytes],
        owner: tuple[int, int] | None,
    ) -> Entry:
        return trees.file(data, mode=mode, xattrs=xattrs | access, owner=owner)

    return st.builds(make, contents, modes, xattrs, access, owner)


def _entries(*, root: bool) -> st.SearchStrategy[Entry]:
    kinds: list[st.SearchStrategy[Entry]] = [
        _files(root=root),
        _files(root=root),
        _directories(root=root),
        _directories(root=root),
        st.just(trees.whiteout()),
        st.sampled_from(LINK_TARGETS).map(trees.symlink),
        _paths.map(trees.hardlink),
        st.just(trees.fifo()),
    ]
    if root:
        kinds.append(st.just(trees.device(1, 3)))
    return st.one_of(kinds)


def layers(*, root: bool) -> st.SearchStrategy[list[Tree]]:
    """One to three lowers, nearest first.

    Args:
        root: With what only root may make: devices, other owners, trusted attributes.
    """
    entries = _entries(root=root)
    tree = st.dictionaries(_paths, entries, min_size=1, max_size=8).map(_tidy)
    return st.lists(tree, min_size=1, max_size=3)


def _tidy(tree: dict[str, Entry]) -> Tree:
    """The part of a random tree that can be built: parents are directories, links lead to files."""
    kept: dict[str, Entry] = {}
    for path in sorted(tree):
        above = [str(parent) for parent in PurePosixPath(path).parents]
        if all(tree[parent].kind == DIRECTORY for parent in above if parent in tree):
            kept[path] = tree[path]
    return {path: entry for path, entry in kept.items() if _is_whole(kept, entry)}


def _is_whole(kept: dict[str, Entry], entry: Entry) -> bool:
    if entry.same_as is None:
        return True
    first = kept.get(entry.same_as)
    return first is not None and first.kind == REGULAR and first.same_as is None
