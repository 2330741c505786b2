from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermount.layer.origin import Origin, parse_origin

#: As the kernel wrote it for a file on ext4.
_KERNELS = bytes.fromhex("00fb1d0001") + bytes(range(16)) + bytes.fromhex("3c222100ec6d5565")


@given(
    st.binary(min_size=16, max_size=16),
    st.integers(min_value=0, max_value=255),
    st.binary(max_size=128),
)
def test_what_is_packed_is_parsed(uuid: bytes, kind: int, handle: bytes) -> None:
    origin = Origin(uuid, kind, handle)
    assert parse_origin(origin.pack()) == origin


def test_the_kernels_record() -> None:
    origin = parse_origin(_KERNELS)
    assert origin == Origin(bytes(range(16)), 1, bytes.fromhex("3c222100ec6d5565"))
    assert origin is not None
    assert origin.pack() == _KERNELS


@given(st.binary(max_size=300))
def test_any_bytes_are_an_origin_or_none(raw: bytes) -> None:
    origin = parse_origin(raw)
    assert origin is None or origin.pack()[4:] == raw[4:]


@pytest.mark.parametrize(
    ("at", "value"), [(0, 1), (1, 0xFA), (2, 0x1C), (2, 0x1E), (3, 0x01)], ids=str
)
def test_what_cannot_be_used_is_none(at: int, value: int) -> None:
    raw = bytearray(_KERNELS)
    raw[at] = value
    assert parse_origin(bytes(raw)) is None


@pytest.mark.parametrize("flags", [0x02, 0x03, 0x04])
def test_flags_that_do_not_matter_here(flags: int) -> None:
    raw = bytearray(_KERNELS)
    raw[3] = flags
    assert parse_origin(bytes(raw)) == parse_origin(_KERNELS)


@pytest.mark.parametrize("origin", [Origin(bytes(16), 1, bytes(235)), Origin(bytes(16), 256, b"")])
def test_what_does_not_fit_is_an_empty_record(origin: Origin) -> None:
    assert origin.pack() == b""
    assert parse_origin(b"") is None
