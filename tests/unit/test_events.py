"""The event bus by itself; what an overlay reports is in test_weaknesses_face.py."""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
import threading
import time

import pytest

from layermount import Event, EventBus, EventKind, Operation
from layermount.engine.node import DirectoryNode
from layermount.engine.reports import Reports
from layermount.events import acting_for, actor, set_actor


def test_an_event_is_a_record() -> None:
    before = time.time_ns()
    event = Event(EventKind.RENAMED, "new", "old")
    assert before <= event.timestamp_ns <= time.time_ns()
    assert (event.pid, event.message) == (os.getpid(), "")
    assert pickle.loads(pickle.dumps(event)) == event  # noqa: S301  # our own
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.path = "x"  # type: ignore[misc]  # that is the point


@pytest.mark.parametrize("kinds", [EventKind, Operation])
def test_names_are_stable_text(kinds: type[EventKind | Operation]) -> None:
    """They go into logs and JSON; a member's name and its text say the same."""
    assert {str(kind) for kind in kinds} == {kind.name.lower().replace("_", "-") for kind in kinds}


def test_subscribers_hear_in_the_order_they_came() -> None:
    bus, heard = EventBus(), list[tuple[str, str]]()
    assert not bus.has_subscribers
    first = bus.subscribe(lambda event: heard.append(("first", event.path)))
    bus.subscribe(lambda event: heard.append(("second", event.path)))
    assert bus.has_subscribers
    bus.publish(Event(EventKind.CREATED, "a"))
    first.close()
    bus.publish(Event(EventKind.CREATED, "b"))
    assert heard == [("first", "a"), ("second", "a"), ("second", "b")]


def test_a_subscription_ends_with_its_block_and_may_end_twice() -> None:
    bus, heard = EventBus(), list[str]()
    with bus.subscribe(lambda event: heard.append(event.path)) as subscription:
        bus.publish(Event(EventKind.CREATED, "in"))
    bus.publish(Event(EventKind.CREATED, "after"))
    subscription.close()
    assert heard == ["in"]
    assert not bus.has_subscribers


def test_one_function_may_subscribe_twice() -> None:
    bus, heard = EventBus(), list[Event]()
    first, _second = bus.subscribe(heard.append), bus.subscribe(heard.append)
    first.close()
    bus.publish(Event(EventKind.CREATED, "a"))
    assert len(heard) == 1


def test_subscribing_and_leaving_while_events_are_delivered() -> None:
    bus, heard = EventBus(), list[str]()

    def once(event: Event) -> None:
        heard.append(f"once {event.path}")
        subscription.close()
        bus.subscribe(lambda later: heard.append(f"new {later.path}"))

    subscription = bus.subscribe(once)
    bus.subscribe(lambda event: heard.append(f"other {event.path}"))
    bus.publish(Event(EventKind.CREATED, "a"))
    bus.publish(Event(EventKind.CREATED, "b"))
    assert heard == ["once a", "other a", "other b", "new b"]


def test_a_failing_subscriber_is_logged_with_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bus, heard = EventBus(), list[Event]()

    def fail(event: Event) -> None:
        raise ZeroDivisionError

    bus.subscribe(fail)
    bus.subscribe(heard.append)
    with caplog.at_level(logging.ERROR, "layermount.events"):
        bus.publish(Event(EventKind.CREATED, "a"))
    assert len(heard) == 1
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "ZeroDivisionError" in caplog.text


def test_what_ends_the_program_is_not_swallowed() -> None:
    bus = EventBus()

    def interrupt(event: Event) -> None:
        raise KeyboardInterrupt

    bus.subscribe(interrupt)
    with pytest.raises(KeyboardInterrupt):
        bus.publish(Event(EventKind.CREATED, "a"))


def test_threads_may_subscribe_publish_and_leave_at_once() -> None:
    bus, counted = EventBus(), list[str]()
    bus.subscribe(lambda event: counted.append(event.path))

    def run() -> None:
        for _ in range(200):
            with bus.subscribe(str):
                bus.publish(Event(EventKind.CREATED, "x"))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(counted) == 800
    assert len(bus._subscriptions) == 1


def test_an_event_carries_the_process_that_the_thread_acts_for() -> None:
    found = [Event(EventKind.CREATED, "a").pid]
    with acting_for(42):
        found.append(Event(EventKind.CREATED, "a").pid)
        with acting_for(43):
            found.append(actor())
        found.append(actor())
        with acting_for(None):
            found.append(actor())
    found.append(actor())
    set_actor(44)
    found.append(actor())
    set_actor(None)
    found.append(actor())
    own = os.getpid()
    assert found == [own, 42, 43, 42, own, own, 44, own]


def test_other_threads_act_for_themselves() -> None:
    found: list[int] = []
    with acting_for(42):
        thread = threading.Thread(target=lambda: found.append(actor()))
        thread.start()
        thread.join(60)
    assert found == [os.getpid()]


def test_what_fails_acts_for_nobody_else_afterwards() -> None:
    with pytest.raises(ZeroDivisionError), acting_for(42):
        raise ZeroDivisionError
    assert actor() == os.getpid()


def test_what_happens_is_told_once_and_to_who_listened_when_it_happened() -> None:
    bus, heard = EventBus(), list[Event]()
    reports, root = Reports(bus), DirectoryNode(None, "")
    directory = DirectoryNode(root, "dir")
    reports.note(EventKind.CREATED, root, "unheard")
    bus.subscribe(heard.append)
    reports.note(EventKind.CREATED, root, "top")
    reports.note(EventKind.RENAMED, directory, "new", old=(root, "old"))
    reports.note(EventKind.WARNING, directory, message="why")
    assert heard == []
    reports.tell()
    reports.tell()
    assert [(event.kind, event.path, event.old_path, event.message) for event in heard] == [
        (EventKind.CREATED, "top", None, ""),
        (EventKind.RENAMED, "dir/new", "old", ""),
        (EventKind.WARNING, "dir", None, "why"),
    ]
