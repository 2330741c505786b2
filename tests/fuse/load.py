"""A write-heavy load on an overlay whose daemon may die at any moment.

Every worker has a directory of its own, and names of its own in a directory of all. It knows what
it did and tells so when the daemon has died, with the step that was going on then. The same steps
on a plain directory give what must be there.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

from layermount.testing import trees
from layermount.testing.trees import Tree, directory, file
from tests import forked

#: What a call on a mount whose daemon died ends in.
DEAD = (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ENODEV)
SHARED = "shared"
#: An operation's name, the path it changes, and what it needs.
Step = tuple[str, str, *tuple[str | int, ...]]

_RECORD = 64
_MODES = (0o600, 0o644, 0o755, 0o700)
_SIZES = (10, 5000, 70_000, 300_000)
_WEIGHTS = {
    "replace": 10,
    "create": 2,
    "append": 8,
    "truncate": 3,
    "unlink": 5,
    "mkdir": 4,
    "rmdir": 3,
    "move_tree": 5,
    "move": 4,
    "link": 1,
    "symlink": 1,
    "chmod": 3,
    "setxattr": 2,
}


def lower(workers: int) -> Tree:
    """What the load works on: files, trees to move, names to remove."""
    found: dict[str, trees.Entry] = {SHARED: directory()}
    for worker in range(workers):
        for n in range(6):
            found[f"{worker}/file{n}"] = file(content(f"{worker}/file{n}", n, 30_000 * n))
            found[f"{worker}/tree{n}/sub/leaf"] = file(content("leaf", n, 100))
            found[f"{SHARED}/{worker}-file{n}"] = file(content("shared", n, 500))
    return found


def content(path: str, number: int, size: int) -> bytes:
    """Lines that say whose they are, so that a torn file is seen in the message."""
    line = f"{path} {number:06d}\n".encode()
    return (line * (size // len(line) + 1))[:size]


def owned_by(worker: int, path: str) -> bool:
    """Whether only that worker changes what is at `path`."""
    return path == str(worker) or path.startswith((f"{worker}/", f"{SHARED}/{worker}-"))


@dataclass(frozen=True)
class Stopped:
    """What a worker did before the daemon died, and what it was doing then."""

    done: Sequence[Step]
    step: Step


class Worker:
    """One process of the load."""

    def __init__(self, number: int, root: Path, seed: str) -> None:
        ours, theirs = Pipe(duplex=False)
        self.pid = forked.fork()
        if self.pid == 0:
            ours.close()
            _work(Names(number), root, Random(seed), theirs)  # noqa: S311  # test data, no secret
        theirs.close()
        self._answer = ours

    def stopped(self) -> Stopped | str:
        """Wait for its end; a text says how it ended otherwise than by the daemon's death."""
        with self._answer:
            answer: Stopped | str = self._answer.recv()
        os.waitpid(self.pid, 0)
        return answer


class Names:
    """What a worker has: the paths of its files, and of the directories it makes names in."""

    def __init__(self, worker: int) -> None:
        self.worker = worker
        paths = [path for path in lower(worker + 1) if owned_by(worker, path)]
        self.files = set(paths)
        self.directories = {os.path.dirname(path) for path in paths}
        self.directories |= {os.path.dirname(path) for path in self.directories} - {""}
        self.directories.discard(SHARED)
        self.links: set[str] = set()
        self.count = 0

    def steps(self, random: Random) -> Sequence[Step]:
        """One step, or some that belong together; all that is needed for it is there."""
        self.count += 1
        kind = random.choices([*_WEIGHTS], [*_WEIGHTS.values()])[0]
        new = self._new(random)
        if kind in ("create", "mkdir", "symlink"):
            return [(kind, new)]
        if kind in ("rmdir", "move_tree"):
            return self._on_directory(kind, new, random)
        if not self.files:
            return []
        old = random.choice(sorted(self.files))
        if kind == "replace":
            filled = ("fill", new, self.count, random.choice(_SIZES))
            return [("create", new), filled, ("move", new, old)]
        rest: dict[str, tuple[str | int, ...]] = {
            "append": (self.count,),
            "truncate": (random.choice((0, _RECORD, 10 * _RECORD)),),
            "chmod": (random.choice(_MODES),),
            "setxattr": (self.count,),
            "move": (new,),
            "link": (new,),
            "unlink": (),
        }
        return [(kind, old, *rest[kind])]

    def _new(self, random: Random) -> str:
        above = random.choice([SHARED, *sorted(self.directories)])
        own = f"{self.worker}-" if above == SHARED else ""
        return f"{above}/{own}new{self.count}"

    def _on_directory(self, kind: str, new: str, random: Random) -> Sequence[Step]:
        """On one of its directories but its first and the shared one."""
        found = sorted(path for path in self.directories if "/" in path)
        if kind == "rmdir":
            names = self.files | self.directories | self.links
            used = {os.path.dirname(path) for path in names}
            found = [path for path in found if path not in used]
        if not found:
            return []
        chosen = random.choice(found)
        if kind == "rmdir":
            return [("rmdir", chosen)]
        return [] if new.startswith(f"{chosen}/") else [("move", chosen, new)]

    def note(self, step: Step) -> None:
        """A step was done."""
        name, path, *rest = step
        if name == "create":
            self.files.add(path)
        elif name == "symlink":
            self.links.add(path)
        elif name == "mkdir":
            self.directories.add(path)
        elif name == "link":
            self.files.add(str(rest[0]))
        elif name in ("unlink", "rmdir"):
            self.files.discard(path)
            self.directories.discard(path)
        elif name == "move":
            new = str(rest[0])
            self.files = {_moved(old, path, new) for old in self.files}
            self.directories = {_moved(old, path, new) for old in self.directories}
            self.links = {_moved(old, path, new) for old in self.links}


def _moved(path: str, old: str, new: str) -> str:
    return new + path[len(old) :] if path == old or path.startswith(f"{old}/") else path


def apply(root: Path, step: Step) -> None:
    """Do one step; all but "fill" change what is shown at once or not at all."""
    name, path, *rest = step
    _CALLS[name](root / path, root, *rest)


def _work(names: Names, root: Path, random: Random, answer: Connection) -> None:
    done: list[Step] = []
    try:
        while True:
            for step in names.steps(random):
                try:
                    apply(root, step)
                except OSError as error:
                    if error.errno not in DEAD:
                        raise
                    answer.send(Stopped(done, step))
                    return
                names.note(step)
                done.append(step)
    except BaseException as error:  # noqa: BLE001  # it is told where it is waited for
        answer.send(f"worker {names.worker}, after {done[-5:]}: {error!r}")
    finally:
        os._exit(0)


def _create(path: Path, _root: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))


def _append(path: Path, _root: Path, number: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(fd, content("record", number, _RECORD))
    finally:
        os.close(fd)


def _setxattr(path: Path, _root: Path, number: int) -> None:
    os.setxattr(path, "user.k", b"%d" % number)


_CALLS: dict[str, Callable[..., object]] = {
    "create": _create,
    "fill": lambda path, _root, n, size: path.write_bytes(content(path.name, n, size)),
    "append": _append,
    "truncate": lambda path, _root, size: os.truncate(path, size),
    "unlink": lambda path, _root: path.unlink(),
    "mkdir": lambda path, _root: path.mkdir(0o755),
    "rmdir": lambda path, _root: path.rmdir(),
    "move": lambda path, root, new: path.rename(root / new),
    "link": lambda path, root, new: (root / new).hardlink_to(path),
    "symlink": lambda path, _root: path.symlink_to("target"),
    "chmod": lambda path, _root, mode: path.chmod(mode),
    "setxattr": _setxattr,
}
