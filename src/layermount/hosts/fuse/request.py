"""One request of the kernel, as handlers get it."""

from __future__ import annotations


class Request:
    """A request; the loop uses one object for all, so who keeps it makes a copy.

    Attributes:
        opcode: What is asked.
        unique: Its number, for the answer.
        nodeid: The inode it is about.
        uid: Who asks, for files.
        gid: The caller's group, for files.
        pid: The thread that asks; 0 when it is not in this pid namespace.
        body: What comes after the header, good until the next request.
    """

    __slots__ = ("body", "gid", "nodeid", "opcode", "pid", "uid", "unique")

    def __init__(self) -> None:
        self.opcode = self.unique = self.nodeid = self.uid = self.gid = self.pid = 0
        self.body = memoryview(b"")

    def copy(self) -> Request:
        """The same request with a body of its own."""
        other = Request()
        other.opcode, other.unique, other.nodeid = self.opcode, self.unique, self.nodeid
        other.uid, other.gid, other.pid = self.uid, self.gid, self.pid
        other.body = memoryview(bytes(self.body))
        return other

    def __repr__(self) -> str:
        return f"<opcode {self.opcode} on {self.nodeid} from {self.pid}: {bytes(self.body[:64])!r}>"
