"""Check and BatchCheck for which everything is in memory: plain functions from bytes to bytes (design section 11).

No await, no grpc type, no asyncio. They answer, refuse, or return None: then only the cold path, which may wait, can
answer. Each captures the lease and the applied position first and looks at both again last. `authorizer.py` puts them
into the method table, beside the cold ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from google.protobuf.message import DecodeError

from doorward.core.catalog import Level
from doorward.core.entries import TOKEN_ACCOUNT_ID, TOKEN_EXPIRE_US, TOKEN_ID
from doorward.core.matrix import DenyReason, decide
from doorward.core.token_table import UNKNOWN
from doorward.v1 import authorizer_pb2 as pb
from doorward_server import metrics
from doorward_server.api.access import TABLE
from doorward_server.api.answered import Answer, Answered
from doorward_server.api.checks import Checker, encode_batch, item_of, items_of
from doorward_server.api.encoding import encode_check
from doorward_server.api.errors import Status, status_of
from doorward_server.api.fields import LONGEST_SECRET
from doorward_server.api.recalled import Found, Recalled, until_us
from doorward_server.api.wrapper import require_admitted
from doorward_server.errors import Refused
from doorward_server.model import Caller, CallerKind
from doorward_server.replica.caches import Missing
from doorward_server.service.authorize import AllMissing, no_lease

if TYPE_CHECKING:
    from collections.abc import Callable

    from doorward.core.catalog import Catalog
    from doorward.core.history import Position
    from doorward_server.credentials.certificates import CertifiedOperator
    from doorward_server.replica.holding import Holding
    from doorward_server.service.authorize import Authorizer, Holder
    from doorward_server.service.callers import Callers

__all__ = ["BATCH_CHECK", "CHECK", "CHUNK", "STREAM_CHECKS", "WarmChecks"]

Q = TypeVar("Q")
C = TypeVar("C")

CHECK: Final = "/doorward.v1.Authorizer/Check"
BATCH_CHECK: Final = "/doorward.v1.Authorizer/BatchCheck"
STREAM_CHECKS: Final = "/doorward.v1.Authorizer/StreamChecks"
# Items decided without letting others in: 1,000 at once would hold everyone else for milliseconds (measured: design 11).
CHUNK: Final = 200

# Module names, because a member looked up on its enum costs as much as the rest of a line.
_PROJECT_LEVEL: Final = Level.PROJECT
_ALLOWED: Final = DenyReason.ALLOWED
_decided: Final = metrics.DECISIONS
_parse_check: Final = pb.CheckRequest.FromString


class WarmChecks:
    """Answers from memory."""

    def __init__(self, holding: Holding, authorizer: Authorizer, callers: Callers) -> None:
        self._holding = holding
        self._authorizer = authorizer
        self._callers = callers
        self._checker = Checker(authorizer)
        self._find_owner = holding.tables.projects.get
        self._used = holding.used
        self._recalled = Recalled(holding.tables, holding.token_proofs.proof_of)
        self._answered = Answered()
        self._no_lease = status_of(no_lease())
        self._shown: tuple[Position | None, str] | None = None

    def check_warm(self, request: bytes, credential: str | None) -> bytes | Status | None:
        """A Check."""
        return self._warm(request, credential, self._check_from_memory)

    def batch_check_warm(self, request: bytes, credential: str | None) -> bytes | Status | None:
        """A BatchCheck of one chunk at most."""
        return self._warm(request, credential, self._batch_from_memory)

    def streamed_batch_warm(
        self, message: pb.BatchCheckRequest, credential: str | CertifiedOperator | None
    ) -> bytes | Status | None:
        """The same of one message of a stream."""
        return self._warm(message, credential, self._streamed_batch_from_memory)

    def _warm(
        self,
        request: Q,
        credential: C,
        attempt: Callable[[Q, C, Position | None, int, int], bytes | None],
    ) -> bytes | Status | None:
        holding = self._holding
        begun = holding.begin()
        if begun is None:
            return self._no_lease
        end_ns, now_us = begun
        position = holding.history.applied
        answer: bytes | Status | None
        try:
            answer = attempt(request, credential, position, end_ns, now_us)
        except DecodeError:
            return None
        except Refused as refused:
            answer = status_of(refused.with_traceback(None))
        # Nothing was applied while this looked around, and the lease of the beginning is good: else the cold path.
        if holding.history.applied is not position or not holding.still_good(end_ns):
            return None
        return answer

    def _check_from_memory(
        self, request: bytes, credential: str | None, position: Position | None, end_ns: int, now_us: int
    ) -> bytes | None:
        key = self._answered.key_of(credential, request)
        answer = None if key is None else self._answered.find(key, position, end_ns, now_us)
        if answer is not None:
            self._used[answer.token_id] = now_us
            _decided[_ALLOWED] += 1
            return answer.response
        message = _parse_check(request)
        recalled = self._recalled.find(credential, message.secret, position, end_ns, now_us)
        if recalled is None:
            return self._check_anew(message, credential, position, end_ns, now_us)
        if message.HasField("consistency"):
            return None
        catalog, holder = recalled.catalog, recalled.holder
        token, account = holder
        # The usual case, as short as can be: a permission on a project of the account, and it is allowed.
        permission, project_id = catalog.permissions.get(message.permission), message.project_id
        if permission is not None and permission.level is _PROJECT_LEVEL and project_id:
            owner = self._find_owner(project_id)
            if owner == token[TOKEN_ACCOUNT_ID]:
                reason = decide(token, account, permission, None, project_id, owner, now_us)
                if reason is _ALLOWED:
                    token_id = token[TOKEN_ID]
                    self._used[token_id] = now_us
                    _decided[reason] += 1
                    response = encode_check((reason, token_id, owner), self._revision_text(position))
                    expire_us = token[TOKEN_EXPIRE_US]
                    until = recalled.until_us if expire_us is None else min(recalled.until_us, expire_us)
                    if key is not None:
                        self._answered.keep(key, Answer(position, end_ns, until, token_id, response))
                    return response
        decision = self._checker.one(item_of(message), catalog, now_us, None, None, holder)
        return None if isinstance(decision, Missing) else encode_check(decision, self._revision_text(position))

    def _check_anew(
        self,
        message: pb.CheckRequest,
        credential: str | None,
        position: Position | None,
        end_ns: int,
        now_us: int,
    ) -> bytes | None:
        """A check of two that must be recognized; they are kept for the next one."""
        asking = self._asking(CHECK, credential, now_us)
        if asking is None or message.HasField("consistency"):
            return None
        item, holders = item_of(message), dict[str, "Holder | Missing | None"]()
        decision = self._checker.one(item, asking[1], now_us, None, holders)
        if isinstance(decision, Missing):
            return None
        if credential is not None:
            self._keep(credential, item[0], asking, holders[item[0]], position, end_ns, now_us)
        return encode_check(decision, self._revision_text(position))

    def _batch_from_memory(
        self, request: bytes, credential: str | None, position: Position | None, _end_ns: int, now_us: int
    ) -> bytes | None:
        asking = self._asking(BATCH_CHECK, credential, now_us)
        return (
            None
            if asking is None
            else self._batch_of(pb.BatchCheckRequest.FromString(request), asking[1], position, now_us)
        )

    def _streamed_batch_from_memory(
        self,
        message: pb.BatchCheckRequest,
        credential: str | CertifiedOperator | None,
        position: Position | None,
        _end_ns: int,
        now_us: int,
    ) -> bytes | None:
        asking = self._asking(STREAM_CHECKS, credential, now_us)
        return None if asking is None else self._batch_of(message, asking[1], position, now_us)

    def _batch_of(
        self, message: pb.BatchCheckRequest, catalog: Catalog, position: Position | None, now_us: int
    ) -> bytes | None:
        if message.HasField("consistency") or not 0 < len(message.items) <= CHUNK:
            return None
        if len(message.secret.encode()) > LONGEST_SECRET:
            return None
        results = self._checker.many(items_of(message), catalog, now_us, None, {})
        return None if isinstance(results, AllMissing) else encode_batch(results, self._revision_text(position))

    def _asking(
        self, path: str, credential: str | CertifiedOperator | None, now_us: int
    ) -> tuple[Caller, Catalog] | None:
        """Who calls, if they may call this, and the catalog in force; None: something is missing.

        Raises:
            Unauthenticated, PermissionDenied.
        """
        caller = self._callers.find(credential, now_us, None)
        if isinstance(caller, Missing):
            return None
        require_admitted(path, TABLE[path], caller)
        catalog = self._authorizer.find_catalog()
        return None if isinstance(catalog, Missing) else (caller, catalog)

    def _keep(
        self,
        credential: str,
        secret: str,
        asking: tuple[Caller, Catalog],
        holder: Holder | Missing | None,
        position: Position | None,
        end_ns: int,
        now_us: int,
    ) -> None:
        """Keeps who they are for the next check of the two; of a caller that is an operator, and a token that is known."""
        caller, catalog = asking
        is_operator = caller.kind is CallerKind.OPERATOR
        operator = self._holding.tables.operators.get(caller.subject_id) if is_operator else None
        if operator is None or operator is UNKNOWN or holder is None or isinstance(holder, Missing):
            return
        until = until_us(operator, holder, now_us)
        self._recalled.keep(credential, secret, Found(position, end_ns, until, catalog, holder, operator))

    def _revision_text(self, position: Position | None) -> str:
        """The applied position as answers carry it, made once for each position."""
        shown = self._shown
        if shown is None or shown[0] is not position:
            shown = self._shown = (position, str(self._holding.revision))
        return shown[1]
