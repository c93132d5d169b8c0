"""The etag of a record: the revision that last changed it, as a quoted text that callers take for opaque (AIP-154)."""

from __future__ import annotations

from doorward_server.errors import Aborted

__all__ = ["etag_of", "require_etag"]


def etag_of(revision: int) -> str:
    """The etag of a record that was last changed at `revision`."""
    return f'"{revision}"'


def require_etag(given: str, revision: int) -> None:
    """Sees that `given`, if it is not empty, is the etag of the token as it is now.

    Raises:
        Aborted: ETAG_MISMATCH, with the present one.
    """
    present = etag_of(revision)
    if given and given != present:
        raise Aborted(
            "ETAG_MISMATCH",
            f"the token has changed since that etag was read; now it is {present}: read the token again, and repeat if "
            "that is still what you want",
            metadata={"etag": present},
        )
