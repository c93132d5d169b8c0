"""Every RPC of the contract has a method in both dialects, which takes every field of its request and makes that request."""

from __future__ import annotations

import inspect
import re
import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import duration_pb2, field_mask_pb2, timestamp_pb2

from doorward import _account_admin, _authorizer, _system_admin, _token_admin, aio, threads
from doorward.core.secret import SecretKind, generate, new_id
from doorward.records import CreatedOperator, IssuedToken, RotatedToken, on_all_projects, on_projects
from doorward.v1 import authorizer_pb2, system_admin_pb2, token_admin_pb2, types_pb2
from tests.support.wire import every_rpc

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from google.protobuf.message import Message

MODULES: dict[str, ModuleType] = {
    "AccountAdmin": _account_admin,
    "Authorizer": _authorizer,
    "SystemAdmin": _system_admin,
    "TokenAdmin": _token_admin,
}
# Made by `_checks.py`, or by who keeps a stream.
APART = {"Authorizer.Check": "check", "Authorizer.BatchCheck": "check_many"}
STREAMS = {"Authorizer.StreamChecks", "Authorizer.Watch"}
# How a field of a request is given where it is not under its own name.
GIVEN_AS = {"consistency": {"at_least_as_fresh", "fully_consistent"}}
OF_UPDATE = {"update_mask": set(), "token": {*(f.name for f in types_pb2.ServiceToken.DESCRIPTOR.fields)}}
NOT_UPDATABLE = {"account_id", "state", "create_time", "update_time", "revoke_time", "revoke_reason"} | {
    "last_used_time",
    "created_by",
}
NOON = datetime(2027, 1, 1, 12, tzinfo=UTC)
UNARY = [rpc for rpc in every_rpc() if rpc.name not in STREAMS and rpc.name not in APART]


def method_name(rpc_name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", rpc_name.rpartition(".")[2]).lower()


def make_of(rpc: Any) -> Callable[..., Any]:
    """The function that makes this RPC's calls."""
    made: Callable[..., Any] = getattr(MODULES[rpc.name.partition(".")[0]], method_name(rpc.name))
    return made


@pytest.mark.parametrize("dialect", [aio, threads], ids=["aio", "threads"])
@pytest.mark.parametrize("rpc", every_rpc(), ids=lambda rpc: rpc.name)
def test_every_rpc_is_a_method_of_its_client(dialect: ModuleType, rpc: Any) -> None:
    if rpc.name in STREAMS:
        return
    client = getattr(dialect, f"{rpc.name.partition('.')[0]}Client")
    method = getattr(client, APART.get(rpc.name, method_name(rpc.name)))
    assert inspect.iscoroutinefunction(method) is (dialect is aio)
    assert (method.__doc__ or "").strip()


@pytest.mark.parametrize("rpc", UNARY, ids=lambda rpc: rpc.name)
def test_both_dialects_take_the_same_arguments(rpc: Any) -> None:
    service, name = rpc.name.partition(".")[0], method_name(rpc.name)
    methods = [getattr(getattr(dialect, f"{service}Client"), name) for dialect in (aio, threads)]
    first, second = (inspect.signature(method) for method in methods)
    assert first == second
    assert list(first.parameters)[1:] == list(inspect.signature(make_of(rpc)).parameters)


@pytest.mark.parametrize("dialect", ["check", "check_many", "__init__", "call", "close"])
def test_both_dialects_take_the_same_arguments_of_what_each_has_written_itself(dialect: str) -> None:
    first, second = (inspect.signature(getattr(module.AuthorizerClient, dialect)) for module in (aio, threads))
    assert list(first.parameters) == list(second.parameters)


def test_both_dialects_export_the_same_names() -> None:
    assert aio.__all__ == threads.__all__


@pytest.mark.parametrize("rpc", UNARY, ids=lambda rpc: rpc.name)
def test_every_field_of_a_request_can_be_given(rpc: Any) -> None:
    given = set(inspect.signature(make_of(rpc)).parameters) - {"timeout"}
    fields = {field.name for field in rpc.request_type.DESCRIPTOR.fields}
    apart = {**GIVEN_AS, **(OF_UPDATE if rpc.name == "TokenAdmin.UpdateToken" else {})}
    expected = {name for field in fields for name in apart.get(field, {field})}
    if rpc.name == "TokenAdmin.UpdateToken":
        expected -= NOT_UPDATABLE
    assert given == expected


@pytest.mark.parametrize("rpc", UNARY, ids=lambda rpc: rpc.name)
def test_a_call_goes_where_the_contract_says(rpc: Any) -> None:
    made = make_of(rpc)
    samples: dict[str, Any] = {"grants": [on_all_projects("job_admin")], "overlap": timedelta(days=1), "role": 1}
    samples |= {"token_ids": ["t"], "project_id": "p", "secret": "s"}
    arguments = {
        name: samples.get(name, "x")
        for name, parameter in inspect.signature(made).parameters.items()
        if parameter.default is inspect.Parameter.empty
    }
    if rpc.name in {"Authorizer.ExplainCheck", "Authorizer.ListTokensWithPermission"}:
        arguments["project_id"] = "p"
    if rpc.name == "Authorizer.ExplainCheck":
        arguments["secret"] = "s"
    if rpc.name == "TokenAdmin.UpdateToken":
        arguments["display_name"] = "n"
    call = made(**arguments, timeout=1.5)
    assert call.path == rpc.path
    assert type(call.request) is rpc.request_type
    assert call.answer_type is rpc.response_type
    assert call.timeout == 1.5


def stamp(when: datetime) -> timestamp_pb2.Timestamp:
    made = timestamp_pb2.Timestamp()
    made.FromDatetime(when)
    return made


def days(number: int) -> duration_pb2.Duration:
    return duration_pb2.Duration(seconds=number * 86_400)


REQUESTS: list[tuple[Any, Message]] = [
    (
        lambda: _token_admin.issue_token(
            "acme",
            display_name="nightly",
            grants=[on_projects("job_admin", "a", "b"), on_all_projects("metadata_only")],
            description="what for",
            labels={"team": "data"},
            ttl=timedelta(days=90),
            allow_self_rotation=True,
            request_id="r",
        ),
        token_admin_pb2.IssueTokenRequest(
            account_id="acme",
            display_name="nightly",
            grants=[
                types_pb2.Grant(permission_set="job_admin", project_ids=["a", "b"]),
                types_pb2.Grant(permission_set="metadata_only", all_projects=True),
            ],
            description="what for",
            labels={"team": "data"},
            ttl=days(90),
            allow_self_rotation=True,
            request_id="r",
        ),
    ),
    (
        lambda: _token_admin.update_token("t", labels={}, expire_time=None, allow_self_rotation=False, etag="7"),
        token_admin_pb2.UpdateTokenRequest(
            token=types_pb2.ServiceToken(token_id="t", etag="7"),
            update_mask=field_mask_pb2.FieldMask(paths=["labels", "expire_time", "allow_self_rotation"]),
        ),
    ),
    (
        lambda: _token_admin.update_token(
            "t", display_name="n", description="d", grants=[on_all_projects("x")], expire_time=NOON
        ),
        token_admin_pb2.UpdateTokenRequest(
            token=types_pb2.ServiceToken(
                token_id="t",
                display_name="n",
                description="d",
                grants=[types_pb2.Grant(permission_set="x", all_projects=True)],
                expire_time=stamp(NOON),
            ),
            update_mask=field_mask_pb2.FieldMask(paths=["display_name", "description", "grants", "expire_time"]),
        ),
    ),
    (
        lambda: _token_admin.rotate_token("t", overlap=timedelta(0), request_id="r"),
        token_admin_pb2.RotateTokenRequest(token_id="t", overlap=duration_pb2.Duration(), request_id="r"),
    ),
    (
        lambda: _token_admin.list_audit_events(
            start_time=NOON.astimezone(timezone(timedelta(hours=5))),
            kind=token_admin_pb2.AUDIT_EVENT_KIND_REFUSAL,
        ),
        token_admin_pb2.ListAuditEventsRequest(start_time=stamp(NOON), kind=token_admin_pb2.AUDIT_EVENT_KIND_REFUSAL),
    ),
    (
        lambda: _system_admin.create_operator(types_pb2.OPERATOR_ROLE_CALLER, display_name="api", expire_time=NOON),
        system_admin_pb2.CreateOperatorRequest(
            role=types_pb2.OPERATOR_ROLE_CALLER, display_name="api", expire_time=stamp(NOON)
        ),
    ),
    (
        lambda: _authorizer.list_permissions("s", project_id="", at_least_as_fresh="1.2"),
        authorizer_pb2.ListPermissionsRequest(
            secret="s", project_id="", consistency=types_pb2.Consistency(at_least_as_fresh="1.2")
        ),
    ),
    (
        lambda: _authorizer.explain_check("jobs:read", token_id="t", account_id="a", fully_consistent=True),
        authorizer_pb2.ExplainCheckRequest(
            token_id="t",
            permission="jobs:read",
            account_id="a",
            consistency=types_pb2.Consistency(fully_consistent=True),
        ),
    ),
]


@pytest.mark.parametrize(("make", "expected"), REQUESTS, ids=lambda value: getattr(value, "DESCRIPTOR", value) and "")
def test_arguments_are_the_request_that_they_mean(make: Callable[[], Any], expected: Message) -> None:
    assert make().request == expected


@pytest.mark.parametrize(
    "make",
    [
        lambda **more: _token_admin.issue_token("acme", display_name="n", grants=[], **more),
        lambda **more: _token_admin.rotate_token("t", overlap=timedelta(0), **more),
    ],
)
def test_what_makes_a_secret_has_a_random_request_id_of_its_own(make: Callable[..., Any]) -> None:
    first, second = make().request.request_id, make().request.request_id
    assert uuid.UUID(first) != uuid.UUID(second)
    assert make(request_id="mine").request.request_id == "mine"
    assert make(validate_only=True).request.request_id == ""


def test_rotating_oneself_has_one_too() -> None:
    made = _token_admin.rotate_self(overlap=timedelta(hours=1)).request
    assert isinstance(made, token_admin_pb2.RotateSelfRequest)
    assert str(uuid.UUID(made.request_id)) == made.request_id


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        _token_admin.list_tokens("acme", unused_since=datetime(2027, 1, 1))  # noqa: DTZ001 - the mistake


@pytest.mark.parametrize(
    "make",
    [
        lambda: _token_admin.issue_token("a", display_name="n", grants=[], expire_time=NOON, ttl=timedelta(1)),
        lambda: _system_admin.create_operator(
            types_pb2.OPERATOR_ROLE_ADMIN, display_name="n", expire_time=NOON, ttl=timedelta(1)
        ),
        lambda: _token_admin.update_token("t"),
        lambda: _authorizer.explain_check("x:read", secret="s", token_id="t", project_id="p"),
        lambda: _authorizer.explain_check("x:read", project_id="p"),
        lambda: _authorizer.explain_check("x:read", secret="s"),
        lambda: _authorizer.list_tokens_with_permission("x:read", project_id="p", account_id="a"),
        lambda: _authorizer.introspect_token("s", at_least_as_fresh="1.1", fully_consistent=True),
    ],
)
def test_what_protobuf_would_forget_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"give one of them|nothing is given|exactly one"):
        make()


def test_answers_with_a_secret_show_it_only_when_asked() -> None:
    token = types_pb2.ServiceToken(token_id=new_id())
    operator = system_admin_pb2.Operator(operator_id=new_id())
    text = generate(SecretKind.TOKEN, token.token_id).reveal()
    own = generate(SecretKind.OPERATOR, operator.operator_id).reveal()
    records: list[tuple[IssuedToken | RotatedToken | CreatedOperator, str]] = [
        (IssuedToken.of(token_admin_pb2.IssueTokenResponse(token=token, secret=text)), text),
        (RotatedToken.of(token_admin_pb2.RotateTokenResponse(token=token, secret=text)), text),
        (RotatedToken.of(token_admin_pb2.RotateSelfResponse(token=token, secret=text)), text),
        (CreatedOperator.of(system_admin_pb2.CreateOperatorResponse(operator=operator, secret=own)), own),
    ]
    for record, secret in records:
        assert record.secret.reveal() == secret
        assert secret not in f"{record}{record!r}"


def test_the_end_of_the_former_secret_is_a_time_with_a_zone() -> None:
    answer = token_admin_pb2.RotateTokenResponse(former_secret_expire_time=stamp(NOON))
    assert RotatedToken.of(answer).former_secret_expire_time == NOON
    assert RotatedToken.of(token_admin_pb2.RotateTokenResponse()).former_secret_expire_time is None


def test_a_call_does_not_show_its_request() -> None:
    secret = generate(SecretKind.TOKEN, new_id()).reveal()
    assert secret not in repr(_authorizer.introspect_token(secret))
    assert secret not in repr(_token_admin.report_leaked_token(secret))
