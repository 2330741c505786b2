"""An error as data, so that the process which asked can raise what went wrong in another one."""

from __future__ import annotations

import os
from typing import Any

from layermount import errors
from layermount.errors import HostError, LayerMountError

Data = dict[str, Any]


def to_data(error: LayerMountError | OSError) -> Data:
    """What `from_data` needs to make the same error elsewhere; JSON takes it."""
    if isinstance(error, LayerMountError):
        return {"class": type(error).__name__, "message": str(error), "hint": error.hint}
    name = None if error.filename is None else os.fsdecode(error.filename)
    return {"errno": error.errno, "message": error.strerror or str(error), "path": name}


def from_data(data: Data) -> LayerMountError | OSError:
    """The error that was told: of the same class, with message, hint, errno and path."""
    if "class" not in data:
        return OSError(data["errno"], data["message"], data["path"])
    kind = getattr(errors, str(data["class"]), HostError)
    error: LayerMountError = kind(data["message"], hint=data["hint"])
    return error
