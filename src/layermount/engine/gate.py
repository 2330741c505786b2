"""The gate: may this caller do this? The engine asks before each operation; the default is yes."""

from __future__ import annotations

from typing import Protocol

from layermount.events import Operation


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
