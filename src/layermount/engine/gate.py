"""The gate: may this caller do this? The engine asks before each operation; the default is yes."""

from __future__ import annotations

from typing import Protocol

from layermount.errors import AccessDeniedError
from layermount.events import Event, EventBus, EventKind, Operation


class Gate(Protocol):
    """Decides before the engine acts. Who implements this need not import the engine."""

    def check(self, operation: Operation, path: str) -> None:
        """Return to allow; raise to refuse. A rename and a link ask once for each end.

        Args:
            operation: What is about to be done.
            path: Merged path without a leading slash; "" is the root.

        Raises:
            AccessDeniedError: The operation is refused.
        """


def ask(gate: Gate | None, events: EventBus, operation: Operation, path: str) -> None:
    """Ask whether an operation may happen; a refusal is reported as an event.

    Raises:
        AccessDeniedError: It may not.
    """
    if gate is None:
        return
    try:
        gate.check(operation, path)
    except AccessDeniedError as error:
        events.publish(Event(EventKind.ACCESS_DENIED, path, message=str(error)))
        raise
