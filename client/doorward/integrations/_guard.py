"""What every guard does for a request, in either dialect: credential, question, decision, identity.

    question = question_of(needs, secret_in(headers), named)      # raises NotAdmitted, as everything here
    admission = await decide_aio(gate, question)                  # decide_threads(gate, question)

Whatever goes wrong on the way, a mistake in a rule and an error nobody thought of among it, ends as `NotAdmitted`: there is
no way to the handler but through a decision that allows. Design sections 2, 5 and 8.
"""

from __future__ import annotations

import logging
import re
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from doorward.clock import SystemClock
from doorward.core.secret import SecretKind, find_secret
from doorward.errors import DoorwardError, Refused
from doorward.integrations._refusals import FAILED, NotAdmitted, denied, presented, undecided

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Iterator

    from doorward.core.secret import Secret
    from doorward.decisions import Decision
    from doorward.integrations._rules import Needs

__all__ = [
    "ADMITTED",
    "CHECK_TIMEOUT_S",
    "Admission",
    "AioGuard",
    "Authorizer",
    "Gate",
    "Identity",
    "Question",
    "ThreadsGuard",
    "decide_aio",
    "decide_threads",
    "find_identity",
    "identity",
    "question_of",
    "secret_in",
]

log: Final = logging.getLogger("doorward")

A_co = TypeVar("A_co", covariant=True)

# As long as the clients wait by themselves.
CHECK_TIMEOUT_S: Final = 2.0
# Twice what a scheme, a secret and a careless client's spaces take; what is longer is not even looked at.
_LONGEST_CREDENTIAL: Final = 256
LOG_EVERY_NS: Final = 10_000_000_000
_CREDENTIAL: Final = re.compile(r"(?i:bearer|token) +([0-9A-Za-z_]+)")


class Authorizer(Protocol[A_co]):
    """Whatever decides: an `AuthorizerClient` or a `LocalAuthorizer`; of `doorward.aio`, where the answer is awaited."""

    def check(
        self,
        secret: str,
        permission: str,
        *,
        project_id: str | None = None,
        account_id: str | None = None,
        timeout: float | None = None,
    ) -> A_co:
        """One decision. Raises a DoorwardError if there is none."""
        ...


@dataclass(frozen=True, slots=True)
class Identity:
    """Who was let in: the public id of the token, and the account that it belongs to."""

    token_id: str
    account_id: str


@dataclass(frozen=True, slots=True)
class Question:
    """What a request asks for: exactly one of the two ids is set. The secret has no readable repr."""

    secret: Secret
    permission: str
    project_id: str | None
    account_id: str | None


@dataclass(frozen=True, slots=True)
class Admission:
    """A question that was answered yes, and to whom."""

    question: Question
    identity: Identity


# Set for the handler of one request, in the context that is this request's alone.
ADMITTED: Final[ContextVar[Admission]] = ContextVar("doorward_admitted")


def identity() -> Identity:
    """Who was let in, for the handler of a guarded request and for whatever it calls.

    Raises:
        LookupError: nobody was checked: the method is open, or this is no handler's context.
    """
    return ADMITTED.get().identity


def find_identity() -> Identity | None:
    """The same, or None where nobody was checked."""
    admission = ADMITTED.get(None)
    return None if admission is None else admission.identity


def secret_in(values: Iterable[str | bytes]) -> Secret:
    """The secret in the values of a request's authorization headers: `Bearer <secret>` or `Token <secret>`.

    What has not the form of a token's secret is refused here: it goes nowhere, whoever's credential it is.

    Raises:
        NotAdmitted: there is none, more than one, or something else.
    """
    first, *others = tuple(values) or (b"",)
    if others:
        raise NotAdmitted(presented("CREDENTIAL_REPEATED"))
    if not first.strip():
        raise NotAdmitted(presented("CREDENTIAL_MISSING"))
    if len(first) <= _LONGEST_CREDENTIAL and first.isascii():
        text = first.decode("ascii") if isinstance(first, bytes) else first
        match = _CREDENTIAL.fullmatch(text.strip(" \t"))
        secret = find_secret(match[1], SecretKind.TOKEN) if match is not None else None
        if secret is not None:
            return secret
    raise NotAdmitted(presented("CREDENTIAL_MALFORMED"))


def question_of(needs: Needs[Any], secret: Secret, named: str) -> Question:
    """What a rule asks for: `named` is the id of its project or of its account."""
    if needs.project_id is None:
        return Question(secret, needs.permission, None, named)
    return Question(secret, needs.permission, named, None)


class Gate(Generic[A_co]):
    """Asks an authorizer, and makes a refusal of everything that is not a yes."""

    def __init__(self, authorizer: Authorizer[A_co], timeout: float) -> None:
        """`timeout`: seconds that a check may take.

        Raises:
            ValueError: no positive number of seconds.
        """
        if not 0 < timeout < float("inf"):
            raise ValueError("timeout: seconds, more than 0")
        self._authorizer = authorizer
        self._timeout_s = timeout
        self._clock = SystemClock()
        self._tell_again_ns: dict[type[DoorwardError], int] = {}

    def asked(self, question: Question, left_s: float | None = None) -> A_co:
        """The check. `left_s`: what the request itself has left, if it says so."""
        seconds = self._timeout_s if left_s is None else min(self._timeout_s, left_s)
        return self._authorizer.check(
            question.secret.reveal(),
            question.permission,
            project_id=question.project_id,
            account_id=question.account_id,
            timeout=seconds,
        )

    def settled(self, question: Question, decision: Decision) -> Admission:
        """What the decision means.

        Raises:
            NotAdmitted: it does not allow it.
        """
        if decision.error is not None:
            raise decision.error
        if decision.allowed is not True:
            raise NotAdmitted(denied(decision, question.permission))
        return Admission(question, Identity(decision.token_id, decision.account_id))

    @contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """Whatever is raised inside is raised as NotAdmitted. The one place that says why in the log."""
        try:
            yield
        except NotAdmitted:
            raise
        except DoorwardError as error:
            self._tell_of(error)
            raise NotAdmitted(undecided(error)) from None
        except Exception:
            log.exception("a guard could not check a request, and refused it")
            raise NotAdmitted(FAILED) from None

    def _tell_of(self, error: DoorwardError) -> None:
        """Logs why there is no decision: each kind of failure at most once in LOG_EVERY_NS, so that an outage is no flood."""
        kind, now_ns = type(error), self._clock.now_ns()
        if now_ns < self._tell_again_ns.get(kind, now_ns):
            return
        self._tell_again_ns[kind] = now_ns + LOG_EVERY_NS
        if isinstance(error, Refused):
            log.error("checks fail until somebody mends this, and requests are refused: %s", error)
        else:
            log.warning("checks are not answered, and requests are refused: %s", error)


async def decide_aio(gate: Gate[Awaitable[Decision]], question: Question, left_s: float | None = None) -> Admission:
    """Asks and waits.

    Raises:
        NotAdmitted: for whatever reason.
    """
    with gate.closed_on_error():
        return gate.settled(question, await gate.asked(question, left_s))


def decide_threads(gate: Gate[Decision], question: Question, left_s: float | None = None) -> Admission:
    """Asks and waits.

    Raises:
        NotAdmitted: for whatever reason.
    """
    with gate.closed_on_error():
        return gate.settled(question, gate.asked(question, left_s))


class AioGuard:
    """What the guards of asyncio have in common."""

    _gate: Gate[Awaitable[Decision]]

    async def still_allowed(self) -> bool:
        """Whether the request that is being handled would be let in now; no, if that cannot be decided.

        For a handler that keeps something open: a request is checked when it begins, and a stream may outlive its token.

        Raises:
            LookupError: nobody was checked.
        """
        question = ADMITTED.get().question
        try:
            await decide_aio(self._gate, question)
        except NotAdmitted:
            return False
        return True


class ThreadsGuard:
    """What the guards of threads have in common."""

    _gate: Gate[Decision]

    def still_allowed(self) -> bool:
        """Whether the request that is being handled would be let in now; no, if that cannot be decided.

        For a handler that keeps something open: a request is checked when it begins, and a stream may outlive its token.

        Raises:
            LookupError: nobody was checked.
        """
        question = ADMITTED.get().question
        try:
            decide_threads(self._gate, question)
        except NotAdmitted:
            return False
        return True
