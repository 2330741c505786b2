"""What the compared trees lie on: an overlay's layers, and a plain directory."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from layermount.layer.marks import KernelMarks
from layermount.testing import trees
from layermount.testing.trees import Tree


class Side:
    """One overlay with layers of its own: `upper`, `work`, the lowers, nearest first."""

    def __init__(self, base: Path, layers: list[Tree], marks: KernelMarks) -> None:
        self.base = base
        self.name = base.name
        self.uppers = 0
        self.lowers = [
            trees.build(base / f"lower{n}", tree, marks=marks) for n, tree in enumerate(layers)
        ]
        self.digests = {lower: trees.digest(lower) for lower in self.lowers}
        self.new_upper()

    def new_upper(self) -> None:
        """Start with an empty upper."""
        self.upper = self.base / f"upper{self.uppers}"
        self.work = self.base / f"work{self.uppers}"
        self.upper.mkdir()
        os.utime(self.upper, ns=(trees.LONG_AGO_NS,) * 2)
        self.uppers += 1

    def seal(self) -> None:
        """The upper becomes the nearest lower, under a new upper with the same root."""
        old = self.upper
        self.lowers.insert(0, old)
        self.new_upper()
        shutil.copystat(old, self.upper)
        status = old.stat()
        os.chown(self.upper, status.st_uid, status.st_gid)
        os.utime(self.upper, ns=(status.st_atime_ns, status.st_mtime_ns))
        self.digests[old] = trees.digest(old)

    def assert_lowers_unchanged(self) -> None:
        for lower, before in self.digests.items():
            assert trees.digest(lower) == before, f"{lower} was changed"


def all_paths(root: Path) -> list[str]:
    found = ["."]
    for above, directories, names in os.walk(root):
        found += [os.path.relpath(os.path.join(above, name), root) for name in directories + names]
    return found


def break_links(root: Path) -> None:
    """Give each name a file of its own: rule X1."""
    for path in map(root.joinpath, all_paths(root)):
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1:
            above = path.parent.stat()
            # Made outside the tree, where nothing is inherited.
            _copy(path, root.with_name("copy"), status)
            root.with_name("copy").replace(path)
            os.utime(path.parent, ns=(above.st_atime_ns, above.st_mtime_ns))


def _copy(path: Path, copy: Path, status: os.stat_result) -> None:
    if stat.S_ISLNK(status.st_mode):
        copy.symlink_to(path.readlink())
    elif stat.S_ISREG(status.st_mode):
        shutil.copyfile(path, copy)
    else:
        os.mknod(copy, status.st_mode, status.st_rdev)
    os.chown(copy, status.st_uid, status.st_gid, follow_symlinks=False)
    # ACL and mode last: they may forbid the rest.
    for key in sorted(os.listxattr(path, follow_symlinks=False), reverse=True):
        value = os.getxattr(path, key, follow_symlinks=False)
        os.setxattr(copy, key, value, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        copy.chmod(stat.S_IMODE(status.st_mode))
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)
