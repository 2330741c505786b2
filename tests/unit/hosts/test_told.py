from __future__ import annotations

import json

import pytest

from layermount.errors import ConfigError, HostError, LayerBusyError, LayerMountError
from layermount.hosts import told

ERRORS = {
    "plain": ConfigError("no layers"),
    "with a hint": LayerBusyError("in use", hint="end it first"),
    "no bytes that are text": HostError("cannot mount at '\udcff'"),
}
SYSTEM_ERRORS = {
    "without a path": OSError(28, "No space left on device"),
    "with a path": FileNotFoundError(2, "No such file or directory", "a\udcff"),
    "a path in bytes": PermissionError(13, "Permission denied", b"a"),
}


def arrived(error: LayerMountError | OSError) -> LayerMountError | OSError:
    return told.from_data(json.loads(json.dumps(told.to_data(error))))


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_an_error_of_ours(error: LayerMountError) -> None:
    found = arrived(error)
    assert isinstance(found, LayerMountError)
    assert (type(found), str(found), found.hint) == (type(error), str(error), error.hint)


@pytest.mark.parametrize("error", SYSTEM_ERRORS.values(), ids=SYSTEM_ERRORS)
def test_an_error_of_the_system(error: OSError) -> None:
    found = arrived(error)
    assert isinstance(found, OSError)
    assert (type(found), found.errno, found.strerror) == (type(error), error.errno, error.strerror)
    path = error.filename
    assert found.filename == (path.decode() if isinstance(path, bytes) else path)


def test_a_class_that_is_not_known_here() -> None:
    found = told.from_data({"class": "NewError", "message": "new", "hint": None})
    assert (type(found), str(found)) == (HostError, "new")
