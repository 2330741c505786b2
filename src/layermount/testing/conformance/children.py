"""A function in a forked child: as another user, or beside this process.

The child is a copy with one thread. What it returns comes back through a pipe, pickled; what it
raises is raised here.
"""

from __future__ import annotations

import os
import pickle
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NoReturn, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class User:
    """Who a child is.

    Attributes:
        uid: User.
        gid: Group.
        groups: Supplementary groups.
    """

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


#: Two that own nothing on a machine by accident, without privilege.
ALICE = User(4242, 4242)
BOB = User(4343, 4343)


class Child(Generic[T]):
    """A child that is at work; `result` waits for it. Every child must be asked for its result."""

    def __init__(
        self,
        function: Callable[[], T],
        *,
        user: User | None = None,
        directory: str | None = None,
    ) -> None:
        """Start it.

        Args:
            function: What it does.
            user: Who it becomes; None stays the caller.
            directory: Its working directory, entered before it becomes another user.

        Raises:
            OSError: As fork(2).
        """
        reader, writer = os.pipe2(os.O_CLOEXEC)
        self._reader = reader
        self.pid = fork()
        if self.pid == 0:
            os.close(reader)
            _answer(function, user, directory, writer)
        os.close(writer)

    def result(self) -> T:
        """What the function returns, or the exception it raises.

        Raises:
            AssertionError: The child ended without an answer.
        """
        with os.fdopen(self._reader, "rb") as pipe:
            raw = pipe.read()
        _, status = os.waitpid(self.pid, 0)
        assert raw, f"the child ended without an answer, wait status {status}"
        error, value = pickle.loads(raw)  # noqa: S301  # from our own child
        if error is not None:
            raise error
        result: T = value
        return result


def in_child(
    function: Callable[[], T], *, user: User | None = None, directory: str | None = None
) -> T:
    """What `function` returns in a child; its exception is raised here."""
    return Child(function, user=user, directory=directory).result()


def fork() -> int:
    """fork(2), with no word about the threads that test runners have: use none of their locks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _become(user: User) -> None:
    os.umask(0o022)
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)


def _answer(
    function: Callable[[], object], user: User | None, directory: str | None, writer: int
) -> NoReturn:
    try:
        if directory is not None:
            os.chdir(directory)
        if user is not None:
            _become(user)
        answer: tuple[BaseException | None, object] = (None, function())
    except BaseException as error:  # noqa: BLE001  # it is raised in the parent
        error.add_note("in a child:\n" + traceback.format_exc())
        answer = (error, None)
    try:
        raw = pickle.dumps(answer)
    except Exception:  # noqa: BLE001  # what cannot be pickled is told in words
        raw = pickle.dumps((AssertionError(repr(answer)), None))
    with os.fdopen(writer, "wb") as pipe:
        pipe.write(raw)
    os._exit(0)
