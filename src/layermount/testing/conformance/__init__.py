"""What a host must do: cases to run against whatever shows layers as one tree.

In a test of another host, with pytest::

    SUBJECT = conformance.mounted(Path("/tmp"), my_mount, name="mine", traits=[Trait.OTHER_USERS])
    @pytest.mark.parametrize("case", conformance.runnable(SUBJECT), ids=attrgetter("name"))
    def test_conformance(case): case.run(SUBJECT)

`my_mount(layers)` is a context manager that shows `layers.lowers` under `layers.upper` at
`layers.target`; see `Layers`. What the subject promises is said by its traits, and a case that
needs more is left out: `Case.missing` has the reason.
"""

from __future__ import annotations

from layermount.testing.conformance import (
    attributes,
    copying,
    data,
    listing,
    locks,
    moving,
    names,
    open_files,
    permissions,
    visibility,
    xattrs,
)
from layermount.testing.conformance.case import Case, Layers, Showing, Subject, Trait
from layermount.testing.conformance.faces import Face
from layermount.testing.conformance.subjects import in_process, mounted

__all__ = [
    "CASES",
    "Case",
    "Face",
    "Layers",
    "Showing",
    "Subject",
    "Trait",
    "in_process",
    "mounted",
    "runnable",
]

CASES: tuple[Case, ...] = tuple(
    one
    for module in (
        visibility,
        listing,
        names,
        moving,
        copying,
        attributes,
        xattrs,
        open_files,
        data,
        locks,
        permissions,
    )
    for one in module.COLLECTION.cases
)


def runnable(subject: Subject) -> list[Case]:
    """The cases that mean something for a subject."""
    return [one for one in CASES if one.missing(subject) is None]
