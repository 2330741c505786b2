"""The dialects: how a layer says "deleted", "opaque", "moved from", on disk.

A closed choice: every use ends in `match` over the dialects. The xattr names, the escape rule and
the whiteout forms of the kernel's dialects follow the kernel's documentation of overlayfs
(Documentation/filesystems/overlayfs.rst); the OCI names follow the image layer specification.
Rules: D1 to D5.
"""

from __future__ import annotations

from typing import NamedTuple

OCI_PREFIX = ".wh."
OCI_OPAQUE = ".wh..wh..opq"
#: Other names of the same family (`.wh..wh.plnk` and the like) are bookkeeping, never entries.
OCI_RESERVED = ".wh..wh."

#: On an upper's root: it holds redirects with user marks, which the kernel does not follow (M7).
OWN_REDIRECTS = "user.layermount.redirects"

_ESCAPE = "overlay."


class KernelMarks(NamedTuple):
    """Marks as the kernel's overlayfs keeps them: whiteout devices and `PREFIX*` attributes.

    Attributes:
        name: `overlay` or `overlay-user`.
        prefix: `trusted.overlay.` or `user.overlay.`.
    """

    name: str
    prefix: str

    def key(self, record: str) -> str:
        """The attribute that holds `record`, such as "opaque"."""
        return self.prefix + record

    def to_disk(self, key: str) -> str:
        """The attribute name on disk for the name a user of the overlay gives.

        An overlay inside this one keeps marks of its own under the same prefix; they are escaped,
        so that they are its marks and never ours. Inverse: `from_disk`.
        """
        if key.startswith(self.prefix):
            return self.prefix + _ESCAPE + key[len(self.prefix) :]
        return key

    def from_disk(self, key: str) -> str | None:
        """The name a user of the overlay sees for an attribute on disk; None for our own marks."""
        if not key.startswith(self.prefix):
            return key
        rest = key[len(self.prefix) :]
        if rest.startswith(_ESCAPE):
            return self.prefix + rest[len(_ESCAPE) :]
        return None


class OciMarks(NamedTuple):
    """Marks as files: `.wh.NAME` deletes NAME, `.wh..wh..opq` makes its directory opaque."""

    name: str = "oci"

    def to_disk(self, key: str) -> str:
        """OCI layers have no marks among attributes: every name stands for itself."""
        return key

    def from_disk(self, key: str) -> str | None:
        """OCI layers have no marks among attributes: every name stands for itself."""
        return key


Marks = KernelMarks | OciMarks

OVERLAY = KernelMarks("overlay", "trusted.overlay.")
OVERLAY_USER = KernelMarks("overlay-user", "user.overlay.")
OCI = OciMarks()
DIALECTS: dict[str, Marks] = {marks.name: marks for marks in (OVERLAY, OVERLAY_USER, OCI)}
