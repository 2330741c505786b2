from __future__ import annotations

import errno

import pytest

from layermount import errors
from layermount.hosts.base import Verdict, errno_of


def subclasses(kind: type[errors.LayerMountError]) -> list[type[errors.LayerMountError]]:
    return [kind, *(found for child in kind.__subclasses__() for found in subclasses(child))]


@pytest.mark.parametrize("kind", subclasses(errors.LayerMountError), ids=lambda kind: kind.__name__)
def test_every_error_of_ours_answers_its_own(kind: type[errors.LayerMountError]) -> None:
    answer = errno_of(kind("message"))
    assert answer == kind.posix_errno
    assert answer in errno.errorcode


OTHERS = {
    "of the system": (OSError(errno.ENOTEMPTY, "x", "path"), errno.ENOTEMPTY),
    "of a subclass": (FileNotFoundError(errno.ENOENT, "x"), errno.ENOENT),
    "of the system, without a number": (OSError("just words"), errno.EIO),
    "of the system, with zero": (OSError(0, "x"), errno.EIO),
    "a fault of ours": (KeyError("x"), errno.EIO),
    "the end of the process": (KeyboardInterrupt(), errno.EIO),
}


@pytest.mark.parametrize(("error", "number"), OTHERS.values(), ids=OTHERS)
def test_other_errors(error: BaseException, number: int) -> None:
    assert errno_of(error) == number


def test_a_verdict_is_true_when_the_host_is_there() -> None:
    assert Verdict("kernel", available=True, reason="it was tried")
    assert not Verdict("kernel", available=False, reason="it was tried", remedy="become root")
