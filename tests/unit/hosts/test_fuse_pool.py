"""Threads for what may block."""

from __future__ import annotations

import threading

from layermount.hosts.fuse.pool import Pool


def test_what_is_given_is_done_before_it_closes() -> None:
    done: list[int] = []
    pool = Pool(2)
    for number in range(100):
        pool.submit(lambda number=number: done.append(number))  # type: ignore[misc]  # a default is no parameter here
    pool.close()
    assert sorted(done) == list(range(100))


def test_one_thread_keeps_the_order() -> None:
    done: list[int] = []
    pool = Pool(1)
    for number in range(100):
        pool.submit(lambda number=number: done.append(number))  # type: ignore[misc]  # as above
    pool.close()
    assert done == list(range(100))


def test_what_blocks_holds_up_no_other() -> None:
    pool, free, went_on = Pool(2), threading.Event(), threading.Event()
    pool.submit(free.wait)
    pool.submit(went_on.set)
    assert went_on.wait(10)
    free.set()
    pool.close()


def test_without_work_there_is_no_thread() -> None:
    before = threading.active_count()
    pool = Pool(4)
    assert threading.active_count() == before
    pool.close()
