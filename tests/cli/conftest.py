"""Who uses the command in these tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.cli.command import ORDINARY, Person, at_home
from tests.forked import user_directory

_ROOT = pytest.param(0, marks=pytest.mark.needs("root", "overlay"), id="root")
_USER = pytest.param(ORDINARY, marks=pytest.mark.needs("userns"), id="user")


@pytest.fixture(params=[_ROOT, _USER] if os.geteuid() == 0 else [_USER])
def person(request: pytest.FixtureRequest) -> Iterator[Person]:
    """Somebody who may run a command in a view: root, and an ordinary user."""
    uid: int = request.param
    with user_directory(uid) as base, at_home(base, uid) as somebody:
        yield somebody


@pytest.fixture
def user() -> Iterator[Person]:
    """An ordinary user, who need not be able to do anything."""
    with user_directory(ORDINARY) as base, at_home(base, ORDINARY) as somebody:
        yield somebody


@pytest.fixture
def me() -> Iterator[Person]:
    """Whoever runs the tests; root where a test is marked as needing it."""
    with user_directory(os.geteuid()) as base, at_home(base, os.geteuid()) as somebody:
        yield somebody
