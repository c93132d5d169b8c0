"""Authorizers that a guard takes, being nothing but objects with a `check`: the answer is the test's, in either dialect.

decider = Decider(Decision(True, None, "t", "acme", "1.7"))      # .threads and .aio are what a guard is given
decider = Decider(Unavailable(…))                                # raised by every check
decider.asked                                                    # every question, in order
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from doorward.core.secret import SecretKind, generate, new_id
from doorward.decisions import Decision
from doorward.integrations._guard import Gate, decide_aio, decide_threads

if TYPE_CHECKING:
    from doorward.integrations._guard import Admission, Question

YES: Final = Decision(True, None, "token-1", "acme", "1.7")


class Asked(NamedTuple):
    """One question."""

    secret: str
    permission: str
    project_id: str | None
    account_id: str | None
    timeout: float | None


@dataclass
class Decider:
    """Answers every check alike, or raises."""

    answer: Decision | BaseException = YES
    asked: list[Asked] = field(default_factory=list)

    @property
    def threads(self) -> _Threads:
        return _Threads(self)

    @property
    def aio(self) -> _Aio:
        return _Aio(self)

    def decide(self, asked: Asked) -> Decision:
        self.asked.append(asked)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@dataclass
class _Threads:
    decider: Decider

    def check(
        self,
        secret: str,
        permission: str,
        *,
        project_id: str | None = None,
        account_id: str | None = None,
        timeout: float | None = None,
    ) -> Decision:
        return self.decider.decide(Asked(secret, permission, project_id, account_id, timeout))


@dataclass
class _Aio:
    decider: Decider

    async def check(
        self,
        secret: str,
        permission: str,
        *,
        project_id: str | None = None,
        account_id: str | None = None,
        timeout: float | None = None,
    ) -> Decision:
        return self.decider.decide(Asked(secret, permission, project_id, account_id, timeout))


def a_secret() -> str:
    """One of no token."""
    return generate(SecretKind.TOKEN, new_id()).reveal()


def decided(dialect: str, decider: Decider, question: Question, left_s: float | None = None) -> Admission:
    """What a guard of this dialect makes of a question. Raises NotAdmitted."""
    if dialect == "threads":
        return decide_threads(Gate(decider.threads, 2.0), question, left_s)
    gate: Gate[Any] = Gate(decider.aio, 2.0)
    return asyncio.run(decide_aio(gate, question, left_s))
