"""Who is in a view: processes in mount namespaces where an overlay writes to its upper.

Such a process outlives the one that started the view, and its locks; the mount is the only thing
that tells. Only processes that the caller may look at are seen, which are all of its own.
"""

from __future__ import annotations

import errno
import os

from layermount.linux import mountinfo

# EINVAL is what the mounts of a process that just ended give.
_UNREADABLE = (errno.ENOENT, errno.ESRCH, errno.EACCES, errno.EPERM, errno.EINVAL)


def occupants() -> dict[str, list[int]]:
    """Each upper that an overlay in another mount namespace writes to, with the processes there."""
    found: dict[str, list[int]] = {}
    uppers_of = {os.stat("/proc/self/ns/mnt").st_ino: frozenset[str]()}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            namespace = os.stat(f"/proc/{name}/ns/mnt").st_ino
            if namespace not in uppers_of:
                uppers_of[namespace] = _uppers(name)
        except OSError as error:
            if error.errno in _UNREADABLE:
                continue
            raise
        for upper in uppers_of[namespace]:
            found.setdefault(upper, []).append(int(name))
    return found


def _uppers(pid: str) -> frozenset[str]:
    """The uppers of the overlays that a process sees."""
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        overlays = [mountinfo.parse(line) for line in file if b" - overlay " in line]
    layers = (mountinfo.overlay_layers(mount) for mount in overlays)
    return frozenset(layer.upper for layer in layers if layer.upper is not None)
