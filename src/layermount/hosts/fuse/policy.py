"""How an overlay is to be shown, as the one who mounts says. Nothing is decided here."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Passthrough(enum.StrEnum):
    """Which files of layers the kernel reads and writes without a request, where it may at all."""

    AUTO = "auto"
    """Where nobody can tell but by the time it takes: the upper's, and everything when there is no
    upper."""
    ALL = "all"
    """Also a lower's from 128 KiB on. Who has such a file open does not see it change (rule H7)."""
    OFF = "off"
    """None: every byte goes through the daemon."""


class Options(NamedTuple):
    """How an overlay is shown.

    Attributes:
        allow_other: Let every user in; without it only the one who mounts it, not even root.
        read_only: Refuse changes although there is an upper.
        restricted: Ignore set-user-id bits and device nodes; None means unless root mounts it.
        passthrough: Which files of layers the kernel reads and writes by itself where it may.
    """

    allow_other: bool = False
    read_only: bool = False
    restricted: bool | None = None
    passthrough: Passthrough = Passthrough.AUTO
