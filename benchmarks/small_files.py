"""Layers of small files, an archive and a repository: what the FUSE benchmark is run over."""

from __future__ import annotations

import io
import os
import random
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

from filesystems import run

_FILES = 100
_BELOW = 25
#: Every so many directories are in the nearer lower and in the upper, too, with as many files.
_NEAR_EVERY, _NEAR_FILES = 4, 25
_UPPER_EVERY, _UPPER_FILES = 10, 5

_WORDS = (
    b"layer upper lower merged whiteout opaque inode dentry lookup forget rename unlink answer "
    b"request kernel buffer offset length handle passthrough backing directory cache"
).split()
#: What `grep` looks for; in one file of a hundred.
NEEDLE = "needle"


@dataclass(frozen=True, slots=True)
class SmallFiles:
    """Layers that show many small files.

    Attributes:
        base: Has the layers `far`, `near` and `upper`.
        tops: The directories of the root; each has as many directories, and files in all of them.
        files: The paths of all files, relative.
        lower_files: Those that are there without the upper, too.
        entries: How many files and directories there are, the root included.
    """

    base: Path
    tops: list[str]
    files: list[str]
    lower_files: list[str]
    entries: int


def small_files(base: Path, directories: int) -> SmallFiles:
    """`directories` directories with 100 files of 200 to 1500 bytes each, as images have them.

    The far lower has everything, the near one a quarter of the directories, the upper a tenth: some
    files changed, some new, some deleted.
    """
    chooser = random.Random(directories)  # noqa: S311  the same files each time, no secret
    files, lower_files, tops = [], [], []
    for place in range(directories):
        above, below = divmod(place, _BELOW)
        name = f"directory{above:02}/sub{below:02}" if below else f"directory{above:02}"
        if not below:
            tops.append(name)
        names = [f"{name}/file{number:03}" for number in range(_FILES)]
        lower_files += names
        _fill(base / "far", names, chooser)
        if place % _NEAR_EVERY == 0:
            _fill(base / "near", names[:_NEAR_FILES], chooser)
        if place % _UPPER_EVERY == 0:
            names = _change(base / "upper", names, chooser)
        files += names
    return SmallFiles(base, tops, files, lower_files, len(files) + directories + 1)


def _fill(layer: Path, names: list[str], chooser: random.Random) -> None:
    """Write files of one directory."""
    (layer / names[0]).parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        (layer / name).write_bytes(text(chooser))


def _change(upper: Path, names: list[str], chooser: random.Random) -> list[str]:
    """Change, add and delete files of one directory in the upper; what it then shows."""
    directory = names[0].rpartition("/")[0]
    new = [f"{directory}/new{number}" for number in range(_UPPER_FILES)]
    _fill(upper, names[:_UPPER_FILES] + new, chooser)
    for name in names[-_UPPER_FILES:]:
        os.mknod(upper / name, 0o020000, 0)
    return names[:-_UPPER_FILES] + new


def text(chooser: random.Random) -> bytes:
    """200 to 1500 bytes in lines."""
    size = chooser.randint(200, 1500)
    words = [chooser.choice(_WORDS) for _ in range(size // 6)]
    if chooser.randrange(100) == 0:
        words[0] = NEEDLE.encode()
    lines = [b" ".join(words[start : start + 10]) for start in range(0, len(words), 10)]
    return (b"\n".join(lines) + b"\n")[:size]


def archive(path: Path, files: int) -> None:
    """A tar of `files` files of 1 to 40 kB, ten to a directory."""
    chooser = random.Random(files)  # noqa: S311  as above
    block = b"".join(text(chooser) for _ in range(100))
    with tarfile.open(path, "w") as tar:
        for number in range(files):
            size = chooser.randint(1_000, 40_000)
            entry = tarfile.TarInfo(f"package{number // 100:02}/part{number // 10:03}/file{number}")
            entry.size, entry.mtime = size, 1_700_000_000
            tar.addfile(entry, io.BytesIO(block[:size]))


def repository(path: Path, files: int) -> None:
    """A repository with one commit of `files` files, all of them checked out."""
    chooser = random.Random(files)  # noqa: S311  as above
    for start in range(0, files, _FILES // 2):
        names = [f"part{start:05}/file{start + number:05}.txt" for number in range(_FILES // 2)]
        _fill(path, names, chooser)
    git = ("git", "-C", path, "-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost")
    for words in (("init", "--quiet"), ("add", "--all"), ("commit", "--quiet", "--message=all")):
        run(*git, *words)


def copied(source: Path, target: Path) -> Path:
    """A copy with all there is to copy: modes, times, marks."""
    shutil.rmtree(target, ignore_errors=True)
    run("cp", "--archive", source, target)
    return target
