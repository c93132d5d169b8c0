"""The one error of this package: the embedded PostgreSQL can't be had, with the path, the cause and the way out.

Raised by every module here; the app prints its sentence and exits. Design section 6.
"""

from __future__ import annotations


class EmbeddedUnavailable(Exception):
    """Says in one sentence which path, what is wrong with it, and what the operator can do."""
