"""What a conformance case is, what it is run on, and how it is run.

The cases themselves are in the modules beside this one, by subject; ways to show a tree are in
`subjects.py`.
"""

from __future__ import annotations

import enum
import errno
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from layermount.layer.marks import KernelMarks, Marks
from layermount.testing.conformance import children
from layermount.testing.conformance.children import User
from layermount.testing.conformance.faces import Face, MountedFace
from layermount.testing.oracles import Failure, KernelTarget, attempt
from layermount.testing.trees import Snapshot, Tree, assert_same, build, digest, snapshot, without

T = TypeVar("T")

_RULE = re.compile(r"\b[A-Z]\d+\b")


class Trait(enum.Enum):
    """What a subject promises and a case may need; the value is the promise in words."""

    ROOT = "the caller is root, and of the machine, not of a user namespace"
    PATHS = "every program reaches the tree by path, as it does a mount"
    OTHER_USERS = "other users may enter the tree, each with what the modes allow"
    OWN_ROOT = "paths start at the overlay's root: absolute links and `..` stay inside"
    OCI_LOWERS = "lowers may be in the OCI dialect"
    MOVES_LOWER_DIRECTORIES = "directories of lowers can be moved"
    REFUSES_TO_MOVE_LOWER_DIRECTORIES = "moving a lower's directory is EXDEV"
    NUMBERS_STAY = "what is copied up keeps its inode number, in the next run too"
    NUMBERS_MOVE = "so does what moves besides"
    LINKS_ARE_ONE = "several names of a file that was copied up are known for one file"
    READER_FOLLOWS = "a file open for reading sees what is written after its copy-up"
    READER_STAYS = "a file open for reading keeps what it was opened with when it is copied up"
    LARGE_READER_FOLLOWS = "the same of files that are worth reading past whatever serves them"
    LARGE_READER_STAYS = "of such files, one that is open keeps what it was opened with"
    MAPPINGS_FOLLOW = "a mapping of a file open for reading shows what is written after its copy-up"
    HOLES_AT_ONCE = "holes are found in a file that is open for writing, too"
    ONE_FILESYSTEM = "all layers are on one filesystem, so that ranges are copied in the kernel"
    FILE_FLAGS = "file flags are those of a filesystem that has them (ext4, xfs, btrfs)"
    BIRTH_TIMES = "statx(2) tells when a file was made"
    TEMPORARY_FILES = "O_TMPFILE makes files without a name"


@dataclass(frozen=True, slots=True)
class Layers:
    """Layers on disk, and where to show them.

    Attributes:
        lowers: Existing directories, nearest first.
        upper: An existing directory; None shows a tree that cannot be changed.
        work: On the upper's filesystem; None without an upper.
        target: An empty directory to show the tree at.
        marks: The dialect of the upper.
        lower_marks: The dialect of the lowers.
    """

    lowers: tuple[Path, ...]
    upper: Path | None
    work: Path | None
    target: Path
    marks: KernelMarks
    lower_marks: Marks


@dataclass(frozen=True, slots=True)
class Subject:
    """What the suite is run on: a way to show layers. `mounted` and `in_process` make one.

    Attributes:
        name: For messages.
        base: An existing directory for the layers.
        marks: The dialect of its uppers.
        traits: What it promises.
        show: Shows layers as long as the context lasts.
    """

    name: str
    base: Path
    marks: KernelMarks
    traits: frozenset[Trait]
    show: Callable[[Layers], AbstractContextManager[Face]]


class Showing:
    """Layers that are being shown, as a case gets them.

    Attributes:
        face: The operations, with paths from the root of the tree; "." is the root.
        layers: What is shown, to look at what was written.
        subject: What shows it.
    """

    def __init__(self, subject: Subject, layers: Layers) -> None:
        self.subject = subject
        self.layers = layers
        self.face: Face
        self._stack = ExitStack()
        self._start()

    def _start(self) -> None:
        self.face = self._stack.enter_context(self.subject.show(self.layers))

    def at(self, path: str = ".") -> str:
        """The path of an entry for the system; needs PATHS."""
        return str(self.layers.target / path)

    def stop(self) -> None:
        """Stop showing; a second call does nothing."""
        self._stack.close()

    def show_again(self) -> None:
        """Stop, and show the same layers anew: what only a memory knew is gone."""
        self.stop()
        self._start()

    def as_user(self, user: User, function: Callable[[Face], T]) -> T:
        """What `function` returns in a child process of another user; needs OTHER_USERS.

        It gets the same tree. The umask is 0o022 and the working directory is the tree's root.
        """
        return children.in_child(
            lambda: function(MountedFace(Path())), user=user, directory=self.at()
        )

    def in_child(self, function: Callable[[Face], T]) -> T:
        """What `function` returns in another process of the same user; needs PATHS."""
        return children.in_child(lambda: function(MountedFace(Path())), directory=self.at())

    def __enter__(self) -> Showing:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


@dataclass(frozen=True, slots=True)
class Case:
    """One promise about a merged tree.

    Attributes:
        name: Its subject and what it says: "moving.noreplace".
        text: What is promised, with the numbers of the rules of `docs/semantics.md`.
        needs: What a subject must promise for the case to mean anything.
        lowers: The lowers as data, nearest first.
        upper: The upper as data; None shows a tree that cannot be changed.
        lower_marks: The dialect of the lowers; None is the subject's own.
        compared: Whether the kernel's overlayfs must show the same tree over the layers afterwards.
        prepare: Does to the layers, before they are shown, what no tree can say.
        body: Acts, looks, and raises AssertionError.
    """

    name: str
    text: str
    needs: frozenset[Trait]
    lowers: tuple[Tree, ...]
    upper: Tree | None
    lower_marks: Marks | None
    compared: bool
    prepare: Callable[[Layers], None] | None
    body: Callable[[Showing], None]

    @property
    def rules(self) -> tuple[str, ...]:
        """The numbers of the rules it is about."""
        return tuple(_RULE.findall(self.text))

    def missing(self, subject: Subject) -> str | None:
        """Why the case cannot be run on a subject; None when it can."""
        lacking = sorted(trait.value for trait in self.needs - subject.traits)
        return f"not promised by {subject.name}: {'; '.join(lacking)}" if lacking else None

    def run(self, subject: Subject) -> None:
        """Build the layers, show them, try the case, stop, and look at what is left on disk.

        Afterwards the lowers must be as they were, to the bit and the change time. Where this
        process may mount, the kernel's overlayfs must show the same tree over the layers.

        Raises:
            AssertionError: The promise is not kept.
            ValueError: The subject does not promise what the case needs.
        """
        reason = self.missing(subject)
        if reason is not None:
            raise ValueError(f"{self.name}: {reason}")
        with tempfile.TemporaryDirectory(prefix="case-", dir=subject.base) as name:
            place = Path(name)
            # Other users walk through it.
            place.chmod(0o755)
            layers = self._build(place, subject)
            if self.prepare is not None:
                self.prepare(layers)
            before = {lower: digest(lower) for lower in layers.lowers}
            with Showing(subject, layers) as shown:
                self.body(shown)
                seen = snapshot(shown.face) if self._is_compared(subject) else None
            for lower, old in before.items():
                assert digest(lower) == old, f"{lower.name} was changed"
            if seen is not None:
                _assert_kernel_shows(seen, layers, place / "kernel")

    def _build(self, place: Path, subject: Subject) -> Layers:
        lower_marks = self.lower_marks or subject.marks
        lowers = tuple(
            build(place / f"lower{number}", tree, marks=lower_marks)
            for number, tree in enumerate(self.lowers)
        )
        target = place / "shown"
        target.mkdir()
        upper = work = None
        if self.upper is not None:
            upper = build(place / "upper", self.upper, marks=subject.marks)
            work = place / "work"
            work.mkdir()
        return Layers(lowers, upper, work, target, subject.marks, lower_marks)

    def _is_compared(self, subject: Subject) -> bool:
        readable = self.lower_marks in (None, subject.marks) and self.upper is not None
        return self.compared and readable and Trait.ROOT in subject.traits


def _assert_kernel_shows(seen: Snapshot, layers: Layers, target: Path) -> None:
    assert layers.upper is not None
    assert layers.work is not None
    user_marks = layers.marks.prefix.startswith("user.")
    options = ["userxattr"] if user_marks else ["redirect_dir=on", "metacopy=on"]
    kernel = KernelTarget(target, layers.upper, layers.work, layers.lowers, *options)
    try:
        mounted = snapshot(kernel)
    finally:
        kernel.close()
    # Numbers belong to a mount; with user marks not every one has a record (X9).
    blank = ("inode", "links") if user_marks else ("inode",)
    assert_same(without(seen, *blank), without(mounted, *blank), ("shown", "kernel, afterwards"))


class Collection:
    """The cases of one subject matter; `case` is the decorator that adds one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.cases: list[Case] = []

    def case(
        self,
        *lowers: Tree,
        upper: Tree | None = None,
        needs: Iterable[Trait] = (),
        lower_marks: Marks | None = None,
        read_only: bool = False,
        compared: bool = True,
        prepare: Callable[[Layers], None] | None = None,
    ) -> Callable[[Callable[[Showing], None]], Callable[[Showing], None]]:
        """Make a function a case: its name is the case's, its docstring the promise.

        Args:
            lowers: The lowers, nearest first; none stands for one that is empty.
            upper: What the upper holds at first; nothing unless said.
            needs: What a subject must promise.
            lower_marks: The dialect of the lowers, if not the subject's own.
            read_only: Show the tree without an upper.
            compared: Whether the kernel's overlayfs must show the same tree afterwards.
            prepare: Does to the layers, before they are shown, what no tree can say.
        """

        def add(body: Callable[[Showing], None]) -> Callable[[Showing], None]:
            self.cases.append(
                Case(
                    name=f"{self.name}.{body.__name__}",
                    text=body.__doc__ or "",
                    needs=frozenset(needs),
                    lowers=lowers or ({},),
                    upper=None if read_only else upper or {},
                    lower_marks=lower_marks,
                    compared=compared,
                    prepare=prepare,
                    body=body,
                )
            )
            return body

        return add


def same(found: object, expected: object, what: str = "") -> None:
    """Raise unless both are equal, with both in the message.

    Raises:
        AssertionError: They are not.
    """
    prefix = f"{what}: " if what else ""
    assert found == expected, f"{prefix}{found!r}, expected {expected!r}"


def fails(
    number: int | Sequence[int], operation: Callable[..., object], *arguments: object
) -> None:
    """Raise unless the operation ends in `OSError` with this errno, or one of these.

    Raises:
        AssertionError: It succeeds, or fails otherwise.
    """
    wanted = (number,) if isinstance(number, int) else tuple(number)
    found = attempt(operation, *arguments)
    if isinstance(found, Failure) and found.number in wanted:
        return
    name = getattr(operation, "__name__", str(operation))
    names = " or ".join(errno.errorcode.get(one, str(one)) for one in wanted)
    raise AssertionError(f"{name}{arguments!r}: {found!r}, expected {names}")
