"""The engine against the kernel's overlayfs and a plain directory, by random operations.

Rules: X1 to X10, and all others by way of the kernel.
"""

from __future__ import annotations

from random import SystemRandom

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from layermount.layer.marks import OVERLAY, OVERLAY_USER
from tests.property.comparison import is_root
from tests.property.machine import OverlayMachine
from tests.property.walk import walk


class PlainMachine(OverlayMachine):
    """The engine against a plain directory: for every user."""

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


MACHINES = [
    pytest.param(PlainMachine, id="plain"),
    pytest.param(
        KernelMachine,
        id="kernel",
        marks=[
            pytest.mark.needs("root", "overlay"),
            pytest.mark.skipif(not is_root(), reason="privileged marks need the machine's root"),
        ],
    ),
    pytest.param(KernelUserMachine, id="kernel-user", marks=pytest.mark.needs("root", "overlay")),
]


@pytest.mark.parametrize("machine", MACHINES)
def test_state_machine(machine: type[OverlayMachine]) -> None:
    few = max(10, settings().max_examples // 2)
    run_state_machine_as_test(machine, settings=settings(max_examples=few, stateful_step_count=20))


@pytest.mark.parametrize("machine", MACHINES)
def test_random_walks(machine: type[OverlayMachine]) -> None:
    for _ in range(2 * settings().max_examples):
        walk(machine, SystemRandom().getrandbits(32))


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
def test_many_random_walks(machine: type[OverlayMachine]) -> None:
    for _ in range(5000):
        walk(machine, SystemRandom().getrandbits(32))
