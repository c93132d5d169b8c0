"""What is no call of the contract at all: bytes that are no message, unknown methods, streams where none belong.

Each gets a status of ours, never UNKNOWN or INTERNAL, and the server answers afterwards.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from doorward.core.secret import SecretKind, generate, new_id
from doorward.v1.authorizer_pb2 import BatchCheckItem, BatchCheckRequest
from doorward.v1.token_admin_pb2 import IssueTokenRequest
from tests.support.server import bearer
from tests.support.wire import (
    Refusal,
    Rpc,
    an_account,
    ask,
    check,
    code_of,
    every_rpc,
    on_all,
    raw,
    raw_stream,
    refusal_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.support.rows import Rows
    from tests.support.server import ServerProcess, Stubs
    from tests.support.wire import OwnAccount

RPCS = every_rpc()
# What a fault of the server would look like.
FAULTS = {"UNKNOWN", "INTERNAL", "DATA_LOSS", "DEADLINE_EXCEEDED", "UNAVAILABLE", "CANCELLED"}
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))

NO_MESSAGES = {
    "a lone tag": b"\x0a",
    "a tag of nothing": b"\x00",
    "an endless number": b"\x08" + b"\xff" * 11,
    "a text cut off": b"\x0a\x05abc",
    "a text of 4 GB": b"\x0a\xff\xff\xff\xff\x0f",
    "no UTF-8": b"\x0a\x02\xc3\x28",
    "half a surrogate pair": b"\x0a\x03\xed\xa0\x80",
    "a group that never ends": b"\x0b" * 200,
    "the end of a group": b"\x0c",
    "JSON": b'{"account_id": "acme"}',
    "HTTP": b"GET / HTTP/1.1\r\n\r\n",
    "ones": b"\xff" * 100,
}


@pytest.fixture(scope="module")
def probe(stubs: Stubs) -> tuple[OwnAccount, str]:
    """An account and a secret of it, to see that the server answers."""
    account = an_account(stubs, projects=1)
    return account, account.issue(on_all("job_admin")).secret


@pytest.fixture(autouse=True)
def _the_server_answers_afterwards(stubs: Stubs, probe: tuple[OwnAccount, str]) -> Iterator[None]:
    yield
    account, secret = probe
    assert check(stubs, secret, "jobs:write", project_id=account.project_ids[0]).allowed
    assert account.token_ids()


def status_of(channel: grpc.Channel, rpc: Rpc, request: bytes, metadata: Any) -> Refusal | None:
    """The status that raw bytes get; None: OK."""
    try:
        if rpc.is_stream:
            list(raw_stream(channel, rpc.path)(iter([request]), metadata=metadata, timeout=20))
        else:
            raw(channel, rpc.path)(request, metadata=metadata, timeout=20)
    except grpc.RpcError as error:
        return refusal_of(error)
    return None


@pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.name)
def test_bytes_that_are_no_message_get_a_status(stubs: Stubs, rows: Rows, rpc: Rpc) -> None:
    metadata = stubs.admin
    if rpc.name.endswith("Self"):
        metadata = bearer(an_account(stubs, projects=0).issue(on_all("member"), allow_self_rotation=True).secret)
    before = rows.footprint()

    found = {kind: status_of(stubs.channel, rpc, sent, metadata) for kind, sent in NO_MESSAGES.items()}

    for kind, refusal in found.items():
        if refusal is not None:
            assert refusal.code == "INVALID_ARGUMENT", kind
            assert refusal.reason in {"MALFORMED_MESSAGE", "INVALID_FIELDS"}, kind
    for kind in ("a lone tag", "a tag of nothing", "an endless number", "a text of 4 GB", "the end of a group"):
        told = found[kind]
        assert told is not None
        assert (told.code, told.reason, told.metadata) == ("INVALID_ARGUMENT", "MALFORMED_MESSAGE", {}), kind
    assert rows.footprint() == before


@pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.name)
def test_nobody_learns_anything_of_bytes_without_a_credential(stubs: Stubs, rpc: Rpc) -> None:
    codes = {
        refusal.code if (refusal := status_of(stubs.channel, rpc, sent, ())) else "OK"
        for sent in (b"", b"\xff" * 10, b"\x0a\x05abc")
    }

    assert codes == ({"INVALID_ARGUMENT"} if rpc.name == "TokenAdmin.ReportLeakedToken" else {"UNAUTHENTICATED"})


@FUZZ
@given(data=st.data())
def test_random_bytes_get_a_status(stubs: Stubs, data: st.DataObject) -> None:
    rpc = data.draw(st.sampled_from(RPCS))
    sent = data.draw(st.binary(max_size=300))
    metadata = data.draw(st.sampled_from([stubs.admin, stubs.caller, ()]))

    refusal = status_of(stubs.channel, rpc, sent, metadata)

    assert refusal is None or refusal.code not in FAULTS


@FUZZ
@given(data=st.data())
def test_a_request_with_some_bytes_changed_gets_a_status(
    stubs: Stubs, probe: tuple[OwnAccount, str], data: st.DataObject
) -> None:
    account, secret = probe
    request: Any = account.wanted(on_all("member"), description="what for", labels={"a": "b"}, validate_only=True)
    rpc = next(rpc for rpc in RPCS if rpc.request_type is IssueTokenRequest)
    if data.draw(st.booleans()):
        rpc = next(rpc for rpc in RPCS if rpc.name == "Authorizer.BatchCheck")
        item = BatchCheckItem(permission="jobs:read", project_id=account.project_ids[0])
        request = BatchCheckRequest(secret=secret, items=[item, item])
    sent = bytearray(request.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        sent[data.draw(st.integers(0, len(sent) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(len(sent) // 2, len(sent)))

    refusal = status_of(stubs.channel, rpc, bytes(sent[:cut]), stubs.admin)

    assert refusal is None or refusal.code not in FAULTS


# Page tokens, revisions and texts of any kind, where a request takes a text.
@FUZZ
@given(data=st.data())
def test_any_text_in_any_field_gets_a_status(stubs: Stubs, data: st.DataObject) -> None:
    rpc = data.draw(st.sampled_from(RPCS))
    # A text of any kind, or one that fits.
    texts = st.one_of(st.text(max_size=80), st.sampled_from(["", "acme", "team", "member", "1.1", "jobs:read"]))
    request = rpc.request_type()
    for field in rpc.request_type.DESCRIPTOR.fields:
        if field.type == field.TYPE_STRING and not field.is_repeated and data.draw(st.booleans()):
            setattr(request, field.name, data.draw(texts))
    if hasattr(request, "validate_only"):
        request.validate_only = True

    refusal = status_of(stubs.channel, rpc, request.SerializeToString(), stubs.admin)

    assert refusal is None or refusal.code not in FAULTS


def test_a_message_beyond_4_mib_is_refused(stubs: Stubs) -> None:
    request = IssueTokenRequest(description="x" * (4 * 1024 * 1024)).SerializeToString()

    with pytest.raises(grpc.RpcError) as caught:
        raw(stubs.channel, "/doorward.v1.TokenAdmin/IssueToken")(request, metadata=stubs.admin, timeout=20)

    # A limit of grpc's own.
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_message_just_below_4_mib_is_looked_at(stubs: Stubs, probe: tuple[OwnAccount, str]) -> None:
    request = probe[0].wanted(on_all("member"), description="x" * (4 * 1024 * 1024 - 200))

    refusal = status_of(
        stubs.channel,
        next(rpc for rpc in RPCS if rpc.name == "TokenAdmin.IssueToken"),
        request.SerializeToString(),
        stubs.admin,
    )

    assert refusal is not None
    assert refusal.bad_fields == [("description", "FIELD_TOO_LONG")]


# ---- unknown methods

PATHS = [
    "/",
    "//",
    "/Check",
    "/doorward.v1.Authorizer",
    "/doorward.v1.Authorizer/",
    "/doorward.v1.Authorizer/Nothing",
    "/doorward.v1.Authorizer/check",
    "/doorward.v1.Authorizer/Check/",
    "/doorward.v1.Authorizer/Check?x=1",
    "/doorward.v2.Authorizer/Check",
    "/doorward.v1.Nothing/Check",
    "/Authorizer/Check",
    "/grpc.health.v1.Health/Nothing",
    "/grpc.health.v2.Health/Check",
    "/a b/c d",
    "/" + "x" * 4000,
]


@pytest.mark.parametrize("credential", ["admin", "nobody"])
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path[:40])
def test_an_unknown_method_is_unimplemented(stubs: Stubs, path: str, credential: str) -> None:
    metadata = stubs.admin if credential == "admin" else ()

    with pytest.raises(grpc.RpcError) as caught:
        raw(stubs.channel, path)(b"\x0a\x05abc", metadata=metadata, timeout=20)

    refusal = refusal_of(caught.value)
    assert (refusal.code, refusal.reason, refusal.domain) == ("UNIMPLEMENTED", "METHOD_UNKNOWN", "doorward")
    assert refusal.metadata == {"method": path[:200]}
    assert len(refusal.message) < 300


@pytest.mark.parametrize("kind", SecretKind)
def test_a_secret_in_a_path_is_not_repeated(stubs: Stubs, kind: SecretKind) -> None:
    secret = generate(kind, new_id()).reveal()

    with pytest.raises(grpc.RpcError) as caught:
        raw(stubs.channel, f"/doorward.v1.Authorizer/{secret}")(b"", timeout=20)

    refusal = refusal_of(caught.value)
    assert refusal.reason == "METHOD_UNKNOWN"
    assert secret[22:] not in refusal.text


# ---- streams


def streamed(stubs: Stubs, path: str, messages: Sequence[bytes], metadata: Any) -> str:
    """The code of a call that sends these messages and takes whatever comes."""
    try:
        list(raw_stream(stubs.channel, path)(iter(messages), metadata=metadata, timeout=20))
    except grpc.RpcError as error:
        return refusal_of(error).code
    return "OK"


@pytest.mark.parametrize("count", [1, 2, 50])
@pytest.mark.parametrize("rpc", [rpc for rpc in RPCS if not rpc.is_stream], ids=lambda rpc: rpc.name)
def test_a_stream_to_a_method_of_single_messages_gets_a_status(stubs: Stubs, rpc: Rpc, count: int) -> None:
    assert streamed(stubs, rpc.path, [b"\x0a\x05abc"] * count, stubs.caller) in {
        "INVALID_ARGUMENT",
        "PERMISSION_DENIED",
    }


@pytest.mark.parametrize("rpc", [rpc for rpc in RPCS if rpc.is_stream], ids=lambda rpc: rpc.name)
def test_a_stream_of_bytes_that_are_no_message_is_refused_however_it_is_called(stubs: Stubs, rpc: Rpc) -> None:
    single, without_any, *others = called_in_every_way(stubs, rpc)

    assert without_any in {"OK", "INVALID_ARGUMENT"}
    assert [single, *others] == ["INVALID_ARGUMENT"] * 3


def called_in_every_way(stubs: Stubs, rpc: Rpc) -> list[str]:
    """The codes of a call with one message, and of streams with none, one and many."""

    def single() -> str:
        return code_of(lambda: raw(stubs.channel, rpc.path)(b"\xff", metadata=stubs.caller, timeout=20))

    return [single(), *(streamed(stubs, rpc.path, [b"\xff"] * count, stubs.caller) for count in (0, 1, 50))]


def test_a_call_that_never_says_anything_ends_at_its_own_deadline(stubs: Stubs) -> None:
    """A limit of grpcio: it starts no handler for a unary call without a message. It must cost nobody else anything."""
    calls: list[Any] = [
        stubs.channel.stream_unary("/doorward.v1.TokenAdmin/GetToken").future(iter(()), metadata=stubs.admin, timeout=1)
        for _ in range(20)
    ]

    codes = set()
    for call in calls:
        with pytest.raises(grpc.RpcError) as caught:
            call.result()
        codes.add(caught.value.code())

    assert codes == {grpc.StatusCode.DEADLINE_EXCEEDED}


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00" * 1000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
        b"",
    ],
    ids=["HTTP/1.1", "TLS", "zeros", "broken HTTP/2", "nothing"],
)
def test_a_connection_that_speaks_something_else_hurts_nobody(stubs: Stubs, server: ServerProcess, sent: bytes) -> None:
    host, _, port = server.address.rpartition(":")

    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass

    assert server.process.poll() is None
    assert ask(stubs.tokens.IssueToken, an_account(stubs, projects=0).wanted(on_all("member")), stubs.admin).secret
