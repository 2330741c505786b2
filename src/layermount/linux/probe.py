"""What this machine and this process can do, found out by doing it: all probes in one place.

How each is done is in `probe_hosts.py` and `probe_directory.py`.
"""

from __future__ import annotations

from layermount.linux.finding import Finding
from layermount.linux.probe_directory import DirectoryFindings, directory
from layermount.linux.probe_hosts import beneath, fuse, fusermount, overlay, user_overlay

__all__ = [
    "DirectoryFindings",
    "Finding",
    "beneath",
    "directory",
    "fuse",
    "fusermount",
    "hosts",
    "overlay",
    "user_overlay",
]


def hosts() -> list[Finding]:
    """Each way to show an overlay, and what the engine needs of the kernel."""
    return [overlay(), user_overlay(), fuse(), beneath()]
