"""Authorizer.ExplainCheck: a decision with its causes, for people (contract; design section 5).

Two ways in: by secret, for whoever may check; by token id, for whoever may read that account's tokens. To a service token
another account's token is one that does not exist. Explained under the lease that the call captured, as a check is decided.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from doorward.core.entries import TOKEN_ACCOUNT_ID, TOKEN_ID
from doorward.core.matrix import DenyReason
from doorward.v1 import authorizer_pb2 as pb
from doorward.v1 import types_pb2
from doorward_server.api import convert
from doorward_server.api.access import TABLE
from doorward_server.api.asking import Asked, Asking, demand_of
from doorward_server.api.checks import note_question
from doorward_server.api.fields import Fields
from doorward_server.api.methods import Method, Peer
from doorward_server.api.wrapper import parsed
from doorward_server.errors import PermissionDenied
from doorward_server.model import CallerKind, OperatorRole
from doorward_server.replica.caches import Missing
from doorward_server.service.delegation import may_see, token_not_found

if TYPE_CHECKING:
    from doorward.core.explain import Explanation
    from doorward_server.model import Caller
    from doorward_server.service.authorize import Authorizer, Holder
    from doorward_server.service.freshness import Demand, Freshness

__all__ = ["ExplainApi"]

EXPLAIN_CHECK: Final = "/doorward.v1.Authorizer/ExplainCheck"


class ExplainApi:
    """The RPC."""

    def __init__(self, asking: Asking, authorizer: Authorizer, freshness: Freshness) -> None:
        self._asking = asking
        self._authorizer = authorizer
        self._freshness = freshness

    def methods(self) -> list[Method]:
        """Its part of the method table."""
        return [Method(EXPLAIN_CHECK, TABLE[EXPLAIN_CHECK], None, self.explain_check)]

    async def explain_check(self, request: bytes, peer: Peer) -> bytes:
        """A decision, the part of each grant, and the grant that would help."""
        await self._asking.admitted(EXPLAIN_CHECK, peer)
        message = parsed(pb.ExplainCheckRequest, request)
        demand, _ = await self._asking.under_lease(EXPLAIN_CHECK, peer, lambda asked: _checked(message, asked))
        await self._freshness.reached(demand, peer.until_ns)
        response, revision = await self._asking.under_lease(
            EXPLAIN_CHECK, peer, lambda asked: self._explained(message, asked)
        )
        response.revision = str(revision)
        return response.SerializeToString()

    def _explained(self, message: pb.ExplainCheckRequest, asked: Asked) -> pb.ExplainCheckResponse | Missing:
        # Once more: what was waited for may have changed the caller and the catalog.
        _checked(message, asked)
        holder = self._find_holder(message, asked)
        if isinstance(holder, Missing):
            return holder
        if holder is None:
            return pb.ExplainCheckResponse(reason=types_pb2.DENY_REASON_TOKEN_UNRECOGNIZED)
        permission = asked.catalog.permissions[message.permission]
        resource_id = message.project_id or message.account_id
        explanation = self._authorizer.explain(
            holder, permission, resource_id, catalog=asked.catalog, now_us=asked.now_us
        )
        return explanation if isinstance(explanation, Missing) else _response(holder, explanation)

    def _find_holder(self, message: pb.ExplainCheckRequest, asked: Asked) -> Holder | Missing | None:
        """Whose check it is; None: nobody's, by a secret.

        Raises:
            NotFound: TOKEN_NOT_FOUND, by a token id.
        """
        if message.WhichOneof("subject") == "secret":
            secret = message.secret.encode()
            return self._authorizer.find_holder(secret, asked.catalog, asked.now_us, asked.refuted)
        holder = self._authorizer.find_token(message.token_id, asked.catalog, asked.refuted)
        if isinstance(holder, Missing):
            return holder
        if holder is None or not may_see(asked.caller, holder[0][TOKEN_ACCOUNT_ID]):
            raise token_not_found(message.token_id)
        return holder


def _checked(message: pb.ExplainCheckRequest, asked: Asked) -> Demand:
    """How fresh the answer must be, once all of the request is right.

    Raises:
        PermissionDenied: CALLER_NOT_PERMITTED, this caller must name the token in the other way.
        InvalidArgument: INVALID_FIELDS.
    """
    subject = message.WhichOneof("subject")
    _require_may_ask_by(subject, asked.caller)
    fields = Fields()
    if subject == "secret":
        fields.secret("secret", message.secret)
    elif subject == "token_id":
        fields.identifier("token_id", message.token_id)
    else:
        fields.wrong("subject", "is required: secret or token_id", "FIELD_REQUIRED")
    which = message.WhichOneof("resource")
    note_question(fields, message.permission, which, message.project_id or message.account_id, asked.catalog)
    demand = demand_of(message.consistency, fields)
    fields.done()
    return demand


def _require_may_ask_by(subject: str | None, caller: Caller) -> None:
    """A service token may ask by token id alone; the role `caller` by a secret alone."""
    if subject == "secret" and caller.kind is CallerKind.TOKEN:
        allowed = "operators"
    elif subject == "token_id" and caller.role is OperatorRole.CALLER:
        allowed = "the roles admin and auditor"
    else:
        return
    raise PermissionDenied(
        "CALLER_NOT_PERMITTED",
        f"{caller.actor} may not call {EXPLAIN_CHECK} by {subject}: that is for {allowed}",
        metadata={"method": EXPLAIN_CHECK},
    )


def _response(holder: Holder, explanation: Explanation) -> pb.ExplainCheckResponse:
    token, smallest = holder[0], explanation.smallest_grant
    return pb.ExplainCheckResponse(
        allowed=explanation.reason is DenyReason.ALLOWED,
        reason=types_pb2.DenyReason.ValueType(explanation.reason),
        token_id=token[TOKEN_ID],
        account_id=token[TOKEN_ACCOUNT_ID],
        grants=(
            pb.GrantExplanation(
                grant=convert.grant(told.grant, suspended=told.suspended), part=pb.GrantPart.ValueType(told.part)
            )
            for told in explanation.grants
        ),
        smallest_grant=None if smallest is None else convert.grant(smallest, suspended=False),
    )
