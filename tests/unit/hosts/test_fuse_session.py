"""The connection by itself, over a socket: older kernels, and requests that no kernel sends."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from layermount.engine.overlay import Overlay
from layermount.hosts.fuse import protocol
from layermount.hosts.fuse.protocol import IN_HEADER, OUT_HEADER, Init, Opcode
from layermount.hosts.fuse.session import MAX_WRITE, Session
from layermount.testing import trees
from tests.unit.overlays import config_of, make_layers

#: What Linux 6.18 offers.
EVERYTHING = Init(0x5FD73FFFFFB)
LATEST = 45
LOOKUPS = 1


class Kernel:
    """A session and the other end of it."""

    def __init__(self, overlay: Overlay) -> None:
        ours, self._end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.session = Session(overlay, ours.detach())
        self.failure: OSError | None = None
        self._unique = 0
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        try:
            self.session.serve()
        except OSError as error:
            self.failure = error

    def close(self) -> None:
        self._end.close()
        self._thread.join()

    def tell(self, opcode: int, nodeid: int = protocol.ROOT_ID, body: bytes = b"") -> None:
        """Send a request."""
        self._unique += 2
        size = IN_HEADER.size + len(body)
        caller = os.geteuid(), os.getegid(), os.getpid()
        self._end.send(IN_HEADER.pack(size, opcode, self._unique, nodeid, *caller, 0, 0) + body)

    def ask(
        self, opcode: int, nodeid: int = protocol.ROOT_ID, body: bytes = b""
    ) -> tuple[int, bytes]:
        """Send a request; (errno or 0, payload) of its answer."""
        self.tell(opcode, nodeid, body)
        answer = self._end.recv(MAX_WRITE)
        length, error, unique = OUT_HEADER.unpack_from(answer)
        assert (length, unique) == (len(answer), self._unique)
        return -error, answer[OUT_HEADER.size :]

    def init(self, minor: int = LATEST, offered: Init = EVERYTHING) -> tuple[int, bytes]:
        low, high = offered & 0xFFFFFFFF, offered >> 32
        return self.ask(Opcode.INIT, 0, protocol.INIT_IN.pack(7, minor, 131072, low, high))

    def lookup(self, name: str, parent: int = protocol.ROOT_ID) -> int:
        """The number of an inode, 0 for none."""
        error, payload = self.ask(Opcode.LOOKUP, parent, os.fsencode(name) + b"\0")
        assert error == 0
        return int(protocol.ENTRY_OUT.unpack(payload)[0])


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    lower = {"file": trees.file(b"content"), "directory": trees.directory()}
    make_layers(tmp_path, lower)
    with closing(Overlay(config_of(tmp_path))) as overlay, closing(Kernel(overlay)) as kernel:
        yield kernel


OLDER = [
    pytest.param(LATEST, EVERYTHING, True, id="latest"),
    pytest.param(LATEST + 1, EVERYTHING, True, id="newer"),
    pytest.param(38, EVERYTHING & ~Init.PASSTHROUGH, False, id="no passthrough"),
    pytest.param(35, EVERYTHING & Init(0x3FFFFFFF), False, id="no second half"),
    pytest.param(31, Init.ASYNC_READ | Init.BIG_WRITES, False, id="oldest"),
]


@pytest.mark.parametrize(("minor", "offered", "passthrough"), OLDER)
def test_what_is_not_offered_is_not_asked_for(
    kernel: Kernel, minor: int, offered: Init, passthrough: bool
) -> None:
    error, payload = kernel.init(minor, offered)
    assert error == 0
    fields = protocol.INIT_OUT.unpack(payload)
    flags = Init(fields[3] | fields[10] << 32)
    assert fields[:2] == (7, min(minor, LATEST))
    assert not flags & ~offered
    assert bool(flags & Init.PASSTHROUGH) == passthrough
    assert fields[11] == (1 if passthrough else 0)
    assert kernel.lookup("file")


@pytest.mark.parametrize("minor", [8, 30])
def test_a_kernel_that_is_too_old_is_refused(kernel: Kernel, minor: int) -> None:
    assert kernel.init(minor)[0] == errno.EPROTO
    kernel.close()
    assert kernel.failure is not None
    assert kernel.failure.errno == errno.EPROTO


REFUSED = [
    pytest.param(999, 1, b"", errno.ENOSYS, id="an opcode of the future"),
    pytest.param(Opcode.POLL, 1, bytes(24), errno.ENOSYS, id="poll"),
    pytest.param(Opcode.ACCESS, 1, bytes(8), errno.ENOSYS, id="access is the kernel's"),
    pytest.param(Opcode.GETATTR, 77, bytes(16), errno.ESTALE, id="an inode that is not known"),
    pytest.param(Opcode.LOOKUP, 77, b"file\0", errno.ESTALE, id="a look-up in none"),
    pytest.param(Opcode.READ, 1, bytes(40), errno.EBADF, id="reading what is not open"),
    pytest.param(Opcode.WRITE, 1, bytes(3), errno.EIO, id="a request that is cut"),
    pytest.param(Opcode.UNLINK, 1, b"none\0", errno.ENOENT, id="removing nothing"),
    pytest.param(Opcode.UNLINK, 1, b"directory\0", errno.EISDIR, id="unlinking a directory"),
]


@pytest.mark.parametrize(("opcode", "nodeid", "body", "number"), REFUSED)
def test_what_cannot_be_done_is_answered_and_the_next_is_served(
    kernel: Kernel, opcode: int, nodeid: int, body: bytes, number: int
) -> None:
    kernel.init()
    assert kernel.ask(opcode, nodeid, body) == (number, b"")
    assert kernel.lookup("file")


def test_a_name_of_nothing_is_an_answer_that_is_kept(kernel: Kernel) -> None:
    kernel.init()
    error, payload = kernel.ask(Opcode.LOOKUP, body=b"none\0")
    nodeid, _, valid, *_ = protocol.ENTRY_OUT.unpack(payload)
    assert (error, nodeid) == (0, 0)
    assert valid > 0


def test_what_is_forgotten_as_often_as_it_was_told_is_unknown(kernel: Kernel) -> None:
    kernel.init()
    known = kernel.lookup("file")
    assert kernel.lookup("file") == known
    kernel.tell(Opcode.FORGET, known, protocol.FORGET_IN.pack(1))
    assert kernel.ask(Opcode.GETATTR, known, bytes(16))[0] == 0
    body = protocol.BATCH_FORGET_IN.pack(1, 0) + protocol.FORGET_ONE.pack(known, 1)
    kernel.tell(Opcode.BATCH_FORGET, 0, body)
    assert kernel.ask(Opcode.GETATTR, known, bytes(16))[0] == errno.ESTALE
    assert kernel.lookup("file") not in (0, known)
    assert kernel.session.status()["known_inodes"] == 2


def test_a_number_is_never_given_to_another_inode(kernel: Kernel) -> None:
    kernel.init()
    numbers = []
    for _ in range(10):
        numbers.append(kernel.lookup("file"))
        kernel.tell(Opcode.FORGET, numbers[-1], protocol.FORGET_IN.pack(LOOKUPS))
    assert len(set(numbers)) == len(numbers)


def test_requests_are_counted_by_name(kernel: Kernel) -> None:
    kernel.init()
    kernel.lookup("file")
    kernel.ask(Opcode.STATFS)
    status = kernel.session.status()
    assert status["requests"] == {"lookup": 1, "statfs": 1}
    assert status["protocol"] == f"7.{LATEST}"
