"""SystemAdmin, the RPCs of operators: parse, call the use case, answer. A new credential is put into a response here."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Final

from doorward.v1 import system_admin_pb2 as pb
from doorward.v1 import types_pb2
from doorward_server.api import convert
from doorward_server.api.fields import LONGEST_DISPLAY_NAME, LONGEST_REASON, Fields
from doorward_server.api.paging import next_page_token, page_of, require_pair
from doorward_server.api.requests import request_of
from doorward_server.model import OperatorRole
from doorward_server.service.operators import CreateOperator

if TYPE_CHECKING:
    from doorward_server.api.methods import Call, Method
    from doorward_server.api.wrapper import Binder
    from doorward_server.model import Operator
    from doorward_server.service.operators import Operators

__all__ = ["OperatorAdmin"]

SERVICE: Final = "/doorward.v1.SystemAdmin/"


class OperatorAdmin:
    """The RPCs."""

    def __init__(self, operators: Operators, *, max_page: int) -> None:
        self._operators = operators
        self._max_page = max_page

    def methods(self, binder: Binder) -> list[Method]:
        """Their part of the method table."""
        return [
            binder.method(SERVICE + "CreateOperator", pb.CreateOperatorRequest, self.create_operator),
            binder.method(SERVICE + "ListOperators", pb.ListOperatorsRequest, self.list_operators),
            binder.method(SERVICE + "RevokeOperator", pb.RevokeOperatorRequest, self.revoke_operator),
        ]

    async def create_operator(self, request: pb.CreateOperatorRequest, call: Call) -> pb.CreateOperatorResponse:
        """Creates an operator and shows its credential, once."""
        fields = Fields()
        role = _role(fields, request.role)
        if not request.role:
            fields.wrong("role", f"is required: {', '.join(_roles())}", "FIELD_REQUIRED")
        name = fields.text("display_name", request.display_name, longest=LONGEST_DISPLAY_NAME, required=True)
        expire_time, ttl = fields.expiry(
            request.expire_time if request.HasField("expire_time") else None,
            request.ttl if request.HasField("ttl") else None,
        )
        await fields.done_with(lambda: self._operators.expiry_violations(expire_time))
        assert role is not None  # noqa: S101 - else `done_with` has raised
        done = await self._operators.create(
            request_of(call, validate_only=request.validate_only), CreateOperator(role, name, expire_time, ttl)
        )
        message = _operator(done.value.operator)
        if request.validate_only:
            # The row that was tried is gone, and its id with it.
            message.operator_id = ""
        return pb.CreateOperatorResponse(
            operator=message,
            secret="" if done.value.secret is None else done.value.secret.reveal(),
            propagation=convert.propagation(done.propagation),
        )

    async def list_operators(self, request: pb.ListOperatorsRequest, _call: Call) -> pb.ListOperatorsResponse:
        """A page of operators, newest first."""
        fields = Fields()
        role = _role(fields, request.role)
        bound_to = (SERVICE + "ListOperators", str(request.role), str(request.include_inactive))
        page = page_of(fields, request.page_size, request.page_token, bound_to, most=self._max_page)
        fields.done()
        found = await self._operators.list_operators(
            role, require_pair(page, _creation_time), include_inactive=request.include_inactive
        )
        last = (found[-1].create_time.isoformat(), found[-1].operator_id) if found else ()
        return pb.ListOperatorsResponse(
            operators=map(_operator, found), next_page_token=next_page_token(page, len(found), last, bound_to)
        )

    async def revoke_operator(self, request: pb.RevokeOperatorRequest, call: Call) -> pb.RevokeOperatorResponse:
        """Revokes an operator's credential for good."""
        fields = Fields()
        operator_id = fields.identifier("operator_id", request.operator_id)
        reason = fields.text("reason", request.reason, longest=LONGEST_REASON)
        fields.done()
        asked = request_of(call, validate_only=request.validate_only)
        done = await self._operators.revoke(asked, operator_id, reason)
        return pb.RevokeOperatorResponse(
            operator=_operator(done.value), propagation=convert.propagation(done.propagation)
        )


def _role(fields: Fields, value: int) -> OperatorRole | None:
    return fields.enumerated("role", value, OperatorRole, _roles())


def _roles() -> list[str]:
    return [name for name in types_pb2.OperatorRole.DESCRIPTOR.values_by_name if not name.endswith("_UNSPECIFIED")]


def _creation_time(text: str) -> datetime:
    """The time in a page's key.

    Raises:
        ValueError: none that this list has put there.
    """
    time = datetime.fromisoformat(text)
    if time.tzinfo is None or time.isoformat() != text or not 1970 < time.year < 9999:
        raise ValueError("no time of creation")
    return time


def _operator(value: Operator) -> pb.Operator:
    return pb.Operator(
        operator_id=value.operator_id,
        role=types_pb2.OperatorRole.ValueType(value.role),
        display_name=value.display_name,
        create_time=convert.timestamp(value.create_time),
        expire_time=convert.timestamp(value.expire_time),
        revoke_time=convert.timestamp(value.revoke_time),
    )
