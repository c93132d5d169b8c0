"""Which refused calls are worth a record, and what it says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from doorward.clock import SystemClock
from doorward.core.secret import SecretKind, generate, new_id
from doorward.v1 import account_admin_pb2, system_admin_pb2, types_pb2
from doorward.v1 import token_admin_pb2 as pb
from doorward_server import errors
from doorward_server.api.errors import status_of
from doorward_server.api.methods import host_of
from doorward_server.api.refused import RefusedCalls, note_circumstances
from doorward_server.model import Caller, CallerKind, OperatorRole, Refusal
from doorward_server.replica.timing import Timing
from doorward_server.service.refusals import Refusals
from doorward_server.storage.pool import Database

if TYPE_CHECKING:
    from google.protobuf.message import Message

OPERATOR = Caller(CallerKind.OPERATOR, "o", role=OperatorRole.ADMIN)
TOKEN = Caller(CallerKind.TOKEN, "t", account_id="own")
TOKEN_ADMIN, ACCOUNT_ADMIN = "/doorward.v1.TokenAdmin/", "/doorward.v1.AccountAdmin/"


def recorded(path: str, refused: errors.Refused, caller: Caller | None = None, request: Message | None = None) -> Any:
    """The record of one refused call; None: there is none."""
    refusals = Refusals(Database("postgresql:///nowhere", hold_ms=5000), Timing(SystemClock()))
    note_circumstances(refused, path, caller, request)
    RefusedCalls(refusals).take_note(path, status_of(refused), "10.0.0.9")
    assert len(refusals._queue) <= 1
    return refusals._queue[0][1] if refusals._queue else None


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("ipv4:10.0.0.9:52044", "10.0.0.9"),
        ("ipv6:[::1]:52044", "::1"),
        ("ipv6:%5B2001:db8::7%5D:52044", "2001:db8::7"),
        ("unix:/run/doorward.sock", "unix:"),
        ("unix:", "unix:"),
    ],
)
def test_of_a_peer_its_address_is_kept_and_not_its_port(address: str, host: str) -> None:
    assert host_of(address) == host


def test_a_record_has_who_what_why_and_from_where() -> None:
    refused = errors.NotFound("TOKEN_NOT_FOUND", "there is none", metadata={"token_id": "gone"})
    request = pb.RevokeTokenRequest(token_id="gone")
    assert recorded(TOKEN_ADMIN + "RevokeToken", refused, TOKEN, request) == Refusal(
        "token:t", "RevokeToken", "token:gone", "own", "TOKEN_NOT_FOUND", "10.0.0.9"
    )


@pytest.mark.parametrize(
    ("refused", "path", "is_kept"),
    [
        (errors.Unauthenticated("CREDENTIAL_MISSING", ""), TOKEN_ADMIN + "GetToken", True),
        (errors.Unauthenticated("CREDENTIAL_UNRECOGNIZED", ""), "/doorward.v1.Authorizer/Check", True),
        (errors.Unauthenticated("CREDENTIAL_UNRECOGNIZED", ""), "/no/such", True),
        (errors.PermissionDenied("EXCEEDS_CALLER", ""), TOKEN_ADMIN + "IssueToken", True),
        (errors.PermissionDenied("CALLER_NOT_PERMITTED", ""), TOKEN_ADMIN + "ListTokens", True),
        (errors.NotFound("TOKEN_NOT_FOUND", ""), TOKEN_ADMIN + "RevokeToken", True),
        (errors.NotFound("TOKEN_NOT_FOUND", ""), TOKEN_ADMIN + "GetToken", False),
        (errors.AlreadyExists("PROJECT_ID_TAKEN", ""), ACCOUNT_ADMIN + "PutProject", True),
        (errors.FailedPrecondition("TOKEN_IS_REVOKED", ""), TOKEN_ADMIN + "RotateSelf", True),
        (errors.FailedPrecondition("REVISION_BEYOND_END", ""), TOKEN_ADMIN + "AwaitPropagation", False),
        (errors.Exhausted("TOO_MANY_LIVE_TOKENS", ""), TOKEN_ADMIN + "IssueToken", True),
        (errors.Exhausted("HASHING_BUSY", ""), TOKEN_ADMIN + "IssueToken", False),
        (errors.InvalidArgument("INVALID_FIELDS", ""), TOKEN_ADMIN + "IssueToken", False),
        (errors.Aborted("ETAG_MISMATCH", ""), TOKEN_ADMIN + "UpdateToken", False),
        (errors.Unavailable("NO_LEASE", ""), "/doorward.v1.Authorizer/Check", False),
        (errors.Unimplemented("METHOD_UNKNOWN", ""), "/no/such", False),
    ],
    ids=lambda value: value.reason if isinstance(value, errors.Refused) else str(value),
)
def test_rights_and_credentials_are_kept_always_and_of_changes_what_they_met(
    refused: errors.Refused, path: str, is_kept: bool
) -> None:
    assert (recorded(path, refused) is not None) is is_kept


@pytest.mark.parametrize(
    ("method", "request_message", "metadata", "subject"),
    [
        (TOKEN_ADMIN + "RevokeToken", pb.RevokeTokenRequest(token_id="a"), {}, "token:a"),
        (TOKEN_ADMIN + "UpdateToken", pb.UpdateTokenRequest(token=types_pb2.ServiceToken(token_id="a")), {}, "token:a"),
        (TOKEN_ADMIN + "IssueToken", pb.IssueTokenRequest(account_id="acme"), {}, "account:acme"),
        (
            ACCOUNT_ADMIN + "PutProject",
            account_admin_pb2.PutProjectRequest(account_id="acme", project_id="p"),
            {},
            "project:p",
        ),
        (TOKEN_ADMIN + "BatchRevokeTokens", pb.BatchRevokeTokensRequest(token_ids=["a"]), {"token_id": "a"}, "token:a"),
        ("/doorward.v1.SystemAdmin/ApplyCatalog", system_admin_pb2.ApplyCatalogRequest(), {}, "catalog:"),
        (TOKEN_ADMIN + "RevokeSelf", pb.RevokeSelfRequest(reason="done"), {}, "token:t"),
        (TOKEN_ADMIN + "RevokeToken", None, {}, ""),
        (TOKEN_ADMIN + "RevokeToken", pb.RevokeTokenRequest(token_id="no id"), {}, ""),
        (TOKEN_ADMIN + "RevokeToken", pb.RevokeTokenRequest(token_id="a\x00"), {}, ""),
    ],
)
def test_the_subject_is_the_one_that_the_audit_would_name(
    method: str, request_message: Message | None, metadata: dict[str, str], subject: str
) -> None:
    refused = errors.PermissionDenied("CALLER_NOT_PERMITTED", "", metadata=metadata)
    assert recorded(method, refused, TOKEN, request_message).subject == subject


@pytest.mark.parametrize("cut", [0, 1, 8, 30])
def test_a_secret_in_the_place_of_an_id_is_no_subject_nor_is_most_of_one(cut: int) -> None:
    secret = generate(SecretKind.TOKEN, new_id()).reveal()
    given = secret[: len(secret) - cut]
    refused = errors.PermissionDenied("CALLER_NOT_PERMITTED", "", metadata={"token_id": given, "account_id": given})
    request = pb.RevokeTokenRequest(token_id=given)
    found = recorded(TOKEN_ADMIN + "RevokeToken", refused, OPERATOR, request)
    assert (found.subject, found.account_id) == ("", None)


def test_what_an_operator_is_refused_belongs_to_the_account_that_the_request_names() -> None:
    refused = errors.PermissionDenied("CALLER_NOT_PERMITTED", "")
    request = pb.IssueTokenRequest(account_id="acme")
    assert recorded(TOKEN_ADMIN + "IssueToken", refused, OPERATOR, request).account_id == "acme"


def test_what_a_token_is_refused_belongs_to_its_own_account_whatever_the_request_names() -> None:
    refused = errors.NotFound("ACCOUNT_NOT_FOUND", "", metadata={"account_id": "acme"})
    request = pb.IssueTokenRequest(account_id="acme")
    found = recorded(TOKEN_ADMIN + "IssueToken", refused, TOKEN, request)
    assert (found.account_id, found.subject) == ("own", "account:acme")


def test_whoever_proved_nothing_is_anonymous() -> None:
    found = recorded(TOKEN_ADMIN + "GetToken", errors.Unauthenticated("CREDENTIAL_UNRECOGNIZED", ""))
    assert (found.actor, found.account_id) == ("anonymous", None)


def test_nothing_of_the_record_goes_to_the_caller() -> None:
    plain = errors.PermissionDenied("CALLER_NOT_PERMITTED", "no", metadata={"method": "x"})
    noted = errors.PermissionDenied("CALLER_NOT_PERMITTED", "no", metadata={"method": "x"})
    note_circumstances(noted, TOKEN_ADMIN + "RevokeToken", TOKEN, pb.RevokeTokenRequest(token_id="a"))
    assert status_of(noted)[:4] == status_of(plain)[:4]
    assert noted.asked_by == ("token:t", "own")
