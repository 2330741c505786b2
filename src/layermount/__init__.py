"""LayerMount for Python: overlay filesystems as a library and a command.

A writable upper layer over read-only lowers: the first write copies up, a deletion leaves a mark, the
lowers are never touched. `LayerMount.create(LayerMountConfig(upper, [lower]))` opens one in process.
"""

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
