"""What an overlay has done since it was opened."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(slots=True)
class Counters:
    """Counters of one overlay; bytes are those of successful calls.

    Attributes:
        copy_ups: Entries copied up, directories included.
        cache_hits: Look-ups answered from memory.
        cache_misses: Directories read from their layers.
        active_handles: Files open now.
    """

    copy_ups: int = 0
    reads: int = 0
    writes: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    active_handles: int = 0
    cache_hits: int = 0
    cache_misses: int = 0

    def copy(self) -> Counters:
        """The counters as they are now."""
        return replace(self)
