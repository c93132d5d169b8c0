"""What happened: every check and every mutation that a test made, on one monotonic clock, for `verdicts.py` to read.

`begun_ns` is read before a call is made and `ended_ns` after its end is known, so both err to the side of the server: what
is found to have begun after a return did.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.wire import Metadata

__all__ = ["OK", "Check", "History", "Mutation", "Subject", "now_ns"]

OK = "OK"


def now_ns() -> int:
    """The one clock of a history."""
    return time.monotonic_ns()


@dataclass(eq=False)
class Subject:
    """What is asked about: whether this secret may do this in this project. `initially`: the answer before any change."""

    account_id: str
    project_id: str
    token_id: str
    secret: str = field(repr=False)
    permission: str
    initially: str
    permission_set: str = "developer"
    # Who asks about it, if not the deployment's own caller; and that operator's id.
    asked_by: Metadata | None = field(default=None, repr=False)
    operator_id: str = ""


@dataclass(eq=False)
class Check:
    """One check. `answered`: ALLOWED, a DenyReason, or the code of a failed call, whose reason is `why`."""

    replica: str
    subject: Subject
    begun_ns: int
    is_fully_consistent: bool = False
    ended_ns: int | None = None
    answered: str = ""
    why: str = ""
    is_decided: bool = False
    number: int | None = None


@dataclass(eq=False)
class Mutation:
    """One mutation. `makes`: what its subject is answered from then on; `answered`: OK or the code of the failure.

    `elapsed_s`, `confirmed` and `expired` are its Propagation; `number` its revision, known also where propagation was not
    awaited. `true_*_ns` are readings of true time. `committed_ns`: when the test saw that it was committed.
    """

    replica: str
    rpc: str
    subject: Subject | None
    makes: str
    begun_ns: int
    true_begun_ns: int
    ended_ns: int | None = None
    true_ended_ns: int | None = None
    committed_ns: int | None = None
    true_committed_ns: int | None = None
    answered: str = ""
    why: str = ""
    number: int | None = None
    confirmed: int = 0
    expired: int = 0
    elapsed_s: float = 0.0

    @property
    def returned(self) -> bool:
        """Whether it returned with success: the promise holds from `ended_ns` on."""
        return self.answered == OK


class History:
    """Of one test. `hold_ms`: the shortest and the longest hold of the replicas that took part."""

    def __init__(self, true_now_ns: Callable[[], int]) -> None:
        self.true_now_ns = true_now_ns
        self.checks: list[Check] = []
        self.mutations: list[Mutation] = []
        self.holds_ms: set[int] = set()
        self._lock = threading.Lock()

    def begin_check(self, replica: str, subject: Subject, *, fully: bool = False) -> Check:
        """Notes that a check begins now."""
        check = Check(replica, subject, now_ns(), fully)
        with self._lock:
            self.checks.append(check)
        return check

    def begin_mutation(self, replica: str, rpc: str, subject: Subject | None, makes: str) -> Mutation:
        """Notes that a mutation begins now."""
        mutation = Mutation(replica, rpc, subject, makes, now_ns(), self.true_now_ns())
        with self._lock:
            self.mutations.append(mutation)
        return mutation

    def committed(self, mutation: Mutation) -> None:
        """Notes that the test has seen `mutation` committed."""
        mutation.committed_ns, mutation.true_committed_ns = now_ns(), self.true_now_ns()
