"""From a configuration to the parts of an open overlay: layers opened, checked, locked, swept.

Rules: L1 to L4, W1 to W5, D1.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from layermount.config import Capabilities, LayerMountConfig
from layermount.engine import locking, work
from layermount.engine.tree import Tree
from layermount.engine.upper import Upper
from layermount.engine.work import Work
from layermount.errors import ConfigError
from layermount.layer.base import Layer
from layermount.layer.descriptors import DescriptorPool, default_capacity
from layermount.layer.directory import DirectoryLayer
from layermount.layer.marks import (
    DIALECTS,
    OVERLAY,
    OVERLAY_USER,
    OWN_REDIRECTS,
    KernelMarks,
    Marks,
)
from layermount.linux import probe_directory, xattrs
from layermount.linux.probe_directory import DirectoryFindings

#: From one of a configuration's lower paths to the layer that is there, open; None for a plain
#: directory, which is opened here.
LowerOpener = Callable[[Path], Layer | None]


def plain_directories(_path: Path) -> Layer | None:
    """The opener that knows no other layers."""
    return None


class Parts(NamedTuple):
    """What an open overlay consists of.

    Attributes:
        upper: None for a read-only union.
        pool: The open directories of all layers.
        resources: Closes all of it, in the right order.
    """

    tree: Tree
    upper: Upper | None
    pool: DescriptorPool
    resources: contextlib.ExitStack


def assemble(config: LayerMountConfig, open_lower: LowerOpener = plain_directories) -> Parts:
    """Open the layers of a configuration.

    Args:
        config: The layers.
        open_lower: Asked for each of the lowers first. What it returns is closed with the rest, and
            is no directory that could overlap another.

    Raises:
        ConfigError: Layers overlap, or the upper's filesystem cannot hold the marks.
        LayerUnavailableError: A layer cannot be opened, or an upper was not closed cleanly.
        LayerBusyError: Another overlay has the upper or the work directory.
    """
    with contextlib.ExitStack() as stack:
        others = _open_others(config, open_lower, stack)
        # Before anything is swept: a layer named as work directory by mistake must lose nothing.
        locking.refuse_overlap(_named_paths(config, others))
        pool = DescriptorPool(default_capacity())
        stack.callback(pool.close)
        upper = None if config.upper_path is None else _open_upper(config, pool, stack)
        marks = _read_marks(config) if upper is None else upper.marks
        lowers = _open_lowers(config, others, marks, pool, stack)
        layers: list[Layer] = [*lowers] if upper is None else [upper.layer, *lowers]
        redirects = marks is OVERLAY or any(map(_has_own_redirects, layers))
        tree = Tree(
            None if upper is None else upper.layer,
            lowers,
            redirects=redirects,
            capacity=config.path_cache_capacity,
        )
        return Parts(tree, upper, pool, stack.pop_all())


def _open_upper(
    config: LayerMountConfig, pool: DescriptorPool, stack: contextlib.ExitStack
) -> Upper:
    assert config.upper_path is not None  # noqa: S101  the caller asked
    assert config.work_dir_path is not None  # noqa: S101  the configuration gives every upper one
    probe = DirectoryLayer(config.upper_path, OVERLAY, pool, read_only=False)
    stack.callback(probe.close)
    locking.lock(probe.root_fd, config.upper_path, "upper")
    base_fd = work.prepare(config.work_dir_path)
    stack.callback(os.close, base_fd)
    locking.lock(base_fd, config.work_dir_path, "work")
    if not work.is_beside(probe.root_fd, base_fd):
        raise ConfigError(
            f"work directory {str(config.work_dir_path)!r} is on another filesystem than the upper",
            hint="what lands in the upper must land with one rename; put both on one filesystem",
        )
    findings = probe_directory.directory(base_fd)
    marks = _write_marks(config, findings, probe.root_fd)
    _require(findings, config.upper_path)
    work_dir = Work(base_fd, durability=config.durability)
    stack.callback(work_dir.close)
    probe.marks = marks
    if marks is OVERLAY_USER:
        # Whoever opens it next, with more privilege, must see which marks count.
        xattrs.setxattr(probe.root_fd, ".", marks.key("impure"), b"y")
    if config.own_redirects and marks is OVERLAY_USER:
        xattrs.setxattr(probe.root_fd, ".", OWN_REDIRECTS, b"y")
    return Upper(probe, work_dir, marks, _usable(config, findings), config.durability)


def _write_marks(
    config: LayerMountConfig, findings: DirectoryFindings, root_fd: int
) -> KernelMarks:
    """The dialect of the upper: the one asked for, the one it is in already, else by privilege."""
    if config.dialect is not None:
        marks = DIALECTS[config.dialect]
    elif findings.trusted_xattrs and not _is_in(root_fd, OVERLAY_USER):
        marks = OVERLAY
    else:
        marks = OVERLAY_USER
    if not isinstance(marks, KernelMarks):
        raise ConfigError(f"an upper cannot be written in the dialect {marks.name!r}")
    able = findings.trusted_xattrs if marks is OVERLAY else findings.user_xattrs
    if not able:
        raise ConfigError(
            f"the upper {str(config.upper_path)!r} cannot hold {marks.prefix}* attributes: "
            f"{able.reason}",
            hint=able.remedy,
        )
    return marks


def _is_in(root_fd: int, marks: KernelMarks) -> bool:
    return any(key.startswith(marks.prefix) for key in xattrs.listxattr(root_fd, "."))


def _read_marks(config: LayerMountConfig) -> KernelMarks:
    """Without an upper: the dialect asked for, else the one this process can read."""
    if config.dialect is not None:
        marks = DIALECTS[config.dialect]
        return marks if isinstance(marks, KernelMarks) else OVERLAY_USER
    return OVERLAY if os.geteuid() == 0 else OVERLAY_USER


def _open_others(
    config: LayerMountConfig, open_lower: LowerOpener, stack: contextlib.ExitStack
) -> list[Layer | None]:
    """For each lower the layer, where it is no plain directory."""
    others = []
    for path in config.lower_paths:
        layer = open_lower(path)
        if layer is not None:
            stack.callback(layer.close)
        others.append(layer)
    return others


def _open_lowers(
    config: LayerMountConfig,
    others: Sequence[Layer | None],
    marks: Marks,
    pool: DescriptorPool,
    stack: contextlib.ExitStack,
) -> list[Layer]:
    """The lowers, nearest first, down to one whose root is opaque: what is deeper is never seen."""
    lowers: list[Layer] = []
    for path, dialect, other in zip(config.lower_paths, config.lower_dialects, others, strict=True):
        layer = other
        if layer is None:
            own = marks if dialect is None else DIALECTS[dialect]
            layer = DirectoryLayer(path, own, pool, read_only=True)
            stack.callback(layer.close)
        lowers.append(layer)
        if layer.root.is_opaque():
            break
    return lowers


def _named_paths(
    config: LayerMountConfig, others: Sequence[Layer | None]
) -> list[tuple[str, Path]]:
    named = enumerate(zip(config.lower_paths, others, strict=True))
    lowers = [(f"lower {n}", path) for n, (path, other) in named if other is None]
    if config.upper_path is None or config.work_dir_path is None:
        return lowers
    return [("upper", config.upper_path), ("work directory", config.work_dir_path), *lowers]


def _has_own_redirects(layer: Layer) -> bool:
    if not isinstance(layer, DirectoryLayer):
        return False
    return xattrs.find_xattr(layer.root_fd, ".", OWN_REDIRECTS) is not None


def _require(findings: DirectoryFindings, upper: Path) -> None:
    """What there is no fallback for."""
    for finding in (findings.whiteout_device, findings.rename_exchange):
        if not finding:
            raise ConfigError(
                f"the filesystem of {str(upper)!r} cannot hold an upper: "
                f"{finding.name.replace('_', ' ')}: {finding.reason}",
                hint=finding.remedy,
            )


def _usable(config: LayerMountConfig, findings: DirectoryFindings) -> Capabilities:
    """What is asked for and truly there."""
    found = {
        Capabilities.XATTRS: findings.user_xattrs,
        Capabilities.ACLS: findings.acls,
        Capabilities.OWNERS: findings.chown,
        Capabilities.SPARSE_FILES: findings.holes,
        Capabilities.REFLINK: findings.reflink,
        Capabilities.DEVICE_NODES: findings.device_nodes,
        Capabilities.HARD_LINKS: findings.hard_links,
        Capabilities.RENAME_WHITEOUT: findings.rename_whiteout,
    }
    usable = config.capabilities
    for capability, finding in found.items():
        if not finding:
            usable &= ~capability
    return usable
