"""What every operation on an open overlay goes through: the lock, the gate, the reports.

The operations themselves are in `open_files.py` and `overlay.py`.
"""

from __future__ import annotations

import errno

from layermount.config import Durability, LayerMountConfig
from layermount.engine.assemble import LowerOpener, assemble, plain_directories
from layermount.engine.attributes import Attributes
from layermount.engine.copyup import CopyUp
from layermount.engine.counters import Counters
from layermount.engine.create import Create
from layermount.engine.gate import Gate, ask
from layermount.engine.handles import OpenHandles
from layermount.engine.hardlinks import open_link_index
from layermount.engine.marking import Marking
from layermount.engine.node import DirectoryNode, Node
from layermount.engine.refusals import refusal
from layermount.engine.remove import Remove
from layermount.engine.rename import Rename
from layermount.engine.reports import Reports, path_of
from layermount.engine.tree import Tree
from layermount.engine.upper import Upper
from layermount.errors import ClosedError
from layermount.events import EventBus, Operation


class Writers:
    """What changes an upper; made once, when there is one."""

    def __init__(self, tree: Tree, upper: Upper, reports: Reports) -> None:
        self.upper = upper
        self.copy_up = CopyUp(tree, upper, reports)
        self.create = Create(tree, upper, self.copy_up, reports)
        self.remove = Remove(tree, upper, self.copy_up, reports)
        self.rename = Rename(tree, upper, self.copy_up, self.remove, reports)
        self.attributes = Attributes(tree, upper, self.copy_up)
        self.marking = Marking(tree, upper, self.copy_up, reports)


class OverlayCore:
    """An open overlay without its operations.

    Attributes:
        config: What it was opened with.
        tree: The nodes and the layers under them.
        upper: The writable side, None for a read-only union.
        events: Who wants to know what happens subscribes here.
        counters: What has been done so far.
        gate: Who is asked before each operation, None for nobody.
    """

    def __init__(
        self,
        config: LayerMountConfig,
        *,
        gate: Gate | None = None,
        events: EventBus | None = None,
        open_lower: LowerOpener = plain_directories,
    ) -> None:
        """Open the layers, take the locks, sweep the work directory.

        Args:
            config: The layers and how to treat them.
            gate: Asked before every operation.
            events: Where what happens is told.
            open_lower: Opens what is no plain directory; the overlay closes it.

        Raises:
            ConfigError, LayerUnavailableError, LayerBusyError: As `assemble` has them.
        """
        parts = assemble(config, open_lower)
        self.config = config
        self.tree: Tree = parts.tree
        self.upper: Upper | None = parts.upper
        self.events = EventBus() if events is None else events
        self.counters: Counters = self.tree.counters
        self.gate = gate
        self._reports = Reports(self.events)
        self._resources = parts.resources
        self._closed = False
        self._writers = (
            None if self.upper is None else Writers(self.tree, self.upper, self._reports)
        )
        self._handles = OpenHandles(
            self.counters,
            sync=config.durability is not Durability.VOLATILE,
            marks=None if self.upper is None else self.upper.marks,
        )
        if self.upper is not None:
            self.tree.links = open_link_index(self.upper, self.tree.inodes, self._resources)
        self._looking = _Looking(self)
        self._changing = _Changing(self)
        self._changing_in_steps = _ChangingInSteps(self)

    @property
    def root(self) -> DirectoryNode:
        """The top directory."""
        return self.tree.root

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Close every open file, then the layers; the locks are free afterwards. Idempotent."""
        with self.tree.lock:
            if self._closed:
                return
            self._closed = True
            self._handles.close()
            self._resources.close()

    def _ask(self, operation: Operation, node: Node, name: str | None = None) -> None:
        if self.gate is not None:
            ask(self.gate, self.events, operation, path_of(node, name))

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedError("the overlay is closed")

    def _require_writers(self) -> Writers:
        self._require_open()
        if self._writers is None:
            raise refusal(errno.EROFS)
        return self._writers


# What follows is entered around every operation: classes without a state of their own, one object
# of each for an overlay, because a generator would cost more than many an operation.


class _Looking:
    """Around a look: the lock held, the overlay open."""

    __slots__ = ("_core", "_lock")

    def __init__(self, core: OverlayCore) -> None:
        self._core = core
        self._lock = core.tree.lock

    def __enter__(self) -> None:
        self._lock.acquire()
        if self._core._closed:
            self._lock.release()
            raise ClosedError("the overlay is closed")

    def __exit__(self, *_error: object) -> None:
        self._lock.release()


class _Changing:
    """Around a change: the lock held, refused without an upper; what it reports is told after."""

    __slots__ = ("_core", "_lock")

    def __init__(self, core: OverlayCore) -> None:
        self._core = core
        self._lock = core.tree.lock

    def __enter__(self) -> Writers:
        self._lock.acquire()
        try:
            return self._core._require_writers()
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, kind: object, *_error: object) -> None:
        core = self._core
        try:
            if kind is None and core.upper is not None:
                core.upper.settle()
        finally:
            self._lock.release()
            core._reports.tell()


class _ChangingInSteps:
    """Around a change that takes the lock by itself, step by step."""

    __slots__ = ("_core",)

    def __init__(self, core: OverlayCore) -> None:
        self._core = core

    def __enter__(self) -> Writers:
        return self._core._require_writers()

    def __exit__(self, kind: object, *_error: object) -> None:
        core = self._core
        try:
            if kind is None and core.upper is not None:
                with core.tree.lock:
                    core.upper.settle()
        finally:
            core._reports.tell()
