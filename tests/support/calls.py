"""Calls that go on while something happens to the database: mutations and checks at one server, all in its history.

with Mutations(a, subject) as mutations, Checks(a, subject) as checks: ...
checks.undecided_s(since_ns)        # how long nothing could be decided, at the most
"""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, Self

from tests.cluster.history import OK, Subject, now_ns

if TYPE_CHECKING:
    from tests.cluster.clients import Client
    from tests.cluster.history import Check


class _Calls:
    """One thread, which calls until the block is left."""

    def __init__(self, client: Client, subject: Subject) -> None:
        self._client = client
        self._subject = subject
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"{type(self).__name__} at {client.replica}")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_failure: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.is_set():
            self._call()

    def _call(self) -> None:
        raise NotImplementedError


class Mutations(_Calls):
    """Issues tokens like the subject's and revokes every other one. Failures are part of it."""

    def __init__(self, client: Client, subject: Subject) -> None:
        super().__init__(client, subject)
        self.issued: list[Subject] = []
        self.revoked: list[Subject] = []

    @property
    def acknowledged(self) -> int:
        """How many were answered OK so far."""
        return len(self.issued) + len(self.revoked)

    def _call(self) -> None:
        like = self._subject
        subject = Subject(like.account_id, like.project_id, "", "", like.permission, "TOKEN_UNRECOGNIZED")
        if self._client.begin_issue(subject).result().answered != OK:
            return
        self.issued.append(subject)
        if len(self.issued) % 2 and self._client.begin_revoke(subject).result().answered == OK:
            self.revoked.append(subject)


class Checks(_Calls):
    """Checks the subject, some thirty times a second."""

    PAUSE_S = 0.03

    def __init__(self, client: Client, subject: Subject) -> None:
        super().__init__(client, subject)
        self.made: list[Check] = []

    def undecided_s(self, since_ns: int) -> float:
        """The longest time since then from the end of a check that was decided to the end of the next one that was."""
        ends = [
            check.ended_ns or now_ns() for check in self.made if check.is_decided and (check.ended_ns or 0) > since_ns
        ]
        return max((later - earlier for earlier, later in itertools.pairwise(ends)), default=0) / 1e9

    def unavailable(self, since_ns: int) -> int:
        """How many since then were not decided."""
        return sum(not check.is_decided for check in self.made if check.begun_ns > since_ns)

    def _call(self) -> None:
        self.made.append(self._client.begin_check(self._subject).result())
        self._ended.wait(self.PAUSE_S)
