"""Answers that hold a secret, as records that do not print it; and how grants are written.

The contract's messages print every field. So the three RPCs that tell a secret are answered with records whose secret is
a `Secret`: its `reveal()` is the text, its repr and str are `***`. Both dialects export them. Design sections 4 and 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from enum import Enum
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from doorward.core.secret import Secret, SecretKind
from doorward.v1 import types_pb2

if TYPE_CHECKING:
    from datetime import datetime

    from doorward.v1 import system_admin_pb2, token_admin_pb2

__all__ = [
    "UNCHANGED",
    "CreatedOperator",
    "IssuedToken",
    "RotatedToken",
    "Unchanged",
    "on_all_projects",
    "on_projects",
]


class _Unchanged(Enum):
    UNCHANGED = "UNCHANGED"

    def __repr__(self) -> str:
        return self.name


Unchanged: TypeAlias = Literal[_Unchanged.UNCHANGED]
# What `update_token` leaves alone, where None would say something.
UNCHANGED: Final = _Unchanged.UNCHANGED


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A token that was issued. With `validate_only` its `secret` and its id are empty and nothing was propagated."""

    token: types_pb2.ServiceToken
    secret: Secret
    propagation: types_pb2.Propagation

    @classmethod
    def of(cls, answer: token_admin_pb2.IssueTokenResponse) -> IssuedToken:
        """What the answer says."""
        secret = Secret(SecretKind.TOKEN, answer.token.token_id, answer.secret)
        return cls(answer.token, secret, answer.propagation)


@dataclass(frozen=True, slots=True)
class RotatedToken:
    """A token with its new secret. `former_secret_expire_time`: when the former one stops; None: it has stopped."""

    token: types_pb2.ServiceToken
    secret: Secret
    propagation: types_pb2.Propagation
    former_secret_expire_time: datetime | None

    @classmethod
    def of(cls, answer: token_admin_pb2.RotateTokenResponse | token_admin_pb2.RotateSelfResponse) -> RotatedToken:
        """What the answer says."""
        secret = Secret(SecretKind.TOKEN, answer.token.token_id, answer.secret)
        ends = None
        if answer.HasField("former_secret_expire_time"):
            ends = answer.former_secret_expire_time.ToDatetime(UTC)
        return cls(answer.token, secret, answer.propagation, ends)


@dataclass(frozen=True, slots=True)
class CreatedOperator:
    """An operator that was created; its `secret` is the credential to call with. Empty with `validate_only`."""

    operator: system_admin_pb2.Operator
    secret: Secret
    propagation: types_pb2.Propagation

    @classmethod
    def of(cls, answer: system_admin_pb2.CreateOperatorResponse) -> CreatedOperator:
        """What the answer says."""
        secret = Secret(SecretKind.OPERATOR, answer.operator.operator_id, answer.secret)
        return cls(answer.operator, secret, answer.propagation)


def on_all_projects(permission_set: str) -> types_pb2.Grant:
    """A grant of the set on all projects of the account, those to come too: `on_all_projects("job_admin")`."""
    return types_pb2.Grant(permission_set=permission_set, all_projects=True)


def on_projects(permission_set: str, project_id: str, *more: str) -> types_pb2.Grant:
    """A grant of the set on these projects and no other: `on_projects("metadata_only", "warehouse", "lake")`."""
    return types_pb2.Grant(permission_set=permission_set, project_ids=(project_id, *more))
