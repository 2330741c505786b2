from __future__ import annotations

import os
from pathlib import Path

import pytest

from layermount.linux.kmsg import LogMark
from tests.forked import USER, in_child

PREFIX = f"layermount-test-{os.getpid()}:"


def log(text: str) -> None:
    Path("/dev/kmsg").write_text(f"<7>{PREFIX} {text}\n", encoding="utf-8")


@pytest.mark.needs("root")
def test_only_what_comes_after_the_mark_and_has_the_prefix() -> None:
    log("before")
    with LogMark() as mark:
        assert mark.lines(PREFIX) == []
        log("one")
        Path("/dev/kmsg").write_text("<7>layermount-test: of somebody else\n", encoding="utf-8")
        log("two")
        assert mark.lines(PREFIX) == ["one", "two"]
        assert mark.lines(PREFIX) == []
    assert mark.lines(PREFIX) == []


@pytest.mark.needs("root")
def test_a_user_who_may_not_read_it_gets_nothing() -> None:
    def child() -> list[str]:
        with LogMark() as mark:
            return mark.lines("")

    if Path("/proc/sys/kernel/dmesg_restrict").read_text(encoding="utf-8").strip() == "0":
        pytest.skip("everybody may read the kernel's log here")
    assert in_child(child, user=USER) == []
