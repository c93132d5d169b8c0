"""The steps at which a test stops a process that the server's own code does not name (`doorward_server/failpoints.py`)."""

from __future__ import annotations

import enum
from typing import TypeAlias

from doorward_server.failpoints import Failpoint

__all__ = ["Point", "Step"]


class Step(enum.Enum):
    """On the path of a check, and the end of a shutdown: only the tests' entry points know them.

    Those of a check are of a replica, or of a watcher that decides; the last one is of a watcher.
    """

    CHECK_AFTER_CAPTURE = "check.after_capture"
    CHECK_AFTER_DECIDE = "check.after_decide"
    CHECK_BEFORE_SEND = "check.before_send"
    SHUTDOWN_AFTER_DELETE = "shutdown.after_delete"
    WATCH_CLIENT_BEFORE_INSTALL = "watch.client.before_install"


Point: TypeAlias = Failpoint | Step
