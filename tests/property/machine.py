"""The state machine: every operation as a rule."""

from __future__ import annotations

import os
import stat
from random import Random

from hypothesis.stateful import precondition, rule

from layermount.linux import files
from layermount.testing.oracles import Failure
from tests.property import layers as given
from tests.property.comparison import RANDOM, Comparison
from tests.property.sides import all_paths, break_links

FLAGS = (os.O_RDONLY, os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_TRUNC)
ON_ODD_NAMES: tuple[tuple[str, *tuple[object, ...]], ...] = (
    ("unlink",),
    ("rmdir",),
    ("mkdir", 0o755),
    ("create", 0o644, b""),
    ("symlink", "a"),
    ("mknod", stat.S_IFIFO | 0o644, 0),
    ("read",),
    ("readlink",),
    ("truncate", 0),
    ("write", b"x", 0),
)
_MOST_LOWERS = 4


class OverlayMachine(Comparison):
    """Every operation goes to all; results, errnos and what is shown must be the same."""

    @rule(random=RANDOM)
    def create(self, random: Random) -> None:
        modes = given.MODES if self.as_root else given.USER_FILE_MODES
        self.do("create", self.new(random), random.choice(modes), _content(random))

    @rule(random=RANDOM)
    def write(self, random: Random) -> None:
        self.do("write", self.file(random), _content(random), random.choice((0, 3, 7000)))

    @rule(random=RANDOM)
    def append(self, random: Random) -> None:
        self.do("append", self.file(random), _content(random))

    @rule(random=RANDOM)
    def overwrite(self, random: Random) -> None:
        self.do("overwrite", self.file(random), _content(random))

    @rule(random=RANDOM)
    def truncate(self, random: Random) -> None:
        self.do("truncate", self.file(random), random.choice((0, 2, 6000, -1)))

    @rule(random=RANDOM)
    def mkdir(self, random: Random) -> None:
        self.do("mkdir", self.new(random), random.choice(self.modes))

    @rule(random=RANDOM)
    def symlink(self, random: Random) -> None:
        self.do("symlink", self.new(random), random.choice(given.LINK_TARGETS))

    @rule(random=RANDOM)
    def link(self, random: Random) -> None:
        self.do("link", self.file(random), self.new(random))

    @rule(random=RANDOM)
    def mknod(self, random: Random) -> None:
        kinds = given.NODES + given.DEVICES if self.as_root else given.USER_NODES
        self.do("mknod", self.new(random), *random.choice(kinds))

    @rule(random=RANDOM)
    def unlink(self, random: Random) -> None:
        self.do("unlink", self.file(random))

    @rule(random=RANDOM)
    def rmdir(self, random: Random) -> None:
        self.do("rmdir", self.directory(random))

    @rule(random=RANDOM)
    def remove_tree(self, random: Random) -> None:
        """Empty a directory and remove it: only so does a merged one go."""
        path = self.directory(random)
        if path == "." or not self.is_directory(path):
            return
        below = [name for name in all_paths(self.plain.root) if name.startswith(f"{path}/")]
        for name in sorted(below, reverse=True):
            self.do("rmdir" if self.is_directory(name) else "unlink", name)
        self.do("rmdir", path)

    @rule(random=RANDOM)
    def move(self, random: Random) -> None:
        kind = random.choice((self.file, self.directory, self.any))
        flags = random.choice((0, 0, 0, files.RENAME_NOREPLACE))
        self.do("rename", kind(random), self.new(random), flags)

    @rule(random=RANDOM)
    def replace(self, random: Random) -> None:
        kind = random.choice((self.file, self.directory, self.any))
        self.do("rename", kind(random), kind(random), random.choice((0, 0, 0, 1, 3)))

    @rule(random=RANDOM)
    def exchange(self, random: Random) -> None:
        self.do("rename", self.any(random), self.any(random), files.RENAME_EXCHANGE)

    @rule(random=RANDOM)
    def chmod(self, random: Random) -> None:
        self.do("chmod", self.any(random), random.choice(self.modes))

    @precondition(lambda self: self.as_root)
    @rule(random=RANDOM)
    def chown(self, random: Random) -> None:
        owner, group = random.choice(given.OWNERS), random.choice(given.OWNERS)
        path = self.any(random)
        if not self.has_stale_mode(path):
            self.do("chown", path, owner, group)

    @rule(random=RANDOM)
    def utimens(self, random: Random) -> None:
        times = random.choice(given.TIMES), random.choice(given.TIMES)
        self.do("utimens", self.any(random), *times)

    @rule(random=RANDOM)
    def setxattr(self, random: Random) -> None:
        key, value = random.choice(self.keys), random.choice(given.VALUES)
        self.do("setxattr", self.any(random), key, value, random.choice(given.XATTR_FLAGS))

    @rule(random=RANDOM)
    def set_acl(self, random: Random) -> None:
        key, value = random.choice(given.ACL_KEYS), given.acl(random)
        self.do("setxattr", self.any(random), key, value, 0)

    @rule(random=RANDOM)
    def removexattr(self, random: Random) -> None:
        self.do("removexattr", self.any(random), random.choice(self.keys + given.ACL_KEYS))

    @rule(random=RANDOM)
    def getxattr(self, random: Random) -> None:
        self.do("getxattr", self.any(random), random.choice(self.keys + given.ACL_KEYS))

    @property
    def modes(self) -> tuple[int, ...]:
        return given.MODES if self.as_root else given.USER_MODES

    @property
    def keys(self) -> tuple[str, ...]:
        return given.KEYS + given.ROOT_KEYS if self.as_root else given.KEYS

    @rule(random=RANDOM)
    def odd_name(self, random: Random) -> None:
        operation, *arguments = random.choice(ON_ODD_NAMES)
        self.do(operation, self.odd(random), *arguments)

    @rule(random=RANDOM)
    def odd_name_of_two(self, random: Random) -> None:
        path, odd = self.any(random), self.odd(random)
        both = random.choice(((path, odd), (odd, path)))
        flags = random.choice((None, 0, 1, 2, 3))
        if flags is None:
            self.do("link", *both)
        else:
            self.do("rename", *both, flags)

    @rule(random=RANDOM)
    def open_file(self, random: Random) -> None:
        number, path = random.randrange(3), self.file(random)
        if number in self.files:
            self.close_file(number)
        if self.is_directory(path):
            return  # a node of a directory is read, not opened
        if isinstance(self.do("open_file", number, path, random.choice(FLAGS)), Failure):
            return
        self.files.add(number)
        if not stat.S_ISREG(self.plain.stat(path).st_mode):
            self.close_file(number)  # rule X10

    @precondition(lambda self: self.files)
    @rule(random=RANDOM)
    def read_file(self, random: Random) -> None:
        self.do("read_file", self.opened(random), random.choice((4, 10_000)), random.choice((0, 3)))

    @precondition(lambda self: self.files)
    @rule(random=RANDOM)
    def write_file(self, random: Random) -> None:
        self.do("write_file", self.opened(random), _content(random), random.choice((0, 3)))

    @precondition(lambda self: self.files)
    @rule(random=RANDOM)
    def truncate_file(self, random: Random) -> None:
        self.do("truncate_file", self.opened(random), random.choice((0, 3, 100)))

    def opened(self, random: Random) -> int:
        return random.choice(sorted(self.files))

    @rule()
    def reopen(self) -> None:
        self.close_all()
        self.say("reopen")
        self.open_all()

    @rule()
    def seal(self) -> None:
        """The upper becomes a lower: its redirects and metadata-only copies are read from there."""
        if len(self.engine_side.lowers) > _MOST_LOWERS:
            return
        self.close_all()
        self.say("seal")
        for side in self.sides:
            side.seal()
        break_links(self.plain.root)
        self.open_all()


def _content(random: Random) -> bytes:
    return random.choice(given.CONTENTS)
