"""Long random walks: every step is a rule of the machine, chosen by its weight.

Hypothesis is good at making a failure small; a plain random walk does more different things in the
same time. A walk is made from a number and can be made again::

    python -m tests.property.walk KernelMachine 1234
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from random import Random

from tests.property.machine import OverlayMachine

STEPS = 50
#: How often each rule is taken, of all these together; what needs open files waits for some.
WEIGHTS = {
    "create": 3,
    "write": 3,
    "append": 2,
    "overwrite": 2,
    "truncate": 2,
    "mkdir": 4,
    "symlink": 2,
    "link": 4,
    "mknod": 1,
    "unlink": 5,
    "rmdir": 3,
    "remove_tree": 3,
    "move": 9,
    "replace": 6,
    "exchange": 4,
    "chmod": 3,
    "chown": 3,
    "utimens": 3,
    "setxattr": 4,
    "set_acl": 4,
    "removexattr": 1,
    "getxattr": 1,
    "odd_name": 1,
    "odd_name_of_two": 1,
    "open_file": 6,
    "read_file": 4,
    "write_file": 5,
    "truncate_file": 2,
    "reopen": 1,
    "seal": 1,
}
_CHOOSE_NOTHING = {"reopen", "seal"}
_NEEDS_ROOT = {"chown"}
_NEEDS_FILES = {"read_file", "write_file", "truncate_file"}


def walk(machine: type[OverlayMachine], seed: int) -> None:
    """Walk; a failure is made as short as leaving out single steps makes it.

    Raises:
        AssertionError: Something differs. The message has what was done.
    """
    steps: Sequence[int] = range(_random(seed).randint(1, STEPS))
    if _failure(machine, seed, steps) is None:
        return
    for step in reversed(steps):
        fewer = [other for other in steps if other != step]
        if _failure(machine, seed, fewer) is not None:
            steps = fewer
    failure = _failure(machine, seed, steps)
    raise AssertionError(f"{machine.__name__}, seed {seed}\n{failure}")


def _failure(kind: type[OverlayMachine], seed: int, steps: Sequence[int]) -> str | None:
    """What was done and what went wrong; None when nothing did."""
    machine = kind()
    try:
        try:
            machine.start(_random(seed))
            for step in steps:
                _step(machine, _random(f"{seed}.{step}"))
            machine.finish()
        finally:
            machine.clean_up()
    except (AssertionError, OSError) as error:
        return "\n".join([*machine.said, *traceback.format_exception(error)])
    return None


def _random(seed: int | str) -> Random:
    return Random(seed)  # noqa: S311  test data, no secret


def _step(machine: OverlayMachine, random: Random) -> None:
    name = random.choices([*WEIGHTS], [*WEIGHTS.values()])[0]
    impossible = (name in _NEEDS_FILES and not machine.files) or (
        name in _NEEDS_ROOT and not machine.as_root
    )
    if name in _CHOOSE_NOTHING:
        getattr(machine, name)()
    elif not impossible:
        getattr(machine, name)(random)


if __name__ == "__main__":
    from tests.property import test_oracle

    walk(getattr(test_oracle, sys.argv[1]), int(sys.argv[2]))
