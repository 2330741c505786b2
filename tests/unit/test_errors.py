"""The exception tree: one exit code each, an errno for hosts, copies that lose nothing."""

from __future__ import annotations

import copy
import errno
import pickle
import re
from collections.abc import Iterator
from typing import Any

import pytest

import layermount
from layermount import errors
from layermount.errors import AccessDeniedError, ClosedError, LayerMountError

# Every class: exit code, errno for hosts, base.
TREE: dict[str, tuple[int, int, str]] = {
    "LayerMountError": (1, errno.EIO, "Exception"),
    "ConfigError": (2, errno.EINVAL, "LayerMountError"),
    "LayerError": (10, errno.EIO, "LayerMountError"),
    "LayerUnavailableError": (11, errno.EIO, "LayerError"),
    "LayerChangedError": (12, errno.EIO, "LayerError"),
    "LayerCorruptError": (13, errno.EIO, "LayerError"),
    "LayerBusyError": (14, errno.EBUSY, "LayerError"),
    "HostError": (40, errno.EIO, "LayerMountError"),
    "HostUnavailableError": (41, errno.ENOSYS, "HostError"),
    "ViewError": (45, errno.EIO, "LayerMountError"),
    "ViewNotFoundError": (46, errno.ENOENT, "ViewError"),
    "ViewExistsError": (47, errno.EEXIST, "ViewError"),
    "AccessDeniedError": (51, errno.EACCES, "LayerMountError"),
    "ClosedError": (60, errno.EBADF, "LayerMountError"),
}


def family(kind: type[LayerMountError]) -> Iterator[type[LayerMountError]]:
    yield kind
    for below in kind.__subclasses__():
        if below.__module__.startswith("layermount."):
            yield from family(below)


CLASSES = {kind.__name__: kind for kind in family(LayerMountError)}


def test_the_table_has_every_class() -> None:
    found = {
        name: (kind.exit_code, kind.posix_errno, kind.__bases__[0].__name__)
        for name, kind in CLASSES.items()
    }
    assert found == TREE


def test_exit_codes_differ_and_leave_the_shells_own_alone() -> None:
    codes = [kind.exit_code for kind in CLASSES.values()]
    assert len(set(codes)) == len(codes)
    # 0 is success; from 126 on they say what a shell or a signal did.
    assert all(0 < code < 126 for code in codes)


def test_the_module_draws_the_whole_tree() -> None:
    assert errors.__doc__ is not None
    drawn = re.findall(r"\b\w+Error\b", errors.__doc__)
    assert set(drawn) - {"OSError", "PermissionError", "ValueError"} == set(CLASSES)


@pytest.mark.parametrize("name", TREE)
def test_every_class_is_public(name: str) -> None:
    assert getattr(layermount, name) is CLASSES[name]
    assert name in layermount.__all__


def pickled(error: LayerMountError) -> Any:
    return pickle.loads(pickle.dumps(error))  # noqa: S301  # our own


@pytest.mark.parametrize("name", TREE)
@pytest.mark.parametrize("hint", [None, "do something else"])
def test_a_copy_loses_nothing(name: str, hint: str | None) -> None:
    error = CLASSES[name]("cannot use 'x': reason", hint=hint)
    error.add_note("layer: lower[1]")
    for other in (pickled(error), copy.copy(error), copy.deepcopy(error)):
        assert type(other) is CLASSES[name]
        assert (str(other), other.hint) == (str(error), hint)
        assert other.__notes__ == ["layer: lower[1]"]
        assert getattr(other, "errno", None) == getattr(error, "errno", None)


def test_a_denial_is_what_the_kernel_would_answer() -> None:
    error = AccessDeniedError("the rules deny it", hint="ask")
    assert isinstance(error, PermissionError)
    assert (error.errno, error.strerror) == (errno.EACCES, "the rules deny it")
    error.filename = "d/secret"
    other = pickled(error)
    assert (other.filename, other.filename2, other.errno) == ("d/secret", None, errno.EACCES)
    assert str(other) == str(error)
    assert "d/secret" in str(error)
    assert "None" not in str(error)


def test_use_after_close_is_a_value_error() -> None:
    assert issubclass(ClosedError, ValueError)
    # A missing layer is no missing file of the overlay.
    others = set(CLASSES.values()) - {AccessDeniedError}
    assert not any(issubclass(kind, OSError) for kind in others)
