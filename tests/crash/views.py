"""What an overlay shows, as data: seen through the engine, and through a mount point.

Both give the same shape, so that they can be compared with `==`.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from layermount.engine.node import DirectoryNode, Node
from layermount.engine.overlay import Overlay

#: What is known of one entry, by name of the fact.
Facts = dict[str, object]
#: Path without a leading slash to facts; "" is the root.
View = dict[str, Facts]

#: Older than anything a test makes: the times of the layers, so that "now" can be told from them.
LONG_AGO_NS = 1_000_000_000 * 10**9
_TODAY_NS = 1_700_000_000 * 10**9


def through_engine(overlay: Overlay) -> View:
    """Everything that an open overlay shows."""
    view: View = {}
    pending: list[Node] = [overlay.root]
    while pending:
        node = pending.pop()
        view[node.path] = _engine_facts(overlay, node)
        if isinstance(node, DirectoryNode):
            pending += [overlay.lookup(node, name) for name, _ in overlay.listdir(node)]
    return view


def _engine_facts(overlay: Overlay, node: Node) -> Facts:
    status = overlay.getattr(node)
    assert node.kind == status.st_mode >> 12, node.path

    def read() -> bytes:
        handle = overlay.open(node, os.O_RDONLY)
        try:
            return handle.read(status.st_size + 1, 0)
        finally:
            handle.close()

    attributes = {key: overlay.getxattr(node, key) for key in overlay.listxattr(node)}
    return _facts(status, attributes, read, lambda: overlay.readlink(node))


def through_path(root: Path) -> View:
    """Everything below a directory, such as a mount point."""
    view: View = {}
    for path, name in _walk(root):
        status = os.lstat(path)
        attributes = {
            key: os.getxattr(path, key, follow_symlinks=False)
            for key in os.listxattr(path, follow_symlinks=False)
        }
        view[name] = _facts(
            status, attributes, Path(path).read_bytes, lambda path=path: os.readlink(path)
        )
    return view


def _walk(root: Path) -> Iterator[tuple[str, str]]:
    yield str(root), ""
    for above, directories, files in os.walk(root):
        for name in directories + files:
            path = os.path.join(above, name)
            yield path, os.path.relpath(path, root)


def _facts(
    status: os.stat_result,
    attributes: dict[str, bytes],
    read: Callable[[], bytes],
    target: Callable[[], str],
) -> Facts:
    facts: Facts = {
        "mode": oct(status.st_mode),
        "owner": (status.st_uid, status.st_gid),
        "mtime": status.st_mtime_ns,
        "inode": status.st_ino,
        "xattrs": attributes,
    }
    if not stat.S_ISDIR(status.st_mode):
        facts |= {"size": status.st_size, "nlink": status.st_nlink}
    if stat.S_ISREG(status.st_mode):
        data = read()
        facts["data"] = data if len(data) < 64 else hashlib.sha256(data).hexdigest()
    elif stat.S_ISLNK(status.st_mode):
        facts["target"] = target()
    elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        facts["device"] = status.st_rdev
    return facts


def without(view: View, *names: str) -> View:
    """The view with some facts left out."""
    return {
        path: {key: value for key, value in facts.items() if key not in names}
        for path, facts in view.items()
    }


def settled(view: View, inodes: set[int]) -> View:
    """The view with what differs from run to run made equal: new times and new inode numbers.

    The times of directories go: an entry that is prepared elsewhere and a mark that takes an entry's
    place both change them, a little earlier or later than the operation itself.

    Args:
        view: What to settle.
        inodes: The inode numbers of the lowers, which stay whatever happens.
    """
    result: View = {}
    for path, facts in view.items():
        changed = dict(facts)
        changed["inode"] = facts["inode"] if facts["inode"] in inodes else "own"
        mtime = facts["mtime"]
        assert isinstance(mtime, int)
        changed["mtime"] = "now" if mtime > _TODAY_NS else mtime
        if "size" not in facts:
            del changed["mtime"]
        result[path] = changed
    return result


def differences(first: View, second: View) -> list[str]:
    """What differs, for people; empty when nothing does."""
    lines = [f"only first: {path}" for path in sorted(first.keys() - second.keys())]
    lines += [f"only second: {path}" for path in sorted(second.keys() - first.keys())]
    for path in sorted(first.keys() & second.keys()):
        one, two = first[path], second[path]
        keys = sorted(key for key in one.keys() | two.keys() if one.get(key) != two.get(key))
        lines += [f"{path or '/'}: {key}: {one.get(key)!r} != {two.get(key)!r}" for key in keys]
    return lines
