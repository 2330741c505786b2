"""An overlay of the kernel from open layers, up to a detached mount.

Layers are handed over by descriptor, so that names of any form and length do, and nothing is looked
up twice. Kernels that take no descriptors get texts. Attaching is in `kernel.py` and
`kernel_private.py`; saying why the kernel refused is in `kernel_refusal.py`.

Sources: Documentation/filesystems/overlayfs.rst, fs/overlayfs/params.c.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from layermount.errors import HostError, LayerUnavailableError
from layermount.hosts import kernel_refusal, run_directory
from layermount.hosts.kernel_refusal import OpenLayer
from layermount.linux import mounts
from layermount.linux.kmsg import LogMark

Layer = Path | int

_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_TEXT_SIZE = 255
# What means something in a text of one of the styles.
_SPECIAL = frozenset(",:\\")
_OTHER_STYLE = (errno.EINVAL, errno.EOPNOTSUPP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How the kernel's overlay behaves; None leaves the kernel what it was built or loaded with.

    Attributes:
        redirect_dir: Rename directories of lowers by a record. Not with user marks.
        metacopy: Copy up metadata first and data when it is needed. Not with user marks.
        index: Keep hard links over a copy-up; refuse an upper whose lowers were exchanged.
        volatile: Never sync. A crash leaves an upper that is refused.
    """

    redirect_dir: bool | None = None
    metacopy: bool | None = None
    index: bool | None = None
    volatile: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything about an overlay but its layers.

    Attributes:
        source: Its source in mountinfo.
        user_marks: Whether marks and records are `user.overlay.*`.
        read_only: Whether the overlay refuses every change.
        options: The rest.
    """

    source: str
    user_marks: bool
    read_only: bool
    options: Options

    def flags(self) -> list[str]:
        """The options without a value."""
        wanted = {
            "userxattr": self.user_marks,
            "ro": self.read_only,
            "volatile": self.options.volatile and not self.read_only,
        }
        return [key for key, on in wanted.items() if on]

    def texts(self) -> list[tuple[str, str]]:
        """The options with a value, the source first."""
        values = {
            "redirect_dir": self.options.redirect_dir,
            "metacopy": self.options.metacopy,
            "index": self.options.index,
        }
        chosen = [(key, "on" if on else "off") for key, on in values.items() if on is not None]
        return [("source", self.source), *chosen]


def open_layers(
    stack: ExitStack, lowers: Sequence[Layer], upper: Layer | None, work: Layer | None
) -> list[OpenLayer]:
    """The layers, lowers first, index 0 wins; opened ones are closed with `stack`.

    An overlay without an upper needs two lowers; an empty one is added to a single one.

    Raises:
        LayerUnavailableError: One of them cannot be opened.
        HostError: There is no lower, or an upper without a work directory, or the reverse.
    """
    if not lowers:
        raise HostError("an overlay needs at least one lower")
    if (upper is None) != (work is None):
        raise HostError("an upper and a work directory go together; only one of them is given")
    given: list[tuple[str, str, Layer]] = [
        ("lowerdir+", f"lower[{number}]", lower) for number, lower in enumerate(lowers)
    ]
    if upper is None and len(lowers) == 1:
        given.append(("lowerdir+", "lower[1]", run_directory.empty_directory()))
    if upper is not None and work is not None:
        given += [("upperdir", "upper", upper), ("workdir", "work directory", work)]
    return [_opened(stack, *layer) for layer in given]


def detached(layers: Sequence[OpenLayer], settings: Settings) -> int:
    """A detached mount of the overlay: an O_PATH descriptor of its root, the caller's.

    Closing it unmounts. Directories below are opened from it with `dir_fd`.

    Raises:
        HostError: The kernel refuses it; the message says why and which layer.
        LayerBusyError: The upper or the work directory belongs to another overlay.
        LayerUnavailableError: The upper was left by a crash while it was not synced.
    """
    _check_options(settings)
    kernel_refusal.check_overlap(layers)
    kernel_refusal.check_upper(layers)
    with LogMark() as log:
        errors: list[OSError] = []
        for style in _STYLES:
            try:
                return _writable(_attempt(style, layers, settings), settings, layers)
            except OSError as error:
                errors.append(error)
                if error.errno not in _OTHER_STYLE:
                    break
        telling = [error for error in errors if not _is_about_style(error)] or errors
        raise kernel_refusal.explained(telling[0], layers, log.lines("overlayfs:")) from telling[0]


def _check_options(settings: Settings) -> None:
    if settings.user_marks and (settings.options.redirect_dir or settings.options.metacopy):
        raise HostError(
            "with user marks the kernel follows neither redirects nor metadata-only copies",
            hint="leave redirect_dir and metacopy off, or mount as root with trusted marks",
        )


def _opened(stack: ExitStack, key: str, role: str, layer: Layer) -> OpenLayer:
    if isinstance(layer, int):
        return OpenLayer(key, role, layer, os.readlink(f"/proc/self/fd/{layer}"))
    try:
        fd = os.open(layer, _FLAGS)
    except OSError as error:
        reason = f"cannot open {role} {str(layer)!r}: {error.strerror}"
        raise LayerUnavailableError(reason) from error
    stack.callback(os.close, fd)
    return OpenLayer(key, role, fd, os.readlink(f"/proc/self/fd/{fd}"))


_Style = Callable[[int, Sequence[OpenLayer]], None]


def _attempt(style: _Style, layers: Sequence[OpenLayer], settings: Settings) -> int:
    context = mounts.fsopen("overlay")
    try:
        for key in settings.flags():
            mounts.fsconfig_flag(context, key)
        for key, value in settings.texts():
            mounts.fsconfig_string(context, key, value)
        style(context, layers)
        mounts.fsconfig_create(context)
        attributes = mounts.MOUNT_ATTR_RDONLY if settings.read_only else 0
        return mounts.fsmount(context, attributes=attributes)
    finally:
        os.close(context)


def _by_descriptor(context: int, layers: Sequence[OpenLayer]) -> None:
    """Each layer an open directory: Linux 6.13 and later."""
    for layer in layers:
        with kernel_refusal.about(layer):
            mounts.fsconfig_fd(context, layer.key, layer.fd)


def _by_text(context: int, layers: Sequence[OpenLayer]) -> None:
    """Each layer a text: Linux 6.8 and later."""
    for layer in layers:
        with kernel_refusal.about(layer):
            mounts.fsconfig_string(context, layer.key, _text(layer))


def _by_one_text(context: int, layers: Sequence[OpenLayer]) -> None:
    """All lowers in one text of at most 255 bytes: every kernel."""
    lowers = [layer for layer in layers if layer.key == "lowerdir+"]
    joined = ":".join(map(_text, lowers))
    if len(os.fsencode(joined)) > _TEXT_SIZE:
        joined = ":".join(f"/proc/self/fd/{layer.fd}" for layer in lowers)
    mounts.fsconfig_string(context, "lowerdir", joined)
    for layer in layers[len(lowers) :]:
        with kernel_refusal.about(layer):
            mounts.fsconfig_string(context, layer.key, _text(layer))


_STYLES: tuple[_Style, ...] = (_by_descriptor, _by_text, _by_one_text)


def _text(layer: OpenLayer) -> str:
    """The layer's path, if it still means that directory and no character needs care."""
    path = layer.path
    is_plain = len(os.fsencode(path)) <= _TEXT_SIZE and not _SPECIAL & set(path)
    if is_plain and _is_at(path, layer.fd):
        return path
    return f"/proc/self/fd/{layer.fd}"


def _is_at(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
            return False
        raise


def _is_about_style(error: OSError) -> bool:
    """Whether the kernel does not know this way to name a layer."""
    text = error.strerror or ""
    return any(words in text for words in ("Bad value for", "Unknown parameter", "not supported"))


def _writable(mount_fd: int, settings: Settings, layers: Sequence[OpenLayer]) -> int:
    """The mount, unless the kernel quietly made it read-only.

    It does when it cannot prepare the work directory.
    """
    is_asked_for = settings.read_only or layers[-1].key != "workdir"
    if is_asked_for or not os.fstatvfs(mount_fd).f_flag & os.ST_RDONLY:
        return mount_fd
    os.close(mount_fd)
    raise HostError(
        f"the kernel would show the overlay read-only: it cannot use the {layers[-1]}",
        hint="use an empty work directory that this user may write to",
    )
