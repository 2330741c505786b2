"""A few threads for what may block. What they do is for who gives it to them.

Not `concurrent.futures`: nothing here waits for a result, and it would be imported either at every
start or by the thread that serves, which deadlocks when the mount covers the interpreter's files.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

Work = Callable[[], object]


class Pool:
    """Threads that are started when there is work, up to a number, and do it in order."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._threads: list[threading.Thread] = []
        self._queue: SimpleQueue[Work | None] = SimpleQueue()

    def submit(self, work: Work) -> None:
        """Have `work` done by another thread; it must not raise."""
        self._queue.put(work)
        if len(self._threads) < self._workers:
            thread = threading.Thread(target=self._run, name="layermount-fuse", daemon=True)
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """Return when everything that was given has been done."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            work()
