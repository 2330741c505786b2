"""LayerMount for Python: overlay filesystems as a library and a command.

A writable upper layer over read-only lowers: the first write copies up, a deletion leaves a mark,
the lowers are never touched. `LayerMount.create(LayerMountConfig(upper, [lower]))` opens one in
process.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from layermount.config import Capabilities, Durability, LayerMountConfig
    from layermount.engine.explain import Explanation, LayerVerdict, Role
    from layermount.engine.file import LayerMountFile
    from layermount.engine.pathlike import LayerMountPath
    from layermount.errors import (
        AccessDeniedError,
        ClosedError,
        ConfigError,
        HostError,
        HostUnavailableError,
        LayerBusyError,
        LayerChangedError,
        LayerCorruptError,
        LayerError,
        LayerMountError,
        LayerUnavailableError,
        ViewError,
        ViewExistsError,
        ViewNotFoundError,
    )
    from layermount.events import Event, EventBus, EventKind, Operation, Subscription
    from layermount.mount import LayerMount, MergedEntry, ResolvedPath, VolumeInfo

__version__ = "0.1.0"

__all__ = [
    "AccessDeniedError",
    "Capabilities",
    "ClosedError",
    "ConfigError",
    "Durability",
    "Event",
    "EventBus",
    "EventKind",
    "Explanation",
    "HostError",
    "HostUnavailableError",
    "LayerBusyError",
    "LayerChangedError",
    "LayerCorruptError",
    "LayerError",
    "LayerMount",
    "LayerMountConfig",
    "LayerMountError",
    "LayerMountFile",
    "LayerMountPath",
    "LayerUnavailableError",
    "LayerVerdict",
    "MergedEntry",
    "Operation",
    "ResolvedPath",
    "Role",
    "Subscription",
    "ViewError",
    "ViewExistsError",
    "ViewNotFoundError",
    "VolumeInfo",
    "__version__",
]

# Where the names live, those that need least first. They are imported at their first use: the
# command line, and a program that uses a part, does not pay for the whole.
_HOMES = (
    "layermount.errors",
    "layermount.config",
    "layermount.events",
    "layermount.mount",
    "layermount.engine.explain",
    "layermount.engine.file",
    "layermount.engine.pathlike",
)

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """A public name, imported now."""
        if name in __all__:
            for home in _HOMES:
                found = vars(importlib.import_module(home))
                if name in found:
                    globals()[name] = found[name]
                    return found[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)

    def __dir__() -> list[str]:
        """The public names, imported already or not, and what every module has."""
        return sorted({*globals(), *__all__})
