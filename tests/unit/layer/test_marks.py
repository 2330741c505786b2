from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermount.layer.marks import DIALECTS, OCI, OVERLAY, OVERLAY_USER, Marks

_PREFIXES = ("trusted.overlay.", "user.overlay.", "user.", "trusted.", "overlay.", "")
_KEYS = st.builds(str.__add__, st.sampled_from(_PREFIXES), st.text(min_size=1)) | st.lists(
    st.sampled_from(_PREFIXES[:-1]), min_size=1
).map("".join)
_KERNEL = (OVERLAY, OVERLAY_USER)


@given(st.sampled_from(list(DIALECTS.values())), _KEYS)
def test_what_is_escaped_comes_back(marks: Marks, key: str) -> None:
    assert marks.from_disk(marks.to_disk(key)) == key


@given(st.sampled_from(_KERNEL), _KEYS)
def test_no_user_reaches_a_record(marks: Marks, key: str) -> None:
    records = {
        marks.key(record)  # type: ignore[union-attr]  # only the kernel's dialects have records
        for record in ("opaque", "redirect", "metacopy", "origin", "impure", "nlink", "whiteout")
    }
    assert marks.to_disk(key) not in records


@given(st.sampled_from(_KERNEL), _KEYS, _KEYS)
def test_different_names_stay_different(marks: Marks, one: str, two: str) -> None:
    assert (marks.to_disk(one) == marks.to_disk(two)) == (one == two)


@pytest.mark.parametrize(
    ("marks", "disk", "shown"),
    [
        (OVERLAY, "trusted.overlay.opaque", None),
        (OVERLAY, "trusted.overlay.overlay.opaque", "trusted.overlay.opaque"),
        (OVERLAY, "trusted.overlay.overlay.overlay.x", "trusted.overlay.overlay.x"),
        (OVERLAY, "user.overlay.opaque", "user.overlay.opaque"),
        (OVERLAY, "trusted.overlayopaque", "trusted.overlayopaque"),
        (OVERLAY_USER, "user.overlay.opaque", None),
        (OVERLAY_USER, "user.overlay.overlay.opaque", "user.overlay.opaque"),
        (OVERLAY_USER, "trusted.overlay.opaque", "trusted.overlay.opaque"),
        (OCI, "trusted.overlay.opaque", "trusted.overlay.opaque"),
    ],
)
def test_names_on_disk(marks: Marks, disk: str, shown: str | None) -> None:
    assert marks.from_disk(disk) == shown
