"""Which host shows an overlay when the user leaves it open; how each does it is not known here."""

from __future__ import annotations

import errno
import os

from layermount.config import LayerMountConfig
from layermount.layer.marks import OWN_REDIRECTS

#: As many lowers as the kernel's overlayfs takes.
KERNEL_LOWERS = 500

_NOT_THERE = (errno.ENODATA, errno.EOPNOTSUPP, errno.ENOENT, errno.ENOTDIR)


def why_not_kernel(config: LayerMountConfig) -> str | None:
    """Why the kernel's overlayfs cannot show these layers here as they are; None when it can.

    One sentence without a full stop. The kernel is asked last: what it may refuse all the same is
    an error of the mount.
    """
    count = len(config.lower_paths)
    if count > KERNEL_LOWERS:
        return f"the kernel's overlayfs takes {KERNEL_LOWERS} lowers, these are {count}"
    if config.own_redirects or _has_own_redirects(config):
        return "the upper holds redirects that the kernel does not follow"
    foreign = {"oci"}.intersection(config.lower_dialects)
    if foreign:
        return f"the kernel does not read marks of the dialect {foreign.pop()!r}"
    from layermount.hosts import kernel  # noqa: PLC0415  what is known already needs no probe

    verdict = kernel.verdict()
    if verdict:
        return None
    if os.geteuid() != 0:
        return f"an ordinary user cannot have the kernel's overlayfs here ({verdict.reason})"
    return verdict.reason


def _has_own_redirects(config: LayerMountConfig) -> bool:
    if config.upper_path is None:
        return False
    try:
        os.getxattr(config.upper_path, OWN_REDIRECTS)
    except OSError as error:
        if error.errno in _NOT_THERE:
            return False
        raise
    return True
