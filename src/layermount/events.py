"""What the engine tells the outside: frozen records, and the bus that carries them.

The engine speaks only through this module. It does not belong here to decide who listens, to store
anything, or to know what an event causes.
"""

from __future__ import annotations

import enum
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType


class EventKind(enum.StrEnum):
    """What an event reports."""

    WARNING = "warning"
    COPY_UP = "copy-up"
    COPY_UP_DATA = "copy-up-data"
    CREATED = "created"
    WHITEOUT_CREATED = "whiteout-created"
    OPAQUE_SET = "opaque-set"
    REMOVED = "removed"
    RENAMED = "renamed"
    ACCESS_DENIED = "access-denied"


class Operation(enum.StrEnum):
    """What a caller is about to do; the language a gate and the engine share."""

    CREATE = "create"
    OPEN = "open"
    READ = "read"
    WRITE = "write"
    OVERWRITE = "overwrite"
    DELETE = "delete"
    RENAME = "rename"
    LINK = "link"
    GET_INFO = "get-info"
    SET_INFO = "set-info"
    SET_SIZE = "set-size"
    GET_SECURITY = "get-security"
    SET_SECURITY = "set-security"
    READ_DIRECTORY = "read-directory"
    FLUSH = "flush"
    CLEANUP = "cleanup"
    CLOSE = "close"


class _Actor(threading.local):
    """For which process the current thread acts; None for its own."""

    pid: int | None = None


_actor = _Actor()


def actor() -> int:
    """The process that the calling thread acts for: what `Event.pid` says."""
    pid = _actor.pid
    return os.getpid() if pid is None else pid


def set_actor(pid: int | None) -> None:
    """Say for which process the calling thread acts from now on; None for its own."""
    _actor.pid = pid


class acting_for:  # noqa: N801  # used as a verb: `with acting_for(pid):`
    """Within a `with`, the calling thread acts for the process `pid`."""

    __slots__ = ("_before", "_pid")

    def __init__(self, pid: int | None) -> None:
        self._pid = pid
        self._before: int | None = None

    def __enter__(self) -> None:
        self._before, _actor.pid = _actor.pid, self._pid

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _actor.pid = self._before


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    Attributes:
        kind: What happened.
        path: Merged path, relative to the overlay's root, no leading slash; "" is the root.
        old_path: Where it was before, for `EventKind.RENAMED`; otherwise None.
        message: For people; "" when the kind says it all.
        timestamp_ns: Wall clock, nanoseconds since 1970-01-01 UTC.
        pid: The process that caused it, as far as the host knows; else this one.
    """

    kind: EventKind
    path: str
    old_path: str | None = None
    message: str = ""
    timestamp_ns: int = field(default_factory=time.time_ns)
    pid: int = field(default_factory=actor)


class Subscription:
    """A subscriber's place on the bus; closing it, or leaving its `with`, ends the delivery."""

    def __init__(self, bus: EventBus, subscriber: Callable[[Event], object]) -> None:
        self._bus = bus
        self._subscriber = subscriber

    def close(self) -> None:
        """Stop the delivery. Events already being delivered in another thread may still arrive."""
        self._bus._drop(self)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class EventBus:
    """Carries events to any number of subscribers, in the order they subscribed.

    Delivery is synchronous, in the thread that caused the event, after the operation is complete
    and with no lock of the engine held: a subscriber may use the overlay. A subscriber that raises
    is logged to `layermount.events` and kept; the others and the engine go on.

    Attributes:
        has_subscribers: Whether anybody listens. An attribute, as it is asked at every operation.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._subscriptions: tuple[Subscription, ...] = ()
        self.has_subscribers = False

    def subscribe(self, subscriber: Callable[[Event], object]) -> Subscription:
        """Deliver every later event to `subscriber`, until the subscription is closed."""
        subscription = Subscription(self, subscriber)
        with self._lock:
            self._subscriptions = (*self._subscriptions, subscription)
            self.has_subscribers = True
        return subscription

    def publish(self, event: Event) -> None:
        """Deliver `event` to every subscriber."""
        for subscription in self._subscriptions:
            try:
                subscription._subscriber(event)
            except Exception:
                import logging  # noqa: PLC0415  nothing else needs it, and a start is to be fast

                logging.getLogger(__name__).exception("an event subscriber failed on %s", event)

    def _drop(self, subscription: Subscription) -> None:
        with self._lock:
            self._subscriptions = tuple(s for s in self._subscriptions if s is not subscription)
            self.has_subscribers = bool(self._subscriptions)
