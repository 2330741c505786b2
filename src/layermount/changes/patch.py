"""The content of changed text files, as a unified diff that patch(1) applies with `-p1`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence

from layermount.changes.change import Change, ChangeKind
from layermount.changes.diff import Difference
from layermount.engine.overlay import Overlay
from layermount.engine.paths import get_node
from layermount.layer.base import LINK, REGULAR

#: Larger files are named, not shown.
LARGEST = 4 * 1024 * 1024

_CONTEXT = 3
_NO_NEWLINE = "\\ No newline at end of file"
# What a name in a header line needs to be read back: GNU patch takes C's escapes in quotes.
_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r", '"': '\\"', "\\": "\\\\"}

_Opcode = tuple[str, int, int, int, int]


def patch(difference: Difference, change: Change) -> Iterator[str]:
    """A change as lines of a unified diff, without line ends; empty when no content differs.

    What is no text (it has a NUL byte) or larger than `LARGEST` is one line that says so, a link's
    target two lines that patch(1) skips. Bytes that are no UTF-8 are kept as `surrogateescape` has
    them.

    Raises:
        OSError: EACCES for a file that the caller may not read, with its path.
    """
    old_path = change.old_path or change.path
    old_kind = None if change.kind is ChangeKind.ADDED else _kind(difference.base, old_path)
    new_kind = None if change.kind is ChangeKind.DELETED else _kind(difference.merged, change.path)
    if LINK in (old_kind, new_kind):
        yield from _links(difference, change, old_kind, new_kind)
    is_told = change.kind in (ChangeKind.ADDED, ChangeKind.DELETED) or "type" in change.what
    if not is_told and "content" not in change.what:
        return
    old = _read(difference.base, old_path, change.old_size) if old_kind == REGULAR else None
    new = _read(difference.merged, change.path, change.new_size) if new_kind == REGULAR else None
    if old == new:
        return
    from_name = "/dev/null" if old is None else _name(f"a/{old_path}")
    to_name = "/dev/null" if new is None else _name(f"b/{change.path}")
    if _is_binary(old) or _is_binary(new):
        yield f"Binary files {from_name.rstrip()} and {to_name.rstrip()} differ"
    else:
        yield from _unified(_lines(old), _lines(new), from_name, to_name)


def _kind(overlay: Overlay, path: str) -> int:
    return get_node(overlay, path, follow=False).kind


def _links(
    difference: Difference, change: Change, old_kind: int | None, new_kind: int | None
) -> Iterator[str]:
    old_path = change.old_path or change.path
    old = _target(difference.base, old_path) if old_kind == LINK else None
    new = _target(difference.merged, change.path) if new_kind == LINK else None
    if old != new:
        yield from (f"-{old_path} -> {old}",) if old is not None else ()
        yield from (f"+{change.path} -> {new}",) if new is not None else ()


def _target(overlay: Overlay, path: str) -> str:
    return overlay.readlink(get_node(overlay, path, follow=False))


def _read(overlay: Overlay, path: str, size: int | None) -> bytes:
    """The file's bytes; a NUL byte for one that is too large, which makes it binary."""
    if size is None or size > LARGEST:
        return b"\0"
    try:
        handle = overlay.open(get_node(overlay, path, follow=False), os.O_RDONLY)
    except OSError as error:
        error.filename = path
        raise
    try:
        return handle.read(size, 0)
    finally:
        handle.close()


def _is_binary(data: bytes | None) -> bool:
    return data is not None and b"\0" in data


def _lines(data: bytes | None) -> list[str]:
    """The lines with their ends: only a newline ends a line, and the last one may lack it."""
    text = (data or b"").decode("utf-8", "surrogateescape")
    pieces = text.split("\n")
    last = pieces.pop()
    return [f"{piece}\n" for piece in pieces] + ([last] if last else [])


def _name(path: str) -> str:
    if any(c in '"\\' or not (c.isprintable() or "\udc80" <= c <= "\udcff") for c in path):
        return '"' + "".join(_ESCAPES.get(c) or _octal(c) for c in path) + '"'
    # A name with a space ends at the tab; otherwise it would end at the space.
    return f"{path}\t" if " " in path else path


def _octal(character: str) -> str:
    if character.isprintable():
        return character
    return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", "surrogateescape"))


def _unified(old: Sequence[str], new: Sequence[str], from_name: str, to_name: str) -> Iterator[str]:
    opcodes = _opcodes(old, new)
    if all(tag == "equal" for tag, *_ in opcodes):
        return
    yield f"--- {from_name}"
    yield f"+++ {to_name}"
    for group in _groups(opcodes):
        old_range = _range(group[0][1], group[-1][2])
        new_range = _range(group[0][3], group[-1][4])
        yield f"@@ -{old_range} +{new_range} @@"
        for tag, i1, i2, j1, j2 in group:
            if tag == "equal":
                yield from _marked(" ", old[i1:i2])
            else:
                yield from _marked("-", old[i1:i2])
                yield from _marked("+", new[j1:j2])


def _opcodes(old: Sequence[str], new: Sequence[str]) -> list[_Opcode]:
    """What turns `old` into `new`; the costly search is for what lies between equal ends."""
    shorter = min(len(old), len(new))
    head = next((n for n in range(shorter) if old[n] != new[n]), shorter)
    tail = next((n for n in range(shorter - head) if old[-1 - n] != new[-1 - n]), shorter - head)
    matcher = difflib.SequenceMatcher(
        None, old[head : len(old) - tail], new[head : len(new) - tail]
    )
    opcodes: list[_Opcode] = [("equal", 0, head, 0, head)] if head else []
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        opcodes.append((tag, i1 + head, i2 + head, j1 + head, j2 + head))
    if tail:
        opcodes.append(("equal", len(old) - tail, len(old), len(new) - tail, len(new)))
    return opcodes


def _groups(opcodes: Sequence[_Opcode]) -> Iterator[list[_Opcode]]:
    """The hunks: what is equal is cut to the context, and a long stretch of it ends a hunk."""
    group: list[_Opcode] = []
    for place, (tag, i1, i2, j1, j2) in enumerate(opcodes):
        if tag != "equal":
            group.append((tag, i1, i2, j1, j2))
            continue
        is_last = place == len(opcodes) - 1
        if group and (is_last or i2 - i1 > 2 * _CONTEXT):
            end = min(i2, i1 + _CONTEXT)
            yield [*group, (tag, i1, end, j1, j1 + end - i1)]
            group = []
        if not is_last:
            start = i1 if group else max(i1, i2 - _CONTEXT)
            group.append((tag, start, i2, j2 - (i2 - start), j2))
    if group:
        yield group


def _range(start: int, end: int) -> str:
    """A hunk's place in one file; nothing is named by the line before it."""
    length = end - start
    if length == 1:
        return f"{start + 1}"
    return f"{start + 1 if length else start},{length}"


def _marked(mark: str, lines: Sequence[str]) -> Iterator[str]:
    for line in lines:
        yield mark + line.removesuffix("\n")
        if not line.endswith("\n"):
            yield _NO_NEWLINE
