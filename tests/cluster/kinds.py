"""The kinds of mutation that the fault tests are made of: each takes away what a subject was allowed.

Two are put to every fault always; of the others each fault meets one, another for the next fault, and all of them with
`--every-kind` (`make test-cluster`).
"""

from __future__ import annotations

import threading
import uuid
from importlib import resources
from typing import TYPE_CHECKING, Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from doorward.v1 import account_admin_pb2, system_admin_pb2, token_admin_pb2
from doorward.v1.types_pb2 import OPERATOR_ROLE_CALLER, ServiceToken
from tests.cluster.clients import LOWER_PLAN, REVOKE, Client, Kind, Pending
from tests.support.server import bearer
from tests.support.wire import fresh_id, on

if TYPE_CHECKING:
    from tests.cluster.history import Mutation, Subject

__all__ = ["ALWAYS", "DELETE_PROJECT", "KINDS", "OPERATOR"]

BUILT_IN: Final = resources.files("doorward_server.catalog").joinpath("permission_sets.toml").read_text()


def _narrow(client: Client, subject: Subject, timeout_s: float) -> Pending[Mutation]:
    request = token_admin_pb2.UpdateTokenRequest(
        token=ServiceToken(token_id=subject.token_id, grants=(on("metadata_only", subject.project_id),)),
        update_mask=FieldMask(paths=("grants",)),
    )
    return client.begin_mutation("UpdateToken", subject, NARROW.makes, client.tokens.UpdateToken, request, timeout_s)


def _rotate(client: Client, subject: Subject, timeout_s: float) -> Pending[Mutation]:
    # Of one rotation that is wanted: a repeat finds it made.
    request_id = str(uuid.uuid5(uuid.NAMESPACE_OID, subject.token_id))
    request = token_admin_pb2.RotateTokenRequest(token_id=subject.token_id, overlap=Duration(), request_id=request_id)
    return client.begin_mutation("RotateToken", subject, ROTATE.makes, client.tokens.RotateToken, request, timeout_s)


def _disable(client: Client, subject: Subject, timeout_s: float) -> Pending[Mutation]:
    request = token_admin_pb2.DisableTokenRequest(token_id=subject.token_id)
    return client.begin_mutation("DisableToken", subject, DISABLE.makes, client.tokens.DisableToken, request, timeout_s)


def _revoke_by_filter(client: Client, subject: Subject, timeout_s: float) -> Pending[Mutation]:
    request = token_admin_pb2.RevokeTokensByFilterRequest(account_id=subject.account_id, all_tokens=True)
    return client.begin_mutation(
        "RevokeTokensByFilter", subject, BY_FILTER.makes, client.tokens.RevokeTokensByFilter, request, timeout_s
    )


def _suspend(client: Client, subject: Subject, timeout_s: float) -> Pending[Mutation]:
    request = account_admin_pb2.SuspendAccountRequest(account_id=subject.account_id)
    return client.begin_mutation(
        "SuspendAccount", subject, SUSPEND.makes, client.accounts.SuspendAccount, request, timeout_s
    )


def _delete(client: Client, subject: Subject, timeout_s: float) -> Pending[Mutation]:
    request = account_admin_pb2.DeleteAccountRequest(account_id=subject.account_id)
    return client.begin_mutation(
        "DeleteAccount", subject, DELETE.makes, client.accounts.DeleteAccount, request, timeout_s
    )


def _delete_project(client: Client, subject: Subject, timeout_s: float) -> Pending[Mutation]:
    request = account_admin_pb2.DeleteProjectRequest(account_id=subject.account_id, project_id=subject.project_id)
    return client.begin_mutation(
        "DeleteProject", subject, DELETE_PROJECT.makes, client.accounts.DeleteProject, request, timeout_s
    )


def _own_operator(client: Client, subject: Subject) -> None:
    """The subject is asked about by an operator of its own."""
    request = system_admin_pb2.CreateOperatorRequest(display_name="asks", role=OPERATOR_ROLE_CALLER)
    created = client.ask(client.system.CreateOperator, request)
    subject.operator_id, subject.asked_by = created.operator.operator_id, bearer(created.secret)


def _revoke_operator(client: Client, subject: Subject, timeout_s: float) -> Pending[Mutation]:
    request = system_admin_pb2.RevokeOperatorRequest(operator_id=subject.operator_id)
    return client.begin_mutation(
        "RevokeOperator", subject, OPERATOR.makes, client.system.RevokeOperator, request, timeout_s
    )


class _Catalogs:
    """The built-in catalog with sets of subjects' own. Several subjects at once: one text for all of them."""

    def __init__(self) -> None:
        self._own: set[str] = set()
        self._lock = threading.Lock()

    def add(self, client: Client, subject: Subject) -> None:
        """From now on there is a set of the subject's own, and it is granted that one."""
        subject.permission_set = fresh_id("own").lower().replace("-", "_")
        with self._lock:
            self._own.add(subject.permission_set)
            client.ask(client.system.ApplyCatalog, self._request())

    def remove(self, client: Client, subject: Subject, timeout_s: float) -> Pending[Mutation]:
        """Begins an ApplyCatalog without the subject's set."""
        with self._lock:
            self._own.discard(subject.permission_set)
            request = self._request()
        return client.begin_mutation(
            "ApplyCatalog", subject, CATALOG.makes, client.system.ApplyCatalog, request, timeout_s
        )

    def _request(self) -> system_admin_pb2.ApplyCatalogRequest:
        own = (f'\n[permission_sets.{name}]\ntitle = "Own"\nwrite = ["develop"]\n' for name in sorted(self._own))
        return system_admin_pb2.ApplyCatalogRequest(catalog=BUILT_IN + "".join(own), force=True)


_catalogs: Final = _Catalogs()

NARROW: Final = Kind("UpdateToken", "PERMISSION_NOT_GRANTED", _narrow)
ROTATE: Final = Kind("RotateToken", "TOKEN_UNRECOGNIZED", _rotate)
DISABLE: Final = Kind("DisableToken", "TOKEN_DISABLED", _disable)
BY_FILTER: Final = Kind("RevokeTokensByFilter", "TOKEN_REVOKED", _revoke_by_filter)
SUSPEND: Final = Kind("SuspendAccount", "ACCOUNT_SUSPENDED", _suspend)
DELETE: Final = Kind("DeleteAccount", "TOKEN_REVOKED", _delete)
DELETE_PROJECT: Final = Kind(
    "DeleteProject", "RESOURCE_NOT_IN_ACCOUNT", _delete_project, lacks=frozenset({"again", "repeat"})
)
# "held": nothing that a watcher holds is changed.
OPERATOR: Final = Kind(
    "RevokeOperator", "UNAUTHENTICATED", _revoke_operator, _own_operator, frozenset({"account", "held"})
)
CATALOG: Final = Kind(
    "ApplyCatalog", "PERMISSION_NOT_GRANTED", _catalogs.remove, _catalogs.add, frozenset({"account", "repeat"})
)

ALWAYS: Final = (REVOKE, LOWER_PLAN)
KINDS: Final = (
    *ALWAYS,
    NARROW,
    ROTATE,
    DISABLE,
    BY_FILTER,
    SUSPEND,
    DELETE,
    DELETE_PROJECT,
    OPERATOR,
    CATALOG,
)
