"""Who calls, for whom, and for how long: what a client adds to every call, and what it makes of a failed one.

Design sections 5 and 8. Both dialects keep one `Caller` for each client; nothing here is sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import grpc

from doorward._credentials import credential_of
from doorward.clock import SystemClock
from doorward.errors import DeadlineExceeded, Status, status_of

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from doorward._credentials import CredentialSource, Metadata
    from doorward.errors import DoorwardError

__all__ = ["CHANGE_TIMEOUT_S", "CHECK_TIMEOUT_S", "Caller"]

M = TypeVar("M")

ACTING_FOR: Final = "on-behalf-of"
# A check that takes longer is worth nothing to who waits for it.
CHECK_TIMEOUT_S: Final = 2.0
# A change waits for replicas, at most the longest hold: 5 s by default; the rest is room for a lock and a failover.
CHANGE_TIMEOUT_S: Final = 30.0
LONGEST_TIMEOUT_S: Final = 86_400.0


class Caller(Generic[M]):
    """Who calls. `shaped` makes of pairs what the dialect sends as metadata; made anew only for another credential."""

    def __init__(
        self, source: CredentialSource, timeout_s: float, shaped: Callable[[Metadata], M], more: Metadata = ()
    ) -> None:
        self._source = source
        self._timeout_s = timeout_s
        self._shaped = shaped
        self._more = more
        self._sent: tuple[Metadata, M] | None = None  # in one piece, for threads

    @classmethod
    def of(
        cls,
        credential: str | os.PathLike[str] | Callable[[], str] | None,
        timeout: float | None,
        usual_timeout_s: float,
        shaped: Callable[[Metadata], M],
    ) -> Caller[M]:
        """The caller that the arguments of a client mean.

        Raises:
            ValueError: a credential or a timeout that can be none.
        """
        if timeout is not None and not 0 < timeout <= LONGEST_TIMEOUT_S:
            raise ValueError("timeout: seconds, more than 0 and up to a day")
        return Caller(credential_of(credential), usual_timeout_s if timeout is None else timeout, shaped)

    def acting_for(self, whom: str) -> Caller[M]:
        """The same caller on somebody's behalf, which Doorward writes into the audit log and does not verify.

        Raises:
            ValueError: gRPC carries printable ASCII only.
        """
        if not whom or not whom.isascii() or not whom.isprintable():
            raise ValueError("on_behalf_of: printable ASCII, for example alice@example.com")
        return Caller(self._source, self._timeout_s, self._shaped, ((ACTING_FOR, whom),))

    def metadata(self) -> M:
        """What to send with a call that begins now.

        Raises:
            CredentialUnreadable: there is no credential.
        """
        found, sent = self._source.metadata(), self._sent
        if sent is None or sent[0] is not found:
            self._sent = sent = (found, self._shaped((*found, *self._more)))
        return sent[1]

    def seconds(self, timeout: float | None) -> float:
        """How long a call may take.

        Raises:
            DeadlineExceeded: no time is left.
            ValueError: no number of seconds.
        """
        if timeout is None:
            return self._timeout_s
        if timeout <= 0:
            raise DeadlineExceeded(Status(grpc.StatusCode.DEADLINE_EXCEEDED, "no time was left; nothing was sent"))
        if not timeout <= LONGEST_TIMEOUT_S:
            raise ValueError("timeout: seconds, up to a day")
        return timeout

    def budget(self, timeout: float | None) -> Callable[[], float]:
        """The same for several calls with one deadline: each asks for what is left."""
        now_ns = SystemClock().now_ns
        until_ns = now_ns() + int(self.seconds(timeout) * 1e9)
        return lambda: self.seconds((until_ns - now_ns()) / 1e9)

    def failure(self, error: Any) -> DoorwardError:
        """What a failed call is raised as; a credential that was refused is looked for anew."""
        status = status_of(error)
        if status.code is grpc.StatusCode.UNAUTHENTICATED:
            self._source.refused()
        return status.error()
