"""Why the kernel refuses an overlay, in words.

The kernel answers nearly everything with EINVAL and writes the reason to its log, which few may
read. So the rules of fs/overlayfs/super.c are looked at here again, after the refusal; and what the
kernel would accept, to show a wrong tree, is refused before.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from layermount.errors import HostError, LayerBusyError, LayerMountError, LayerUnavailableError
from layermount.layer.marks import OWN_REDIRECTS
from layermount.linux import mountinfo, xattrs

# How many layers a message lists.
_NAMED = 5
_VOLATILE = "work/incompat/volatile"
_STACKED = frozenset({"overlay", "ecryptfs", "proc"})
_NOT_FOR_UPPERS = ("nfs", "cifs", "smb3", "vfat", "msdos", "exfat", "ntfs", "fuse", "9p", "proc")


@dataclass(frozen=True, slots=True)
class OpenLayer:
    """A layer on its way to the kernel.

    Attributes:
        key: The kernel's option for it.
        role: What it is called in messages: "lower[0]", "upper", "work directory".
        fd: The open directory, borrowed.
        path: Where it is, as the kernel tells.
    """

    key: str
    role: str
    fd: int
    path: str

    def __str__(self) -> str:
        return f"{self.role} {self.path!r}"


Rule = Callable[[Sequence[OpenLayer]], LayerMountError | None]


@contextlib.contextmanager
def about(layer: OpenLayer) -> Iterator[None]:
    """Note on an error which layer it is about."""
    try:
        yield
    except OSError as error:
        error.add_note(str(layer))
        raise


def check_overlap(layers: Sequence[OpenLayer]) -> None:
    """Refuse a layer that is another one or lies in it, before the kernel touches anything.

    Raises:
        HostError: Two layers overlap, as far as their paths tell.
    """
    known: dict[str, OpenLayer] = {}
    for layer in layers:
        if layer.path in known:
            raise _overlapping(layer, known[layer.path])
        known[layer.path] = layer
    for layer in layers:
        path = layer.path
        while path != "/":
            path = os.path.dirname(path)
            if path in known and known[path] is not layer:
                raise _overlapping(layer, known[path])


def _overlapping(inner: OpenLayer, outer: OpenLayer) -> HostError:
    return HostError(
        f"{inner} is, or lies in, {outer}", hint="use layers that do not contain each other"
    )


def check_upper(layers: Sequence[OpenLayer]) -> None:
    """Refuse an upper that the kernel takes, to show a wrong tree or to damage it.

    Raises:
        HostError: The upper holds redirects that the kernel does not follow.
        LayerBusyError: Another overlay of this mount namespace writes to the upper.
    """
    for upper in layers:
        if upper.key != "upperdir":
            continue
        if xattrs.find_xattr(upper.fd, ".", OWN_REDIRECTS) is not None:
            raise HostError(
                f"the kernel would show a wrong tree: {upper} holds redirects it does not follow",
                hint="show it with FUSE or in process",
            )
        other = overlay_over(upper.fd)
        if other is not None:
            raise LayerBusyError(
                f"{upper} is in use by the overlay at {other.target!r}",
                hint="unmount that one first, or use another upper and work directory",
            )


def overlay_over(upper_fd: int) -> mountinfo.Mount | None:
    """The kernel's overlay of this mount namespace that writes to the directory, or None.

    An overlay whose upper was named by a descriptor of its maker, `/proc/self/fd/N`, is not known.
    """
    wanted = os.fstat(upper_fd)
    for mount in mountinfo.mounts():
        upper = mountinfo.overlay_layers(mount).upper if mount.fstype == "overlay" else None
        if upper is not None and not upper.startswith("/proc/") and _is_same(upper, wanted):
            return mount
    return None


def explained(error: OSError, layers: Sequence[OpenLayer], log: Sequence[str]) -> LayerMountError:
    """The error to raise for a refusal: which layer, why, and what to do.

    Args:
        error: What the kernel answered.
        layers: The layers it was given.
        log: What it wrote to its log meanwhile; only its words are taken, not believed to be all.
    """
    rules = _RULES.get(error.errno or errno.EIO, ())
    found = next((reason for rule in rules if (reason := rule(layers))), None)
    reason = found or HostError(error.strerror or "", hint=_hint(error))
    notes = getattr(error, "__notes__", ())
    where = f" ({', '.join(notes)})" if notes else ""
    said = f"; kernel: {'; '.join(dict.fromkeys(log))}" if log else ""
    return type(reason)(f"the kernel refuses the overlay: {reason}{where}{said}", hint=reason.hint)


def _hint(error: OSError) -> str | None:
    if error.errno in (errno.EPERM, errno.EACCES):
        return "run it as root, or in a user namespace with user marks"
    if error.errno == errno.ENODEV:
        return "the kernel has no overlayfs; modprobe overlay"
    if error.errno == errno.ENOSYS:
        return "Linux 5.2 or later has the mount calls that are needed"
    return "the kernel's log (dmesg) may say more" if error.errno == errno.EINVAL else None


# Each rule looks for one reason; the first that finds its own is told.


def _crossed(layers: Sequence[OpenLayer]) -> LayerMountError | None:
    """One layer is another, or lies in it, by another path than it was named."""
    names = ", ".join(map(str, layers[:_NAMED]))
    more = f" and {len(layers) - _NAMED} more" if len(layers) > _NAMED else ""
    return HostError(
        f"one layer contains another, among {names}{more}",
        hint="use layers that do not contain each other",
    )


def _apart(layers: Sequence[OpenLayer]) -> LayerMountError | None:
    """Upper and work directory are on two mounts."""
    sides = [layer for layer in layers if layer.key in ("upperdir", "workdir")]
    if len({mountinfo.mount_id_of(layer.fd) for layer in sides}) > 1:
        return HostError(
            f"{sides[0]} and {sides[1]} are on different mounts",
            hint="keep both on one filesystem and below one mount point",
        )
    return None


def _foreign(layers: Sequence[OpenLayer]) -> LayerMountError | None:
    """A layer's descriptor is from another mount namespace."""
    known = {mount.mount_id for mount in mountinfo.mounts()}
    for layer in layers:
        if mountinfo.mount_id_of(layer.fd) not in known:
            return HostError(
                f"{layer} was opened in another mount namespace",
                hint="open layers after entering the namespace",
            )
    return None


def _unclean(layers: Sequence[OpenLayer]) -> LayerMountError | None:
    """The upper was used without syncing, and left."""
    work = layers[-1]
    if work.key == "workdir" and _exists(work.fd, _VOLATILE):
        return LayerUnavailableError(
            f"{layers[-2]} was used with 'volatile' and was not closed cleanly",
            hint="it may be incomplete; drop it, or remove work/incompat in the work directory",
        )
    return None


def _too_deep(layers: Sequence[OpenLayer]) -> LayerMountError | None:
    """A layer is a stacked filesystem, or one that cannot be stacked at all."""
    for layer, fstype in _fstypes(layers):
        if fstype in _STACKED:
            return HostError(
                f"{layer} is on {fstype}, which the kernel stacks two deep at most",
                hint="use FUSE, or name the layers below directly",
            )
    return None


def _unfit(layers: Sequence[OpenLayer]) -> LayerMountError | None:
    """The upper's filesystem lacks what an upper needs."""
    for layer, fstype in _fstypes(layers):
        if layer.key == "upperdir" and fstype.startswith(_NOT_FOR_UPPERS):
            return HostError(
                f"{layer} is on {fstype}, which cannot hold an upper",
                hint="keep the upper on ext4, xfs, btrfs or tmpfs",
            )
    return None


def _covered(layers: Sequence[OpenLayer]) -> LayerMountError | None:
    """Something is mounted below a layer, which a user namespace may not uncover."""
    if os.stat("/proc/self/ns/user").st_ino == _FIRST_USER_NAMESPACE:
        return None
    for layer in layers:
        below = next(iter(mountinfo.below(layer.path)), None)
        if below is not None:
            return HostError(
                f"{below.target!r} is mounted below {layer}, and in a user namespace the kernel "
                "does not show what such mounts cover",
                hint="use a directory without mounts below it, or run it as root",
            )
    return None


def _busy(layers: Sequence[OpenLayer]) -> LayerMountError | None:
    side = next((layer for layer in layers if layer.key == "upperdir"), layers[-1])
    return LayerBusyError(f"{side} is in use by another overlay", hint="unmount that one first")


def _exchanged(layers: Sequence[OpenLayer]) -> LayerMountError | None:
    side = next((layer for layer in layers if layer.key == "upperdir"), layers[-1])
    return HostError(
        f"{side} was made over other lowers",
        hint="mount it over the lowers it was made with, or without index",
    )


def _fstypes(layers: Sequence[OpenLayer]) -> Iterator[tuple[OpenLayer, str]]:
    fstypes = {mount.mount_id: mount.fstype for mount in mountinfo.mounts()}
    for layer in layers:
        yield layer, fstypes.get(mountinfo.mount_id_of(layer.fd), "")


# include/linux/proc_ns.h, PROC_USER_INIT_INO
_FIRST_USER_NAMESPACE = 0xEFFFFFFD
_RULES: dict[int, tuple[Rule, ...]] = {
    errno.EINVAL: (_foreign, _unclean, _apart, _unfit, _too_deep, _covered),
    errno.ELOOP: (_crossed,),
    errno.EBUSY: (_busy,),
    errno.ESTALE: (_exchanged,),
}


def _exists(dir_fd: int, path: str) -> bool:
    try:
        os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
            return False
        raise
    return True


def _is_same(path: str, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), status)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
            return False
        raise
