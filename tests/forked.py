"""A function run in a forked child: for what changes the process itself, or ends it.

The child is a copy of the test process with one thread, so it may make user namespaces and give up
its privileges without an interpreter that an ordinary user can reach.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn, TypeVar

from layermount.linux import processes

T = TypeVar("T")

#: An ordinary user: somebody else when the tests run as root, else whoever runs them.
USER = 1000 if os.geteuid() == 0 else os.geteuid()


def in_child(function: Callable[[], T], *, user: int | None = None) -> T:
    """What `function` returns in a child, as `user` if one is given; its exception is raised here.

    Exceptions arrive as themselves where they can be pickled.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = fork()
    if pid == 0:
        _answer(function, user, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        raw = pipe.read()
    _, status = os.waitpid(pid, 0)
    assert raw, f"the child ended without an answer, status {status}"
    error, value = pickle.loads(raw)  # noqa: S301  # from our own child
    if error is not None:
        raise error
    result: T = value
    return result


def killed(function: Callable[[], object]) -> int:
    """Run `function` in a child that then gets SIGKILL; the child's pid."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = fork()
    if pid == 0:
        try:
            function()
            os.write(writer, b"done")
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            traceback.print_exc()
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"done"
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    return pid


def fork() -> int:
    """fork(2) beside the threads that test runners have; the child must use none of their locks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


@contextlib.contextmanager
def user_directory(user: int = USER) -> Iterator[Path]:
    """A new directory of `user` that it can reach, which a test's own directory is not."""
    with tempfile.TemporaryDirectory(prefix="layermount-test-", dir="/tmp") as name:
        path = Path(name)
        os.chown(path, user, user if user != os.geteuid() else -1)
        yield path


def become(user: int) -> None:
    """Give up root for `user`, as far as its own /proc files go too."""
    if os.geteuid() != user:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        processes.set_dumpable(on=True)


def _answer(function: Callable[[], object], user: int | None, writer: int) -> NoReturn:
    try:
        if user is not None:
            become(user)
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
