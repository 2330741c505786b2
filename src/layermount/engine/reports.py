"""What happens, on its way to whoever listens: noted during an operation, told when it is complete.

Which kinds of event there are and who may listen is in `events.py`.
"""

from __future__ import annotations

import threading
from collections import deque

from layermount.engine.node import DirectoryNode, Node
from layermount.events import Event, EventBus, EventKind


class _Pending(threading.local):
    """What one thread has caused and not yet told."""

    def __init__(self) -> None:
        self.events: deque[Event] = deque()


class Reports:
    """The engine's side of the bus. While nobody listens nothing is made.

    Attributes:
        bus: Where the events go.
    """

    def __init__(self, bus: EventBus) -> None:
        self.bus = bus
        self._pending = _Pending()

    def note(
        self,
        kind: EventKind,
        node: Node,
        name: str | None = None,
        *,
        old: tuple[DirectoryNode, str] | None = None,
        message: str = "",
    ) -> None:
        """Note that something happened to a node, or to the entry `name` of a directory.

        `old` is where it was before: the directory and the name there.
        """
        if self.bus.has_subscribers:
            old_path = None if old is None else path_of(*old)
            event = Event(kind, path_of(node, name), old_path, message)
            self._pending.events.append(event)

    def tell(self) -> None:
        """Deliver what this thread has noted; call it with no lock held."""
        events = self._pending.events
        while events:
            self.bus.publish(events.popleft())


def path_of(node: Node, name: str | None = None) -> str:
    """The merged path of a node, or of the entry `name` of a directory."""
    path = node.path
    if name is None:
        return path
    return f"{path}/{name}" if path else name
