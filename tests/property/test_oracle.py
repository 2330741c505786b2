"""The engine against the kernel's overlayfs and a plain directory, by random operations.

Rules: X1 to X6, and all others by way of the kernel.
"""

from __future__ import annotations

import pytest
from hypothesis import settings

from layermount.layer.marks import OVERLAY, OVERLAY_USER
from tests.property.machine import OverlayMachine


class PlainMachine(OverlayMachine):
    """The engine against a plain directory: runs for every user."""

    marks = OVERLAY_USER
    with_kernel = False


class KernelMachine(OverlayMachine):
    """The engine against the kernel, privileged marks."""

    marks = OVERLAY
    with_kernel = True


class KernelUserMachine(OverlayMachine):
    """The engine against the kernel, unprivileged marks."""

    marks = OVERLAY_USER
    with_kernel = True


_PROFILE = settings()


class TestPlain(PlainMachine.TestCase):  # type: ignore[misc, name-defined]  # made at run time
    settings = settings(_PROFILE, stateful_step_count=20)


@pytest.mark.needs("root", "overlay")
class TestKernel(KernelMachine.TestCase):  # type: ignore[misc, name-defined]  # made at run time
    settings = settings(_PROFILE, max_examples=2 * _PROFILE.max_examples, stateful_step_count=20)


@pytest.mark.needs("root", "overlay")
class TestKernelUserMarks(KernelUserMachine.TestCase):  # type: ignore[misc, name-defined]  # as above
    settings = settings(_PROFILE, stateful_step_count=20)
