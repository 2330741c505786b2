"""`LayerMount`: the overlay as a user of the library has it. Wiring only."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from layermount.config import LayerMountConfig
from layermount.engine.counters import Counters
from layermount.engine.explain import Explanation, explain, layer_name
from layermount.engine.gate import Gate
from layermount.engine.node import DirectoryNode, Node
from layermount.engine.overlay import Overlay
from layermount.engine.pathlike import LayerMountPath
from layermount.engine.pathops import PathOperations
from layermount.engine.paths import (
    StrPath,
    canonical_parts,
    get_directory,
    get_node,
    locate,
    naming,
)
from layermount.events import Event, Subscription


@dataclass(frozen=True, slots=True)
class ResolvedPath:
    """Where a merged path comes from.

    Attributes:
        path: The merged path, no leading slash.
        origin: "upper", "lower", or None when nothing is shown.
        layer: `upper`, `lower[0]`, …, or None.
        lower_index: Index into the configuration's lowers, None for the upper and for nothing.
        full_path: The path on this machine, as the layer was opened; None for nothing.
        is_whiteout: Nothing is shown because a mark deletes it.
        is_opaque: A directory of the upper that hides what the lowers have below it.
    """

    path: str
    origin: str | None
    layer: str | None
    lower_index: int | None
    full_path: Path | None
    is_whiteout: bool
    is_opaque: bool


@dataclass(frozen=True, slots=True)
class MergedEntry:
    """One name of a merged directory.

    Attributes:
        name: The name.
        stat: Its metadata, links not followed.
        origin: "upper" or "lower".
    """

    name: str
    stat: os.stat_result
    origin: str


@dataclass(frozen=True, slots=True)
class VolumeInfo:
    """The filesystem that takes the changes, or the nearest lower's.

    Attributes:
        total_size: Bytes.
        free_size: Bytes the caller may still write.
        label: A name for it.
    """

    total_size: int
    free_size: int
    label: str


class LayerMount(PathOperations):
    """An overlay in this process: a writable upper over read-only lowers, no mount, no privilege.

    Close it, or use it in a `with`. Thread-safe. Paths are relative to the overlay's root, with or
    without a leading slash.
    """

    def __init__(self, config: LayerMountConfig, *, gate: Gate | None = None) -> None:
        """Open the overlay that `config` describes; the same as `create`."""
        super().__init__(Overlay(config, gate=gate))
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    def create(cls, config: LayerMountConfig, *, gate: Gate | None = None) -> LayerMount:
        """Open the overlay that `config` describes.

        Args:
            config: The layers and how to treat them.
            gate: Asked before every operation.

        Raises:
            ConfigError: Layers overlap, or the upper's filesystem cannot hold the marks.
            LayerUnavailableError: A layer cannot be opened.
            LayerBusyError: Another overlay has the upper or the work directory.
        """
        return cls(config, gate=gate)

    @classmethod
    def create_transient(cls, work_dir: StrPath, lower_paths: Iterable[StrPath] = ()) -> LayerMount:
        """An overlay whose changes are dropped when it closes.

        Upper and work directory are made in a new directory below `work_dir`, which is made when
        missing. With no lowers it is an empty tree to fill.
        """
        base = Path(work_dir)
        base.mkdir(parents=True, exist_ok=True)
        # It removes directories too that their owner may not enter.
        temporary = tempfile.TemporaryDirectory(prefix="transient-", dir=base)
        place = Path(temporary.name)
        upper = place / "upper"
        upper.mkdir()
        try:
            mount = cls(LayerMountConfig(upper, lower_paths, work_dir_path=place / "work"))
        except BaseException:
            temporary.cleanup()
            raise
        mount._temporary = temporary
        return mount

    @property
    def config(self) -> LayerMountConfig:
        """What it was opened with."""
        return self.overlay.config

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self.overlay.is_closed

    def close(self) -> None:
        """Close every open file and the layers; a transient overlay's changes are dropped."""
        self.overlay.close()
        temporary, self._temporary = self._temporary, None
        if temporary is not None:
            temporary.cleanup()

    def __enter__(self) -> LayerMount:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def path(self, path: StrPath = "") -> LayerMountPath:
        """A path-like object for a place in the overlay, whether something is there or not."""
        return LayerMountPath(self, path)

    def on_event(self, subscriber: Callable[[Event], object]) -> Subscription:
        """Deliver every later event to `subscriber`, after the operation that caused it."""
        return self.overlay.events.subscribe(subscriber)

    # Layers.

    def resolve_path(self, path: StrPath) -> ResolvedPath:
        """Which layer answers for a path; nothing there is an answer too.

        A link at the end is not followed.
        """
        explanation = self.explain(path)
        answer = explanation.answer
        if answer is None:
            deleted = explanation.is_deleted
            return ResolvedPath(explanation.path, None, None, None, None, deleted, is_opaque=False)
        in_upper = answer.layer == layer_name(0)
        lowers = [layer_name(depth) for depth in range(1, len(self.config.lower_paths) + 1)]
        return ResolvedPath(
            explanation.path,
            "upper" if in_upper else "lower",
            answer.layer,
            None if in_upper else lowers.index(answer.layer),
            Path(answer.source, answer.path),
            is_whiteout=False,
            is_opaque=in_upper and self._is_opaque(explanation.path),
        )

    def _is_opaque(self, path: StrPath) -> bool:
        upper = getattr(get_node(self.overlay, path, follow=False), "upper", None)
        with self.overlay.tree.lock:
            return upper is not None and upper.is_opaque()

    def explain(self, path: StrPath, *, first_is_upper: bool = False) -> Explanation:
        """What each layer has at a path, which one answers, and what hides the others.

        Links on the way are followed, so the path in the answer may be another; the last is not.
        With `first_is_upper` an upper that was opened as the nearest lower, to look at it without
        locking it, is called the upper.
        """
        with naming(os.fspath(path)):
            parts = canonical_parts(self.overlay, path)
            return explain(self.overlay, parts, first_is_upper=first_is_upper)

    def ensure_in_upper(self, path: StrPath) -> None:
        """Copy up what is at `path`, with its data; a link is not followed."""
        with naming(os.fspath(path)):
            self.overlay.copy_up(get_node(self.overlay, path, follow=False))

    def set_opaque(self, path: StrPath) -> None:
        """Hide what the lowers have in a directory; the directory is made when missing.

        Raises:
            OSError: EINVAL for the root, ENOTDIR.
        """
        if not self.exists(path):
            self.makedirs(path)
        with naming(os.fspath(path)):
            self.overlay.set_opaque(get_directory(self.overlay, path))

    def create_whiteout(self, path: StrPath) -> None:
        """Delete `path` with everything below it by one mark, whether it exists or not.

        Raises:
            OSError: EINVAL for the root, ENOENT when the directory above does not exist.
        """
        with naming(os.fspath(path)):
            place = locate(self.overlay, path, follow=False)
            if not place.name:
                raise OSError(errno.EINVAL, "the root of an overlay cannot be deleted")
            self.overlay.whiteout(place.parent, place.name)

    def merge_directory(self, path: StrPath = "") -> Iterator[MergedEntry]:
        """Every entry of a directory as the layers show it together, sorted by name.

        What is removed while it goes on is left out.
        """
        with naming(os.fspath(path)):
            directory = get_directory(self.overlay, path)
            names = sorted(name for name, _ in self.overlay.listdir(directory))
        for name in names:
            entry = self._merged_entry(directory, name)
            if entry is not None:
                yield entry

    def _merged_entry(self, directory: DirectoryNode, name: str) -> MergedEntry | None:
        try:
            node = self.overlay.lookup(directory, name)
            status = self.overlay.getattr(node)
        except FileNotFoundError:
            return None
        return MergedEntry(name, status, "upper" if node.in_upper else "lower")

    def get_stats(self) -> Counters:
        """What this overlay has done so far; a copy."""
        return self.overlay.counters.copy()

    def volume_info(self) -> VolumeInfo:
        """Space on the filesystem that takes the changes."""
        status = self.overlay.statfs()
        block = status.f_frsize
        return VolumeInfo(status.f_blocks * block, status.f_bavail * block, "LayerMount")

    # The first seed's names for what has another name here.

    def delete_file(self, path: StrPath) -> None:
        """Remove a file or an empty directory; a link itself."""
        if self._is_real_directory(path):
            self.rmdir(path)
        else:
            self.unlink(path)

    def check_can_delete_file(self, path: StrPath) -> None:
        """Raise what `delete_file` would raise for a directory that is not empty, or nothing there.

        Raises:
            OSError: ENOENT, ENOTEMPTY, EROFS.
        """
        with naming(os.fspath(path)):
            node: Node = get_node(self.overlay, path, follow=False)
            if self.overlay.upper is None:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            if node.parent is None:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            if isinstance(node, DirectoryNode) and self.overlay.listdir(node):
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

    def rename_file(self, old: StrPath, new: StrPath, *, replace: bool = False) -> None:
        """Move an entry; what is at `new` is replaced only when asked for."""
        if replace:
            self.rename(old, new)
        else:
            self.rename_noreplace(old, new)

    def _is_real_directory(self, path: StrPath) -> bool:
        return isinstance(get_node(self.overlay, path, follow=False), DirectoryNode)
